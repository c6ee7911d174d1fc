"""Checkpoints judged on another machine: the same readings as at home, whatever is killed, and nothing left there."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from bench import Bench
from starlette.testclient import TestClient

from link import serving
from stokehold.core.config import Config, describe
from stokehold.core.errors import ConfigError, IntegrityError, StokeholdError
from stokehold.core.records import Completion, JobState
from stokehold.pipeline.answering import Answering
from stokehold.pipeline.device import DeviceQueue
from stokehold.pipeline.evaluator import STAGES, Bureau, Evaluator
from stokehold.pipeline.foreground import Meter
from stokehold.pipeline.worker import Leave
from stokehold.pipeline.workflows import hand_over, run_stage
from stokehold.store.db import job_rows
from stokehold.store.db.database import connect
from stokehold.store.disk import Fault, FaultyDisk
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from stokehold.store.transfer import evaluation_requests, sync
from stokehold.store.transfer.evaluation_requests import Header, Limits, Request, SuiteFile
from stokehold.store.transfer.remote import Remote
from stokehold.web.app import create_app
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import PATIENCE_S, until

ELSEWHERE = {"evaluator": "node"}
QUICK = {"holdout_share": 0.0, "max_new_tokens": 24}


class Elsewhere(Bench):
    """A trainer whose checkpoints wait for a node; `judge` runs the evaluator's jobs on a thread of its own."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.trainer.hand_over = lambda *given: hand_over(self.client, *given)
        self.leave = Leave()
        self.bureau = Bureau(home, self.client, DeviceQueue(), Evaluator(home, home.config(), self.db, self.leave))
        served = (lambda: self.closed, self.bureau.evaluator.idle)
        threading.Thread(target=self.bureau.device.serve, args=served, daemon=True).start()

    def run(self, job: Any) -> JobState:
        if job.kind != "evaluate":
            return super().run(job)
        return run_stage(self.bureau, STAGES["evaluate"], job_rows.get_payload(self.db, job.id))

    def judging(self) -> threading.Thread:
        """Begins all evaluations that wait, and returns when the first is asked for."""
        thread = threading.Thread(target=self.drain, args=(["evaluate"],), daemon=True)
        thread.start()
        until(lambda: evaluation_requests.waiting(self.home) or not thread.is_alive())
        return thread


@pytest.fixture
def elsewhere(make_home: Callable[..., Home]) -> Iterator[Callable[..., Elsewhere]]:
    made: list[Elsewhere] = []

    def make(**tables: Any) -> Elsewhere:
        home = make_home(**{"devices": ELSEWHERE, "evaluation": QUICK} | tables)
        write_jsonl(home.suites / "facts.jsonl", held_out_facts()[:12])
        made.append(Elsewhere(home))
        return made[-1]

    yield make
    for one in made:
        one.leave.at_once()
        one.close()


@pytest.fixture
def node(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "node", Config())


def answer(node: Home, url: str, token: str, times: int = 1) -> None:
    """The node's own loop, as long as there is something to answer."""
    with Remote(url, token) as remote, Meter() as meter:
        answering = Answering(node, remote, meter)
        for _ in range(times):
            until(lambda: evaluation_requests.ask_server(remote)["request"])
            answering.work()


def content(one: Bench) -> dict[str, Any]:
    """Everything judged: by its id the readings and the words, without what depends on the clock."""
    found = evaluations.list_evaluations(one.home, one.db)
    return {e.id: ({n: asdict(r) for n, r in e.suites.items()}, words(Path(e.path))) for e in found}


def words(folder: Path) -> list[bytes]:
    names = ("completions.jsonl", "draws.jsonl", "items.json")
    return [(folder / name).read_bytes() for name in names if (folder / name).exists()]


def left_over(node: Home) -> list[str]:
    """Files of models and answers in the node's home."""
    shelves = (node.versions, node.checkpoints, node.blobs, node.blobs.parent / "partial", node.root / "judging")
    return [str(path) for shelf in shelves if shelf.exists() for path in shelf.rglob("*") if path.is_file()]


