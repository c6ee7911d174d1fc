"""Which versions and snapshots stay: a pure function of what there is and what time it is.

What somebody needs stays (latest, best, champion, the one before it, pinned, parents in use), and so does everything of
today and yesterday. Older ones are thinned: the best of each day for two weeks, of each week for three months, of each
month after that. Where `keep_bytes` is set, the oldest of what is left goes until the rest fits. Applying it to its own
result removes nothing more.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

DAILY_DAYS = 14
WEEKLY_DAYS = 91
WHOLE_DAYS = 2
"""Today and yesterday."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Something that retention decides on.

    `created` is ISO 8601; `parts` are its contents by hash, with their bytes, so that what two of them share is counted
    once; `exact` is the share of held-out items it got right, None where it was not judged.
    """

    name: str
    created: str
    parts: Mapping[str, int] = field(default_factory=dict)
    exact: float | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether it stays, and why."""

    name: str
    keep: bool
    why: str


def rule(
    holdings: Iterable[Holding],
    held: Mapping[str, str],
    unsafe: Mapping[str, str],
    now: datetime,
    keep_bytes: int = 0,
) -> list[Ruling]:
    """One ruling for each holding, in order of age.

    `held` maps a name to why somebody needs it, `unsafe` to why no rule may remove it (in no snapshot, damaged); days
    are those of `now`'s time zone. `keep_bytes` bounds what stays in all, 0 for no bound; what has to stay may exceed
    it.
    """
    ordered = sorted(holdings, key=lambda one: (_when(one, now), one.name))
    why = {one.name: held[one.name] for one in ordered if one.name in held}
    why |= {one.name: word for one in ordered if one.name not in why and (word := _recent(one, now))}
    stays = why | {name: reason for name, reason in _representatives(ordered, now).items() if name not in why}
    over = _beyond(ordered, stays, set(why), unsafe, keep_bytes) if keep_bytes else {}
    return [_ruling(one, stays, over, unsafe, now) for one in ordered]


def _ruling(
    one: Holding, stays: Mapping[str, str], over: Mapping[str, str], unsafe: Mapping[str, str], now: datetime
) -> Ruling:
    if one.name in stays and one.name not in over:
        return Ruling(one.name, True, stays[one.name])
    why = over.get(one.name) or f"a better one of the same {_bucket(one, now)[0]} stays"
    if one.name in unsafe:
        return Ruling(one.name, True, f"{unsafe[one.name]}; otherwise it would go: {why}")
    return Ruling(one.name, False, why)


def _representatives(ordered: Sequence[Holding], now: datetime) -> dict[str, str]:
    """The best of each day, week or month, the newest of equals, with the reason."""
    best: dict[tuple[str, str], Holding] = {}
    for one in ordered:
        bucket = _bucket(one, now)
        if bucket not in best or _rank(one) >= _rank(best[bucket]):
            best[bucket] = one
    return {one.name: f"the best of {'its' if kind == 'day' else 'that'} {kind}" for (kind, _), one in best.items()}


def _beyond(
    ordered: Sequence[Holding],
    stays: Mapping[str, str],
    needed: set[str],
    unsafe: Mapping[str, str],
    keep_bytes: int,
) -> dict[str, str]:
    """What goes so that the rest fits, oldest first."""
    staying = [one for one in ordered if one.name in stays or one.name in unsafe]
    gone: dict[str, str] = {}
    for one in [one for one in staying if one.name not in needed and one.name not in unsafe]:
        if _bytes(other for other in staying if other.name not in gone) <= keep_bytes:
            break
        gone[one.name] = f"more than {keep_bytes} bytes in all, and it is the oldest that may go"
    return gone


def _bytes(holdings: Iterable[Holding]) -> int:
    parts: dict[str, int] = {}
    for one in holdings:
        parts |= one.parts
    return sum(parts.values())


def _rank(one: Holding) -> tuple[bool, float]:
    return one.exact is not None, one.exact or 0.0


def _recent(one: Holding, now: datetime) -> str | None:
    days = _age_days(one, now)
    return None if days >= WHOLE_DAYS else ("of today" if days < 1 else "of yesterday")


def _bucket(one: Holding, now: datetime) -> tuple[str, str]:
    """The kind of period it competes in, and which one."""
    day, age_days = _when(one, now).date(), _age_days(one, now)
    if age_days < DAILY_DAYS:
        return "day", day.isoformat()
    year, week, _ = day.isocalendar()
    return ("week", f"{year}-{week:02}") if age_days < WEEKLY_DAYS else ("month", f"{day:%Y-%m}")


def _age_days(one: Holding, now: datetime) -> int:
    """Whole days between the calendar days; what was made in the future is of today."""
    return max(0, (now.date() - _when(one, now).date()).days)


def _when(one: Holding, now: datetime) -> datetime:
    return datetime.fromisoformat(one.created).astimezone(now.tzinfo)


def older_than(now: datetime, days: int) -> Callable[[str], bool]:
    """Whether an ISO 8601 time lies more than `days` before `now`."""
    bound = now - timedelta(days=days)
    return lambda created: datetime.fromisoformat(created) < bound
