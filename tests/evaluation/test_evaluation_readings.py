"""Readings of constructed answers: what each says, and that it says nothing it does not know."""

import math
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.evaluation.readings.answers import Answer, answer_of, confidence, item_reading
from stokehold.evaluation.readings.calibration import calibration
from stokehold.evaluation.readings.comparison import comparison
from stokehold.evaluation.readings.correction import FIXED, INSUFFICIENT, NOT_FIXED, correction
from stokehold.evaluation.readings.curriculum import curriculum
from stokehold.evaluation.readings.errors import error_kind, patterns
from stokehold.evaluation.readings.mining import mining
from stokehold.evaluation.readings.regression import IN_A_ROW, Rival, regression

MARGIN = 0.02


def row(number: int, score: float | None = 1.0, **facts: Any) -> dict[str, Any]:
    given = {"suite": "easy", "sample_id": f"{number:04}", "family": "syllo", "level": 1, "score": score}
    said = {"text": "answer", "token_ids": [1, 2], "token_logprobs": [-0.1, -0.2], "finish_reason": "stop"}
    return {**given, **said, "gold_nll": 0.5, "gold_tokens": 3, "parts": {}, "reason": None, **facts}


def answers(rights: Sequence[float | None], **facts: Any) -> list[Answer]:
    return [answer_of(row(number, score, **facts)) for number, score in enumerate(rights)]


def of(level: int, rights: int, wrongs: int, **facts: Any) -> list[Answer]:
    scores = [1.0] * rights + [0.0] * wrongs
    return [answer_of(row(1000 * level + k, score, level=level, **facts)) for k, score in enumerate(scores)]


def test_a_thinned_row_is_an_answer_without_words() -> None:
    kept = answer_of({"suite": "s", "sample_id": "a", "score": 0.0, "gold_nll": 1.5, "gold_tokens": 4})
    assert (kept.item, kept.exact, kept.completion, confidence(kept), error_kind(kept)) == (
        "s/a",
        False,
        None,
        None,
        None,
    )
    assert item_reading(kept).gold_nll == 1.5
    unscored = answer_of(row(1, None, finish_reason="error", token_logprobs=[]))
    assert (unscored.exact, confidence(unscored), error_kind(unscored)) == (None, None, None)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"finish_reason": "length", "parts": {"format": 0.0}}, "no_stop"),
        ({"text": " \n", "parts": {"format": 0.0, "per_word": 0.0}}, "empty"),
        ({"parts": {"format": 0.0, "per_word": 0.0}}, "format"),
        ({"parts": {"format": 1.0, "per_word": 0.5, "inventory": 0.0}}, "per_word"),
        ({"parts": {"format": 1.0, "per_word": 1.0, "inventory": 0.0}}, "inventory"),
        ({"parts": {"equal": 0.0}}, "wrong_value"),
        ({}, "wrong_value"),
        ({"score": 1.0, "finish_reason": "length"}, None),
        ({"score": None}, None),
    ],
)
def test_what_fails_first_names_the_error(facts: dict[str, Any], kind: str | None) -> None:
    assert error_kind(answer_of({**row(0, 0.0), **facts})) == kind


def test_curriculum_tells_loss_and_accuracy_by_family_and_level() -> None:
    judged = [*of(10, 1, 1), *of(2, 3, 1, gold_nll=2.0), *answers([None], level=None)]
    found = curriculum(judged, {2: 0.75, 10: 0.25}, "syllo")
    assert [(kind["level"], kind["n"], kind["exact"]) for kind in found["kinds"]] == [
        (2, 4, 0.75),
        (10, 2, 0.5),
        (None, 0, None),
    ]
    assert found["kinds"][0]["nll_per_token"] == 2.0
    assert (found["mix"], found["mix_of"]) == ({"2": 0.75, "10": 0.25}, "syllo")


def test_mining_puts_the_surest_of_the_wrong_and_the_least_sure_of_the_right_first() -> None:
    sure = [-0.01, -1.0, -3.0]
    rows = [row(k, 0.0, token_logprobs=[value]) for k, value in enumerate(sure)]
    rows += [row(10 + k, 1.0, token_logprobs=[value]) for k, value in enumerate(sure)]
    rows += [row(20, None), row(21, 0.0, token_logprobs=[])]
    found = mining([answer_of(one) for one in rows], 0.5)
    assert (found["wrong"], found["unsure"]) == (4, 2)
    assert [one["item"] for one in found["surest_wrong"]] == ["easy/0000", "easy/0001", "easy/0002", "easy/0021"]
    assert [one["item"] for one in found["least_sure_right"]] == ["easy/0012", "easy/0011", "easy/0010"]
    assert found["kinds"] == [{"family": "syllo", "level": 1, "items": 6}]
    assert mining([answer_of(one) for one in rows], 0.0)["unsure"] == 0


def test_regression_counts_gains_and_losses_by_suite_level_and_kind() -> None:
    before, after = answers([1, 1, 0, 0, None]), answers([1, 0, 1, 0, 1], finish_reason="length")
    found = regression(after, [Rival(("previous", "best"), "e", "step:1", before)], [before], MARGIN)
    (change,) = found["against"]
    assert (change["parts"], change["items"], change["gained"], change["lost"]) == (["previous", "best"], 4, 1, 1)
    assert change["cells"] == [{"suite": "easy", "level": 1, "items": 4, "gained": 1, "lost": 1}]
    assert (change["lost_items"], change["gained_items"]) == (["easy/0001"], ["easy/0002"])
    assert (change["lost_kinds"], change["gained_kinds"]) == ({"no_stop": 1}, {"wrong_value": 1})
    assert change["comparison"]["items"] == 5