def test_judged_elsewhere_is_judged_alike_and_nothing_stays_there(
    elsewhere: Callable[..., Elsewhere], bench: Callable[..., Bench], node: Home
) -> None:
    drawn = QUICK | {"draws": 2, "temperature": 0.8}
    here, away = bench(evaluation=drawn), elsewhere(evaluation=drawn)
    for one in (here, away):
        write_jsonl(one.home.suites / "facts.jsonl", held_out_facts()[:12])
        write_jsonl(one.home.suites / "more.jsonl", held_out_facts()[8:16])
        (one.home.suites / "broken.jsonl").write_text("{")
        one.submit("one.jsonl", facts(60))
        one.drain(["ingest", "train"])
    assert content(away) == {}
    with serving(away.home) as url:
        thread = away.judging()
        answer(node, url, away.home.token())
        thread.join(PATIENCE_S)
        assert evaluation_requests.waiting(away.home) is None
    for one in (here, away):
        one.drain()
    assert content(away) == content(here), "the same ids, readings and words"
    (found,) = evaluations.list_evaluations(away.home, away.db)
    assert found.suites["broken"].reason is not None
    assert found.seconds > 0.0
    answer_nothing(node, away)
    assert left_over(node) == []


def answer_nothing(node: Home, home_of: Bench) -> None:
    with serving(home_of.home) as url, Remote(url, home_of.home.token()) as remote, Meter() as meter:
        Answering(node, remote, meter).work()


def test_adapters_are_judged_on_the_base_that_came_once(elsewhere: Callable[..., Elsewhere], node: Home) -> None:
    one = elsewhere(model={"method": "lora"})
    for number in (1, 2):
        one.submit(f"{number}.jsonl", facts(40, seed=number))
        one.drain(["ingest", "train"])
    with serving(one.home) as url:
        thread = one.judging()
        answer(node, url, one.home.token())
        (base,) = [path for path in node.base.iterdir() if path.is_dir()]
        came = (base / "manifest.json").stat().st_mtime_ns
        answer(node, url, one.home.token())
        thread.join(PATIENCE_S)
        assert (base / "manifest.json").stat().st_mtime_ns == came
    assert len(evaluations.list_evaluations(one.home, one.db)) == 2
    assert not (node.root / "judging").exists() or list((node.root / "judging").iterdir()) == []


def test_only_what_is_asked_can_be_taken_and_only_while_it_is(elsewhere: Callable[..., Elsewhere], node: Home) -> None:
    one = elsewhere()
    one.submit("one.jsonl", facts(40))
    one.drain(["ingest", "train"])
    folder = Path(checkpoints.list_checkpoints(one.home)[-1].path)
    hashes = {entry["path"]: entry["blake3"] for entry in read_manifest(folder)["files"]}
    weights = hashes["model.safetensors"]
    moments = [digest for path, digest in hashes.items() if path.startswith("optimizer")]
    assert moments
    headers = {"authorization": f"Bearer {one.home.token()}"}
    with serving(one.home) as url, httpx.Client(base_url=url, headers=headers, trust_env=False) as client:

        def status(digest: str) -> int:
            return client.get(f"/api/blobs/{digest}").status_code

        assert client.get("/api/evaluation-requests/next").json()["request"] is None
        assert status(weights) == 404, "no version has it"
        thread = one.judging()
        document = client.get("/api/evaluation-requests/next")
        assert str(one.home.root) not in document.text, "no path of this machine leaves it"
        suite = document.json()["request"]["suites"][0]["blake3"]
        assert (status(weights), status(suite)) == (200, 200)
        assert [status(digest) for digest in moments] == [404] * len(moments)
        assert client.get(f"/api/blobs/{suite}").content == (one.home.suites / "facts.jsonl").read_bytes()
        assert httpx.get(f"{url}/api/evaluation-requests/next", trust_env=False).status_code == 401
        answer(node, url, one.home.token())
        thread.join(PATIENCE_S)
        assert (status(weights), status(suite)) == (404, 404)


