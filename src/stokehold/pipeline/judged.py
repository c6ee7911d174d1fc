"""What a run has judged so far, suite after suite, and how it is written down: the content of `evaluations/<id>/`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.records import Completion, Sample, Score, SuiteResult
from stokehold.evaluation.confidence import signals
from stokehold.evaluation.judge import judge_suite
from stokehold.evaluation.judging import Opinion, opinions_json
from stokehold.evaluation.paired import ItemReading, clusters_of
from stokehold.evaluation.scorers import scorer_name
from stokehold.pipeline.suites import Suite
from stokehold.store.judged.items import COMPLETIONS, DRAWS, READINGS, write_items

OPINIONS = "opinions.json"
"""What a judge said, word by word, beside the completions."""

Draws = Sequence[Sequence[Completion]]
"""For each item the answers drawn beside the greedy one."""


@dataclass
class Judged:
    """Readings by suite, one row for each answer, drawn answers, opinions, and all tokens that were generated."""

    results: dict[str, SuiteResult] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    drawn: list[dict[str, Any]] = field(default_factory=list)
    opinions: dict[str, Opinion] = field(default_factory=dict)
    tokens: int = 0

    def add(
        self, suite: Suite, completions: Sequence[Completion], opinions: Mapping[str, Opinion], draws: Draws = ()
    ) -> None:
        """Judges the answers to one suite; `draws` are empty or one list for each item."""
        result, scores = judge_suite(suite.name, suite.samples, completions, opinions, draws)
        self.results[suite.name] = result
        self.opinions.update(opinions)
        clusters = clusters_of(suite.samples)
        for place, (sample, completion, found) in enumerate(zip(suite.samples, completions, scores, strict=True)):
            others = draws[place] if draws else ()
            self.rows.append(_row(suite.name, sample, completion, found, clusters[place], others))
            self.drawn += [_draw(suite.name, number, one) for number, one in enumerate(others)]
            self.tokens += sum(len(one.token_ids) for one in (completion, *others))

    def write(self, folder: Path, readings: Mapping[str, Any]) -> None:
        """The files of an evaluation, into a folder that is being published."""
        (folder / COMPLETIONS).write_bytes(_lines(self.rows))
        write_items(folder, self.rows)
        (folder / READINGS).write_bytes(orjson.dumps(readings))
        if self.drawn:
            (folder / DRAWS).write_bytes(_lines(self.drawn))
        if self.opinions:
            (folder / OPINIONS).write_bytes(opinions_json(self.opinions))


def item_reading(
    suite: str, sample: Sample, completion: Completion, found: Score, cluster: str | None = None
) -> ItemReading:
    """What one answer showed, as comparisons need it."""
    exact = None if found.value is None else found.exact
    name = f"{suite}/{sample.id}"
    return ItemReading(name, exact, completion.gold_nll, completion.gold_tokens, suite, cluster)


def _row(
    suite: str, sample: Sample, completion: Completion, found: Score, cluster: str | None, draws: Sequence[Completion]
) -> dict[str, Any]:
    kind = {key: sample.metadata.get(key) for key in ("family", "level")}
    judged = {"score": found.value, "parts": dict(found.parts), "reason": found.reason}
    confidence = signals(completion, draws, scorer_name(sample))
    return {"suite": suite, **kind, **asdict(completion), **judged, "cluster": cluster, "confidence": confidence}


def _draw(suite: str, number: int, completion: Completion) -> dict[str, Any]:
    return {"suite": suite, "draw": number, **asdict(completion)}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)
