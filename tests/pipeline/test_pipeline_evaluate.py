"""What an evaluation of a real home keeps: its conditions by name, drawn answers, readings, clusters of its items."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

from stokehold.core.config import Config, EvaluationConfig
from stokehold.core.records import Evaluation, SuiteState, Verdict
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.promote import compare_evaluations
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.housekeeping import aging
from stokehold.store.judged.items import COMPLETIONS, DRAWS, read_items
from tiny_world import held_out_facts, write_jsonl

Make = Callable[..., Home]


def judged(home: Home, **settings: object) -> tuple[Config, Evaluation]:
    config = home.config()
    config = config.model_copy(
        update={"evaluation": EvaluationConfig(**{**config.evaluation.model_dump(), **settings})}
    )
    return config, evaluate_ref(home, connect(home), config, "base")


def rows(evaluation: Evaluation, name: str) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in (Path(evaluation.path) / name).read_bytes().splitlines()]


def test_evaluations_made_otherwise_are_not_compared_and_the_difference_is_named(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    config, long = judged(home)
    _, short = judged(home, max_new_tokens=5)
    assert long.conditions["max_new_tokens"] == "24"
    assert long.conditions.keys() >= {"template", "engine", "scorers", "dtype", "device"}
    refused = compare_evaluations(home, config, long, short)
    assert refused.verdict is Verdict.BROKEN
    assert refused.reason == "not judged alike: max_new_tokens: 24, 5"
    assert compare_evaluations(home, config, long, long).verdict is Verdict.EQUIVALENT
    unknown = compare_evaluations(home, config, replace(long, conditions={}), short)
    assert unknown.reason == "not judged alike: the conditions of one were not kept"


def test_drawn_answers_stand_beside_the_greedy_ones_and_change_none(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    config, greedy = judged(home)
    _, drawn = judged(home, draws=3)
    assert drawn.id != greedy.id
    assert [row["token_ids"] for row in rows(drawn, COMPLETIONS)] == [
        row["token_ids"] for row in rows(greedy, COMPLETIONS)
    ]
    assert compare_evaluations(home, config, greedy, drawn).verdict is Verdict.EQUIVALENT
    draws = rows(drawn, DRAWS)
    assert [(row["sample_id"], row["draw"]) for row in draws] == [
        (row["sample_id"], number) for row in rows(drawn, COMPLETIONS) for number in range(3)
    ]
    assert len({row["text"] for row in draws}) > 6, "random weights say something else every time"
    assert {"pass@1", "pass@2", "pass@3", "majority"} <= drawn.suites["facts"].parts.keys()
    agreement = {row["confidence"]["self_consistency"] for row in rows(drawn, COMPLETIONS)}  # type: ignore[index]
    assert agreement <= {0.0, 1 / 3, 2 / 3, 1.0}
    assert {row["confidence"]["self_consistency"] for row in rows(greedy, COMPLETIONS)} == {None}  # type: ignore[index]
    assert not (Path(greedy.path) / DRAWS).exists()
    assert judged(home, draws=3)[1].id == drawn.id
    assert drawn.tokens is not None
    assert greedy.tokens is not None
    assert drawn.tokens == greedy.tokens + sum(len(row["token_ids"]) for row in draws)  # type: ignore[arg-type]


def test_the_readings_of_the_run_are_kept_with_it(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:12])
    _, evaluation = judged(home)
    kept = orjson.loads((Path(evaluation.path) / "readings.json").read_bytes())
    assert kept["evaluation"] == evaluation.id
    assert kept["readings"]["calibration"]["state"] == "ok"
    result = evaluation.suites["facts"]
    assert result.confidence == kept["readings"]["calibration"]["signal"]
    assert result.ece == kept["readings"]["calibration"]["suites"]["facts"]["ece"]
    assert None not in (result.ece, result.smooth_ece, result.ece_equal_mass, result.brier)


def test_rewordings_of_one_question_are_kept_as_one_cluster(make_home: Make) -> None:
    home = make_home()
    plain = [row | {"metadata": {"cluster": f"pair {n // 2}"}} for n, row in enumerate(held_out_facts()[:6])]
    write_jsonl(home.suites / "facts.jsonl", plain)
    _, evaluation = judged(home)
    assert [row["cluster"] for row in read_items(home, evaluation.id)] == [f"pair {n // 2}" for n in range(6)]
    path = Path(evaluation.path) / "items.json"
    old = {
        suite: {k: v for k, v in columns.items() if k != "cluster"}
        for suite, columns in orjson.loads(path.read_bytes()).items()
    }
    path.write_bytes(orjson.dumps(old))
    assert {row["cluster"] for row in read_items(home, evaluation.id)} == {None}, "as older versions wrote them"


def test_a_suite_that_cannot_be_read_is_broken_and_harms_no_other(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    (home.suites / "torn.jsonl").write_bytes(b'{"messages": [\n')
    _, evaluation = judged(home)
    assert evaluation.suites["facts"].state is SuiteState.OK
    torn = evaluation.suites["torn"]
    assert (torn.state, torn.exact, torn.nll_per_token) == (SuiteState.BROKEN, None, None)
    assert "suites/torn.jsonl, line 1" in str(torn.reason)
    assert {row["suite"] for row in rows(evaluation, COMPLETIONS)} == {"facts"}


def test_old_drawn_answers_go_with_the_words_of_the_others(make_home: Make) -> None:
    home = make_home()
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    _, evaluation = judged(home, draws=2)
    parts = dict(evaluation.suites["facts"].parts)
    lines = aging.age(home, datetime(2999, 1, 1, tzinfo=UTC), home.config().retention)
    assert evaluation.id in [line.name for line in lines]
    assert not (Path(evaluation.path) / DRAWS).exists()
    assert {row["text"] for row in rows(evaluation, COMPLETIONS)} == {None}
    assert dict(judged(home, draws=2)[1].suites["facts"].parts) == parts
