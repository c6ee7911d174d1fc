"""What leaves the home of evaluations: logs that the neighbours read with our metrics, and the report of two."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Evaluation
from stokehold.pipeline import judge
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.neighbours import export, main
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home
from stokehold.store.judged.items import COMPLETIONS
from tiny_world import held_out_facts, write_jsonl

SUITE = "facts"
ITEMS, RIGHT = 14, 9


@dataclass
class Judged:
    """A home whose base model was judged on a suite, of which it gets `RIGHT` of `ITEMS` right."""

    home: Home
    db: Database
    evaluation: Evaluation


@pytest.fixture(scope="session")
def talker(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with weights scaled up: it has different things to say, and no ties."""
    folder = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(tiny_base, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def judged(talker: str, make_home: Callable[..., Home]) -> Judged:
    home = make_home(evaluation={"gold_multiple": 0.0, "max_new_tokens": 8})
    db = connect(home)
    rows = held_out_facts()[:ITEMS]
    write_jsonl(home.suites / "first.jsonl", rows)
    said = evaluate_ref(home, db, home.config(), talker, ["first"])
    for row, line in list(zip(rows, completions(said), strict=True))[:RIGHT]:
        row["messages"][-1]["content"] = str(line["text"])
    write_jsonl(home.suites / f"{SUITE}.jsonl", rows)
    return Judged(home, db, evaluate_ref(home, db, home.config(), talker, [SUITE]))


def completions(evaluation: Evaluation) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in (Path(evaluation.path) / COMPLETIONS).read_bytes().splitlines()]


def test_lm_eval_reads_its_log_and_its_metrics_of_the_samples_are_ours(judged: Judged, tmp_path: Path) -> None:
    from lm_eval.api.metrics import mean, mean_stderr
    from lm_eval.utils import (
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
        hash_string,
        make_table,
    )

    done = export(judged.home, judged.db, judged.evaluation.id, tmp_path, "lm-eval")
    (results_file,) = get_results_filenames(list(done.files))
    (samples_file,) = get_sample_results_filenames(list(done.files))
    assert get_file_task_name(Path(samples_file).name) == SUITE
    results = json.loads(Path(results_file).read_text())
    samples = [json.loads(line) for line in Path(samples_file).read_text().splitlines()]
    right = [sample["exact_match"] for sample in samples]
    ours = judged.evaluation.suites[SUITE].exact
    assert ours == RIGHT / ITEMS
    assert results["results"][SUITE]["exact_match,none"] == pytest.approx(mean(right)) == pytest.approx(ours)
    assert results["results"][SUITE]["exact_match_stderr,none"] == pytest.approx(mean_stderr(right))
    assert f"{ours:.4f}" in make_table(results)
    assert f"{mean_stderr(right):.4f}" in make_table(results)
    assert results["n-samples"][SUITE] == {"original": ITEMS, "effective": ITEMS}
    for sample, line in zip(samples, completions(judged.evaluation), strict=True):
        assert sample["resps"] == [[line["text"]]]
        assert sample["target_hash"] == hash_string(sample["target"])
        assert sample["prompt_hash"] == hash_string(sample["arguments"]["gen_args_0"]["arg_0"])
        assert (sample["exact_match"] == 1) == (sample["target"].strip() == sample["filtered_resps"][0].strip())