def asked(home: Home) -> Request:
    """A request for two items, with two draws of each."""
    limits = Limits(max_new_tokens=4, batch_size=2, gold_multiple=0.0, draws=2, temperature=1.0, seed=0)
    request = Request(
        format=1,
        id="0" * 16,
        ref="step:1",
        folder="checkpoints/step_000000001",
        engine="e",
        template="t",
        limits=limits,
        suites=(SuiteFile(name="s", blake3="0" * 64, bytes=1, items=2),),
    )
    evaluation_requests.ask(home, request)
    return request


HEADER = Header(request="0" * 16, engine="e", template="t", dtype="torch.float32", device="cpu", seconds=1.0)
ANSWER = Completion("a", "x", (1,), (-0.5,), "stop", 0.25, 1)
WHOLE: list[tuple[Any, Completion]] = [(("s", number, draw), ANSWER) for number in (0, 1) for draw in (None, 0, 1)]


def lines(header: dict[str, Any], answers: list[tuple[Any, Completion]]) -> bytes:
    rows = [header, *({"key": key, **asdict(one)} for key, one in answers)]
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


HEAD = HEADER.model_dump()
REFUSED = {
    "nothing": b"",
    "no JSON": b"<html>",
    "a pickle": b"\x80\x04K\x01.",
    "another request": lines(HEAD | {"request": "1" * 16}, WHOLE),
    "another engine": lines(HEAD | {"engine": "other"}, WHOLE),
    "another template": lines(HEAD | {"template": "other"}, WHOLE),
    "a newer format": lines(HEAD | {"format": 2}, WHOLE),
    "another device": lines(HEAD | {"device": "cpu; rm"}, WHOLE),
    "negative seconds": lines(HEAD | {"seconds": -1.0}, WHOLE),
    "one is missing": lines(HEAD, WHOLE[1:]),
    "a draw is missing": lines(HEAD, WHOLE[:-1]),
    "one is twice": lines(HEAD, [*WHOLE, WHOLE[0]]),
    "a draw is twice": lines(HEAD, [*WHOLE, WHOLE[1]]),
    "one was not asked": lines(HEAD, [*WHOLE, (("s", 2, None), ANSWER)]),
    "another suite": lines(HEAD, [*WHOLE, (("t", 0, None), ANSWER)]),
    "a draw too many": lines(HEAD, [*WHOLE, (("s", 0, 2), ANSWER)]),
    "no key": lines(HEAD, [*WHOLE, ("s", ANSWER)]),
    "half a line": lines(HEAD, WHOLE)[:-9],
    "tokens without their likelihoods": lines(HEAD, [(WHOLE[0][0], replace(ANSWER, token_logprobs=())), *WHOLE[1:]]),
    "another end": lines(HEAD, [(WHOLE[0][0], replace(ANSWER, finish_reason="tired")), *WHOLE[1:]]),
    "infinite": lines(HEAD, WHOLE).replace(b"-0.5", b"-1e999", 1),
    "not a number": lines(HEAD, WHOLE).replace(b"-0.5", b"NaN", 1),
    "invalid UTF-8": lines(HEAD, WHOLE).replace(b'"x"', b'"\xff"', 1),
}


@pytest.mark.parametrize("why", REFUSED)
def test_answers_that_cannot_be_right_are_refused_and_still_wanted(make_home: Callable[..., Home], why: str) -> None:
    home = make_home(devices=ELSEWHERE)
    request = asked(home)
    came = evaluation_requests.inbox(home) / "came"
    came.write_bytes(REFUSED[why])
    with pytest.raises(IntegrityError, match="same release"):
        evaluation_requests.accept(home, request.id, came)
    assert evaluation_requests.waiting(home) == request
    came.write_bytes(lines(HEAD, WHOLE))
    evaluation_requests.accept(home, request.id, came)
    assert evaluation_requests.waiting(home) is None
    found = evaluation_requests.answers(home, request)
    assert found is not None
    assert found.completions == dict(WHOLE)


