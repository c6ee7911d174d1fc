"""The inference node over a real socket: OpenAI's own client, the champion that moves, and who is let in."""

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from fastapi import Request
from fastapi.routing import APIRoute
from openai.types.chat import ChatCompletion
from transformers import PreTrainedModel

from stokehold.core.config import Config
from stokehold.core.errors import BusyError, NotFoundError, StokeholdError, UsageError
from stokehold.core.hosts import is_loopback
from stokehold.core.records import Message, Version
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.engine import Engine
from stokehold.inference.guard import Guard
from stokehold.inference.protocol import ChatRequest
from stokehold.inference.registry import Registry, hash_of
from stokehold.inference.server import Answer, create_app, listen, main
from stokehold.inference.worker import MAX_WAITING, Ask, Done, Event, Failed, Piece, Started, Worker
from stokehold.store.db.database import Database, connect
from stokehold.store.home import Home
from stokehold.store.models import checkpoints, versions
from waiting import PATIENCE_S

TOKEN = "secret-for-tests"
HTTP = httpx.Client(timeout=PATIENCE_S, trust_env=False)
ASKED = [{"role": "user", "content": "the quick brown fox"}]


@dataclass
class Node:
    """A home with a champion, and a server on it."""

    home: Home
    db: Database
    url: str
    guard: Guard
    promote: Callable[[int], Version]


def client_of(url: str, token: str = TOKEN) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


def add_version(home: Home, db: Database, model: PreTrainedModel, tokenizer_folder: Path, step: int) -> Version:
    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        for path in tokenizer_folder.iterdir():
            shutil.copy(path, folder)

    checkpoint = checkpoints.publish_checkpoint(home, step, write, {})
    return versions.create(home, db, Path(checkpoint.path))


@contextmanager
def serving(home: Home, db: Database, ref: str | None = None) -> Iterator[tuple[str, Guard]]:
    """A real server on a free port: its address and its application."""
    guard = create_app(Registry(home, db, ref), "127.0.0.1", TOKEN)
    server = uvicorn.Server(uvicorn.Config(guard, log_level="warning"))
    with listen("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", guard
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., PreTrainedModel], tokenizer_folder: Path
) -> Iterator[Node]:
    home = Home.create(tmp_path_factory.mktemp("served") / "home", Config())
    db = connect(home)

    def promote(step: int) -> Version:
        version = add_version(home, db, make_model(seed=step), tokenizer_folder, step)
        versions.set_alias(home, db, "champion", version.name)
        return version

    with serving(home, db) as (url, guard):
        yield Node(home, db, url, guard, promote)
    db.close()


@pytest.fixture(scope="module")
def champion(node: Node) -> Version:
    return node.promote(1)


@pytest.fixture
def client(node: Node, champion: Version) -> openai.OpenAI:
    return client_of(node.url)


def ask(client: openai.OpenAI, **options: object) -> ChatCompletion:
    settings = {"model": "champion", "messages": ASKED, "max_tokens": 12, **options}
    answer: ChatCompletion = client.chat.completions.create(**settings)  # type: ignore[call-overload]
    return answer


