"""Who may talk to a server, decided at the ASGI root before any route: a known Host, no foreign Origin, the token.

A route added anywhere is behind it. Host and Origin are checked because a web page that points its own name at
127.0.0.1 (DNS rebinding) reaches loopback through its visitor's browser.
"""

import secrets
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stokehold.core.errors import UsageError
from stokehold.core.hosts import answers_to, host_name, is_loopback

OPEN_PATHS = frozenset({"/health"})
"""Answered without a token; they tell nothing about the model."""


def check_listening(host: str, token: str | None) -> None:
    """Refuses to listen beyond this machine without a token."""
    if not token and not is_loopback(host):
        raise UsageError("listening beyond this machine needs the token", host, "use 127.0.0.1, or keep the token on")


class Guard:
    """ASGI middleware around a whole application that listens on `host`; `token` None asks for none."""

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        check_listening(host, token)
        self.app, self._host = app, host
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refusal(scope["path"], headers)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, text = refused
            await openai_error(status, text)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refused[1]})

    def _refusal(self, path: str, headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """(status, reason) for a request that goes no further."""
        host = host_name(headers.get(b"host", b"").decode("latin-1"))
        if not self._knows(host):
            return 400, f"this server does not answer to the host {host!r}"
        origin = headers.get(b"origin")
        if origin is not None and not self._knows(urlsplit(origin.decode("latin-1")).hostname or ""):
            return 403, "requests from other sites are refused"
        if path in OPEN_PATHS or self._token is None:
            return None
        given = headers.get(b"authorization", b"")
        if not secrets.compare_digest(given, b"Bearer " + self._token):
            return 401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`"
        return None

    def _knows(self, name: str) -> bool:
        return answers_to(name, self._host, socket.gethostname())


def openai_error(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    """An error response in the shape that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 401:
        code = code or "invalid_api_key"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)
