"""What scripts rely on with `--json`, and what people see: tables that say what is there, letter by letter."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stokehold.cli import output
from stokehold.core.config import Config
from stokehold.store.db import job_rows, jobs, journal
from stokehold.store.db.database import connect
from stokehold.store.disk import Disk
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint
from tiny_world import facts, held_out_facts, safetensors, write_jsonl

MakeHome = Callable[..., Home]
NAME = "we[bold]ird :smile:.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / NAME, facts(60))


@pytest.fixture
def trained(stoke: Any, make_home: MakeHome, file: Path) -> Home:
    """A home with a suite, a champion and two checkpoints."""
    home = make_home(training={"warmup_steps": 0})
    write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:8])
    stoke("train", file, "--steps", 2, home=home)
    stoke("train", file, "--resume", home=home)
    return home


def test_init_imports_a_folder_once(stoke: Any, tiny_base: Path, tmp_path: Path) -> None:
    root = tmp_path / "home"
    answer = stoke("init", root, "--model", tiny_base, "--json").answer
    assert (root / answer["base"] / "model.safetensors").is_file()
    assert answer["home"] == str(root)
    assert "a home is here already" in stoke("init", root, "--model", tiny_base).error
    assert [c["mark"] for c in stoke("preflight", "--json", home=Home.open(root)).answer if c["mark"] == "✗"] == []


def test_preflight_without_its_base_exits_1(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    home.write_config(home.config_path.read_text().replace(home.config().model.base, "base/gone"))
    ended = stoke("preflight", "--json", home=home)
    assert ended.code == 1
    assert "✗" in {check["mark"] for check in orjson.loads(ended.out)}


def test_submit_and_queue_list_objects(stoke: Any, make_home: MakeHome, file: Path, tmp_path: Path) -> None:
    home = make_home()
    other = write_jsonl(tmp_path / "other.jsonl", facts(5))
    taken = stoke("submit", file, other, "--priority", "high", "--json", home=home).answer
    keys = {"id", "file", "kind", "priority", "state", "progress", "attempt"}
    assert [set(job) for job in taken] == [keys, keys]
    assert [(job["file"], job["kind"], job["priority"], job["state"]) for job in taken] == [
        (NAME, "ingest", "high", "queued"),
        ("other.jsonl", "ingest", "high", "queued"),
    ]
    assert stoke("queue", "--json", home=home).answer == taken
    shown = stoke("queue", home=home)
    assert NAME in shown.out
    cancelled = stoke("cancel", taken[0]["id"], "--json", home=home).answer
    assert [job["state"] for job in cancelled] == ["cancelled"]
    assert [job["state"] for job in stoke("retry", taken[0]["id"], "--json", home=home).answer] == ["queued"]


def test_a_refused_file_does_not_keep_the_others_out(stoke: Any, make_home: MakeHome, file: Path) -> None:
    home = make_home()
    ended = stoke("submit", file.parent / "gone.jsonl", file, "--json", home=home)
    assert ended.code == 1
    assert [job["file"] for job in orjson.loads(ended.out)] == [NAME]
    assert ended.err.startswith("stoke: no such file · ")
    twice = stoke("submit", file, home=home)
    assert "already in the queue" in twice.error


def test_a_long_history_does_not_hide_what_waits(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    with jobs.client(home) as client:
        waiting = client.enqueue("improve", {}, job_id="improve-waits")
        for number in range(60):
            client.cancel(client.enqueue("improve", {}, job_id=f"improve-{number:02}").id)
    assert len(stoke("queue", "--json", home=home).answer) == 61
    shown = stoke("queue", home=home).out
    assert waiting.id in shown
    assert "improve-59" in shown
    assert "improve-00" not in shown


def test_validate_counts_and_fails_without_a_good_line(stoke: Any, tmp_path: Path, file: Path) -> None:
    with file.open("ab") as more:
        more.write(b"[red]broken[/red]\n")
    answer = stoke("validate", file, "--json").answer
    assert (answer["accepted"], [r["line"] for r in answer["rejected"]]) == (60, [61])
    assert "line 61: " in (shown := stoke("validate", file).out)
    assert "[red]broken[/red]" in shown
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nothing\n")
    assert stoke("validate", bad).code == 1


def test_a_share_is_told_as_all_only_when_it_is(stoke: Any, make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()
    with jobs.client(home) as client:
        nearly = client.enqueue("train", {"dataset": "d", "run": "r", "file": "f.jsonl"})
        job_rows.set_progress(client.db, nearly.id, 0.996)
    assert " 99%" in stoke("queue", home=home).out
    assert output.share(0.9996) == "99.9 %"
    long = {"prompt": "x", "completion": "red " * 400}
    file = write_jsonl(tmp_path / "long.jsonl", [*facts(2500), long])
    assert "<0.1% longer than max_length" in stoke("validate", file, home=home).out


def test_the_ledger_adds_up_when_fewer_epochs_are_wanted_than_were_begun(
    stoke: Any, make_home: MakeHome, file: Path
) -> None:
    home = make_home(training={"epochs": 3, "warmup_steps": 0})
    examples = 0
    for step in range(1, 20):
        examples = stoke("train", file, "--steps", step, "--resume", "--json", home=home).answer["examples"]
        if examples > 60:
            break
    assert 60 < examples < 120
    home.write_config(home.config_path.read_text().replace("epochs = 3", "epochs = 1"))
    for _ in ("in the middle", "at its end"):
        answer = stoke("doctor", "--ledger", "--json", home=home).answer
        (row,) = answer["ledger"]
        assert (row["trained"], row["pending"], answer["balanced"]) == (60, 0, True)
        stoke("train", file, "--resume", home=home)


def test_evaluate_has_the_readings_and_its_own_ref(stoke: Any, trained: Home) -> None:
    answer = stoke("evaluate", "latest", "--suite", "facts", "--json", home=trained).answer
    assert answer["ref"] == "latest"
    assert len(answer["weights_hash"]) == 64
    assert answer["fingerprint"]
    (reading,) = answer["suites"].values()
    assert reading["state"] == "ok"
    assert reading["n"] == 8
    low, high = reading["exact_ci"]
    assert 0 <= low <= reading["exact"] <= high <= 1
    assert reading["nll_per_token"] > 0
    lines = (trained.evaluations / answer["id"] / "completions.jsonl").read_bytes().splitlines()
    keys = {"sample_id", "text", "token_ids", "token_logprobs", "gold_nll", "finish_reason", "score"}
    assert all(keys <= set(orjson.loads(line)) for line in lines)
    assert "nll/token" in stoke("evaluate", "base", home=trained).out


def test_compare_has_a_verdict_and_exits_0(stoke: Any, trained: Home) -> None:
    keys = {"verdict", "delta_exact", "delta_exact_ci", "p_value", "delta_nll_per_token", "delta_nll_ci"}
    better = stoke("compare", "base", "latest", "--json", home=trained).answer
    worse = stoke("compare", "latest", "base", "--json", home=trained).answer
    assert set(better) >= keys
    assert better["delta_nll_per_token"] == pytest.approx(-worse["delta_nll_per_token"])
    assert better["delta_nll_per_token"] < 0
    assert better["verdict"] in {"BETTER", "WORSE", "EQUIVALENT", "INCONCLUSIVE", "BROKEN"}
    assert better["verdict"] in stoke("compare", "base", "latest", home=trained).out
    assert better["noise"] is None


def test_compare_measures_the_noise_first(stoke: Any, trained: Home) -> None:
    found = stoke("compare", "base", "latest", "--noise", "3", "--json", home=trained).answer
    assert found["noise"] | {"nll": 0.0} == {"exact": 0.0, "moved": 0.0, "nll": 0.0, "runs": 3}
    assert 0.0 <= found["noise"]["nll"] < 1e-5
    assert "3 readings of A" in stoke("compare", "base", "latest", "--noise", "3", home=trained).out
    refused = stoke("compare", "base", "latest", "--noise", "2", "--until-decided", home=trained)
    assert (refused.code, "no noise floor" in refused.error) == (2, True)


@pytest.mark.parametrize("shares", [True, False])
def test_a_version_tells_the_bytes_that_were_copied_for_it(
    stoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    home, content = Home.create(tmp_path / "home", Config()), safetensors(b"weights")
    publish_checkpoint(home, 1, lambda stage: (stage / "model.safetensors").write_bytes(content), {"step": 1})

    def reflink(_disk: Disk, source: Path, target: Path) -> bool:
        """As a file system that shares extents, or one that cannot."""
        return shares and bool(shutil.copyfile(source, target))

    monkeypatch.setattr(Disk, "reflink", reflink)
    made = stoke("versions", "create", "--json", home=home).answer
    assert made["bytes_added"] == (0 if shares else 2 * len(content)), "its own copy, and one in the content store"
    assert stoke("versions", "verify", made["version"], "--json", home=home).answer["ok"] is True


def test_versions_are_made_checked_shown_and_deleted(stoke: Any, trained: Home, file: Path) -> None:
    made = stoke("versions", "create", "--from", "step:2", "--note", "[red]why[/red]", "--json", home=trained).answer
    assert set(made) == {"version", "seconds", "bytes_added"}
    name = made["version"]
    assert "[red]why[/red]" in stoke("versions", "list", home=trained).out
    listed = stoke("versions", "list", "--json", home=trained).answer
    assert [version["name"] for version in listed] == ["v0001", name]
    shown = stoke("versions", "show", name, home=trained).answer
    assert shown["datasets"]
    assert shown["parent"] == "v0001"
    sound = stoke("versions", "verify", name, "--json", home=trained).answer
    assert sound["ok"] is True
    assert sound["files"] == len(shown["files"])
    assert sound["bytes"] == sum(entry["bytes"] for entry in shown["files"])
    damaged = trained.versions / name / "config.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    ended = stoke("versions", "verify", name, "--json", home=trained)
    assert ended.code == 1
    assert [bad["path"] for bad in orjson.loads(ended.out)["bad"]] == ["config.json"]
    assert "champion" in stoke("versions", "delete", "v0001", home=trained).error
    assert "newest" in stoke("versions", "delete", name, home=trained).error
    restored = stoke("versions", "restore", name, "--json", home=trained).answer
    assert (restored["restored"], Path(restored["kept_previous"]).parent) == (name, trained.trash)
    assert stoke("versions", "verify", "--all", "--json", home=trained).answer["ok"] is True
    stoke("versions", "create", "--json", home=trained)
    assert stoke("versions", "pin", name, "--json", home=trained).answer == {"pinned": name}
    assert "pinned" in stoke("versions", "delete", name, home=trained).error
    stoke("versions", "unpin", name, home=trained)
    assert stoke("versions", "delete", name, "--json", home=trained).answer["deleted"] == name
    assert not (trained.versions / name).exists()
    assert stoke("versions", "undelete", name, "--json", home=trained).answer["restored"] == name
    weights = stoke("versions", "diff", "v0001", name, "--json", home=trained).answer["weights"]
    assert weights["same"] is False
    assert {group["name"] for group in weights["groups"]} >= {"embed_tokens", "layer.0", "norm"}
    assert "largest" in stoke("versions", "diff", "v0001", name, home=trained).out
    trained_from = stoke("versions", "restore", name, "--train", "--json", home=trained).answer["training"]
    assert (trained_from["version"], trained_from["step"], trained_from["branch"]) == (name, 2, 1)
    assert stoke("train", file, "--resume", home=trained).code == 0
    ended = [checkpoint["step"] for checkpoint in stoke("checkpoints", "--json", home=trained).answer]
    assert max(ended) > trained_from["step"]
    assert journal.current_branch(connect(trained)) == 1


def test_promote_makes_a_version_once_and_rollback_undoes_it(stoke: Any, trained: Home) -> None:
    assert stoke("promote", "latest", "--json", home=trained).answer == {"champion": "v0001", "before": "v0001"}
    assert stoke("promote", "step:2", "--json", home=trained).answer == {"champion": "v0002", "before": "v0001"}
    assert stoke("rollback", "--json", home=trained).answer == {"champion": "v0001", "before": "v0002"}
    assert versions.alias(connect(trained)) == "v0001"
    starred = [line for line in stoke("versions", "list", home=trained).out.splitlines() if "*" in line]
    assert [line.split()[0] for line in starred] == ["v0001"]


def test_the_rest_reports_one_document(stoke: Any, trained: Home) -> None:
    steps = [c["step"] for c in stoke("checkpoints", "--json", home=trained).answer]
    assert steps[0] == 2
    assert {"status", "current_step", "loss"} <= set(stoke("status", "--json", home=trained).answer)
    assert "promote" in {event["kind"] for event in stoke("events", "--json", home=trained).answer}
    (trained.logs / "web.log").write_text("one\n[bold]two[/bold]\n")
    assert stoke("logs", "web", "--lines", 1, "--json", home=trained).answer == {"web": ["[bold]two[/bold]"]}
    assert stoke("logs", "web", home=trained).out == "one\n[bold]two[/bold]\n"
    assert stoke("pause", "--free", home=trained).code == stoke("resume", home=trained).code == 0


def test_an_empty_home_says_so(stoke: Any, make_home: MakeHome) -> None:
    home = make_home()
    for arguments, said in (
        (["queue"], "no job yet"),
        (["checkpoints"], "no checkpoint yet"),
        (["versions", "list"], "no version yet"),
        (["doctor", "--ledger"], "no file was accepted yet"),
    ):
        assert said in stoke(*arguments, home=home).out
        if arguments[0] != "doctor":
            assert stoke(*arguments, "--json", home=home).answer == []


def test_a_narrow_terminal_cuts_all_but_the_last_column(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("x" * 90, "a reason of many words " * 4)]
    output.table(("name", "why"), rows)
    assert "x" * 90 in capfd.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(output, "console", output.Console(highlight=False, markup=False, emoji=False))
    output.table(("name", "why"), rows)
    shown = capfd.readouterr().out
    assert "…" in shown
    assert "reason" in shown


def test_generate_is_jsonl_and_repeats_itself(stoke: Any) -> None:
    first = stoke("generate", "arithmetic", "--level", 2, "--count", 5, "--seed", 7)
    assert first.code == 0
    assert len([orjson.loads(line)["messages"] for line in first.out.splitlines()]) == 5
    assert stoke("generate", "arithmetic", "--level", 2, "--count", 5, "--seed", 7).out == first.out
    held_out = stoke("generate", "arithmetic", "--level", 2, "--count", 5, "--seed", 7, "--split", "holdout")
    assert not set(held_out.out.splitlines()) & set(first.out.splitlines())
    assert "did you mean syllo?" in stoke("generate", "sylo").error


def test_codec_gives_back_what_it_was_given(stoke: Any, tmp_path: Path) -> None:
    plain, book, encoded = tmp_path / "plain", tmp_path / "book.json", tmp_path / "encoded"
    plain.write_text("(+ 1 2)\n\n(* (+ 1 2) 3)\n" * 5)
    canonical = stoke("codec", "canonical", "arithmetic", plain).out
    plain.write_text(canonical)
    book.write_text(stoke("codec", "learn", plain).out)
    encoded.write_text(stoke("codec", "encode", book, plain).out)
    assert "<E0" in encoded.read_text() or canonical == encoded.read_text()
    assert stoke("codec", "decode", book, encoded).out == canonical
    stats = stoke("codec", "stats", book, plain, "--json").answer
    assert set(stats) == {"plain", "encoded", "share"}
    plain.write_text("(+ 1 2)\n(+ 1\n")
    broken = stoke("codec", "learn", plain)
    assert broken.code == 1
    assert f"{plain}:2" in broken.error
    assert str(plain) in stoke("codec", "decode", plain, encoded).error
    assert "no such file" in stoke("codec", "stats", tmp_path / "gone", plain).error
