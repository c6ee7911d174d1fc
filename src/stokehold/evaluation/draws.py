"""What several drawn answers to each item show: whether one of k is right, and whether most agree on the right one."""

from collections import Counter
from collections.abc import Sequence
from math import comb

from stokehold.core.records import Completion, Sample, Score
from stokehold.evaluation.metrics import mean
from stokehold.evaluation.scorers import score


def pass_at_k(right: int, drawn: int, k: int) -> float:
    """Chance that k of `drawn` answers, taken without looking, hold one of the `right` ones; 1 <= k <= drawn.

    Unbiased over draws (Chen et al. 2021), which the share of items with a right one among the first k would be too,
    only with more noise.
    """
    return 1 - comb(drawn - right, k) / comb(drawn, k)


def drawn_parts(samples: Sequence[Sample], draws: Sequence[Sequence[Completion]]) -> dict[str, float]:
    """`pass@1`, `pass@2`, `pass@4`, … up to the number drawn, and `majority`: the share of items where the answer given
    most often is right, of equally frequent ones the first drawn. Only items whose draws were all scored count."""
    found: list[tuple[int, bool]] = []
    drawn = max((len(answers) for answers in draws), default=0)
    for sample, answers in zip(samples, draws, strict=True):
        scores = [score(sample, answer) for answer in answers]
        if len(scores) == drawn > 0 and all(one.value is not None for one in scores):
            found.append((sum(one.exact for one in scores), _majority(answers, scores)))
    if not found:
        return {}
    sizes = sorted({1, drawn, *(2**power for power in range(drawn.bit_length()))} - {0})
    parts = {f"pass@{k}": mean(pass_at_k(right, drawn, k) for right, _ in found) for k in sizes if k <= drawn}
    parts["majority"] = mean(float(agreed) for _, agreed in found)
    return {name: value for name, value in parts.items() if value is not None}


def _majority(answers: Sequence[Completion], scores: Sequence[Score]) -> bool:
    ((text, _),) = Counter(answer.text.strip() for answer in answers).most_common(1)
    return next(one.exact for answer, one in zip(answers, scores, strict=True) if answer.text.strip() == text)
