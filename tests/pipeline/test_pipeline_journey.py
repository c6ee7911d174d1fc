"""One file travels from the inbox to a promoted version that answers, whatever is killed on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stokehold.core.records import Job, JobState
from stokehold.store.db import jobs, journal
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home
from stokehold.store.models import versions
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import until

TRAINING = {"micro_batch_tokens": 512, "learning_rate": 0.01, "warmup_steps": 10, "checkpoint_steps": 10, "epochs": 12}


@contextmanager
def up(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """`stoke up` in the foreground; told to leave at the end, killed if it does not."""
    command = [sys.executable, "-m", "stokehold.cli.main", "up", "--home", str(home.root)]
    with (home.logs / "test.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


def settled(home: Home, files: int) -> list[Job] | None:
    """Every job, once `files` files were trained and nothing is left to do."""
    with jobs.client(home) as client:
        found = client.list_jobs()
    done = [job for job in found if job.kind == "train" and job.state is JobState.COMPLETED]
    busy = [job for job in found if job.state in (JobState.QUEUED, JobState.RUNNING)]
    return found if len(done) >= files and not busy else None


def pid_of(home: Home, role: str) -> int | None:
    path = home.status / "supervisor.json"
    children = orjson.loads(path.read_bytes())["children"] if path.exists() else []
    return next((child["pid"] for child in children if child["role"] == role), None)


def last_step(db: Database) -> int:
    step = journal.last_step(db)
    return step.step if step else 0


def test_a_dropped_file_becomes_a_champion_that_plain_transformers_confirms(make_home: Callable[..., Home]) -> None:
    home = make_home(training=TRAINING)
    write_jsonl(home.suites / "facts.jsonl", held_out_facts())
    with up(home):
        write_jsonl(home.inbox / "facts.jsonl", facts(600))
        found = until(lambda: settled(home, 1), home)
    assert [job.state for job in found] == [JobState.COMPLETED] * len(found)
    assert not (home.inbox / "facts.jsonl").exists()
    db = connect(home)
    champion = versions.find_version(home, versions.alias(db) or "")
    answers = [orjson.loads(line) for line in _completions(home, champion.evaluation)]
    exact = [answer["score"] == 1.0 for answer in answers]
    assert 0.2 < sum(exact) / len(exact) <= 1.0, "the claim to be checked must be neither nothing nor empty"
    assert _exact_with_transformers(Path(champion.path)) == exact


def _completions(home: Home, evaluation: str | None) -> list[bytes]:
    return (home.evaluations / str(evaluation) / "completions.jsonl").read_bytes().splitlines()


def _exact_with_transformers(folder: Path) -> list[bool]:
    """Held-out exact match, item by item, with nothing of ours in between."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    right = []
    for item in held_out_facts():
        question, gold = item["messages"]
        ids = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_tensors="pt")
        ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        right.append(answer.strip() == gold["content"])
    return right


def test_killing_trainer_and_supervisor_loses_nothing(make_home: Callable[..., Home]) -> None:
    straight, killed = make_home(training=TRAINING), make_home(training=TRAINING)
    for home in (straight, killed):
        write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:6])
    with up(straight):
        write_jsonl(straight.inbox / "facts.jsonl", facts(300))
        until(lambda: settled(straight, 1), straight)
    write_jsonl(killed.inbox / "facts.jsonl", facts(300))
    db = connect(killed)
    with up(killed):
        until(lambda: last_step(db) >= 5, killed)
        first = pid_of(killed, "trainer")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: pid_of(killed, "trainer") not in (first, None) and last_step(db) >= 12, killed)
    with up(killed) as process:
        until(lambda: last_step(db) >= 20, killed)
        process.kill()
        process.wait()
    with up(killed):
        until(lambda: settled(killed, 1), killed)
    hashes = [versions.list_versions(home)[-1].weights_hash for home in (straight, killed)]
    assert hashes[0] == hashes[1]
    assert sum(step.examples for step in journal.steps(db)) == 300 * TRAINING["epochs"]


def test_bad_files_leave_the_worker_alive_and_are_told(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home(training={**TRAINING, "epochs": 1})
    db = connect(home)
    target = write_jsonl(tmp_path / "elsewhere.jsonl", facts(3))
    with up(home):
        worker = until(lambda: pid_of(home, "trainer"), home)
        (home.inbox / "link.jsonl").symlink_to(target)
        (home.inbox / "bad.jsonl").write_bytes(b"no json here\n")
        write_jsonl(home.inbox / "good.jsonl", facts(40))
        until(lambda: settled(home, 1), home)
        write_jsonl(home.inbox / "copy.jsonl", facts(40))
        refused = home.inbox / "refused"
        names = {"link.jsonl", "bad.jsonl", "copy.jsonl"}
        until(lambda: refused.is_dir() and names <= {path.name for path in refused.iterdir()}, home)
        assert pid_of(home, "trainer") == worker
    reasons = {path.name: path.read_text() for path in refused.glob("*.reason.txt")}
    assert "already" in reasons["copy.jsonl.reason.txt"]
    assert "no usable line" in reasons["bad.jsonl.reason.txt"]
    assert target.exists()
    assert last_step(db) > 0
