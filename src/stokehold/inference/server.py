"""The inference node: OpenAI's chat completions over the champion, or over a reference given at the start.

`python -m stokehold.inference.server --home H [--ref R] [--port P]`. Requests come in over HTTP, one thread runs the
model (`inference.worker`), every answer carries the hash of its weights as `system_fingerprint`.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from stokehold.core.errors import BusyError, InputError, NotFoundError, StokeholdError
from stokehold.inference.engine import ContextError
from stokehold.inference.guard import Guard, check_listening, openai_error
from stokehold.inference.protocol import ChatRequest, Envelope, LikelihoodRequest, likelihoods, model_list
from stokehold.inference.registry import Registry
from stokehold.inference.worker import (
    Ask,
    Done,
    Event,
    Failed,
    Finished,
    Measure,
    Measured,
    Piece,
    Started,
    Worker,
)
from stokehold.store import parent
from stokehold.store.db.database import connect
from stokehold.store.home import Home

LOG = "server.log"

ANY_LENGTH = 2**31
"""Asks for all the context has room for."""

STATUS: Mapping[type[StokeholdError], tuple[int, str]] = {
    NotFoundError: (404, "model_not_found"),
    ContextError: (400, "context_length_exceeded"),
    InputError: (400, "invalid_prompt"),
    BusyError: (503, "too_many_requests"),
}
"""HTTP status and OpenAI's code of errors with a cause that the client can act on; all others are 500."""


def create_app(registry: Registry, host: str = "127.0.0.1", token: str | None = None) -> Guard:
    """The whole application behind its guard. Refuses a `host` beyond loopback without a token."""
    worker = Worker(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.close)

    app = FastAPI(title="Stokehold inference node", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)

    @app.get("/health")
    async def health() -> Response:
        alive = worker.is_alive()
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return model_list(registry.names())

    @app.get("/v1/models/{name}")
    def model(name: str) -> dict[str, Any]:
        names = registry.names()
        if name not in names:
            raise NotFoundError(f"the model {name!r} is not served here", ", ".join(names), "ask for one of those")
        found: dict[str, Any] = model_list([name])["data"][0]
        return found

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response | dict[str, Any]:
        answer = Answer(worker, body)
        async with answer.watching(request):
            started = await answer.started()
            if not body.stream:
                return await answer.whole(started)
        return StreamingResponse(answer.chunks(started), media_type="text/event-stream")

    @app.post("/v1/completions", response_model=None)
    async def likelihood(body: LikelihoodRequest, request: Request) -> dict[str, Any]:
        measurement = Measurement(worker, body)
        async with measurement.watching(request):
            started = await measurement.started()
            return likelihoods(body, started, await measurement.whole())

    return Guard(app, host, token)


class Waiting:
    """One request on its way through the worker, seen from the event loop."""

    ask: Ask | Measure

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def deliver(self, event: Event) -> None:
        """From the worker's thread to the event loop."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @asynccontextmanager
    async def watching(self, request: Request) -> AsyncIterator[None]:
        """Inside the block a client that goes away ends its request: it must not hold the model."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self._events.put_nowait(Failed(StokeholdError("the client went away", self.ask.model)))

        watcher = asyncio.create_task(watch())
        try:
            yield
        except BaseException:
            self.ask.cancelled.set()
            raise
        finally:
            watcher.cancel()

    async def started(self) -> Started:
        """Waits for the model; raises what went wrong before the first token, an unknown model among it."""
        event = await self._next()
        assert isinstance(event, Started)
        return event

    async def _next(self) -> Event:
        event = await self._events.get()
        if not isinstance(event, Failed):
            return event
        if isinstance(event.error, StokeholdError):
            raise event.error
        raise StokeholdError("the answer failed", f"{type(event.error).__name__}: {event.error}") from event.error


