"""What a task family is: a generator, a verifier and an identity, all pure and deterministic.

`generate` depends on its arguments only, on every machine and Python version; `verify` never evaluates an answer as
code and never raises on one; `identity` names the problem without id, order or wording, and decides the split.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from stokehold.core.errors import StokeholdError, UsageError
from stokehold.core.identity import is_holdout, short_id
from stokehold.core.records import Message, Provenance, Sample, Score

Split = Literal["train", "holdout"]

LEVELS = range(1, 11)
"""Ten levels: 1-3 easy, 4-6 medium, 7-10 hard."""


ATTEMPTS = 2000
"""Tries at one problem before it counts as impossible. Measured: at the worst level 13 on average, 43 at most."""

Found = TypeVar("Found")


class Family(Protocol):
    """A procedural problem family. `axes` maps each level to its named difficulty axes (JSON values)."""

    name: str
    axes: Mapping[int, Mapping[str, Any]]

    def generate(self, seed: int, index: int, level: int) -> Sample:
        """The problem number `index` of `seed` at `level`; UsageError for a level outside 1 to 10."""
        ...

    def verify(self, sample: Sample, answer: str) -> Score:
        """Judges `answer`; anything that is not a right answer scores 0, whatever its form."""
        ...

    def identity(self, sample: Sample) -> str:
        """The problem itself; KeyError, TypeError or ValueError where the metadata does not hold one."""
        ...


def difficulty(level: int) -> str:
    """easy, medium or hard."""
    return "easy" if level <= 3 else "medium" if level <= 6 else "hard"


def stream(family: str, seed: int, index: int, level: int) -> random.Random:
    """The random numbers of one problem. A string seed is hashed by SHA-512: the same in every process."""
    if level not in LEVELS:
        raise UsageError(f"there is no level {level}", family, "levels are 1 to 10")
    return random.Random(f"{family}:{seed}:{index}:{level}")


def first_good(attempt: Callable[[], Found | None], what: str) -> Found:
    """The first result that is not None; a generator that can never succeed ends with a StokeholdError."""
    for _ in range(ATTEMPTS):
        found = attempt()
        if found is not None:
            return found
    raise StokeholdError(f"no problem found in {ATTEMPTS} tries", what, "the axes of this level contradict each other")


def strings(value: object) -> list[str]:
    """`value` where it is a list of text; ValueError otherwise. Metadata read back from a file can hold anything."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError(f"not a list of text: {value!r:.80}")


def make_sample(
    family: Family, place: tuple[int, int, int], question: str, gold: str, problem: Mapping[str, Any]
) -> Sample:
    """A finished sample; `place` is (seed, index, level), `problem` is what verify and identity need (JSON values)."""
    seed, index, level = place
    metadata = {"family": family.name, "level": level, "seed": seed, "index": index, **problem}
    sample = Sample(
        id=short_id(family.name, str(level), str(seed), str(index)),
        messages=(Message("user", question), Message("assistant", gold)),
        provenance=Provenance(generator="family"),
        metadata=metadata,
    )
    # The split follows from the identity, which needs the sample: it is written last.
    metadata["split"] = "holdout" if is_holdout(family.identity(sample)) else "train"
    return sample