def test_forgetting_is_the_best_earlier_share_minus_the_present_one() -> None:
    past = [answers([1, 1, 1, 0]), answers([1, 1, 0, 0]), answers([0, 0, 0, 0])]
    found = regression(answers([1, 0, 0, 0]), [], past, MARGIN)["forgetting"]
    assert (found["score"], found["items"]) == (0.5, 4)
    assert found["cells"][0] | {"best": 0.75, "now": 0.25} == found["cells"][0]
    gained = regression(answers([1, 1, 1, 1]), [], past, MARGIN)["forgetting"]
    assert gained["score"] == -0.25
    assert regression(answers([1]), [], [], MARGIN)["forgetting"]["score"] is None


def test_items_lost_in_a_row_and_items_that_flip() -> None:
    #        item: kept, lost for good, lost lately, never right, flips
    histories = [[1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    *past, now = [answers([float(score) for score in scores]) for scores in histories]
    found = regression(now, [], past, MARGIN)
    assert IN_A_ROW == 3
    assert (found["lost_in_a_row"]["count"], found["lost_in_a_row"]["items"]) == (1, ["easy/0001"])
    assert found["unstable"]["items"] == [{"item": "easy/0004", "flips": 3}]
    assert (found["unstable"]["followed"], found["unstable"]["share"]) == (5, 0.2)


def test_comparison_ranks_the_present_weights() -> None:
    entrants = {"v0001": answers([0.0] * 40), "step:9": answers([1.0] * 40)}
    found = comparison({name: [item_reading(a) for a in said] for name, said in entrants.items()}, "step:9")
    assert found["present"] == "step:9"
    assert [(place["name"], place["rank"]) for place in found["places"]] == [("step:9", 1), ("v0001", 2)]


def test_calibration_is_told_by_suite_and_pooled() -> None:
    certain = answers([1.0, 0.0], token_logprobs=[0.0])
    doubting = answers([1.0, 0.0, None], suite="hard", token_logprobs=[math.log(0.5)])
    found = calibration([*certain, *doubting])
    assert found["suites"]["easy"]["ece"] == pytest.approx(0.5)
    assert found["suites"]["hard"]["ece"] == pytest.approx(0.0)
    assert (found["pooled"]["n"], found["pooled"]["left_out"]) == (4, 1)


def test_a_pattern_that_went_away_is_fixed() -> None:
    before = of(1, 20, 40, finish_reason="length")
    found = correction(of(1, 60, 0), [("first", before)], MARGIN)
    (pattern,) = found["patterns"]
    assert (pattern["kind"], pattern["since"], pattern["now"]) == ("no_stop", "first", 0)
    assert (pattern["before_share"], pattern["now_share"]) == (pytest.approx(2 / 3), 0.0)
    assert pattern["verdict"] == FIXED


def test_an_error_that_became_another_is_not_fixed() -> None:
    before = of(1, 20, 40, finish_reason="length")
    found = correction(of(1, 20, 40, parts={"format": 0.0}), [("first", before)], MARGIN)
    verdicts = {row["kind"]: (row["verdict"], row["moved"]) for row in found["patterns"]}
    assert verdicts == {"no_stop": (NOT_FIXED, 40), "format": (None, None)}
    assert [row["now_share"] for row in found["patterns"] if row["kind"] == "no_stop"] == [pytest.approx(2 / 3)]


def test_a_pattern_is_followed_from_its_first_sight() -> None:
    past = [("first", of(1, 20, 40)), ("second", of(1, 55, 5))]
    assert correction(of(1, 60, 0), past, MARGIN)["patterns"][0]["since"] == "first"


def test_few_cases_prove_nothing() -> None:
    (pattern,) = correction(of(1, 10, 0), [("first", of(1, 7, 3))], MARGIN)["patterns"]
    assert pattern["verdict"] == INSUFFICIENT
    assert correction(of(1, 3, 0), [], MARGIN) == {"wrong": 0, "patterns": []}


def test_a_share_that_could_not_have_halved_is_not_fixed() -> None:
    (pattern,) = correction(of(1, 100, 100), [("first", of(1, 100, 100))], MARGIN)["patterns"]
    assert pattern["verdict"] == NOT_FIXED
    assert pattern["change_ci"][0] > -0.25


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), max_size=12)


@given(SCORES, SCORES, st.sampled_from(["", "text"]), st.sampled_from(["stop", "length", "error"]))
def test_every_reading_is_json_without_a_number_that_is_not_finite(
    before: list[float | None], now: list[float | None], text: str, finish: str
) -> None:
    first, second = answers(before), answers(now, text=text, finish_reason=finish)
    found = [
        curriculum(second, {1: 1.0}, "syllo"),
        mining(second, 0.5),
        regression(second, [Rival(("previous",), "e", "r", first)], [first], MARGIN),
        comparison({"a": [item_reading(a) for a in first], "b": [item_reading(b) for b in second]}, "b"),
        calibration(second),
        correction(second, [("e", first)], MARGIN),
    ]
    assert sum(patterns(second).values()) <= len(second)
    for reading in found:
        written = orjson.loads(orjson.dumps(reading))
        assert orjson.dumps(written) == orjson.dumps(reading)
        assert finite(reading)


def finite(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(finite, tree))
    return not isinstance(tree, float) or math.isfinite(tree)
