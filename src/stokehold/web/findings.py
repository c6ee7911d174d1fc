"""The eight readings of an evaluation as the page shows them: a name, a state and one line each.

Two are the run itself, told by its record; six were kept beside it when it was made. What is not known is None.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stokehold.core.errors import IntegrityError
from stokehold.core.records import Evaluation, SuiteResult, SuiteState
from stokehold.core.shares import percent
from stokehold.store.home import Home
from stokehold.store.judged.items import read_readings

UNKNOWN = "–"
HASH_CHARS = 12

Reading = Mapping[str, Any]


class Finding(NamedTuple):
    """One reading: `state` is ok, no_data or broken; the line is its result, or why there is none."""

    name: str
    state: str | None
    line: str | None


def findings(home: Home, evaluation: Evaluation) -> list[Finding]:
    """The eight, in the order they are made; those that were not kept have neither state nor line."""
    try:
        kept, fault = read_readings(home, evaluation.id) or {}, None
    except IntegrityError as error:
        kept, fault = {}, str(error)
    six = [Finding(name, "broken", fault) if fault else _of(name, kept.get(name)) for name in LINES]
    return [_sync(evaluation), _tests(evaluation), *six]


def _of(name: str, reading: Reading | None) -> Finding:
    if reading is None:
        return Finding(name, None, None)
    try:
        if reading["state"] != SuiteState.OK:
            return Finding(name, reading["state"], reading["reason"])
        return Finding(name, reading["state"], LINES[name](reading))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # whatever the file holds, the page stays up
        return Finding(name, "broken", f"it cannot be shown: {type(error).__name__}: {error} · see `stoke readings`")


def _sync(evaluation: Evaluation) -> Finding:
    weights = evaluation.weights_hash[:HASH_CHARS]
    line = f"{evaluation.ref}, weights {weights}, judged in {evaluation.seconds:,.1f} s"
    return Finding("checkpoint_sync", SuiteState.OK.value, line)


def _tests(evaluation: Evaluation) -> Finding:
    results = [evaluation.suites[name] for name in sorted(evaluation.suites)]
    states = {result.state for result in results}
    worst = next((state for state in (SuiteState.BROKEN, SuiteState.NO_DATA) if state in states), SuiteState.OK)
    state = worst if results else SuiteState.NO_DATA
    return Finding("fixed_tests", state.value, ", ".join(map(_suite, results)) or "no suite")


def _suite(result: SuiteResult) -> str:
    if result.state is not SuiteState.OK:
        return f"{result.suite} {result.state.value}" + (f" ({result.reason})" if result.reason else "")
    return f"{result.suite} {_share(result.exact)} of {result.n:,}"


def _curriculum(reading: Reading) -> str:
    scored = [kind for kind in reading["kinds"] if kind["exact"] is not None]
    weakest = min(scored, key=lambda kind: kind["exact"], default=None)
    told = UNKNOWN if weakest is None else f"{_kind(weakest)}, {_share(weakest['exact'])} of {weakest['n']:,}"
    mix = sorted(reading["mix"].items(), key=lambda part: -part[1])
    following = ", ".join(f"level {level} ({100 * share:.0f} %)" for level, share in mix[:2] if share)
    return f"weakest: {told}" + (f"; next: {following}" if following else "")


def _mining(reading: Reading) -> str:
    told = f"{reading['wrong']:,} wrong"
    if reading["threshold"]:
        told += f", {reading['unsure']:,} right but unsure"
    most = max(reading["kinds"], key=lambda kind: kind["items"], default=None)
    return told if most is None else f"{told}; most: {_kind(most)} ({most['items']:,})"


def _regression(reading: Reading) -> str:
    told = [
        f"{', '.join(one['parts'])}: +{one['gained']:,} −{one['lost']:,}, {one['comparison']['verdict']}"
        for one in reading["against"]
    ]
    forgetting, unstable = reading["forgetting"]["score"], reading["unstable"]["count"]
    return "; ".join([*told, f"forgetting {_number(forgetting)}", f"{unstable:,} unstable"])


def _comparison(reading: Reading) -> str:
    places = reading["places"]
    mine = next((place for place in places if place["name"] == reading["present"]), None)
    if mine is None:
        return "shares no item with the others"
    ends = "–".join(map(str, dict.fromkeys(mine["rank_ci"])))
    return f"rank {mine['rank']} of {len(places)} (95 %: {ends}) on {reading['items']:,} items"


def _calibration(reading: Reading) -> str:
    pooled = reading["pooled"]
    said = f"says {_share(pooled['confidence'])}, right {_share(pooled['accuracy'])}"
    return f"{said}; ECE {_number(pooled['ece'])} on {pooled['n']:,} items"


def _correction(reading: Reading) -> str:
    counts = Counter(pattern["verdict"] or "new" for pattern in reading["patterns"])
    if not counts:
        return "no answer was wrong"
    total = sum(counts.values())
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    return f"{total} error pattern{'' if total == 1 else 's'}: {told}"


LINES: Mapping[str, Callable[[Reading], str]] = {
    "curriculum": _curriculum,
    "mining": _mining,
    "regression": _regression,
    "comparison": _comparison,
    "calibration": _calibration,
    "correction": _correction,
}


def _kind(kind: Mapping[str, Any]) -> str:
    level = "without a level" if kind["level"] is None else f"level {kind['level']}"
    return f"{kind['family'] or 'own'} {level}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else percent(value)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}".replace("-", "−")