def test_before_there_is_a_champion_nothing_answers_in_its_place(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", Config())
    with serving(home, connect(home)) as (url, _):
        assert HTTP.get(f"{url}/health").json() == {"status": "ok"}
        assert list(client_of(url).models.list()) == []
        with pytest.raises(openai.NotFoundError, match="promote one first"):
            ask(client_of(url))


def test_an_answer_is_the_engines_with_its_usage_and_the_hash_of_its_weights(
    client: openai.OpenAI, champion: Version, make_model: Callable[..., PreTrainedModel], tokenizer: ChatTokenizer
) -> None:
    engine = Engine(make_model(seed=1), tokenizer)
    stream = engine.stream([Message("user", "the quick brown fox")], 12)
    expected = "".join(stream)
    answer = ask(client, temperature=0)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == stream.finish_reason
    assert answer.model == champion.name
    assert answer.system_fingerprint == champion.weights_hash == hash_of(Path(champion.path))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == stream.prompt_tokens
    assert answer.usage.completion_tokens == stream.completion_tokens
    assert answer.usage.total_tokens == stream.prompt_tokens + stream.completion_tokens


def test_a_stream_brings_the_same_text_in_pieces(client: openai.OpenAI, champion: Version) -> None:
    whole = ask(client, temperature=0, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            model="champion",
            messages=ASKED,  # type: ignore[arg-type]
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 2
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert {chunk.system_fingerprint for chunk in chunks} == {champion.weights_hash}


def test_several_answers_seeds_and_stop_strings(client: openai.OpenAI) -> None:
    hot = {"temperature": 2, "seed": 11, "max_tokens": 30}
    first, again = ask(client, n=3, **hot), ask(client, n=3, **hot)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts[1] == ask(client, **{**hot, "seed": 12}).choices[0].message.content
    whole = str(texts[0])
    stop = whole[len(whole) // 2 :][:2]
    cut = ask(client, stop=[stop], **hot).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_text_parts_and_developer_turns_are_read(client: openai.OpenAI) -> None:
    parts = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the quick "}, {"type": "text", "text": "brown fox"}]},
    ]
    plain = [{"role": "system", "content": "be brief"}, *ASKED]
    one, other = (ask(client, messages=messages, temperature=0) for messages in (parts, plain))
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.usage == other.usage


def test_models_are_named_as_requests_may_name_them(client: openai.OpenAI, champion: Version) -> None:
    assert [model.id for model in client.models.list()] == ["champion", champion.name]
    assert client.models.retrieve(champion.name).owned_by == "stokehold"
    assert ask(client, model=champion.name, max_tokens=1).model == champion.name


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_404_in_openais_shape(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4", stream=stream)
    assert caught.value.code == "model_not_found"
    assert "gpt-4" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "role"),
        ({"messages": [{"role": "user", "content": "a " * 400}]}, "context"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, options: dict[str, object], word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        ask(client, **options)


def test_an_unknown_path_and_a_body_that_is_no_json_get_errors_in_the_same_shape(node: Node) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert HTTP.get(f"{node.url}/nowhere", headers=headers).json()["error"]["type"] == "invalid_request_error"
    broken = HTTP.post(f"{node.url}/v1/chat/completions", headers=headers, content=b"{")
    assert broken.status_code == 400
    assert broken.json()["error"]["message"]


def test_every_route_but_health_wants_the_token(node: Node) -> None:
    app = node.guard.app
    routes = [route for route in app.routes if hasattr(route, "methods")]  # type: ignore[attr-defined]
    assert len([route for route in routes if isinstance(route, APIRoute)]) >= 4
    for route in routes:
        for method in route.methods - {"HEAD"}:
            path = route.path.replace("{name}", "champion")
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                found = HTTP.request(method, node.url + path, headers=headers)
                assert found.status_code == (200 if path == "/health" else 401), path
    assert HTTP.get(f"{node.url}/not/a/route").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        ask(client_of(node.url, "wrong"))


def test_a_conversation_too_long_is_told_apart(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "a " * 400}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "192.168.1.7"])
def test_another_host_is_refused_even_with_the_token(node: Node, host: str) -> None:
    found = HTTP.get(f"{node.url}/v1/models", headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
    assert found.status_code == 400
    assert HTTP.get(f"{node.url}/health", headers={"Host": host}).status_code == 400


def test_another_sites_pages_are_refused(node: Node) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://localhost:8080", 200)):
        found = HTTP.get(f"{node.url}/v1/models", headers={**headers, "Origin": origin})
        assert found.status_code == status, origin


def test_the_champion_is_followed_between_requests(node: Node, client: openai.OpenAI, champion: Version) -> None:
    before = ask(client, temperature=0)
    promoted = node.promote(2)
    after = ask(client, temperature=0)
    assert (before.model, after.model) == (champion.name, promoted.name)
    assert after.system_fingerprint == promoted.weights_hash != before.system_fingerprint
    assert after.choices[0].message.content != before.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match=champion.name):
        ask(client, model=champion.name)
    versions.set_alias(node.home, node.db, "champion", champion.name)
    assert ask(client, temperature=0).choices == before.choices


def test_requests_at_once_are_answered_one_by_one_each_with_its_own_text(client: openai.OpenAI) -> None:
    def run(number: int) -> None:
        answers[number] = ask(client, temperature=2, seed=number, max_tokens=20).choices[0].message.content

    alone = [ask(client, temperature=2, seed=k, max_tokens=20).choices[0].message.content for k in range(6)]
    answers: dict[int, str | None] = {}
    threads = [threading.Thread(target=run, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[k] for k in range(6)] == alone


def test_weights_that_cannot_be_read_are_an_error_and_the_server_lives_on(
    node: Node, champion: Version, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(champion.path, folder)
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"\x00" * 64)
    with serving(node.home, node.db, str(folder)) as (url, _):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="answer failed"):
                ask(client_of(url), model="damaged")
        assert HTTP.get(f"{url}/health").status_code == 200


def test_a_request_that_nobody_waits_for_ends_at_the_next_token(node: Node, champion: Version) -> None:
    worker = Worker(Registry(node.home, node.db, champion.name))
    left, stayed, done = list[Event](), list[Event](), threading.Event()

    def leave(event: Event) -> None:
        left.append(event)
        if isinstance(event, Piece):
            first.cancelled.set()

    def stay(event: Event) -> None:
        stayed.append(event)
        if isinstance(event, Done | Failed):
            done.set()

    question = [Message("user", "the quick brown fox")]
    first = Ask(champion.name, question, leave, 100, n=3)
    worker.submit(first)
    worker.submit(Ask(champion.name, question, stay, 100, n=3))
    worker.start()
    assert done.wait(60)
    worker.close()
    assert [type(event) for event in left] == [Started, Piece]
    assert isinstance(stayed[-1], Done)
    assert len(stayed) > 5


def test_leaving_a_stream_cancels_its_request(node: Node, champion: Version) -> None:
    async def leave() -> bool:
        body = ChatRequest.model_validate({"model": champion.name, "messages": ASKED, "temperature": 0})
        answer = Answer(worker, body)
        chunks = answer.chunks(await answer.started())
        await anext(chunks)
        before = answer.ask.cancelled.is_set()
        await chunks.aclose()
        await asyncio.to_thread(worker.close)
        return answer.ask.cancelled.is_set() and not before

    worker = Worker(Registry(node.home, node.db, champion.name))
    worker.start()
    assert asyncio.run(leave())


@pytest.mark.parametrize("waits", [True, False], ids=["in the queue", "while answered"])
def test_leaving_before_the_answer_cancels_its_request(node: Node, champion: Version, waits: bool) -> None:
    async def leave() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        body = ChatRequest.model_validate({"model": champion.name, "messages": ASKED, "n": 16, "temperature": 2})
        answer = Answer(worker, body)
        asked.append(answer.ask)
        try:
            async with answer.watching(Request({"type": "http"}, receive)):
                if waits:
                    gone.set()
                started = await answer.started()
                gone.set()
                await answer.whole(started)
        finally:
            if not waits:
                await asyncio.to_thread(worker.close)

    worker = Worker(Registry(node.home, node.db, champion.name))
    asked: list[Ask] = []
    if not waits:
        worker.start()
    with pytest.raises(StokeholdError, match="went away"):
        asyncio.run(leave())
    assert asked[0].cancelled.is_set()


def test_a_closing_worker_tells_those_who_wait(node: Node, champion: Version) -> None:
    worker = Worker(Registry(node.home, node.db, champion.name))
    started, events = threading.Event(), list[Event]()

    def deliver(event: Event) -> None:
        events.append(event)
        started.set()
        worker.closing.wait(60)

    question = [Message("user", "the quick brown fox")]
    for _ in range(2):
        worker.submit(Ask(champion.name, question, deliver, 100))
    worker.start()
    assert started.wait(60)
    worker.close()
    failed = [event.error for event in events if isinstance(event, Failed)]
    assert len(failed) == 2
    assert all(isinstance(error, BusyError) for error in failed)


def test_a_queue_has_an_end(node: Node) -> None:
    worker = Worker(Registry(node.home, node.db))
    request = Ask("champion", [], lambda event: None, 1)
    for _ in range(MAX_WAITING):
        worker.submit(request)
    with pytest.raises(BusyError):
        worker.submit(request)


def test_a_fixed_reference_stays(node: Node, champion: Version) -> None:
    registry = Registry(node.home, node.db, champion.name)
    other = node.promote(3)
    assert registry.current(champion.name).weights_hash == champion.weights_hash
    for name in ("champion", other.name):
        with pytest.raises(NotFoundError, match=name):
            registry.current(name)
    versions.set_alias(node.home, node.db, "champion", champion.name)


def test_a_folder_without_a_manifest_is_hashed_itself(champion: Version, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(champion.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
    assert hash_of(folder) == champion.weights_hash


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "somewhere.example"])
def test_listening_beyond_this_machine_needs_a_token(host: str, node: Node) -> None:
    assert not is_loopback(host)
    registry = Registry(node.home, node.db)
    for token in (None, ""):
        with pytest.raises(UsageError, match="token"):
            create_app(registry, host, token)
    create_app(registry, host, TOKEN)


def test_the_command_refuses_and_names_what_is_missing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(node.home.root)
    assert main(["--home", home, "--no-token", "--host", "0.0.0.0"]) == 2
    assert main(["--home", home, "--ref", "v0999"]) == 1
    assert main(["--home", str(node.home.root / "nowhere")]) == 1
    text = capsys.readouterr().err
    assert "token" in text
    assert "v0999" in text
    assert "stoke init" in text


def test_the_command_serves_until_it_is_told_to_stop(node: Node, champion: Version) -> None:
    command = [sys.executable, "-m", "stokehold.inference.server", "--home", str(node.home.root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert champion.name in line
        client = openai.OpenAI(base_url=f"{line.split()[-1]}/v1", api_key=node.home.token(), max_retries=0)
        assert ask(client, max_tokens=2).model == champion.name
        assert (node.home.status / "token").stat().st_mode & 0o077 == 0
        process.terminate()
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is not None
    finally:
        process.kill()
        process.wait()
