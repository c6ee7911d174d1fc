"""The retention policy as laws: what has to stay stays, what is asked for is kept, and twice is once."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from stokehold.store.housekeeping.policy import DAILY_DAYS, WEEKLY_DAYS, Holding, Ruling, rule

NOW = datetime(2026, 11, 21, 15, 30, tzinfo=UTC)
PARTS = st.dictionaries(st.sampled_from("abcdefgh"), st.just(10), min_size=1, max_size=3)


@st.composite
def homes(draw: st.DrawFn) -> tuple[list[Holding], dict[str, str], dict[str, str], int]:
    ages_h = draw(st.lists(st.integers(0, 24 * 400), max_size=30))
    holdings = [
        Holding(f"v{n:04}", (NOW - timedelta(hours=age)).isoformat(), draw(PARTS), draw(st.none() | st.floats(0, 1)))
        for n, age in enumerate(ages_h)
    ]
    names = [one.name for one in holdings]
    some = st.lists(st.sampled_from(names), max_size=3, unique=True) if names else st.just([])
    held, unsafe = dict.fromkeys(draw(some), "the champion"), dict.fromkeys(draw(some), "in no snapshot")
    return holdings, held, unsafe, draw(st.sampled_from([0, 1, 30, 60]))


def kept(rulings: list[Ruling]) -> set[str]:
    return {one.name for one in rulings if one.keep}


def days_old(one: Holding) -> int:
    return (NOW.date() - datetime.fromisoformat(one.created).date()).days


@given(homes())
def test_what_has_to_stay_stays(home: tuple[list[Holding], dict[str, str], dict[str, str], int]) -> None:
    holdings, held, unsafe, keep_bytes = home
    stays = kept(rule(holdings, held, unsafe, NOW, keep_bytes))
    assert stays >= held.keys() | unsafe.keys()
    assert stays >= {one.name for one in holdings if days_old(one) < 2}


@given(homes())
def test_applying_it_again_removes_nothing_more(
    home: tuple[list[Holding], dict[str, str], dict[str, str], int],
) -> None:
    holdings, held, unsafe, keep_bytes = home
    stays = kept(rule(holdings, held, unsafe, NOW, keep_bytes))
    left = [one for one in holdings if one.name in stays]
    assert kept(rule(left, held, unsafe, NOW, keep_bytes)) == stays


@given(homes())
def test_each_day_week_and_month_keeps_its_best(
    home: tuple[list[Holding], dict[str, str], dict[str, str], int],
) -> None:
    holdings, held, unsafe, _ = home
    stays = kept(rule(holdings, held, unsafe, NOW))
    periods: dict[tuple[object, ...], list[Holding]] = defaultdict(list)
    for one in holdings:
        day = datetime.fromisoformat(one.created).date()
        age = days_old(one)
        week, month = (day.isocalendar()[:2], (day.year, day.month))
        periods[(day,) if age < DAILY_DAYS else ("w", *week) if age < WEEKLY_DAYS else ("m", *month)].append(one)
    for found in periods.values():
        best = max(-1.0 if one.exact is None else one.exact for one in found)
        assert any(one.name in stays and (one.exact if one.exact is not None else -1.0) == best for one in found)


@given(homes())
def test_a_bound_on_bytes_is_kept_or_nothing_more_may_go(
    home: tuple[list[Holding], dict[str, str], dict[str, str], int],
) -> None:
    holdings, held, unsafe, keep_bytes = home
    stays = kept(rule(holdings, held, unsafe, NOW, keep_bytes))
    parts = {part: size for one in holdings if one.name in stays for part, size in one.parts.items()}
    may_go = [
        one.name
        for one in holdings
        if one.name in stays and one.name not in held and one.name not in unsafe and days_old(one) >= 2
    ]
    assert not keep_bytes or sum(parts.values()) <= keep_bytes or not may_go


def test_a_year_of_a_version_an_hour_is_two_days_whole_and_thirty_others() -> None:
    holdings = [Holding(f"v{n}", (NOW - timedelta(hours=n)).isoformat()) for n in range(24 * 365)]
    rulings = rule(holdings, {}, {}, NOW)
    stays = [one for one in rulings if one.keep]
    assert sum(one.why in ("of today", "of yesterday") for one in stays) == 16 + 24
    assert len(stays) == 16 + 24 + 12 + 12 + 10
    assert {one.why for one in rulings if not one.keep} == {
        f"a better one of the same {kind} stays" for kind in ("day", "week", "month")
    }


def test_days_are_those_of_the_machine() -> None:
    late = datetime(2026, 11, 21, 0, 30, tzinfo=datetime.fromisoformat("2026-01-01T00:00:00+05:00").tzinfo)
    before_midnight = Holding("v1", "2026-11-20T18:00:00+00:00")  # 23:00 of yesterday there
    (ruling,) = rule([before_midnight], {}, {}, late)
    assert ruling.why == "of yesterday"
