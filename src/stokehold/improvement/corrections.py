"""Rows that teach what an error looks like: "is this correct?", "find the correct solution", and a fresh sibling.

Every row is about a problem of its own from the train split, so that no row of a file gives away what another asks,
whichever of them ingest holds out. What an answer is called was told by the family's verifier before it is written; an
answer that is right by accident, or in its value though not in its form, is called neither.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from stokehold.core.identity import is_holdout, short_id
from stokehold.core.records import Message, Sample
from stokehold.improvement.supply import Supply
from stokehold.tasks.answers import compact, read_json
from stokehold.tasks.registry import FAMILIES, identity_of, verify_answer

INCORRECT, CORRECT = "It is incorrect.", "It is correct."
JUDGE = "{question}\n\nAnswer given: {answer}\n\nIs this correct?"
FIND = "{question}\n\nAnswer given: {answer}\n\nThis answer is incorrect. Find the correct solution."

MADE_AS = "correction"
"""Key of the metadata that names the row's form."""

FORMS = ("judge_wrong", "judge_right", "find", "sibling")
"""Rows of one round: as many right answers as wrong ones are to be judged, or the model would learn to say no."""

TRIES = 20
"""Corruptions tried on one problem before it is passed over."""

LONGEST_GOLDS, LONGEST_CHARS = 2, 200
"""Longest answer of the model's own that is shown to it again: so many gold answers and characters more."""

TRUNCATED = 0.6
"""Share of its characters that is left of an answer that was cut short."""

Pattern = tuple[str | None, int | str | None, str]
"""Family, level and kind of error, as the evaluation names them."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer that the model itself gave to a problem it was trained on."""

    sample: Sample
    answer: str


def corrections(
    patterns: Sequence[tuple[Pattern, int]],
    mistakes: Sequence[Mistake],
    levels: Sequence[int],
    count: int,
    supply: Supply,
    seed: int,
) -> list[Sample]:
    """At most `count` rows in whole rounds of `FORMS`, shared among the patterns (with how often each was seen).

    Only patterns of a task family at `levels` have problems to draw. A wrong answer is one of `mistakes` of the same
    family and level while there are any, else the gold answer corrupted in the way of the pattern.
    """
    random_ = random.Random(f"corrections:{seed}")
    known = [(pattern, seen) for pattern, seen in patterns if pattern[0] in FAMILIES and pattern[1] in levels]
    rounds = count // len(FORMS)
    own = _by_kind(mistakes)
    found: list[Sample] = []
    for pattern in islice(_in_turn(known), rounds):
        found += _round(pattern, own.get((str(pattern[0]), int(pattern[1] or 0)), []), supply, random_)
    return found


def is_wrong(sample: Sample, answer: str) -> bool:
    """Whether the verifier gives the answer nothing, and fails a part of it as well where it looks at parts."""
    found = verify_answer(sample, answer)
    return found.value == 0.0 and (not found.parts or min(found.parts.values()) < 1.0)


def corrupted(sample: Sample, kind: str, source: random.Random) -> str | None:
    """The gold answer made wrong in the way of an error of this kind; None where no try was wrong."""
    for attempt in range(TRIES):
        # What an error of this kind spoils may not count here: then any value will do.
        change = CORRUPTIONS.get(kind, _another_value) if attempt < TRIES // 2 else _another_value
        answer = change(sample.gold, source)
        if answer is not None and is_wrong(sample, answer):
            return answer
    return None


def _in_turn(known: Sequence[tuple[Pattern, int]]) -> Iterator[Pattern]:
    """Patterns in proportion to how often they were seen, the frequent ones first, again and again."""
    ordered = sorted(known, key=lambda one: (-one[1], str(one[0])))
    total = sum(seen for _, seen in ordered)
    if not total:
        return
    owed = dict.fromkeys((pattern for pattern, _ in ordered), 0.0)
    while True:
        for pattern, seen in ordered:
            owed[pattern] += seen / total
        chosen = max(owed, key=lambda pattern: owed[pattern])
        owed[chosen] -= 1.0
        yield chosen


def _round(pattern: Pattern, own: list[Mistake], supply: Supply, source: random.Random) -> list[Sample]:
    """One row of each form; none where the level has no more problems or none of them could be made wrong."""
    family, level, kind = str(pattern[0]), int(pattern[1] or 0), pattern[2]
    wrong = [_wrong(family, level, kind, own, supply, source) for _ in range(2)]
    fresh = supply.take(family, level, 2)
    if len(fresh) < 2 or wrong[0] is None or wrong[1] is None:
        return []
    (judged, first, whose), (sought, second, origin) = wrong[0], wrong[1]
    right, sibling = fresh
    facts = {"error_kind": kind}
    return [
        _row(judged, JUDGE, first, INCORRECT, {**facts, MADE_AS: FORMS[0], "wrong_by": whose, "scorer": "exact"}),
        _row(right, JUDGE, right.gold, CORRECT, {**facts, MADE_AS: FORMS[1], "scorer": "exact"}),
        _row(sought, FIND, second, sought.gold, {**facts, MADE_AS: FORMS[2], "wrong_by": origin}),
        replace(sibling, metadata={**sibling.metadata, **facts, MADE_AS: FORMS[3]}),
    ]


