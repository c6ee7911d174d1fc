"""One stored answer with its judgement: what every reading reads. Old rows may lack words; a reading says so then."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stokehold.core.records import Completion
from stokehold.evaluation.confidence import CALIBRATED, signals
from stokehold.evaluation.metrics import weighted_mean, wilson
from stokehold.evaluation.paired import ItemReading

_COMPLETION = tuple(one.name for one in fields(Completion))
_TUPLES = ("token_ids", "token_logprobs", "token_ends")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model showed on one item. `exact` is None where it could not be scored, `completion` where the words
    were thinned. `family` and `level` are what the item's metadata said; items of one `cluster` hang together.
    `gold_nll` is in nats per gold token."""

    suite: str
    sample_id: str
    exact: bool | None
    family: str | None = None
    level: int | str | None = None
    gold_nll: float | None = None
    gold_tokens: int | None = None
    cluster: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    completion: Completion | None = None

    @property
    def item(self) -> str:
        """The item's name among all suites."""
        return f"{self.suite}/{self.sample_id}"


def answer_of(row: Mapping[str, Any]) -> Answer:
    """The answer of a stored row, whole or thinned to what `items.json` keeps."""
    level = row.get("level")
    return Answer(
        suite=row["suite"],
        sample_id=row["sample_id"],
        exact=None if row["score"] is None else row["score"] == 1.0,
        family=None if row.get("family") is None else str(row["family"]),
        level=level if level is None or type(level) is int else str(level),
        gold_nll=row["gold_nll"],
        gold_tokens=row["gold_tokens"],
        cluster=row.get("cluster"),
        parts=row.get("parts") or {},
        completion=_completion(row) if row.get("text") is not None else None,
    )


def item_reading(answer: Answer) -> ItemReading:
    """As the paired comparison takes it."""
    return ItemReading(answer.item, answer.exact, answer.gold_nll, answer.gold_tokens, answer.suite, answer.cluster)


def confidence(answer: Answer) -> float | None:
    """The signal that calibration is about, in [0, 1]; None where the words are gone or nothing was generated."""
    if answer.completion is None or answer.completion.finish_reason == "error":
        return None
    return signals(answer.completion)[CALIBRATED]


def summary(answers: Iterable[Answer]) -> dict[str, Any]:
    """`n` scored items, the share that is right with Wilson's interval, and nats per gold token over all of them."""
    found = list(answers)
    scored = [answer.exact for answer in found if answer.exact is not None]
    likely = [(a.gold_nll, a.gold_tokens) for a in found if a.gold_nll is not None and a.gold_tokens]
    return {
        "n": len(scored),
        "exact": sum(scored) / len(scored) if scored else None,
        "exact_ci": wilson(sum(scored), len(scored)),
        "nll_per_token": weighted_mean(likely),
    }


def ordered(level: int | str | None) -> tuple[int, int, str]:
    """Sorting key of levels: numbers by size, then words, then none."""
    if isinstance(level, int):
        return 0, level, ""
    return (1, 0, level) if level is not None else (2, 0, "")


def _completion(row: Mapping[str, Any]) -> Completion:
    known = {name: row[name] for name in _COMPLETION if name in row}
    return Completion(**known | {name: tuple(known[name]) for name in _TUPLES if name in known})
