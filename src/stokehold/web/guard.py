"""Who may talk to the page, decided at the ASGI root before any route: Host, Origin, token; and what every answer says.

A route added anywhere is behind it. A page of another site that points its own name at 127.0.0.1 (DNS rebinding)
fails at Host; one that posts from another port of this machine fails at Origin. The browser's cookie carries the
token, HttpOnly and SameSite=Strict; it is set once, by opening `/?token=…`.
"""

import secrets
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stokehold.core.errors import UsageError
from stokehold.core.hosts import answers_to, host_name

OPEN_PATHS = frozenset({"/health"})
"""Answered without a token; they tell nothing about the model or its data."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE_S = 30 * 24 * 3600

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, nothing from elsewhere, no frame; `data:` images are what plotly draws icons with."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

LOCKED_OUT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Stokehold</title>
<p>This page needs its token: open the address that <code>stoke up</code> printed.</p></html>"""


class Guard:
    """ASGI middleware around the whole application, which listens on `host`."""

    def __init__(self, app: ASGIApp, host: str, token: str, cookie: str) -> None:
        if not token:
            raise UsageError("the page needs a token", host, "remove status/token to have one made")
        self.app, self._host, self._token, self._cookie = app, host, token.encode(), cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await (self._answer(scope) or self.app)(scope, receive, say)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further, or None."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        name = host_name(host)
        if not answers_to(name, self._host, socket.gethostname()):
            return _refusal(400, f"this page does not answer to the host {name!r}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refusal(403, "requests from other sites are refused")
        path = scope["path"]
        if path in OPEN_PATHS:
            return None
        if path == "/" and scope["method"] == "GET" and (given := _query_token(scope)) is not None:
            return self._sign_in(given, scope["scheme"])
        by_header = self._is_token(headers.get("authorization", "").removeprefix("Bearer "))
        by_cookie = self._is_token(_cookie_value(headers.get("cookie", ""), self._cookie))
        if not by_header and not by_cookie:
            return _locked_out(path)
        if not by_header and origin is None and scope["method"] not in SAFE_METHODS:
            return _refusal(403, "a browser must say where this request comes from")
        return None

    def _sign_in(self, given: str, scheme: str) -> Response:
        if not self._is_token(given):
            return _locked_out("/")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._cookie,
            self._token.decode(),
            max_age=COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=scheme == "https",
        )
        return answer

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token)


def _refusal(status: int, reason: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": reason}, status, headers)


def _locked_out(path: str) -> Response:
    if path == "/":
        return HTMLResponse(LOCKED_OUT, 401, {"www-authenticate": "Bearer"})
    return _refusal(401, "the token is missing or wrong: send `Authorization: Bearer TOKEN`")


def _query_token(scope: Mapping[str, object]) -> str | None:
    query = scope.get("query_string", b"")
    assert isinstance(query, bytes)
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("token")
    return values[0] if values else None


def _cookie_value(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""