def test_inspect_reads_its_log_and_computes_the_same_metrics_from_the_samples(judged: Judged, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log, recompute_metrics

    done = export(judged.home, judged.db, judged.evaluation.id, tmp_path, "inspect")
    log = read_eval_log(done.files[0])
    assert (log.version, log.status, log.eval.task, log.eval.model) == (
        2,
        "success",
        SUITE,
        f"stokehold/{judged.evaluation.ref}",
    )
    assert log.eval.model_args["weights_hash"] == judged.evaluation.weights_hash
    assert log.results is not None
    assert log.samples is not None
    written = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert written["accuracy"] == judged.evaluation.suites[SUITE].exact == RIGHT / ITEMS
    recompute_metrics(log)
    computed = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert computed == pytest.approx(written)
    for sample, line in zip(log.samples, completions(judged.evaluation), strict=True):
        assert sample.output.completion == line["text"] == sample.messages[-1].text
        assert sample.id == line["sample_id"]


@pytest.mark.parametrize("form", ["lm-eval", "inspect"])
def test_an_item_that_could_not_be_scored_is_in_no_share_and_is_counted(
    judged: Judged, tmp_path: Path, form: str
) -> None:
    rows = [json.loads(line) for line in (judged.home.suites / f"{SUITE}.jsonl").read_text().splitlines()]
    rows[0]["metadata"] = {"scorer": "contains"}
    rows[0]["messages"][-1]["content"] = " "
    write_jsonl(judged.home.suites / "one.jsonl", rows)
    again = evaluate_ref(judged.home, judged.db, judged.home.config(), judged.evaluation.ref, ["one"])
    assert again.suites["one"].unscored == 1
    done = export(judged.home, judged.db, again.id, tmp_path, form)
    if form == "lm-eval":
        results = json.loads(Path(next(file for file in done.files if "/results_" in file)).read_text())
        assert results["n-samples"]["one"] == {"original": ITEMS, "effective": ITEMS - 1}
        assert results["results"]["one"]["exact_match,none"] == again.suites["one"].exact
        return
    log = json.loads(Path(done.files[0]).read_text())
    (score,) = log["results"]["scores"]
    assert (score["scored_samples"], score["unscored_samples"]) == (ITEMS - 1, 1)
    assert score["metrics"]["accuracy"]["value"] == again.suites["one"].exact
    assert [sample["metadata"]["unscored"] for sample in log["samples"] if not sample["scores"]] != [None]


def test_words_or_questions_that_are_gone_are_said_and_not_made_up(judged: Judged, tmp_path: Path) -> None:
    (judged.home.suites / f"{SUITE}.jsonl").rename(tmp_path / "kept.jsonl")
    with pytest.raises(NotFoundError, match="no longer holds"):
        export(judged.home, judged.db, judged.evaluation.id, tmp_path / "logs", "lm-eval")
    (tmp_path / "kept.jsonl").rename(judged.home.suites / f"{SUITE}.jsonl")
    (Path(judged.evaluation.path) / COMPLETIONS).unlink()
    with pytest.raises(NotFoundError, match="thinned"):
        export(judged.home, judged.db, judged.evaluation.id, tmp_path / "logs", "inspect")
    assert not (tmp_path / "logs").exists()


def test_the_command_tells_what_it_wrote(judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--home", str(judged.home.root), judged.evaluation.id, str(tmp_path), "--format", "inspect", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == ITEMS
    assert [Path(file).is_file() for file in told["files"]] == [True]
    with pytest.raises(SystemExit) as ended:
        main(["--home", str(judged.home.root), "v0042", str(tmp_path)])
    assert ended.value.code == 1
    assert "v0042" in capsys.readouterr().err


def test_a_comparison_is_written_as_a_page_and_a_table(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, table = tmp_path / "report.html", tmp_path / "table.md"
    given = ["--home", str(judged.home.root), "compare", "base", judged.evaluation.ref]
    judge.main([*given, "--html", str(html), "--markdown", str(table)])
    told = capsys.readouterr().out
    verdict = told.partition(":")[0]
    assert told.endswith(f"written to {html}\nwritten to {table}\n")
    assert f"{RIGHT} gained, 0 lost" in html.read_text()
    assert html.read_text().count("<details") == RIGHT
    assert "the colour of apple" in html.read_text()
    assert f"| {SUITE} | {ITEMS} | 0.0 % | {100 * RIGHT / ITEMS:.1f} % |" in table.read_text()
    assert table.read_text().startswith(verdict)
