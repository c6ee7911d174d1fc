"""What a report tells of two evaluations, counted once: every page and table reads from a `Report`.

All counts are over shared items, those that both evaluations judged, as the comparison's own are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stokehold.core.records import Comparison, Evaluation, Message, Sample
from stokehold.evaluation.calibration import Calibration, calibrate
from stokehold.evaluation.confidence import CALIBRATED
from stokehold.evaluation.metrics import wilson
from stokehold.evaluation.readings.answers import answer_of, confidence, ordered

SHOWN = 50
"""Most gained items, and most lost ones, that a page shows in full."""

HISTOGRAM_BARS = 31
"""About so many."""

NARROWEST = 1e-9
"""Nats per token; changes that all lie closer together are rounding, and have no histogram."""

COVERED = 0.99
"""Share of the items inside the histogram's range; those beyond count in its outermost bars."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to an item. `text` and what follows are None where completions are no longer kept."""

    score: float | None
    gold_nll: float | None
    text: str | None = None
    reason: str | None = None
    confidence: float | None = None
    tie: bool = False

    @property
    def exact(self) -> bool | None:
        """Whether it is fully right; None where it could not be scored."""
        return None if self.score is None else self.score == 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """A shared item. `question` and `gold` are None where the suite no longer holds it."""

    suite: str
    sample_id: str
    level: int | str | None
    question: tuple[Message, ...] | None
    gold: str | None
    a: Answer
    b: Answer


@dataclass(frozen=True, slots=True)
class Share:
    """`right` of `n` items, with Wilson's 95 % interval; None of nothing."""

    right: int
    n: int

    @property
    def value(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.right, self.n)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Exact answers of both among the items of a suite or of one of its levels; `level` None is the whole suite."""

    suite: str
    level: int | str | None
    a: Share
    b: Share


@dataclass(frozen=True, slots=True)
class Bar:
    """Items whose likelihood changed by `low` to `high` nats per token."""

    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """B - A of every item's gold answer, in nats per token: below zero B finds it likelier."""

    likelier: int
    same: int
    less_likely: int
    bars: tuple[Bar, ...]
    beyond: int
    """Items outside the bars' range, counted in the outermost ones."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told. `names` are the two references as they were asked for; `created` is a UTC time."""

    names: tuple[str, str]
    a: Evaluation
    b: Evaluation
    comparison: Comparison
    items: tuple[Item, ...]
    created: str
    accuracy: tuple[Accuracy, ...]
    likelihood: Likelihood | None
    calibration: tuple[Calibration, Calibration] | None
    signal: str = CALIBRATED

    @property
    def gained(self) -> list[Item]:
        """Items that only B got right."""
        return [item for item in self.items if item.a.exact is False and item.b.exact]

    @property
    def lost(self) -> list[Item]:
        """Items that only A got right."""
        return [item for item in self.items if item.a.exact and item.b.exact is False]

    @property
    def ties(self) -> list[Item]:
        """Items on which rounding may have decided an answer."""
        return [item for item in self.items if item.a.tie or item.b.tie]

    @property
    def suites(self) -> list[Accuracy]:
        """The whole suites, by name."""
        return [one for one in self.accuracy if one.level is None]

    @property
    def by_suite(self) -> Mapping[str, Comparison]:
        """Each suite's comparison; the whole is its only suite's."""
        suites = self.suites
        return self.comparison.by_suite or ({suites[0].suite: self.comparison} if len(suites) == 1 else {})


def make_report(
    names: tuple[str, str],
    evaluations: tuple[Evaluation, Evaluation],
    comparison: Comparison,
    rows: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    samples: Mapping[tuple[str, str], Sample],
    created: str,
) -> Report:
    """The report on A and B from their stored lines, `completions.jsonl` or, where that is gone, `items.json`.

    `samples` are the suites' items by (suite, sample id), as far as there are still such.
    """
    items = pair(*rows, samples)
    return Report(
        names=names,
        a=evaluations[0],
        b=evaluations[1],
        comparison=comparison,
        items=items,
        created=created,
        accuracy=accuracy(items),
        likelihood=likelihood(items),
        calibration=_calibration(items),
    )