class Answer(Waiting):
    """A conversation that is being answered."""

    ask: Ask

    def __init__(self, worker: Worker, body: ChatRequest) -> None:
        super().__init__()
        self._body = body
        self.ask = Ask(
            model=body.model,
            messages=[message.message() for message in body.messages],
            deliver=self.deliver,
            max_new_tokens=body.token_limit or ANY_LENGTH,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stops,
            n=body.n or 1,
        )
        worker.submit(self.ask)

    async def whole(self, started: Started) -> dict[str, Any]:
        """All answers at once."""
        texts, ends = [""] * self.ask.n, list[Finished]()
        while not isinstance(event := await self._next(), Done):
            if isinstance(event, Piece):
                texts[event.index] += event.text
            elif isinstance(event, Finished):
                ends.append(event)
        return Envelope(started).whole(texts, ends)

    async def chunks(self, started: Started) -> AsyncGenerator[bytes]:
        """Server-sent events up to `[DONE]`; closing the iterator ends generation."""
        envelope, ends = Envelope(started), list[Finished]()
        try:
            for index in range(self.ask.n):
                yield _line(envelope.chunk(index, {"role": "assistant", "content": ""}))
            while not isinstance(event := await self._next(), Done):
                if isinstance(event, Piece):
                    yield _line(envelope.chunk(event.index, {"content": event.text}))
                elif isinstance(event, Finished):
                    ends.append(event)
                    yield _line(envelope.chunk(event.index, {}, event.finish_reason))
            if self._body.stream_options and self._body.stream_options.include_usage:
                yield _line(envelope.usage_chunk(ends))
        except StokeholdError as error:
            # The status went out with the first chunk: the error travels as an event, which clients raise.
            yield b"data: " + bytes(_error_response(error).body) + b"\n\n"
        finally:
            self.ask.cancelled.set()
        yield b"data: [DONE]\n\n"


class Measurement(Waiting):
    """Texts whose likelihoods are being read."""

    def __init__(self, worker: Worker, body: LikelihoodRequest) -> None:
        super().__init__()
        self.ask = Measure(body.model, body.texts, self.deliver)
        worker.submit(self.ask)

    async def whole(self) -> list[Measured]:
        """All of them, in order."""
        found = list[Measured]()
        while not isinstance(event := await self._next(), Done):
            if isinstance(event, Measured):
                found.append(event)
        return found


def _line(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _error_response(error: StokeholdError) -> Response:
    status, code = STATUS.get(type(error), (500, "internal_error"))
    return openai_error(status, str(error), code, "model" if status == 404 else None)


def _add_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(StokeholdError)
    async def ours(request: Request, error: StokeholdError) -> Response:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return openai_error(400, f"{place}: {first['msg']}" if place else first["msg"], "invalid_value", place or None)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return openai_error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return openai_error(500, f"{type(error).__name__}: {error}", "internal_error")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


class Server(uvicorn.Server):
    """A server that may also be told to end by another thread."""

    def leave(self) -> None:
        """Ends when the open answers are given."""
        self.should_exit = True


def main(arguments: list[str] | None = None) -> int:
    """Serves until a signal; prints the address and what is served once it listens."""
    parser = argparse.ArgumentParser(prog="python -m stokehold.inference.server", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path())
    parser.add_argument("--ref", help="serve this version, step or folder instead of following the champion")
    parser.add_argument("--host", help="address to listen on; default from [serve]")
    parser.add_argument("--port", type=int, help="0 takes a free port; default from [serve]")
    parser.add_argument("--device", help="cpu or cuda:N; default the trainer's")
    parser.add_argument("--parent-fd", type=int, help="leave when this pipe reads its end")
    parser.add_argument("--no-token", action="store_true", help="on loopback only: answer everybody on this machine")
    options = parser.parse_args(arguments)
    try:
        home = Home.open(options.home)
        config = home.config()
        host = options.host or config.serve.host
        port = config.serve.port if options.port is None else options.port
        token = None if options.no_token else home.token()
        check_listening(host, token)
        registry = Registry(home, connect(home), options.ref, options.device or config.devices.trainer)
        if options.ref or registry.names():
            registry.current(registry.ref)  # now, so that what cannot be served is told here and not to a client
        app = create_app(registry, host, token)
        with listen(host, port) as server_socket:
            address = f"http://{f'[{host}]' if ':' in host else host}:{server_socket.getsockname()[1]}"
            print(f"serving {', '.join(registry.names()) or registry.ref} on {address}", flush=True)
            server = Server(uvicorn.Config(app, log_level="warning", access_log=False))
            if options.parent_fd is not None:
                parent.listen(options.parent_fd, home.logs / LOG, server.leave)
            server.run(sockets=[server_socket])
    except StokeholdError as error:
        print(f"stoke: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
