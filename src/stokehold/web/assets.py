"""The page's files, read once: ours from `static/`, plotly.js from the plotly package. Only names listed here exist."""

import hashlib
import re
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
PAGE = "index.html"
STYLE_MARKS = b"<!-- marks for plotly.js -->"
INJECTED = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
"""plotly.js writes a map library's inline style unless an element with that style's id exists."""


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
    found = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}
    ids = INJECTED.findall(_plotly().body)
    # Our policy allows no inline style, and we draw no maps: the page says that those styles are there already.
    marks = b"".join(b'<meta name="plotly-style" id="%s">' % mark for mark in sorted(set(ids)))
    found[PAGE] = found[PAGE].replace(STYLE_MARKS, marks)
    return {name: _asset(body, Path(name).suffix) for name, body in found.items()}


@lru_cache(maxsize=1)
def _plotly() -> Asset:
    return _asset((resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes(), ".js")


def _asset(body: bytes, suffix: str) -> Asset:
    return Asset(body, TYPES[suffix], f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')
