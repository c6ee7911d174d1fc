"""What the model got wrong, answered with fresh problems of the same kind and never with the items themselves.

Held-out items are only counted: a sibling has the family and the level of its failure, is drawn from the train split,
and is another problem. A failure outside the task families has no siblings; nothing of it reaches training.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

from stokehold.core.identity import content_hash
from stokehold.core.records import Sample, Score
from stokehold.improvement.supply import Supply
from stokehold.tasks.registry import FAMILIES

SIBLINGS = 4
"""Fresh problems per failure at most: a file that answers few failures is filled by the curriculum instead."""


def failures(judged: Iterable[tuple[Sample, Score]]) -> list[Sample]:
    """The samples answered wrongly. What could not be scored is no failure of the model."""
    return [sample for sample, found in judged if found.value is not None and not found.exact]


def siblings(failed: Sequence[Sample], levels: Sequence[int], count: int, supply: Supply) -> list[Sample]:
    """At most `count` fresh training problems for failures at these levels, shared among them in proportion.

    Each carries the id of a failure it answers, as `provenance.parent` and in its metadata.
    """
    known = [sample for sample in failed if _kind(sample) is not None and sample.metadata["level"] in levels]
    known.sort(key=lambda sample: content_hash(sample.id))
    # Round after round over the failures, so that a small count still touches as many of them as it can.
    chosen = list(islice(cycle(known), min(count, SIBLINGS * len(known))))
    found: list[Sample] = []
    for (family, level), wanted in sorted(Counter(filter(None, map(_kind, chosen))).items()):
        parents: Iterator[Sample] = (sample for sample in chosen if _kind(sample) == (family, level))
        found += map(_child, supply.take(family, level, wanted), parents)
    return found


def _kind(sample: Sample) -> tuple[str, int] | None:
    """Family and level, where the sample is of a task family."""
    family, level = sample.metadata.get("family"), sample.metadata.get("level")
    return (str(family), level) if family in FAMILIES and isinstance(level, int) else None


def _child(fresh: Sample, parent: Sample) -> Sample:
    return replace(
        fresh,
        provenance=replace(fresh.provenance, generator="mining", parent=parent.id),
        metadata={**fresh.metadata, "parent": parent.id},
    )
