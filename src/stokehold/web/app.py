"""The application: the page, its API, its stream, the figures. Everything is behind `Guard`."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError
from sse_starlette import EventSourceResponse
from starlette.types import ASGIApp

from stokehold.core.errors import NotFoundError, StokeholdError, UsageError
from stokehold.core.identity import short_id
from stokehold.store.db.control import Command
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.web import blobs, evaluation_requests
from stokehold.web.assets import PAGE, Asset, find
from stokehold.web.guard import Guard
from stokehold.web.metrics import StatusCollector, expose
from stokehold.web.readings import EVENTS_SHOWN, Readings
from stokehold.web.stream import updates

COOKIE = "stokehold"


def create_app(home: Home, db: Database, host: str) -> ASGIApp:
    """The guarded application for a page that listens on `host`."""
    return Guard(routes(Readings(home, db)), host, home.token(), cookie_name(home))


def cookie_name(home: Home) -> str:
    """One for each home: cookies do not tell ports of a machine apart, and it may have several pages."""
    return f"{COOKIE}-{short_id(str(home.root))[:8]}"


def routes(readings: Readings) -> FastAPI:
    """The bare application; its own documentation pages are off."""
    app = FastAPI(title="Stokehold", docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_page(app)
    _add_api(app, readings)
    _add_watching(app, readings)
    blobs.add_to(app, readings.home, readings.db)
    evaluation_requests.add_to(app, readings.home)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/")
    def page(request: Request) -> Response:
        return _send(request, find(PAGE))

    @app.get("/static/{name}")
    def static(request: Request, name: str) -> Response:
        return _send(request, find(name))


def _add_api(app: FastAPI, readings: Readings) -> None:
    @app.get("/api/status")
    def status() -> JSONResponse:
        return JSONResponse(readings.status())

    @app.get("/api/journal")
    def journal(since: Annotated[int, Query(ge=-1)] = -1) -> JSONResponse:
        curve = readings.curve(since)
        facts = {"width": curve.width, "steps": curve.steps, "branch": curve.branch}
        return JSONResponse({"points": curve.points, **facts})

    @app.get("/api/queue")
    def queue() -> JSONResponse:
        return JSONResponse(readings.queue())

    @app.get("/api/versions")
    def versions() -> JSONResponse:
        return JSONResponse(readings.versions())

    @app.get("/api/evaluations")
    def evaluations() -> JSONResponse:
        return JSONResponse(readings.evaluations())

    @app.get("/api/findings")
    def findings() -> JSONResponse:
        return JSONResponse(readings.findings())

    @app.get("/api/events")
    def events(since: int | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = EVENTS_SHOWN) -> JSONResponse:
        return JSONResponse(readings.events(since, limit))

    @app.post("/api/control/{command}")
    def control(command: Command) -> JSONResponse:
        readings.control(command)
        return JSONResponse({"requested": command}, 202)


def _add_watching(app: FastAPI, readings: Readings) -> None:
    registry = CollectorRegistry()
    registry.register(StatusCollector(readings))

    @app.get("/api/stream")
    async def stream() -> EventSourceResponse:
        return EventSourceResponse(updates(readings))

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(expose(registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StokeholdError)
    def refused(_request: Request, error: StokeholdError) -> JSONResponse:
        status = 404 if isinstance(error, NotFoundError) else 400 if isinstance(error, UsageError) else 500
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(SQLAlchemyError)
    def unreadable(_request: Request, error: SQLAlchemyError) -> JSONResponse:
        return JSONResponse({"error": f"the database does not answer: {type(error).__name__}"}, 503)


def _send(request: Request, asset: Asset | None) -> Response:
    if asset is None:
        return JSONResponse({"error": "no such file"}, 404)
    headers: dict[str, Any] = {"etag": asset.etag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(None, 304, headers)
    return Response(asset.body, 200, headers, asset.media_type)
