"""What a home wants judged elsewhere, for a node that asks, and the answers that it hands back."""

from pathlib import Path
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from stokehold.core.errors import IntegrityError
from stokehold.store.files import refusals
from stokehold.store.home import Home
from stokehold.store.transfer import evaluation_requests, offers

PIECE_BYTES = 1024 * 1024


def add_to(app: FastAPI, home: Home) -> None:
    """The routes by which a node takes its work and hands it back."""

    @app.get("/api/evaluation-requests/next")
    def asked() -> JSONResponse:
        evaluation_requests.note_visit(home)
        request = evaluation_requests.waiting(home)
        offer = offers.document(home, request.ref, evaluation_requests.weights_of(home, request)) if request else None
        document = request.model_dump(mode="json") if request else None
        return JSONResponse({"settings": offers.settings_of(home.config()), "request": document, "offer": offer})

    @app.put("/api/evaluation-requests/{request_id}/answers")
    async def answers(request: Request, request_id: str) -> Response:
        path = evaluation_requests.inbox(home) / f"incoming-{uuid4().hex}"
        try:
            with refusals(home.root):
                if not await received(home, request, path):
                    return JSONResponse({"error": "these are too many answers"}, 413)
                await run_in_threadpool(evaluation_requests.accept, home, request_id, path)
        except IntegrityError as error:
            return JSONResponse({"error": str(error)}, 422)
        finally:
            if path.exists():
                home.disk.remove(path)
        return Response(None, 204)


async def received(home: Home, request: Request, path: Path) -> bool:
    """Whether the whole body is in `path`; False where it is longer than answers may be."""
    size, batch = 0, bytearray()
    async for piece in request.stream():
        batch += piece
        size += len(piece)
        if size > evaluation_requests.MOST_BYTES:
            return False
        if len(batch) >= PIECE_BYTES:
            await run_in_threadpool(home.disk.append, path, bytes(batch))
            batch.clear()
    await run_in_threadpool(home.disk.append, path, bytes(batch))
    return True
