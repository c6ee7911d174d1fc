"""Nothing but /health answers a stranger; other sites' pages get nothing through a visitor's browser."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from stokehold.core.config import Config
from stokehold.core.errors import UsageError
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.web.app import cookie_name, routes
from stokehold.web.guard import POLICY, Guard
from stokehold.web.readings import Readings


@pytest.fixture
def stranger(shared_page: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_page.url, trust_env=False, timeout=60) as client:
        yield client


def test_every_route_but_health_wants_the_token(tmp_path: Any, shared_page: Any, stranger: httpx.Client) -> None:
    home = Home.create(tmp_path / "home", Config())
    app = routes(Readings(home, connect(home)))
    listed = [
        (route.path, method) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
    ]
    assert len(listed) == len([route for route in app.routes for _ in getattr(route, "methods", "?")]), (
        "only plain routes"
    )
    assert {path for path, _ in listed} >= {"/", "/static/{name}", "/api/status", "/api/stream", "/metrics"}
    asked = [(path.format(name="app.js", command="pause", request_id="r"), method) for path, method in listed]
    strange = [
        ("/docs", "GET"),
        ("/openapi.json", "GET"),
        ("/redoc", "GET"),
        ("/nowhere", "GET"),
        ("//api/status", "GET"),
    ]
    for path, method in [*asked, *strange, ("/api/status", "OPTIONS"), ("/api/status", "HEAD")]:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": shared_page.token[:-1]}):
            answer = stranger.request(method, path, headers=headers)
            assert answer.status_code == (200 if path == "/health" else 401), (method, path)
    with shared_page.client() as known:
        assert [known.get(path).status_code for path, _ in strange] == [404] * len(strange)


def test_health_tells_nothing(stranger: httpx.Client) -> None:
    assert stranger.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_rebound_name_is_refused_even_with_the_token(shared_page: Any, host: str) -> None:
    with shared_page.client(headers={"host": host}) as client:
        for path in ("/", "/health", "/api/status"):
            assert client.get(path).status_code == 400


def test_no_host_at_all_is_refused(shared_page: Any) -> None:
    address, port = shared_page.url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"GET /api/status HTTP/1.0\r\nAuthorization: Bearer {shared_page.token}\r\n\r\n".encode())
        assert b" 400 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_foreign_origin_is_refused_even_with_the_token(shared_page: Any, origin: str) -> None:
    with shared_page.client(headers={"origin": origin}) as client:
        assert client.get("/api/status").status_code == 403
        assert client.post("/api/control/pause").status_code == 403


def test_the_printed_address_sets_a_strict_cookie_and_leaves_no_token_behind(
    shared_page: Any, stranger: httpx.Client
) -> None:
    assert stranger.get("/", params={"token": "wrong"}).status_code == 401
    answer = stranger.get("/", params={"token": shared_page.token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/").status_code == stranger.get("/api/status").status_code == 200
    same = {"origin": shared_page.url}
    assert stranger.post("/api/control/resume", headers=same).status_code == 202
    assert stranger.post("/api/control/resume").status_code == 403, "a browser always says where a post comes from"
    forged = {"cookie": f"{cookie_name(shared_page.home)}=wrong"}
    stranger.cookies.clear()
    assert stranger.get("/api/status", headers=forged).status_code == 401


def test_the_token_in_another_address_opens_nothing(shared_page: Any, stranger: httpx.Client) -> None:
    assert stranger.get("/api/status", params={"token": shared_page.token}).status_code == 401


def test_every_answer_carries_the_policy(shared_page: Any, stranger: httpx.Client) -> None:
    with shared_page.client() as client:
        answers = [client.get(path) for path in ("/", "/health", "/api/status", "/static/app.js", "/nowhere")]
    for answer in [*answers, stranger.get("/"), stranger.get("/api/status")]:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "cache-control" in answer.headers
    assert "unsafe" not in POLICY


def test_a_page_without_a_token_cannot_be_made() -> None:
    with pytest.raises(UsageError):
        Guard(lambda *_: None, "127.0.0.1", "", "cookie")  # type: ignore[arg-type,return-value]


def test_each_home_has_its_own_cookie(tmp_path: Any) -> None:
    one, other = Home(tmp_path / "one"), Home(tmp_path / "other")
    assert cookie_name(one) != cookie_name(other)


@pytest.mark.parametrize(
    ("listens_on", "host", "known"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "192.168.0.7", False),
        ("0.0.0.0", "192.168.0.7", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", socket.gethostname(), True),
        ("trainer.lan", "trainer.lan", True),
        ("trainer.lan", "", False),
    ],
)
def test_hosts_that_are_known(listens_on: str, host: str, known: bool) -> None:
    guard = Guard(lambda *_: None, listens_on, "t", "cookie")  # type: ignore[arg-type,return-value]
    headers = [(b"host", host.encode()), (b"authorization", b"Bearer t")]
    scope = {"type": "http", "path": "/", "method": "GET", "headers": headers, "query_string": b"", "scheme": "http"}
    assert (guard._answer(scope) is None) is known
