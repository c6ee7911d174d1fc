"""A suite's samples and their completions in, its readings out. The one place where a `SuiteResult` is made.

`ok` means at least one item was judged, every canary was judged rightly and every number is finite. `no_data` means
that there was nothing to judge. Everything else is `broken`, with its reason and without readings.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from stokehold.core.records import Completion, Sample, Score, SuiteResult, SuiteState
from stokehold.evaluation.calibration import calibrate
from stokehold.evaluation.canaries import Health, examine
from stokehold.evaluation.confidence import CALIBRATED, signals
from stokehold.evaluation.draws import drawn_parts
from stokehold.evaluation.judging import Opinion
from stokehold.evaluation.metrics import mean, weighted_mean, wilson
from stokehold.evaluation.scorers import score


def judge_suite(
    name: str,
    samples: Sequence[Sample],
    completions: Sequence[Completion],
    opinions: Mapping[str, Opinion] | None = None,
    draws: Sequence[Sequence[Completion]] = (),
) -> tuple[SuiteResult, list[Score]]:
    """The suite's readings and one score per sample, in order. `completions` answer `samples` one to one.

    `n` counts items with a reading: a score, or for plain text a likelihood; where nothing is left because golds
    contradict one another, their likelihoods. `exact` is over the scored ones. `opinions`: what a judge said. `draws`:
    for each item the answers drawn beside the greedy one, or nothing at all.
    """
    if not samples:
        return SuiteResult(name, SuiteState.NO_DATA, n=0, reason="the suite has no items"), []
    if [sample.id for sample in samples] != [completion.sample_id for completion in completions]:
        scores = [Score(None, reason="completions do not answer the suite's items")] * len(samples)
        return _broken(name, scores, "completions do not answer the suite's items one to one"), scores
    health = examine(samples, opinions)
    scores = _scores(samples, completions, opinions, health)
    if fault := health.dead or _not_finite(completions):
        return _broken(name, scores, fault), scores
    read = sum(_was_read(*item) for item in zip(samples, completions, scores, strict=True))
    read = read or sum(completions[place].gold_nll is not None for place in health.contradicted)
    if not read:
        return _broken(name, scores, f"nothing could be scored: {scores[0].reason}"), scores
    result = _readings(name, read, samples, completions, scores)
    return (replace(result, parts={**result.parts, **drawn_parts(samples, draws)}) if draws else result), scores


def overall_state(results: Iterable[SuiteResult]) -> SuiteState:
    """The state of an evaluation: broken when any suite is, else ok when any is."""
    states = {result.state for result in results}
    if SuiteState.BROKEN in states:
        return SuiteState.BROKEN
    return SuiteState.OK if SuiteState.OK in states else SuiteState.NO_DATA


def _scores(
    samples: Sequence[Sample], completions: Sequence[Completion], opinions: Mapping[str, Opinion] | None, health: Health
) -> list[Score]:
    found = []
    for place, (sample, completion) in enumerate(zip(samples, completions, strict=True)):
        fault = health.fault(place)
        found.append(score(sample, completion, opinions) if fault is None else Score(None, reason=fault))
    return found


def _readings(
    name: str, read: int, samples: Sequence[Sample], completions: Sequence[Completion], scores: Sequence[Score]
) -> SuiteResult:
    scored = [found for found in scores if found.value is not None]
    right = sum(found.exact for found in scored)
    parts: dict[str, list[float]] = defaultdict(list)
    for found in scores:  # an unscored one may have parts: how often a judge agreed with itself
        for part, share in found.parts.items():
            parts[part].append(share)
    confidence = calibrate(
        [signals(completion)[CALIBRATED] for completion in completions],
        [None if found.value is None else found.exact for found in scores],
    )
    return SuiteResult(
        suite=name,
        state=SuiteState.OK,
        n=read,
        unscored=len(samples) - read,
        exact=right / len(scored) if scored else None,
        exact_ci=wilson(right, len(scored)),
        nll_per_token=weighted_mean(
            (done.gold_nll, done.gold_tokens)
            for done in completions
            if done.gold_nll is not None and done.gold_tokens is not None
        ),
        parts={part: value for part, values in parts.items() if (value := mean(values)) is not None},
        by_level=_by_level(samples, scores),
        confidence=CALIBRATED,
        ece=confidence.ece,
        ece_equal_mass=confidence.ece_equal_mass,
        smooth_ece=confidence.smooth_ece,
        brier=confidence.brier.score if confidence.brier else None,
        ties=sum(completion.tie for completion in completions),
    )


def _by_level(samples: Sequence[Sample], scores: Sequence[Score]) -> Mapping[str, Mapping[str, float]]:
    levels: dict[str, list[bool]] = defaultdict(list)
    for sample, found in zip(samples, scores, strict=True):
        if found.value is not None and (level := sample.metadata.get("level")) is not None:
            levels[str(level)].append(found.exact)
    ordered = sorted(levels.items(), key=lambda item: (len(item[0]), item[0]))
    return {level: {"exact": sum(right) / len(right), "n": len(right)} for level, right in ordered}


def _was_read(sample: Sample, completion: Completion, found: Score) -> bool:
    return found.value is not None or (sample.text is not None and completion.gold_nll is not None)


def _not_finite(completions: Sequence[Completion]) -> str | None:
    for done in completions:
        numbers = (*done.token_logprobs, 0.0 if done.gold_nll is None else done.gold_nll)
        if not all(map(math.isfinite, numbers)):
            return f"item {done.sample_id}: the model's log-probabilities are not finite"
    return None


def _broken(name: str, scores: Sequence[Score], reason: str) -> SuiteResult:
    unscored = sum(found.value is None for found in scores)
    return SuiteResult(name, SuiteState.BROKEN, n=len(scores) - unscored, unscored=unscored, reason=reason)