def test_answers_over_http(make_home: Callable[..., Home]) -> None:
    home = make_home(devices=ELSEWHERE)
    request = asked(home)
    headers = {"authorization": f"Bearer {home.token()}"}
    with serving(home) as url, httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        path = f"/api/evaluation-requests/{request.id}/answers"
        said = client.put(path, content=REFUSED["infinite"])
        assert (said.status_code, "line 2 of the answers" in said.json()["error"]) == (422, True)
        assert client.put(path.replace("0" * 16, "f" * 16), content=lines(HEAD, WHOLE)).status_code == 404
        assert httpx.put(f"{url}{path}", content=lines(HEAD, WHOLE), trust_env=False).status_code == 401
        assert [file.name for file in (home.status / "asked").iterdir()] == ["request.json"], "nothing lies about"
        assert client.put(path, content=lines(HEAD, WHOLE)).status_code == 204
        assert client.put(path, content=lines(HEAD, WHOLE)).status_code == 404, "they are there"


def test_a_full_disk_at_home_is_no_refusal(make_home: Callable[..., Home]) -> None:
    home = make_home(devices=ELSEWHERE)
    request = asked(home)
    headers = {"authorization": f"Bearer {home.token()}"}
    full = replace(home, disk=FaultyDisk(Fault("full", 0)))
    path = f"/api/evaluation-requests/{request.id}/answers"
    db = connect(home)
    with TestClient(create_app(full, db, "127.0.0.1"), "http://127.0.0.1") as client:
        said = client.put(path, content=lines(HEAD, WHOLE), headers=headers)
        assert (said.status_code, "no space left" in said.json()["error"]) == (500, True)
        assert evaluation_requests.waiting(home) == request
        assert client.put(path, content=lines(HEAD, WHOLE), headers=headers).status_code == 204
    db.close()


def test_a_node_keeps_its_answers_for_a_home_that_had_no_room_and_drops_refused_ones(
    elsewhere: Callable[..., Elsewhere], node: Home
) -> None:
    one = elsewhere()
    one.submit("one.jsonl", facts(40))
    one.drain(["ingest", "train"])
    thread = one.judging()
    token = one.home.token()
    full = replace(one.home, disk=FaultyDisk(Fault("full", 0)))
    with serving(full) as url, Remote(url, token) as remote, Meter() as meter:
        answering = Answering(node, remote, meter)
        with pytest.raises(StokeholdError, match="no space left"):
            answering.work()
        (kept,) = (node.root / "judging").glob("*.jsonl")
        kept.write_bytes(kept.read_bytes()[:-9])
        with pytest.raises(IntegrityError, match="refuses what was sent"):
            answering.work()
        assert not kept.exists()
        answering.work()
        assert not kept.exists(), "not made again for who refuses them"
        answer(node, url, token)
    thread.join(PATIENCE_S)
    assert len(evaluations.list_evaluations(one.home, one.db)) == 1


def test_another_question_ends_the_one_before(make_home: Callable[..., Home]) -> None:
    home = make_home(devices=ELSEWHERE)
    first = asked(home)
    came = evaluation_requests.inbox(home) / "came"
    came.write_bytes(lines(HEAD, WHOLE))
    evaluation_requests.accept(home, first.id, came)
    evaluation_requests.ask(home, first)
    assert evaluation_requests.answers(home, first) is not None, "asked again after a kill: they are there"
    second = first.model_copy(update={"id": "1" * 16})
    evaluation_requests.ask(home, second)
    assert evaluation_requests.answers(home, second) is None
    assert evaluation_requests.waiting(home) == second


