"""Comparisons that draw fresh problems until they are decided, by real models."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bench import Bench

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Verdict
from stokehold.evaluation.sequential import SequentialComparison
from stokehold.inference.registry import Served, load
from stokehold.pipeline.deciding import decide_by_drawing, decision_answer, fresh, kinds_of
from stokehold.store.home import Home
from stokehold.store.models import references
from stokehold.tasks.registry import draw, identity_of, is_holdout, row
from tiny_world import held_out_facts, write_jsonl

Make = Callable[..., Home]
KIND = ("arithmetic", 1)
SETTINGS = {"max_new_tokens": 12, "batch_size": 16}


def home_with_problems(make_home: Make) -> Home:
    home = make_home(evaluation=SETTINGS, data={"max_length": 256})
    write_jsonl(home.suites / "sums.jsonl", [row(one) for one in draw(*KIND, 6, 0, "holdout")])
    return home


def served(one: Bench, ref: str) -> Served:
    return load(Path(references.resolve(one.home, one.db, ref)), "float32", "cpu")


def test_a_model_that_learned_is_found_better_on_problems_that_it_never_saw(make_home: Make) -> None:
    one = Bench(home_with_problems(make_home))
    one.submit("sums.jsonl", [row(sample) for sample in draw(*KIND, 200, 1, "train")])
    one.drain(["ingest", "train"])
    pair = served(one, "base"), served(one, "latest")
    stored = list(one.home.evaluations.iterdir())
    looks: list[int] = []
    found = decide_by_drawing(one.home, one.home.config(), pair, 200, lambda state: looks.append(state.items))
    assert found.decision is Verdict.BETTER
    assert looks[0] == SETTINGS["batch_size"]
    assert looks == sorted(looks)
    assert found.items < 200, "it stopped as soon as it knew"
    assert list(one.home.evaluations.iterdir()) == stored
    again = decide_by_drawing(one.home, one.home.config(), pair, 200, lambda _state: None)
    assert again == found, "the same problems again"
    back = decide_by_drawing(one.home, one.home.config(), pair[::-1], 200, lambda _state: None)
    assert back.decision is Verdict.WORSE
    one.close()


def test_equal_models_stay_undecided_and_it_is_said_how_many_more(make_home: Make) -> None:
    one = Bench(home_with_problems(make_home))
    pair = served(one, "base"), served(one, "base")
    found = decide_by_drawing(one.home, one.home.config(), pair, 40, lambda _state: None)
    assert (found.decision, found.items, found.lost, found.gained) == (None, 40, 0, 0)
    answer = decision_answer(found, ("base", "base"))
    assert answer["verdict"] == "INCONCLUSIVE"
    assert answer["items_needed"] > 0
    assert decision_answer(SequentialComparison(0.02), ("a", "b"))["delta_exact"] is None
    one.close()


def test_drawn_problems_are_held_out_distinct_and_of_the_kinds_that_the_suites_hold(make_home: Make) -> None:
    home = home_with_problems(make_home)
    odd = [{"prompt": "a?", "completion": "b", "metadata": {"family": ["arithmetic"], "level": [1]}}]
    write_jsonl(home.suites / "odd.jsonl", odd)
    assert kinds_of(home, home.config()) == [KIND]
    found = list(fresh([KIND, ("syllogism", 2)], 30, 7))
    identities = [identity_of(sample) for sample in found]
    assert len(set(identities)) == len(found) > 30
    assert all(is_holdout(str(identity)) for identity in identities)
    assert found == list(fresh([KIND, ("syllogism", 2)], 30, 7))


def test_a_home_without_a_task_family_is_told_what_to_do(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    with pytest.raises(NotFoundError, match="add items to the suite"):
        kinds_of(home, home.config())