def _wrong(
    family: str, level: int, kind: str, own: list[Mistake], supply: Supply, source: random.Random
) -> tuple[Sample, str, str] | None:
    """(problem, wrong answer to it, "model" or "corruption"); each of the model's own is used once."""
    if own:
        mistake = own.pop()
        return mistake.sample, mistake.answer, "model"
    for sample in supply.take(family, level, 1):
        answer = corrupted(sample, kind, source)
        if answer is not None:
            return sample, answer, "corruption"
    return None


def _by_kind(mistakes: Sequence[Mistake]) -> dict[tuple[str, int], list[Mistake]]:
    """Mistakes that may be trained, by family and level, a problem once."""
    found: dict[tuple[str, int], list[Mistake]] = {}
    seen = set()
    for mistake in mistakes:
        identity, level = identity_of(mistake.sample), mistake.sample.metadata.get("level")
        if identity not in seen and type(level) is int and _may_be_shown(mistake, identity):
            seen.add(identity)
            found.setdefault((str(mistake.sample.metadata["family"]), level), []).append(mistake)
    return found


def _may_be_shown(mistake: Mistake, identity: str | None) -> bool:
    """Whether its problem is of the train split, and the answer wrong indeed and not endless."""
    if identity is None or is_holdout(identity) or not is_wrong(mistake.sample, mistake.answer):
        return False
    return len(mistake.answer) <= LONGEST_GOLDS * len(mistake.sample.gold) + LONGEST_CHARS


def _row(sample: Sample, form: str, answer: str, said: str, facts: Mapping[str, Any]) -> Sample:
    question = sample.question[-1].content
    asked = Message("user", form.format(question=question, answer=answer.strip()))
    return replace(
        sample,
        id=short_id(sample.id, asked.content),
        messages=(*sample.question[:-1], asked, Message("assistant", said)),
        provenance=replace(sample.provenance, generator="corrections", parent=sample.id),
        metadata={**sample.metadata, **facts},
    )


def _cut(gold: str, source: random.Random) -> str:
    """As an answer that ran into its limit, or lost its form."""
    return gold[: max(1, int(len(gold) * source.uniform(TRUNCATED, 1.0)))]


def _another_value(gold: str, source: random.Random) -> str | None:
    """One value changed: of a JSON answer one leaf, of a text one digit, else two letters that change places."""
    tree = read_json(gold)
    if isinstance(tree, dict | list):
        leaves = list(_leaves(tree))
        return _changed_leaf(tree, *source.choice(leaves), source) if leaves else None
    return _another_text(gold, source)


def _part(name: str) -> Callable[[str, random.Random], str | None]:
    """Changes one value below this key of a JSON answer; any value where there is no such key."""

    def change(gold: str, source: random.Random) -> str | None:
        tree = read_json(gold)
        inside = tree.get(name) if isinstance(tree, dict) else None
        leaves = list(_leaves(inside)) if isinstance(inside, dict | list) else []
        return _changed_leaf(tree, *source.choice(leaves), source) if leaves else _another_value(gold, source)

    return change


def _leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value that holds no others."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            yield from _leaves(value)
        else:
            yield tree, key


def _changed_leaf(tree: Any, holder: Any, key: Any, source: random.Random) -> str:
    """The whole answer with this leaf changed in place."""
    holder[key] = _another_leaf(holder[key], source)
    return compact(tree)


def _another_leaf(value: Any, source: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + source.choice((-2, -1, 1, 2))
    return _another_text(value, source) if isinstance(value, str) else value


def _another_text(text: str, source: random.Random) -> str:
    digits = [place for place, sign in enumerate(text) if sign.isdecimal()]
    if digits:
        place = source.choice(digits)
        return text[:place] + str((int(text[place]) + source.randint(1, 9)) % 10) + text[place + 1 :]
    if len(text) < 2:
        return text
    place = source.randrange(len(text) - 1)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


CORRUPTIONS: Mapping[str, Callable[[str, random.Random], str | None]] = {
    "empty": lambda gold, source: "",
    "no_stop": _cut,
    "format": _cut,
    "per_word": _part("solutions"),
    "inventory": _part("inventory_check"),
    "wrong_value": _another_value,
}
"""How a right answer is made wrong, by kind of error."""
