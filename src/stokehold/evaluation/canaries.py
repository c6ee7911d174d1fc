"""Proof that a run's judging is alive: answers whose score is known go through the same scorers as the model's."""

from collections.abc import Iterable, Sequence

from stokehold.core.records import Completion, Sample
from stokehold.evaluation.scorers import score

IMPOSSIBLE = "\u2400\u2401\u2402"
"""Control pictures: no gold answer is among them, not even as a part, as a word in plain letters could be."""


def canaries(sample: Sample) -> Sequence[tuple[Completion, float]]:
    """(completion, the score it must get): a copy of the gold answer, 1, and an impossible answer, 0."""
    return ((_completion(sample, sample.gold), 1.0), (_completion(sample, IMPOSSIBLE), 0.0))


def dead_canary(samples: Iterable[Sample]) -> str | None:
    """Which canary was misjudged and how; None when all were judged rightly. Plain text has none."""
    for sample in samples:
        if sample.text is not None:
            continue
        for completion, expected in canaries(sample):
            found = score(sample, completion)
            if found.value != expected:
                which = "a copy of the gold answer" if expected else "an impossible answer"
                got = f"unscored ({found.reason})" if found.value is None else f"{found.value:g}"
                return f"item {sample.id}: {which} scored {got}, not {expected:g}"
    return None


def _completion(sample: Sample, text: str) -> Completion:
    return Completion(sample_id=sample.id, text=text, token_ids=(), token_logprobs=(), finish_reason="stop")
