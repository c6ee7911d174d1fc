"""Back-off and the crash-loop breaker, as laws over any history of exits."""

from hypothesis import given
from hypothesis import strategies as st

from stokehold.supervisor.restarts import FIRST_DELAY_S, LONGEST_DELAY_S, LOOP_EXITS, SIGKILL, Exit, Restarts


def history(exits: list[Exit]) -> Restarts:
    found = Restarts()
    for ended in exits:
        found = found.after(ended)
    return found


def every(seconds: float, codes: list[int], lived_s: float = 0.05, for_memory: bool = False) -> list[Exit]:
    return [Exit(code, index * seconds, lived_s, for_memory) for index, code in enumerate(codes)]


def test_the_delay_doubles_to_two_seconds_and_is_forgotten_after_a_minute_of_health() -> None:
    delays = [history(every(1.0, [1] * n)).delay_s for n in range(1, 8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    healthy = [*every(1.0, [1] * 6), Exit(1, 100.0, 60.0)]
    assert history(healthy).delay_s == FIRST_DELAY_S


def test_ten_equal_exits_within_two_minutes_are_a_loop_and_nine_are_not() -> None:
    assert history(every(13.0, [1] * 10)).looping
    assert not history(every(13.0, [1] * 9)).looping
    assert not history(every(13.4, [1] * 10)).looping
    assert not history(every(1.0, [1] * 5 + [2] * 5)).looping


def test_kills_by_hand_are_no_loop_but_kills_for_memory_are() -> None:
    assert not history(every(1.0, [SIGKILL] * 40)).looping
    assert history(every(1.0, [SIGKILL] * 10, for_memory=True)).looping


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from([0, 1, -9, -11]), st.floats(0, 200)), max_size=40))
def test_any_history_stays_within_bounds(gaps: list[tuple[float, int, float]]) -> None:
    now, found = 0.0, Restarts()
    for gap_s, code, lived_s in gaps:
        now += gap_s
        found = found.after(Exit(code, now, lived_s))
        assert FIRST_DELAY_S <= found.delay_s <= LONGEST_DELAY_S
        assert all(now - e.at_s <= 120 for e in found.exits)
        counted = [e for e in found.exits if e.counts]
        assert found.looping == (len(counted) >= LOOP_EXITS and len({e.code for e in counted[-LOOP_EXITS:]}) == 1)
