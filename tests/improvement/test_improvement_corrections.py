"""Corrections are true: what is called wrong the verifier gave nothing, what is called right it gave everything."""

import random
from collections import Counter

import pytest

from stokehold.core.config import ImprovementConfig
from stokehold.core.identity import is_holdout
from stokehold.core.records import Message, Sample, Score
from stokehold.evaluation.readings.errors import EMPTY, NO_STOP, PART_KINDS, WRONG_VALUE
from stokehold.improvement.corrections import (
    CORRECT,
    FORMS,
    INCORRECT,
    MADE_AS,
    Mistake,
    Pattern,
    corrections,
    corrupted,
    is_wrong,
)
from stokehold.improvement.generation import next_file
from stokehold.improvement.mining import Judged
from stokehold.improvement.supply import Supply
from stokehold.tasks.registry import FAMILIES, draw, identity_of, verify_answer

KINDS = (EMPTY, NO_STOP, *PART_KINDS, WRONG_VALUE)
GIVEN = "Answer given: "


def train(family: str, level: int, count: int, seed: int = 3) -> list[Sample]:
    return list(draw(family, level, count, seed, "train"))


def given_answer(asked: str) -> str:
    """The answer that is shown, from between the question and the demand."""
    return asked.rpartition(GIVEN)[2].rpartition("\n\n")[0]


def by_form(rows: list[Sample]) -> dict[str, list[Sample]]:
    return {form: [sample for sample in rows if sample.metadata[MADE_AS] == form] for form in FORMS}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_wrong_answers_of_every_kind(family: str) -> None:
    source = random.Random(1)
    for level in (1, 5, 10):
        for sample in train(family, level, 3):
            for kind in KINDS:
                answer = corrupted(sample, kind, source)
                assert answer is not None, (family, level, kind)
                assert answer != sample.gold
                assert verify_answer(sample, answer).value == 0.0
            assert not is_wrong(sample, sample.gold)


def test_what_is_right_in_value_but_not_in_form_is_called_neither() -> None:
    sample = next(one for one in train("arithmetic", 6, 200) if "/" in one.gold)
    above, below = map(int, sample.gold.split("/"))
    unreduced = f"{2 * above}/{2 * below}"
    assert verify_answer(sample, unreduced) == Score(0.0, {"equal": 1.0})
    assert not is_wrong(sample, unreduced)


def test_rows_say_what_the_verifier_says_of_problems_of_their_own() -> None:
    patterns: list[tuple[Pattern, int]] = [(("syllo", 2, "per_word"), 30), (("syllo", 1, "no_stop"), 10)]
    rows = corrections(patterns, [], (1, 2), 81, Supply(5), 7)
    assert len(rows) == 80
    forms = by_form(rows)
    assert {form: len(found) for form, found in forms.items()} == dict.fromkeys(FORMS, 20)
    assert Counter((s.metadata["level"], s.metadata["error_kind"]) for s in rows) == {
        (2, "per_word"): 60,
        (1, "no_stop"): 20,
    }
    for sample in forms["judge_wrong"]:
        assert sample.gold == INCORRECT
        assert is_wrong(sample, given_answer(sample.question[-1].content))
    for sample in forms["judge_right"]:
        assert sample.gold == CORRECT
        assert verify_answer(sample, given_answer(sample.question[-1].content)).exact
    for sample in forms["find"]:
        assert is_wrong(sample, given_answer(sample.question[-1].content))
        assert verify_answer(sample, sample.gold).exact
    for sample in forms["sibling"]:
        assert GIVEN not in sample.question[-1].content
        assert verify_answer(sample, sample.gold).exact
    identities = [identity_of(sample) for sample in rows]
    assert len(set(identities)) == 80, "no row gives away another"
    assert not any(is_holdout(identity) for identity in identities if identity)
    assert rows == corrections(patterns, [], (1, 2), 81, Supply(5), 7)


def test_the_models_own_mistakes_are_shown_once_and_before_any_other() -> None:
    mistakes = [Mistake(sample, "wrong") for sample in train("syllo", 1, 3)]
    rows = corrections([(("syllo", 1, "format"), 1)], mistakes, (1,), 8, Supply(5), 7)
    shown = [s for s in rows if s.metadata.get("wrong_by") == "model"]
    assert len(shown) == 3
    assert {identity_of(s) for s in shown} == {identity_of(mistake.sample) for mistake in mistakes}
    assert all(given_answer(s.question[-1].content) == "wrong" for s in shown)


def test_answers_that_are_right_endless_or_held_out_are_no_mistakes() -> None:
    right, endless = train("syllo", 1, 2)
    held = next(iter(draw("syllo", 1, 1, 3, "holdout")))
    own = Sample("u", (Message("user", "secret"), Message("assistant", "gold")), metadata={"level": 1})
    mistakes = [Mistake(right, right.gold), Mistake(endless, "x" * 100_000), Mistake(held, "no"), Mistake(own, "no")]
    rows = corrections([(("syllo", 1, "format"), 1)], mistakes, (1,), 40, Supply(5), 7)
    assert len(rows) == 40
    assert not [sample for sample in rows if sample.metadata.get("wrong_by") == "model"]
    assert not any("secret" in message.content for sample in rows for message in sample.messages)


def test_only_patterns_of_task_families_at_open_levels_have_rows() -> None:
    patterns: list[tuple[Pattern, int]] = [((None, None, "empty"), 9), (("tickets", 1, "empty"), 9)]
    patterns.append((("syllo", 3, "empty"), 9))
    assert corrections(patterns, [], (1, 2), 40, Supply(1), 1) == []


def test_a_file_has_its_share_of_corrections_and_none_by_default() -> None:
    judged = [Judged(sample, False) for sample in draw("syllo", 1, 5, 3, "holdout")]
    config = ImprovementConfig(enabled=True, levels=(1, 2), rows=60, correction_share=0.2)
    mistakes = [Mistake(sample, "wrong") for sample in Supply(9).take("syllo", 1, 2)]  # this file would draw them too
    rows = next_file(judged, {}, config, 9, [(("syllo", 1, "format"), 5)], mistakes)
    made = [sample for sample in rows if MADE_AS in sample.metadata]
    assert (len(rows), len(made)) == (60, 12)
    assert len({identity_of(sample) for sample in rows}) == 60
    assert len([sample for sample in made if sample.metadata.get("wrong_by") == "model"]) == 2
    plain = next_file(judged, {}, config.model_copy(update={"correction_share": 0.0}), 9, [(("syllo", 1, "format"), 5)])
    assert not [sample for sample in plain if MADE_AS in sample.metadata]
