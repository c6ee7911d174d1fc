"""What the model got wrong or barely right, answered with fresh problems of the same kind and never with the items.

Held-out items are only counted: a sibling has the family and the level of its failure, is drawn from the train split,
and is another problem. A failure outside the task families has no siblings; nothing of it reaches training.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from stokehold.core.identity import content_hash
from stokehold.core.records import Sample
from stokehold.improvement.supply import Supply
from stokehold.tasks.registry import family_of

SIBLINGS = 4
"""Fresh problems per failure at most: a file that answers few failures is filled by the curriculum instead."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A suite item: whether the answer was fully right, None where it could not be scored; and how sure the model was
    of it, in [0, 1], None where nobody knows."""

    sample: Sample
    exact: bool | None
    confidence: float | None = None


def failures(judged: Iterable[Judged]) -> list[Sample]:
    """The samples answered wrongly, in an order that has nothing to do with that of the suites.

    What could not be scored is no failure of the model.
    """
    wrong = [one.sample for one in judged if one.exact is False]
    return sorted(wrong, key=lambda sample: content_hash(sample.id))


def unsure(judged: Iterable[Judged], below: float) -> list[Sample]:
    """The samples answered rightly with a confidence below this, the least sure first."""
    found = [(one.confidence, one.sample) for one in judged if one.exact and one.confidence is not None]
    doubtful = [one for one in found if one[0] < below]
    return [sample for _, sample in sorted(doubtful, key=lambda one: (one[0], content_hash(one[1].id)))]


def siblings(failed: Sequence[Sample], levels: Sequence[int], count: int, supply: Supply) -> list[Sample]:
    """At most `count` fresh training problems for failures at these levels, shared among them in proportion.

    Where not all can be answered, those in front are. Each carries the id of a failure it answers, as
    `provenance.parent` and in its metadata.
    """
    known = [sample for sample in failed if _kind(sample) is not None and sample.metadata["level"] in levels]
    # Round after round over the failures, so that a small count still touches as many of them as it can.
    chosen = list(islice(cycle(known), min(count, SIBLINGS * len(known))))
    found: list[Sample] = []
    for (family, level), wanted in sorted(Counter(filter(None, map(_kind, chosen))).items()):
        parents: Iterator[Sample] = (sample for sample in chosen if _kind(sample) == (family, level))
        found += map(_child, supply.take(family, level, wanted), parents)
    return found


def _kind(sample: Sample) -> tuple[str, int] | None:
    """Family and level, where the sample is of a task family."""
    family, level = family_of(sample), sample.metadata.get("level")
    return (family, level) if family is not None and isinstance(level, int) else None


def _child(fresh: Sample, parent: Sample) -> Sample:
    return replace(
        fresh,
        provenance=replace(fresh.provenance, generator="mining", parent=parent.id),
        metadata={**fresh.metadata, "parent": parent.id},
    )