def pair(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], samples: Mapping[tuple[str, str], Sample]
) -> tuple[Item, ...]:
    """Items that both have a line on, in the order of A."""
    other = {(row["suite"], row["sample_id"]): row for row in b}
    return tuple(_item(row, other[key], samples) for row in a if (key := (row["suite"], row["sample_id"])) in other)


def accuracy(items: Sequence[Item]) -> tuple[Accuracy, ...]:
    """Shares by suite, each followed by its levels in their order, over items that were scored for both."""
    groups: dict[tuple[str, int | str | None], list[Item]] = {}
    for item in items:
        if item.a.exact is not None and item.b.exact is not None:
            for key in {(item.suite, None), (item.suite, item.level)}:
                groups.setdefault(key, []).append(item)

    def place(key: tuple[str, int | str | None]) -> tuple[str, bool, tuple[int, int, str]]:
        return key[0], key[1] is not None, ordered(key[1])

    return tuple(
        Accuracy(
            *key,
            Share(sum(bool(item.a.exact) for item in groups[key]), len(groups[key])),
            Share(sum(bool(item.b.exact) for item in groups[key]), len(groups[key])),
        )
        for key in sorted(groups, key=place)
    )


def likelihood(items: Sequence[Item]) -> Likelihood | None:
    """The distribution of what changed; None where no item has a likelihood in both."""
    pairs = ((item.a.gold_nll, item.b.gold_nll) for item in items)
    changes = np.array([b - a for a, b in pairs if a is not None and b is not None], np.float64)
    if not len(changes):
        return None
    bars = histogram(changes)
    return Likelihood(
        likelier=int((changes < 0).sum()),
        same=int((changes == 0).sum()),
        less_likely=int((changes > 0).sum()),
        bars=bars,
        beyond=int(((changes < bars[0].low) | (changes > bars[-1].high)).sum()) if bars else 0,
    )


def histogram(changes: NDArray[np.float64]) -> tuple[Bar, ...]:
    """Items by change, with a bar around zero whatever the range; nothing where nothing changed."""
    rare = (1 - COVERED) / 2
    low, high = (float(end) for end in np.quantile([*changes, 0.0], [rare, 1 - rare]))
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < NARROWEST:
        low, high = min(float(changes.min()), 0.0), max(float(changes.max()), 0.0)
    if high - low < NARROWEST:
        return ()
    width = (high - low) / (HISTOGRAM_BARS - 1)
    edges = (np.arange(round(low / width), round(high / width) + 2) - 0.5) * width
    counts, _ = np.histogram(np.clip(changes, edges[0], edges[-1]), edges)
    return tuple(Bar(float(a), float(b), int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True))


def _calibration(items: Sequence[Item]) -> tuple[Calibration, Calibration] | None:
    """Both over the shared items; None where a side has no confidence at all."""
    a = calibrate([item.a.confidence for item in items], [item.a.exact for item in items])
    b = calibrate([item.b.confidence for item in items], [item.b.exact for item in items])
    return (a, b) if a.n and b.n else None


def _item(a: Mapping[str, Any], b: Mapping[str, Any], samples: Mapping[tuple[str, str], Sample]) -> Item:
    sample = samples.get((a["suite"], a["sample_id"]))
    return Item(
        suite=a["suite"],
        sample_id=a["sample_id"],
        level=answer_of(a).level,
        question=sample.question if sample else None,
        gold=sample.gold if sample else None,
        a=_answer(a),
        b=_answer(b),
    )


def _answer(row: Mapping[str, Any]) -> Answer:
    read = answer_of(row)
    return Answer(
        score=row["score"],
        gold_nll=read.gold_nll,
        text=read.completion.text if read.completion else None,
        reason=row.get("reason"),
        confidence=confidence(read),
        tie=bool(row.get("tie")),
    )
