"""Suites of a home: files that are wrong, built-in names, what was judged once, and a judge behind a URL."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from bench import Bench

from stokehold.cli.main import main
from stokehold.core.config import JudgeConfig, RetentionConfig, describe, parse_config
from stokehold.core.errors import NotFoundError
from stokehold.core.identity import is_holdout
from stokehold.core.records import Evaluation, JobState, Message, SuiteState
from stokehold.pipeline.ingest import build_firewall
from stokehold.pipeline.judge import evaluate_ref
from stokehold.pipeline.judge_model import GIVE_UP_AFTER, JudgeServer
from stokehold.pipeline.suites import judged_suites, keep_suites, open_suite, open_suites
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.housekeeping.aging import age
from stokehold.store.judged import evaluations
from stokehold.store.judged.suites import keep_version, kept_versions, read_version, suite_names
from stokehold.supervisor.alerts import evaluator_broken
from stokehold.supervisor.checks_work import judged_on
from stokehold.tasks.registry import draw, identity_of
from tiny_world import facts, held_out_facts, write_jsonl
from waiting import until


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home without a model."""
    return Home.create(tmp_path / "plain", parse_config({}))


def asked(question: str, gold: str, **metadata: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": gold}]
    return {"messages": turns, "metadata": metadata}


GOOD = orjson.dumps(asked("a?", "b"))

FAULTS = {
    "not UTF-8 at byte 3 of the line": b'{"\xff": 1}',
    "not JSON": b'{"messages": [',
    "not a JSON object": b"[1]",
    "no known format": b'{"question": "a?"}',
    "the item of line 1 again": GOOD,
    "the key": b'{"prompt": "a", "prompt": "b", "completion": "c"}',
    "metadata is": b'{"prompt": "a", "completion": "c", "metadata": 3}',
}


@pytest.mark.parametrize(("reason", "line"), FAULTS.items(), ids=list(FAULTS))
def test_a_bad_line_breaks_its_suite_and_no_other(home: Home, reason: str, line: bytes) -> None:
    (home.suites / "bad.jsonl").write_bytes(GOOD + b"\r\n\n" + line + b"\n" + orjson.dumps(asked("c?", "d")))
    (home.suites / "good.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    bad, good = open_suites(home)
    assert str(bad.fault).startswith(reason)
    assert "suites/bad.jsonl, line 3" in str(bad.fault)
    assert (bad.broken.state, bad.broken.reason) == (SuiteState.BROKEN, bad.fault)
    assert (good.fault, len(good.samples)) == (None, 1)
    held = build_firewall(home)
    turns = [("user", "c?"), ("assistant", "x")]
    assert held.examine(turns, None, None).refusal, "what can be read of a bad file is held out all the same"


def test_rows_that_only_look_like_ours_are_read_as_what_they_are(home: Home) -> None:
    rows = [{"id": 7, "line": 1, "prompt": "a?", "completion": "b"}, {"id": "x", "line": 1}, {"id": "y", "line": 2}]
    write_jsonl(home.suites / "odd.jsonl", rows)
    (odd,) = open_suites(home)
    assert [sample.gold for sample in odd.samples] == ["b"]
    assert "no known format" in str(odd.fault)
    assert "and 1 more" in str(odd.fault)


def test_an_item_without_gold_is_kept_and_asks_its_question(home: Home) -> None:
    question = {"role": "user", "content": "a?"}
    rows: list[dict[str, Any]] = [
        {"messages": [question]},
        {"messages": [question, {"role": "assistant", "content": " "}], "metadata": {"level": 1}},
        {"prompt": "b?", "completion": ""},
        {"instruction": "c?"},
    ]
    for row in rows:
        write_jsonl(home.suites / "open.jsonl", [row])
        (suite,) = open_suites(home)
        (sample,) = suite.samples
        assert (suite.fault, sample.gold, len(sample.question)) == (None, "", 1)
    for row in ({"messages": []}, {"messages": [{"role": "user", "content": ""}]}, {"prompt": 3}):
        write_jsonl(home.suites / "open.jsonl", [row])
        assert open_suites(home)[0].fault is not None


def test_a_suite_that_is_not_there_is_broken_by_the_settings_and_refused_by_name(home: Home) -> None:
    (missing,) = open_suites(home, ["nowhere"])
    assert "no such suite" in str(missing.fault)
    with pytest.raises(NotFoundError, match="easy_50 to hard_200"):
        open_suite(home, "nowhere")
    with pytest.raises(NotFoundError, match="no such task family"):
        open_suite(home, "nofamily_easy_50")
    (home.suites / "folder.jsonl").mkdir()
    assert open_suites(home)[0].fault is not None


GOLDEN = {
    "easy_50": "70225f227f03cf07f756b21a6ce4dc95fd1cd0dcb6114467080daeecd4e4b212",
    "syllo_medium_50": "766892a9b705e668549c32284e8d34312f912a38dd9d44ac372c1536c13b2475",
    "arithmetic_easy_50": "2c512a9135f22bdd10f26c1ac3899d5099442d4e96239922fc74925394ae7870",
    "arithmetic_medium_50": "0e7ea2a380f158c8a9a11f3d124edd500bbe594f7f92bfedfb17bda777ded2ff",
    "arithmetic_hard_50": "14f6c31ded47aebca5301cb3732f1b9ba2415b84c33e82226ac904e9a2cb8f8f",
    "syllogism_easy_50": "fe131766941aba9e7338755a4e3470557225beccfcd90f13f0a7d3bf7a5c8ec7",
    "deduction_easy_50": "bcc67f5648c2b70b5c8e9b6e3133b53cf4e5835e6c5d6043d63395ed1ec4a604",
    "sequence_easy_50": "a1de86f2f9822be5fa18040bbb1918e2caa9b83dcae216c0531edc8549608415",
    "primitives_easy_50": "643e82dec3e83b74192f50a19f56ec51323d6a42ed27535b4d606880ffb77a08",
}
"""A built-in suite never changes: one whose hash is another wants another name, or another seed and a decision."""


@pytest.mark.parametrize(("name", "content"), GOLDEN.items(), ids=list(GOLDEN))
def test_a_built_in_suite_is_the_same_everywhere_and_for_ever(home: Home, name: str, content: str) -> None:
    suite = open_suite(home, name)
    assert (suite.hash, suite.fault, len(suite.samples)) == (content, None, 50)
    identities = [identity_of(sample) for sample in suite.samples]
    assert len(set(identities)) == 50
    assert all(identity is not None and is_holdout(identity) for identity in identities)


def test_a_built_in_suite_is_judged_on_where_it_is_named_and_held_out_from_then_on(home: Home) -> None:
    assert judged_on(home, parse_config({"evaluation": {"suites": ["easy_50"]}})).found == "easy_50 (50)"
    assert list(home.suites.iterdir()) == [], "nothing is made by looking"
    fifty, hundred = open_suite(home, "arithmetic_easy_50"), open_suite(home, "arithmetic_easy_100")
    assert [s.id for s in hundred.samples[:50]] == [s.id for s in fifty.samples]
    assert {sample.metadata["level"] for sample in fifty.samples} == {1, 2, 3}
    assert (suite_names(home), open_suites(home)) == ([], [])
    firewall = build_firewall(home)
    assert all(firewall.check(sample, identity_of(sample)) for sample in hundred.samples)
    fresh = islice(draw("arithmetic", 3, 20, 5, "train"), 20)
    assert not any(firewall.check(sample, identity_of(sample)) for sample in fresh)


def test_a_built_in_suite_stays_as_it_was_frozen_and_a_file_of_ones_own_comes_first(home: Home) -> None:
    open_suite(home, "arithmetic_easy_50")
    frozen = home.suites / "builtin" / "arithmetic_easy_50.jsonl"
    frozen.write_bytes(frozen.read_bytes().partition(b"\n")[0])
    assert len(open_suite(home, "arithmetic_easy_50").samples) == 1
    write_jsonl(home.suites / "arithmetic_easy_50.jsonl", [asked("a?", "b"), asked("c?", "d")])
    assert len(open_suite(home, "arithmetic_easy_50").samples) == 2


def judged_as(home: Home, **hashes: str) -> Evaluation:
    results = {suite.name: suite.broken for suite in open_suites(home, list(hashes))}
    return Evaluation("x", "base", "w", "f", results, 0.0, "", "2026", suite_hashes=hashes)


def test_what_was_judged_is_found_again_however_the_file_went_on(home: Home) -> None:
    path = write_jsonl(home.suites / "s.jsonl", [asked("a?", "b")])
    (first,) = open_suites(home)
    keep_suites(home, [first])
    write_jsonl(path, [asked("c?", "d")])
    (second,) = open_suites(home)
    keep_suites(home, [first, second, second])
    assert [kept.stem for kept in kept_versions(home)] == sorted([first.hash, second.hash])
    assert suite_names(home) == ["s"], "copies are no suites"
    path.unlink()
    (again,) = judged_suites(home, judged_as(home, s=first.hash))
    assert again == first
    with pytest.raises(NotFoundError):
        read_version(home, "../../stoke.toml")
    kept_versions(home)[0].write_bytes(b"{}")
    faults = [judged_suites(home, judged_as(home, s=suite.hash))[0].fault for suite in (first, second)]
    assert sorted(map(str, faults))[1].startswith("a kept suite was changed")
    assert None in faults


def test_a_kept_suite_goes_with_the_answers_to_it(home: Home) -> None:
    db, now = connect(home), datetime.now().astimezone()
    names = [keep_version(home, content) for content in (b"old", b"needed", b"young")]
    for path in kept_versions(home):
        if path.stem != names[2]:
            os.utime(path, (0, 0))
    judged = replace(judged_as(home), suite_hashes={"s": names[1]})
    evaluations.save(home, db, judged, lambda folder: None)
    for dry_run in (True, False):
        lines = age(home, now, RetentionConfig(), dry_run=dry_run)
        assert [(line.kind, line.name) for line in lines] == [("suite", names[0])]
    assert {path.stem for path in kept_versions(home)} == {*names[1:]}


@dataclass
class Server:
    """A judge over HTTP. `answers` gives, for the material and the number of the call, (status, body, headers)."""

    answers: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        asked = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.seen.append(asked)
        self.keys.append(handler.headers["authorization"])
        code, body, headers = self.answers(json.loads(asked["messages"][-1]["content"]), len(self.seen))
        said = body if isinstance(body, bytes) else json.dumps({"choices": [{"message": {"content": body}}]}).encode()
        handler.send_response(code)
        for name, text in {"content-length": str(len(said)), **headers}.items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(said)


@contextmanager
def serving(answers: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]) -> Iterator[Server]:
    server = Server(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            server.reply(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_port}/v1"
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        listening.shutdown()
        listening.server_close()
        thread.join()


def fair(material: dict[str, Any], _call: int = 0) -> tuple[int, Any, dict[str, str]]:
    """Takes the longer answer for the better one."""
    one, two = (len(material[name]) for name in ("answer_1", "answer_2"))
    return 200, json.dumps({"better": "same" if one == two else "1" if one > two else "2"}), {}


TALK = (Message("system", "s"), Message("user", '{"answer_1": "xx", "answer_2": "y"}'))


def put(server: Server, count: int = 1, **config: Any) -> list[Any]:
    settings = JudgeConfig.model_validate({"url": server.url, "model": "m", "concurrency": 1, **config})
    return list(JudgeServer(settings, waits_s=(0.0, 0.0)).ask([TALK] * count, lambda: None))


def test_a_judge_is_asked_as_openai_clients_ask_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving(fair) as server:
        (reply,) = put(server, api_key_env="JUDGE_KEY")
        assert (reply.text, reply.error) == ('{"better": "1"}', None)
        assert server.keys == ["Bearer secret"]
        assert (server.seen[0]["model"], server.seen[0]["temperature"]) == ("m", 0)
        assert [turn["role"] for turn in server.seen[0]["messages"]] == ["system", "user"]
        monkeypatch.delenv("JUDGE_KEY")
        (reply,) = put(server, api_key_env="JUDGE_KEY")
        assert "JUDGE_KEY" in str(reply.error)
        assert len(server.seen) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_overload_passes_and_the_question_is_put_again(code: int) -> None:
    with serving(lambda material, call: (code, b"", {"retry-after": "0"}) if call < 3 else fair(material)) as server:
        (reply,) = put(server)
        assert reply.text is not None
        assert len(server.seen) == 3


WRONG: dict[str, tuple[int, Any, dict[str, str]]] = {
    "HTTP 401, look at judge.api_key_env": (401, b"", {}),
    "HTTP 404, look at judge.url": (404, b"", {}),
    "HTTP 302": (302, b"", {"location": "http://127.0.0.1:1/"}),
    "not a chat completion": (200, b"<html>", {}),
    "not a chat completion: b'{}'": (200, b"{}", {}),
    "a chat completion without text": (200, b'{"choices":[{"message":{"content":null}}]}', {}),
    "a reply of 30000 characters": (200, "x" * 30_000, {}),
    "a reply of more than": (200, b" " * (1 << 21), {}),
}


@pytest.mark.parametrize(("reason", "answered"), WRONG.items(), ids=list(WRONG))
def test_what_another_try_would_not_change_is_asked_once(
    reason: str, answered: tuple[int, Any, dict[str, str]]
) -> None:
    with serving(lambda material, call: answered) as server:
        (reply,) = put(server)
        assert reply.text is None
        assert str(reply.error).startswith(reason)
        assert len(server.seen) == 1


def test_a_judge_that_fails_again_and_again_is_given_up() -> None:
    with serving(lambda material, call: (500, b"", {})) as server:
        replies = put(server, count=50)
        assert {reply.text for reply in replies} == {None}
        assert [str(reply.error)[:8] for reply in replies[:4]] == ["HTTP 500"] * 3 + ["it was g"]
        assert len(server.seen) == 3 * GIVE_UP_AFTER
    gone = put(server)
    assert str(gone[0].error).startswith("ConnectError")
    assert "no http" in str(put(Server(fair, url="ftp://x"))[0].error)


def test_a_judge_that_hangs_or_drips_is_not_waited_for() -> None:
    def never(material: dict[str, Any], call: int) -> tuple[int, Any, dict[str, str]]:
        server.over.wait()
        return fair(material)

    with serving(never) as server:
        (reply,) = put(server, timeout_s=1.0)
        assert reply.error == "no reply within 1 s"
        until(lambda: len(server.seen) == 3)

    class Drip(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not over.is_set():
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
                over.wait(0.01)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    over = threading.Event()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    (reply,) = put(Server(fair, url=f"http://127.0.0.1:{listening.server_port}/v1"), timeout_s=0.1)
    assert reply.error == "no reply within 0.1 s"
    over.set()
    listening.shutdown()
    listening.server_close()
    thread.join()


class Left(Exception):
    pass


def test_whoever_waits_for_a_judge_may_leave() -> None:
    def leave() -> None:
        raise Left

    with serving(lambda material, call: (500, b"", {"retry-after": "30"})) as server:
        judge = JudgeServer(JudgeConfig(url=server.url, model="m"))
        started = time.monotonic()
        with pytest.raises(Left):
            judge.ask([TALK] * 8, leave)
        assert time.monotonic() - started < 25, "it would have waited for 30 seconds before another try"


def test_every_kind_of_bad_suite_in_one_evaluation(bench: Callable[..., Bench]) -> None:
    def picky(material: dict[str, Any], call: int) -> tuple[int, Any, dict[str, str]]:
        return (404, b"", {}) if "frog" in material["question"] else fair(material)

    with serving(picky) as server:
        one = bench(judge={"url": server.url, "model": "m", "concurrency": 1})
        one.run(one.dataset("one.jsonl", facts(400)))  # an untrained one says nothing that a judge could be asked about
        home, db, config = one.home, one.db, one.home.config()
        write_jsonl(home.suites / "good.jsonl", held_out_facts()[:4])
        write_jsonl(home.suites / "empty.jsonl", [])
        (home.suites / "broken.jsonl").write_bytes(GOOD + b"\n{\n")
        long = asked("which?", "snow " * 100_000)
        unsaid = {"messages": [{"role": "user", "content": "well?"}]}
        write_jsonl(home.suites / "mixed.jsonl", [*held_out_facts()[:3], long, unsaid, asked("x?", "y", scorer="no")])
        poems = [
            asked(f"what colour is {thing}", f"well, {thing} is not that colour", scorer="judge")
            for thing in ("sea", "frog")
        ]
        write_jsonl(home.suites / "poems.jsonl", poems)
        found = evaluate_ref(home, db, config, "latest")
        states = {name: result.state.value for name, result in found.suites.items()}
        assert states == {"good": "ok", "empty": "no_data", "broken": "broken", "mixed": "ok", "poems": "ok"}
        assert "suites/broken.jsonl, line 2" in str(found.suites["broken"].reason)
        assert (found.suites["mixed"].n, found.suites["mixed"].unscored) == (3, 3)
        assert (found.suites["poems"].n, found.suites["poems"].unscored) == (1, 1)
        lines = [orjson.loads(line) for line in (Path(found.path) / "completions.jsonl").read_bytes().splitlines()]
        reasons = " | ".join(str(line["reason"]) for line in lines if line["score"] is None)
        for word in ("do not fit a context", "no gold answer", "no such scorer", "the judge did not answer: HTTP 404"):
            assert word in reasons
        assert len(orjson.loads((Path(found.path) / "opinions.json").read_bytes())) == 3
        alert = evaluator_broken(found)
        assert alert is not None
        assert "line 2" in alert.text
        kept = {path.stem for path in kept_versions(home)}
        assert kept == {digest for name, digest in found.suite_hashes.items() if name != "broken"}
        assert found.conditions["judge"] == "m pairwise-1"
        asked_before = len(server.seen)
        again = evaluate_ref(home, db, config, "latest")
        assert again.id != found.id, "a judge that failed is asked again"
        assert len(server.seen) > asked_before
    with serving(fair) as server:
        settings = parse_config({**json.loads(config.model_dump_json()), "judge": {"url": server.url, "model": "m"}})
        whole = evaluate_ref(home, db, settings, "latest", ["poems"])
        count = len(server.seen)
        assert evaluate_ref(home, db, settings, "latest", ["poems"]).id == whole.id
        assert (whole.suites["poems"].n, len(server.seen)) == (2, count)
        with pytest.raises(NotFoundError):
            evaluate_ref(home, db, settings, "latest", ["nowhere"])
        builtin = evaluate_ref(home, db, settings, "latest", ["arithmetic_easy_50"]).suites["arithmetic_easy_50"]
        assert (builtin.state, builtin.n, sorted(builtin.by_level)) == (SuiteState.OK, 50, ["1", "2", "3"])
        assert len(server.seen) == count, "nobody is called where no item needs a judge"


def test_a_broken_suite_stops_neither_training_nor_the_other_suites(bench: Callable[..., Bench]) -> None:
    one = bench(evaluation={"suites": ["good", "bad", "gone"]})
    write_jsonl(one.home.suites / "good.jsonl", held_out_facts()[:8])
    (one.home.suites / "bad.jsonl").write_bytes(b'{"messages": "\xff"}\n')
    job = one.dataset("one.jsonl", facts(60))
    assert one.run(job) is JobState.COMPLETED
    one.drain()
    assert one.rows_trained() == 60
    (found,) = [e for e in evaluations.list_evaluations(one.home, one.db) if e.step]
    states = {name: result.state.value for name, result in found.suites.items()}
    assert states == {"good": "ok", "bad": "broken", "gone": "broken"}
    assert evaluations.decided(one.db, found.id)[1] == "alert"
    alert = evaluator_broken(found)
    assert alert is not None
    assert "not UTF-8" in alert.text
    assert "no such suite" in alert.text


def test_a_suite_in_which_nothing_can_be_scored_is_listed_as_it_is_judged(
    bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    one = bench()
    unsaid = [{"messages": [{"role": "user", "content": question}]} for question in ("a?", "b?", "c?")]
    suites = {
        "open": unsaid,
        "poems": [asked("a?", "b", scorer="judge"), asked("c?", "d", scorer="judge")],
        "texts": [{"text": "what colour is sea"}, *unsaid],
        "mixed": [asked("a?", "b", scorer="judge"), asked("c?", "d"), *unsaid],
    }
    for name, rows in suites.items():
        write_jsonl(one.home.suites / f"{name}.jsonl", rows)

    def listed() -> dict[str, Any]:
        main(["suites", "--home", str(one.home.root), "--json"])
        return {shown["suite"]: shown for shown in json.loads(capsys.readouterr().out)}

    shown, found = listed(), evaluate_ref(one.home, one.db, one.home.config(), "base").suites
    for name, result in found.items():
        broken = result.state is SuiteState.BROKEN
        assert (shown[name]["state"], broken) == (result.state.value, name in ("open", "poems")), (name, result.reason)
        assert shown[name]["unscorable"] == len(suites[name]) - (0 if broken else result.n)
        if broken:
            assert shown[name]["reason"] == result.reason
    assert "set judge.url and judge.model" in shown["poems"]["reason"]
    one.home.write_config(describe(parse_config({"judge": {"url": "http://127.0.0.1:1/v1", "model": "m"}})))
    assert {name: entry["unscorable"] for name, entry in listed().items()} == {
        "open": 3,
        "poems": 0,
        "texts": 3,
        "mixed": 3,
    }


def test_suites_are_listed_with_what_is_wrong(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(home.suites / "mine.jsonl", [asked("a?", "b"), asked("c?", "d", scorer="numeric")])
    (home.suites / "bad.jsonl").write_bytes(b"{")
    open_suite(home, "arithmetic_easy_50")
    main(["suites", "--home", str(home.root), "--json"])
    shown = {one["suite"]: one for one in json.loads(capsys.readouterr().out)}
    assert (shown["mine"]["state"], shown["mine"]["items"], shown["mine"]["unscorable"]) == ("ok", 2, 1)
    assert shown["mine"]["scorers"] == ["exact", "numeric"]
    assert shown["mine"]["hash"] == open_suite(home, "mine").hash
    assert "line 1" in shown["bad"]["reason"]
    assert shown["arithmetic_easy_50"]["scorers"] == ["verifier:arithmetic"]
    home.write_config(describe(parse_config({"evaluation": {"suites": ["hard_200"]}})))
    main(["suites", "--home", str(home.root)])
    assert "built in, and made when it is first judged on" in capsys.readouterr().out
    main(["suites", "--home", str(home.root)])
    assert "1 cannot be scored: numeric: the gold answer holds no number" in capsys.readouterr().out
