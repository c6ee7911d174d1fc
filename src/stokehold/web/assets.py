"""The page's files, read once: ours from `static/`, plotly.js from the plotly package. Only names listed here exist."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PLOTLY = "plotly.js"


@dataclass(frozen=True, slots=True)
class Asset:
    """Bytes, their media type, and a mark that changes with them."""

    body: bytes
    media_type: str
    etag: str


def find(name: str) -> Asset | None:
    """The asset of this name, or None; names are looked up, never joined to a path."""
    if name == PLOTLY:
        return _plotly()
    return _ours().get(name)


@lru_cache(maxsize=1)
def _ours() -> dict[str, Asset]:
    return {path.name: _asset(path.read_bytes(), path.suffix) for path in STATIC.iterdir() if path.suffix in TYPES}


@lru_cache(maxsize=1)
def _plotly() -> Asset:
    return _asset((resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes(), ".js")


def _asset(body: bytes, suffix: str) -> Asset:
    return Asset(body, TYPES[suffix], f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')
