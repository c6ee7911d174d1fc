"""Proof that a run's judging is alive: answers whose score is known go through the same scorers as the model's.

Every item is tried with a copy of its gold answer, which must score 1, and with an impossible one, which must score 0.
One that scores otherwise is a dead canary: nothing of the suite is to be believed. One that cannot be scored says that
its item cannot: a pattern that is none, a gold answer of another kind than its scorer wants, a scorer that raises.
Where a model judges, the copy is right without asking, and the impossible answer is asked about once in a suite.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stokehold.core.records import Completion, Message, Sample
from stokehold.evaluation.judging import JUDGE, Opinion, opinion_key, settled
from stokehold.evaluation.scorers import has_gold, score, scorer_name

IMPOSSIBLE = "\u2400\u2401\u2402"
"""Control pictures: no gold answer is among them, not even as a part, as a word in plain letters could be."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong with a suite's items and scorers, by the items' places in it.

    `dead` is the canary that was misjudged and how, None for none. `unscorable` says why an item cannot be scored
    whatever is answered, `contradicted` which other item makes that so.
    """

    dead: str | None
    unscorable: Mapping[int, str]
    contradicted: Mapping[int, str]

    def fault(self, place: int) -> str | None:
        """Why the item at `place` stays unscored; None where it need not."""
        return self.unscorable.get(place) or self.contradicted.get(place)


def canaries(sample: Sample) -> Sequence[tuple[Completion, float]]:
    """(completion, the score it must get): a copy of the gold answer, 1, and an impossible answer, 0."""
    return ((_completion(sample, sample.gold), 1.0), (_completion(sample, IMPOSSIBLE), 0.0))


def judge_canaries(samples: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """What a judge is to be asked beside the model's answers: the impossible answer to the first item it judges."""
    judged = (sample for sample in samples if scorer_name(sample) == JUDGE and settled(sample, IMPOSSIBLE) is None)
    return [(sample, IMPOSSIBLE) for sample in itertools.islice(judged, 1)]


def examine(samples: Sequence[Sample], opinions: Mapping[str, Opinion] | None = None) -> Health:
    """What the canaries say of these items; plain text has none. `opinions` hold what a judge said, see `judging`."""
    said = opinions or {}
    unscorable: dict[int, str] = {}
    judge = _judge_fault(samples, said)
    for place, sample in enumerate(samples):
        if sample.text is not None:
            continue
        if not has_gold(sample):
            unscorable[place] = "the item has no gold answer"
        elif scorer_name(sample) == JUDGE and judge is not None:
            unscorable[place] = judge
        else:
            reason, dead = _tried(sample, said)
            if reason is not None:
                unscorable[place] = reason
            elif dead is not None:
                return Health(dead, unscorable, {})
    return Health(None, unscorable, contradictions(samples))


def contradictions(samples: Sequence[Sample]) -> dict[int, str]:
    """By their places, items that ask exactly what another one asks and call its gold answer wrong.

    No answer can be right for both, so neither says anything about a model.
    """
    asking: dict[tuple[Message, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.text is None and has_gold(sample):
            asking.setdefault(sample.question, []).append(place)
    found: dict[int, str] = {}
    for places in (places for places in asking.values() if len(places) > 1):
        golds = {samples[place].gold.strip(): place for place in reversed(places)}.values()
        for place in places:
            rival = next((other for other in golds if _disagree(samples[place], samples[other])), None)
            if rival is not None:
                found[place] = f"item {samples[rival].id} asks the same and has another gold answer"
    return found


def _tried(sample: Sample, opinions: Mapping[str, Opinion]) -> tuple[str | None, str | None]:
    """(why a canary of this item could not be scored, which one was misjudged and how); None for what did not occur."""
    dead = None
    for completion, expected in canaries(sample):
        if scorer_name(sample) == JUDGE and not expected and opinion_key(sample, IMPOSSIBLE) not in opinions:
            continue  # it was asked about with another item of the suite
        found = score(sample, completion, opinions)
        if found.value is None:
            return str(found.reason), None
        if dead is None and found.value != expected:
            which = "a copy of the gold answer" if expected else "an impossible answer"
            dead = f"item {sample.id}: {which} scored {found.value:g}, not {expected:g}"
    return None, dead


def _judge_fault(samples: Sequence[Sample], opinions: Mapping[str, Opinion]) -> str | None:
    """Why no item can be left to the judge: it was not asked, or cannot tell an impossible answer from gold."""
    for sample, answer in judge_canaries(samples):
        found = score(sample, _completion(sample, answer), opinions)
        if found.value is None:
            asked = opinion_key(sample, answer) in opinions
            return f"tried on an impossible answer: {found.reason}" if asked else found.reason
    return None


def _disagree(one: Sample, other: Sample) -> bool:
    """Whether one of the two calls the other's gold answer wrong; a judge is not asked."""
    pairs = ((one, other.gold), (other, one.gold))
    return any(score(sample, _completion(sample, gold)).value not in (1.0, None) for sample, gold in pairs)


def _completion(sample: Sample, text: str) -> Completion:
    return Completion(sample_id=sample.id, text=text, token_ids=(), token_logprobs=(), finish_reason="stop")
