"""How sure a model was of an answer it gave, read off the stored completion: no model is asked again.

Every signal lies in [0, 1], or is None where the completion does not hold what it needs. None of them is the
probability of the whole answer: that is the product of its tokens' probabilities and falls with every token, so that
answers of different lengths could not be compared. The token that ends the turn counts, for ending is a choice too.

- `sequence_mean`: geometric mean of the tokens' probabilities.
- `minimum_token`: probability of the least likely token.
- `answer_span`: geometric mean over the tokens of what the scorer reads; see `answer_spans`.
- `self_consistency`: share of the answers drawn at a temperature that agree with the greedy one.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from stokehold.core.records import Completion
from stokehold.evaluation.metrics import mean

CALIBRATED = "sequence_mean"
"""The signal that a suite's calibration is about; every completion has it. It promises too much, for many certain
tokens lift it; the least certain token is nearer where an answer has one wording, and tells nothing where a part of the
answer is free or not scored, as in most tasks there is (figures in docs/evaluation.md)."""

_THOUGHT = re.compile(r"\A.*</think>", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = r'"(?:\\.?|[^"\\])*+(?:"|\Z)'  # what is not closed ends with the text: each character is looked at once
_JSON_WORD = re.compile(
    rf"(?P<key>{_STRING}\s*:)|{_STRING}|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\b(?:true|false|null)\b", re.DOTALL
)


def signals(
    completion: Completion,
    draws: Sequence[Completion] = (),
    scorer: str = "exact",
    canonical: Callable[[str], str] = str.strip,
) -> Mapping[str, float | None]:
    """Every signal by name. `draws` are other answers to the same item; `canonical` gives texts that mean the same to
    the scorer one form, by which they agree."""
    logprobs = completion.token_logprobs
    return {
        "sequence_mean": _geometric_mean(logprobs),
        "minimum_token": _geometric_mean([min(logprobs)]) if logprobs else None,
        "answer_span": _geometric_mean(_within(completion, answer_spans(completion.text, scorer))),
        "self_consistency": _agreement(completion, draws, canonical),
    }


def answer_spans(text: str, scorer: str = "exact") -> tuple[tuple[int, int], ...]:
    """Where in `text` the final answer stands, as (start, end) in characters; empty where there is none.

    Behind the last `</think>`: the values for the scorer `json_fields`, the last number for `numeric`, and what is
    left without surrounding space for every other scorer, or where there is no value and no number.
    """
    thought = _THOUGHT.match(text)
    start = thought.end() if thought else 0
    found: list[tuple[int, int]] = []
    if scorer == "json_fields":
        found = [word.span() for word in _JSON_WORD.finditer(text, start) if word["key"] is None]
    elif scorer == "numeric":
        found = [number.span() for number in _NUMBER.finditer(text, start)][-1:]
    answer = text[start:].strip()
    if not found and answer:
        begin = text.index(answer, start)
        found = [(begin, begin + len(answer))]
    return tuple(found)


def _within(completion: Completion, spans: Sequence[tuple[int, int]]) -> list[float]:
    """Log-probabilities of the tokens that bring a character of a span; empty where that was not recorded."""
    ends = completion.token_ends
    if not ends or len(ends) != len(completion.token_logprobs):
        return []
    tokens = zip((0, *ends[:-1]), ends, completion.token_logprobs, strict=True)
    return [
        value
        for begin, end, value in tokens
        if begin < end and any(begin < last and first < end for first, last in spans)
    ]


def _agreement(completion: Completion, draws: Sequence[Completion], canonical: Callable[[str], str]) -> float | None:
    if completion.finish_reason == "error":
        return None
    form = canonical(completion.text)
    return mean(float(canonical(draw.text) == form) for draw in draws if draw.finish_reason != "error")


def _geometric_mean(logprobs: Sequence[float]) -> float | None:
    """exp of the mean, at most 1; None of nothing, and where a log-probability is not finite."""
    average = mean(logprobs)
    return None if average is None else math.exp(min(0.0, average))