def test_what_was_asked_ends_with_the_job_that_asked(elsewhere: Callable[..., Elsewhere], node: Home) -> None:
    one = elsewhere()
    for number in (1, 2):
        one.submit(f"{number}.jsonl", facts(40, seed=number))
        one.drain(["ingest", "train"])
    first, second = one.queued("evaluate")
    thread = one.judging()
    asked_first = evaluation_requests.waiting(one.home)
    one.client.cancel(first.id)
    until(lambda: evaluation_requests.waiting(one.home) not in (None, asked_first))
    assert one.state(first) is JobState.CANCELLED, "the next is not kept waiting by it"
    with serving(one.home) as url:
        answer(node, url, one.home.token())
    thread.join(PATIENCE_S)
    assert one.state(second) is JobState.COMPLETED
    assert [e.step for e in evaluations.list_evaluations(one.home, one.db)] == [one.step()]
    until(lambda: list((one.home.status / "asked").iterdir()) == [])
    one.client.retry(first.id)
    one.judging()
    one.client.cancel(first.id)
    until(lambda: evaluation_requests.current(one.home) is None)
    assert evaluation_requests.silence_s(one.home) is None, "no alert of a node that is away"


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_what_was_asked_waits_for_a_job_that_is_taken_up_and_for_no_other(
    elsewhere: Callable[..., Elsewhere], end: str
) -> None:
    one = elsewhere()
    one.closed = True  # nobody but us looks
    job = one.client.enqueue("evaluate", {"file": "one.jsonl", "step": 1, "weights": "w"})
    request = asked(one.home)
    for state in (JobState.QUEUED, JobState.RUNNING):
        job_rows.set_state(one.db, job.id, state)
        one.bureau.evaluator.idle()
        assert evaluation_requests.waiting(one.home) == request
    job_rows.set_state(one.db, job.id, JobState(end))
    one.bureau.evaluator.idle()
    assert evaluation_requests.current(one.home) is None


def test_a_home_that_judges_by_itself_again_asks_no_node(make_home: Callable[..., Home], environment: Any) -> None:
    home = make_home()
    asked(home)
    command = [sys.executable, "-m", "stokehold.pipeline.worker", "--home", str(home.root)]
    with (home.logs / "trainer.log").open("ab") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: evaluation_requests.current(home) is None, home)
        assert worker.poll() is None
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE_S)


def test_a_disk_that_changes_a_bit_makes_it_asked_anew(make_home: Callable[..., Home]) -> None:
    home = make_home(devices=ELSEWHERE)
    request = asked(home)
    document = home.status / "asked" / "request.json"
    document.write_bytes(document.read_bytes().replace(b'"format":1', b'"format";1'))
    assert evaluation_requests.waiting(home) is None
    assert evaluation_requests.silence_s(home) is None
    evaluation_requests.ask(home, request)
    came = evaluation_requests.inbox(home) / "came"
    came.write_bytes(lines(HEAD, WHOLE))
    evaluation_requests.accept(home, request.id, came)
    stored = home.status / "asked" / f"{request.id}.jsonl"
    stored.write_bytes(stored.read_bytes().replace(b"-0.5", b"-0.5.", 1))
    with pytest.raises(IntegrityError, match="line 2"):
        evaluation_requests.answers(home, request)
    assert evaluation_requests.waiting(home) == request


def test_silence_is_counted_while_something_waits(make_home: Callable[..., Home]) -> None:
    home = make_home(devices=ELSEWHERE)
    assert evaluation_requests.silence_s(home) is None
    asked(home)
    old = time.time() - 500
    os.utime(home.status / "asked" / "request.json", (old, old))
    assert evaluation_requests.silence_s(home) == pytest.approx(500, abs=60)
    evaluation_requests.note_visit(home)
    assert evaluation_requests.silence_s(home) == pytest.approx(0, abs=60)


