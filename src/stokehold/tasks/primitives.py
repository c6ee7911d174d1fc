"""The small skills SYLLO is made of, one at a time, so that transfer can be measured.

`count` asks how many syllables a word has, `assemble` for the word that syllables make, `define` for the word that a
definition means. Answers are plain text, in any case.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stokehold.core.records import Sample, Score
from stokehold.tasks.answers import RIGHT, WRONG, compact, read_text
from stokehold.tasks.clues import words_from
from stokehold.tasks.family import difficulty, first_good, make_sample, stream, strings
from stokehold.tasks.lexicon import Entry, words_of


@dataclass(frozen=True, slots=True)
class Axes:
    """Words of these tiers and numbers of syllables; `herrings` spare syllables where a word is assembled."""

    kinds: tuple[str, ...]
    tiers: tuple[int, ...]
    syllables: tuple[int, int]
    herrings: int


KINDS = ("count", "assemble", "define")

LEVELS: Mapping[int, Axes] = {
    1: Axes(KINDS, (1,), (2, 3), 0),
    2: Axes(KINDS, (1, 2), (2, 3), 0),
    3: Axes(KINDS, (1, 2), (2, 3), 1),
    4: Axes(KINDS, (2, 3), (2, 4), 1),
    5: Axes(KINDS, (2, 3), (2, 4), 2),
    6: Axes(KINDS, (3, 4), (3, 4), 2),
    7: Axes(KINDS, (3, 4), (3, 5), 3),
    8: Axes(KINDS, (4, 5), (3, 5), 3),
    9: Axes(KINDS, (4, 5), (3, 6), 4),
    10: Axes(KINDS, (4, 5), (4, 6), 5),
}


class Primitives:
    """The family; see the module."""

    name = "primitives"
    axes: Mapping[int, Mapping[str, Any]] = {level: asdict(axes) for level, axes in LEVELS.items()}

    def generate(self, seed: int, index: int, level: int) -> Sample:
        rng = stream(self.name, seed, index, level)
        axes = LEVELS[level]
        kind = rng.choice(axes.kinds)
        entry, herrings = first_good(lambda: _problem(rng, axes, kind), f"primitives level {level}")
        question, gold = _ask(rng, kind, entry, herrings)
        problem = {"difficulty": difficulty(level), "kind": kind, "word": entry.word, "herrings": herrings}
        return make_sample(self, (seed, index, level), question, gold, {**problem, "answer": gold})

    def verify(self, sample: Sample, answer: str) -> Score:
        return RIGHT if read_text(answer).lower() == sample.metadata["answer"] else WRONG

    def identity(self, sample: Sample) -> str:
        """The kind, the word and the spare syllables."""
        metadata = sample.metadata
        kind, word, _ = strings([metadata["kind"], metadata["word"], metadata["answer"]])
        return f"primitives|{kind}|{word}|{','.join(sorted(strings(metadata['herrings'])))}"


def _problem(rng: random.Random, axes: Axes, kind: str) -> tuple[Entry, list[str]] | None:
    """A word and its spare syllables; None where another word of the lexicon could be assembled too."""
    pool = words_of(axes.tiers, *axes.syllables)
    entry = rng.choice(pool)
    if kind != "assemble":
        return entry, []
    spare = sorted({other.syllables[0] for other in rng.sample(pool, axes.herrings)} - set(entry.syllables))
    bank = Counter([*entry.syllables, *spare])
    unique = words_from(bank, len(entry.syllables)) == [entry.word]
    return (entry, spare) if unique and len(spare) == axes.herrings else None


def _ask(rng: random.Random, kind: str, entry: Entry, herrings: list[str]) -> tuple[str, str]:
    """(question, gold answer)."""
    count = len(entry.syllables)
    if kind == "count":
        return f'How many syllables has "{entry.word}"? Answer with the number only.', str(count)
    if kind == "define":
        return f"Which word of {count} syllables means: {entry.definition}? Answer with the word only.", entry.word
    bank = [*entry.syllables, *herrings]
    rng.shuffle(bank)
    return f"Which word has {count} of these syllables: {compact(bank)}? Answer with the word only.", entry.word
