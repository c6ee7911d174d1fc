"""What a family must pass before it may train or gate: right answers 1, everything else 0, no exception, no chance."""

from collections.abc import Iterator

from stokehold.core.identity import is_holdout
from stokehold.core.records import Message, Sample, Score
from stokehold.tasks.family import LEVELS, Family
from stokehold.tasks.registry import get_family, row

SEED = 2_000_003

PROBLEMS = 4
"""Problems of each level that are tried."""

DEEP = "[" * 100_000 + "]" * 100_000

WRONG_ANSWERS = {
    "empty": ("", " ", "\n\t"),
    "garbage": (
        "garbage",
        "I do not know.",
        "{",
        "]",
        '{"solutions":',
        "\x00\ud800",
        "٣",
        "1e999",
        DEEP,
        DEEP[:100_000],
    ),
    "wrong type": ("null", "true", "NaN", "-Infinity", '""', "[]", "{}", "[[]]", '{"a":[{}]}', "0.1", "9" * 5000),
    "wrong inside": (
        '{"solutions":null}',
        '{"solutions":[null,1,"a",[],{}],"inventory_check":[]}',
        '{"solutions":[{"ans_num":true,"syllables":"x","answer":1}],"inventory_check":{"used":[]}}',
        '{"valid":1}',
        '{"valid":false,"model":[[[]]]}',
        '{"valid":false,"model":{"a":NaN}}',
        "[null,{},[],1e400]",
    ),
}
"""Answers that are right for no problem of any family."""


def self_test(family: Family | str) -> list[str]:
    """Faults of a family, one sentence each; empty where it may train and gate."""
    chosen = get_family(family) if isinstance(family, str) else family
    return [fault for level in LEVELS for index in range(PROBLEMS) for fault in _faults(chosen, index, level)]


def _faults(family: Family, index: int, level: int) -> Iterator[str]:
    place = f"{family.name} level {level} index {index}"
    try:
        sample, again = (family.generate(SEED, index, level) for _ in range(2))
        if row(sample) != row(again) or sample.id != again.id:
            yield f"{place}: generation is not deterministic"
        split = "holdout" if is_holdout(family.identity(sample)) else "train"
        if sample.metadata.get("split") != split:
            yield f"{place}: split {sample.metadata.get('split')!r}, by its identity {split}"
    except Exception as error:  # noqa: BLE001 - stored as a fault and reported
        yield f"{place}: generation raised {error!r}"
        return
    yield from _judged(family, sample, "gold", sample.gold, 1.0, place)
    for kind, answers in WRONG_ANSWERS.items():
        for answer in answers:
            yield from _judged(family, sample, kind, answer, 0.0, place)
    yield from _judged(family, sample, "a prompt given back", _prompt(sample.question), 0.0, place)


def _judged(family: Family, sample: Sample, kind: str, answer: str, wanted: float, place: str) -> Iterator[str]:
    try:
        score: Score = family.verify(sample, answer)
        again = family.verify(sample, answer)
    except Exception as error:  # noqa: BLE001 - stored as a fault and reported
        yield f"{place}: verifying {kind} {answer[:40]!r} raised {error!r:.200}"
        return
    if score.value != wanted:
        yield f"{place}: {kind} {answer[:40]!r} scored {score.value}, not {wanted}"
    if score != again:
        yield f"{place}: {kind} {answer[:40]!r} scored differently the second time"


def _prompt(turns: tuple[Message, ...]) -> str:
    return "\n".join(turn.content for turn in turns)