def test_a_node_that_is_killed_and_an_evaluator_that_is_lose_nothing(
    elsewhere: Callable[..., Elsewhere], node: Home, environment: dict[str, str]
) -> None:
    one = elsewhere(evaluation=QUICK | {"batch_size": 1, "max_new_tokens": 200})
    write_jsonl(one.home.suites / "facts.jsonl", held_out_facts())
    one.submit("one.jsonl", facts(60))
    one.drain(["ingest", "train"])
    (waiting,) = one.queued("evaluate")
    command = [sys.executable, "-m", "stokehold.pipeline.answering", "--home", str(node.root)]
    with serving(one.home) as url:
        sync.remember(node, sync.Server(url, one.home.token()))
        one.judging()
        with (node.logs / "answering.log").open("ab") as log:
            first = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            until(lambda: list((node.root / "judging").glob("*/model.safetensors")))
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            one.leave.at_once()  # the evaluator goes as well
            until(lambda: one.state(waiting) is not JobState.RUNNING or one.leave())
            assert evaluation_requests.waiting(one.home) is not None
            again = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            until(lambda: evaluation_requests.waiting(one.home) is None)
        other = Elsewhere(one.home)
        job_rows.set_state(other.db, waiting.id, JobState.QUEUED)
        assert other.run(waiting) is JobState.COMPLETED
        until(lambda: left_over(node) == [])
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 0
        other.close()
    assert len(evaluations.list_evaluations(one.home, one.db)) == 1


def test_the_champion_is_judged_there_too_where_it_was_judged_otherwise(
    elsewhere: Callable[..., Elsewhere], node: Home
) -> None:
    one = elsewhere()
    first = trained_and_judged(one, "one.jsonl", node, 1)
    assert versions.alias(one.db) == "v0001"
    settings = one.home.config()
    limits = settings.evaluation.model_copy(update={"max_new_tokens": 20})
    one.home.write_config(describe(settings.model_copy(update={"evaluation": limits})))
    one.close()
    other = Elsewhere(one.home)
    second = trained_and_judged(other, "two.jsonl", node, 2)
    found = [(e.ref, e.conditions["max_new_tokens"]) for e in evaluations.list_evaluations(other.home, other.db)]
    other.close()
    assert sorted(found) == sorted([(f"step:{first}", "24"), (f"step:{second}", "20"), ("v0001", "20")])


def trained_and_judged(one: Elsewhere, name: str, node: Home, requests: int) -> int:
    """Trains a file while a node answers that many requests; returns the step at its end."""
    one.submit(name, facts(40, seed=requests))
    one.drain(["ingest", "train"])
    with serving(one.home) as url:
        thread = one.judging()
        answer(node, url, one.home.token(), requests)
        thread.join(PATIENCE_S)
    one.drain()
    return one.step()


def test_a_node_that_joins_may_judge_too_also_before_there_is_a_champion(
    elsewhere: Callable[..., Elsewhere], environment: dict[str, str], tmp_path: Path
) -> None:
    one = elsewhere()
    one.submit("one.jsonl", facts(40))
    one.drain(["ingest", "train"])
    root = tmp_path / "joined"
    with serving(one.home) as url:
        command = [sys.executable, "-m", "stokehold.cli.main", "node", "join", url, "--token", one.home.token()]
        options = ["--judge", "--no-serve", "--home", str(root)]
        joined = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            one.judging().join(PATIENCE_S)
            one.drain()
            champion = versions.alias(one.db)
            assert champion is not None
            until(lambda: (root / "versions" / champion / "manifest.json").exists())
            joined.send_signal(signal.SIGTERM)
            assert joined.wait(60) == 0
        finally:
            joined.kill()
    assert "judging on cpu" in (joined.stdout.read() if joined.stdout else "")
    home = Home.open(root)
    home.lock("judging", "the process beside it has left").release()
    assert list((root / "judging").iterdir()) == []


def test_a_home_that_is_no_node_says_so(node: Home, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "stokehold.pipeline.answering", "--home", str(node.root), "--once"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (said.returncode, "this home is no node" in said.stderr) == (2, True)


def test_an_evaluator_of_a_node_needs_no_device(make_home: Callable[..., Home], elsewhere: Any) -> None:
    one = elsewhere(model={"method": "full"})
    one.bureau.evaluator.check()
    with pytest.raises(ConfigError):
        make_home(devices={"evaluator": "nodes"})
