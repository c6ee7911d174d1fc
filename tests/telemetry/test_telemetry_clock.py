"""Sleep and clocks that are set, from readings handed in: no test waits or touches a clock."""

from hypothesis import given
from hypothesis import strategies as st

from stokehold.telemetry.clock import NOTICED_S, Change, Clocks, Stamp, boot_s, change, duration, look, stamp

BEFORE = Clocks(monotonic_s=100.0, boot_s=5_000.0, wall_s=1_800_000_000.0)
SPAN = st.floats(0, 1e7, allow_nan=False)


def after(passed_s: float, slept_s: float = 0.0, set_s: float = 0.0) -> Clocks:
    return Clocks(
        BEFORE.monotonic_s + passed_s, BEFORE.boot_s + passed_s + slept_s, BEFORE.wall_s + passed_s + slept_s + set_s
    )


def test_an_ordinary_round_is_nothing() -> None:
    assert change(BEFORE, after(0.5)) is None
    assert change(BEFORE, after(3600.0, set_s=0.5)) is None, "a time server nudged the clock"


def test_sleep_and_setting_are_told_apart() -> None:
    slept, ahead, back = after(0.5, slept_s=7800.0), after(0.5, set_s=90.0), after(0.5, set_s=-86_400.0)
    assert [found.words for found in (change(BEFORE, slept), change(BEFORE, ahead), change(BEFORE, back)) if found] == [
        "the machine slept for 2 h 10 min",
        "the clock was set forward by 1 min 30 s",
        "the clock was set back by 1 day",
    ]
    both = change(BEFORE, after(0.5, slept_s=3600.0, set_s=-5.0))
    assert both is not None
    assert both.words == "the machine slept for 1 h, and the clock was set back by 5 s"


@given(SPAN, SPAN, st.floats(-1e7, 1e7, allow_nan=False))
def test_what_happened_is_found_whatever_time_passed(passed_s: float, slept_s: float, set_s: float) -> None:
    found = change(BEFORE, after(passed_s, slept_s, set_s)) or Change(0.0, 0.0)
    for given_s, told_s in ((slept_s, found.slept_s), (set_s, found.set_s)):
        assert abs(told_s - given_s) < 1e-3 or (told_s == 0.0 and abs(given_s) < NOTICED_S + 1e-3)


def test_ages_count_sleep_and_not_what_the_clock_was_set_to() -> None:
    assert Stamp("a", 100.0).age_s(Stamp("a", 160.0)) == 60.0
    assert Stamp("a", 100.0).age_s(Stamp("b", 160.0)) is None, "the machine was started again in between"
    assert Stamp("a", 160.0).age_s(Stamp("a", 100.0)) == 0.0


def test_the_clocks_of_this_machine_run_forward() -> None:
    first, second = look(), look()
    assert second.monotonic_s >= first.monotonic_s
    assert second.boot_s >= first.boot_s
    assert stamp().boot == stamp().boot
    assert stamp().boot_s <= boot_s()


def test_durations_in_words() -> None:
    told = [duration(s) for s in (0.2, 7, 60, 65, 3600, 7800, 86_400, 86_400 + 59, 3 * 86_400 + 7200)]
    assert told == ["0 s", "7 s", "1 min", "1 min 5 s", "1 h", "2 h 10 min", "1 day", "1 day", "3 days 2 h"]
