"""A judge behind an OpenAI-compatible URL: the only place of an evaluation that talks to anybody, and only where asked.

Nothing that the server does ends a run. A refusal, an overload, a reply that is none or that does not come becomes a
reply without text and with its reason. Overload (429), errors of the server (5xx) and of the connection are tried again
a few times; a judge that fails several questions in a row is not asked the rest.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import orjson

from stokehold.core.config import JudgeConfig
from stokehold.core.records import Completion, Message, Sample
from stokehold.evaluation.canaries import judge_canaries
from stokehold.evaluation.judging import JUDGE, MAX_REPLY_CHARS, PROTOCOL, Opinion, Reply, ask_judge
from stokehold.evaluation.scorers import scorer_name
from stokehold.pipeline.suites import Suite

WAITS_S = (0.5, 2.0, 8.0)
"""Before each further try; `Retry-After` may ask for more."""

MAX_WAIT_S = 30.0
GIVE_UP_AFTER = 3
"""Questions in a row without a reply after which a judge counts as gone."""

MAX_REPLY_TOKENS = 2048
"""Room for a reasoning model's thoughts; a verdict alone takes ten."""

MAX_BODY_BYTES = 1 << 20
LOOK_S = 0.5
"""Between two calls of `between`."""


def opinions_about(
    config: JudgeConfig,
    samples: Sequence[Sample],
    completions: Sequence[Completion],
    between: Callable[[], None] = lambda: None,
) -> dict[str, Opinion]:
    """What the judge of the settings says of those answers that a judge must score, and of its canary.

    Nothing, and no call, where there are none or no judge is set.
    """
    wanted = [pair for pair in zip(samples, completions, strict=True) if scorer_name(pair[0]) == JUDGE]
    if not wanted or not (config.url and config.model):
        return {}
    asked, given = zip(*wanted, strict=True)
    return ask_judge(asked, given, JudgeServer(config), judge_canaries(asked), between)


def judge_conditions(config: JudgeConfig, suites: Iterable[Suite]) -> dict[str, str]:
    """Who judges, as a condition of an evaluation; none where these suites need no judge."""
    needed = any(scorer_name(sample) == JUDGE for suite in suites for sample in suite.samples)
    return {"judge": f"{config.model} {PROTOCOL}" if config.url and config.model else "none"} if needed else {}


def has_failed(opinions: Iterable[Opinion]) -> bool:
    """Whether a judge that was asked gave no reply."""
    return any(reply.text is None for opinion in opinions for reply in (opinion.first, opinion.second))


class _Failure(Exception):
    """Why a question got no reply; `wait_s` is what the server asks for before another try, None for never again."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.reason, self.wait_s = reason, wait_s
        super().__init__(reason)


class JudgeServer:
    """The judge that the settings name; see `evaluation.judging.JudgeModel`. Makes no call before it is asked."""

    def __init__(self, config: JudgeConfig, waits_s: Sequence[float] = WAITS_S) -> None:
        self.name = config.model
        self._config, self._waits = config, waits_s
        self._failed = 0

    def ask(self, conversations: Sequence[Sequence[Message]], between: Callable[[], None]) -> Sequence[Reply]:
        """One reply to each conversation, in order; `between` is called about twice a second."""
        return asyncio.run(self._ask_all(conversations, between))

    async def _ask_all(
        self, conversations: Sequence[Sequence[Message]], between: Callable[[], None]
    ) -> Sequence[Reply]:
        try:
            client = self._client()
        except (httpx.InvalidURL, ValueError) as error:
            return [Reply(None, f"judge.url: {error}")] * len(conversations)
        self._failed = 0
        slots = asyncio.Semaphore(self._config.concurrency)
        async with client:
            tasks = [asyncio.create_task(self._ask(client, slots, talk)) for talk in conversations]
            try:
                left = set(tasks)
                while left:
                    _, left = await asyncio.wait(left, timeout=LOOK_S)
                    between()
            finally:
                for task in tasks:
                    task.cancel()
        return [task.result() for task in tasks]

    def _client(self) -> httpx.AsyncClient:
        """Of the environment only certificates are taken: what is judged must not meet a proxy."""
        headers = {"user-agent": "stokehold"}
        if name := self._config.api_key_env:
            key = os.environ.get(name, "")
            if not key or not key.isascii() or not key.isprintable():
                raise ValueError(f"the environment variable {name} of judge.api_key_env holds no key")
            headers["authorization"] = f"Bearer {key}"
        url = httpx.URL(self._config.url.rstrip("/") + "/")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{self._config.url!r} is no http:// or https:// address")
        trusted = ssl.create_default_context()
        return httpx.AsyncClient(
            base_url=url, headers=headers, timeout=self._config.timeout_s, verify=trusted, trust_env=False
        )

    async def _ask(self, client: httpx.AsyncClient, slots: asyncio.Semaphore, talk: Sequence[Message]) -> Reply:
        async with slots:
            reason = "it was given up: too many questions in a row without a reply"
            for wait_s in (*self._waits, None):
                if self._failed >= GIVE_UP_AFTER:
                    return Reply(None, reason)
                try:
                    text = await self._try(client, talk)
                except _Failure as failure:
                    reason = failure.reason
                    if failure.wait_s is None or wait_s is None:
                        break
                    await asyncio.sleep(min(MAX_WAIT_S, max(wait_s, failure.wait_s)))
                else:
                    self._failed = 0
                    return Reply(text)
            self._failed += 1
            return Reply(None, reason)

    async def _try(self, client: httpx.AsyncClient, talk: Sequence[Message]) -> str:
        asked = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in talk],
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        try:
            # httpx bounds the silence between two bytes; a server that drips would be waited for without end.
            async with asyncio.timeout(self._config.timeout_s):
                async with client.stream("POST", "chat/completions", json=asked) as response:
                    return _text(await _body(response), response)
        except TimeoutError as error:
            raise _Failure(f"no reply within {self._config.timeout_s:g} s", 0.0) from error
        except httpx.TransportError as error:
            raise _Failure(f"{type(error).__name__}: {error}".rstrip(": "), 0.0) from error
        except httpx.HTTPError as error:
            raise _Failure(f"{type(error).__name__}: {error}") from error


async def _body(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _Failure(f"a reply of more than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _text(body: bytes, response: httpx.Response) -> str:
    """What the model said; _Failure with the reason where that is nothing."""
    code = response.status_code
    if code != httpx.codes.OK:
        hint = {401: ", look at judge.api_key_env", 403: ", look at judge.api_key_env", 404: ", look at judge.url"}
        again = code == httpx.codes.TOO_MANY_REQUESTS or code >= httpx.codes.INTERNAL_SERVER_ERROR
        raise _Failure(f"HTTP {code}{hint.get(code, '')}", _retry_after(response) if again else None)
    try:
        tree: Any = orjson.loads(body)
        text = tree["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise _Failure(f"not a chat completion: {body[:80]!r}") from error
    if not isinstance(text, str):
        raise _Failure("a chat completion without text")
    if len(text) > MAX_REPLY_CHARS:
        raise _Failure(f"a reply of {len(text)} characters")
    return text


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks for; 0 where it gives none, or a date."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isascii() and given.isdigit() else 0.0
