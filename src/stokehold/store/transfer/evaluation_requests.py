"""Answers asked of another machine: what a home wants judged there, and what comes back.

One request is open at a time. `status/asked/request.json` names the weights, the suites and how to answer;
`<id>.jsonl` appears beside it whole and checked. Nothing but answers travels back: the home scores them, compares and
decides by itself.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Completion
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.transfer.offers import UNTRUSTED
from stokehold.store.transfer.remote import Remote

FORMAT = 1
REQUEST = "request.json"
VISITED = "node-visit"
NEXT = "/api/evaluation-requests/next"
MOST_BYTES = 1_000_000_000
"""Of answers that are taken."""

LONGEST_LINE = 16_000_000
SAME = "both machines must run the same release"
FINISHED = frozenset({"stop", "length", "error"})
PATTERN_HASH = "^[0-9a-f]{64}$"
PATTERN_ID = "^[0-9a-f]{16}$"
_COMPLETION = TypeAdapter(Completion)

Key = tuple[str, int, int | None]
"""Suite, number of the item in it from 0, and number of the draw; None for the greedy answer."""

_KEY = TypeAdapter(Key)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Limits(_Document):
    """How items are answered; see `Engine.complete_batches` and `Engine.sample_batches`."""

    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gold_multiple: float = Field(ge=0)
    draws: int = Field(ge=0)
    temperature: float = Field(ge=0)
    seed: int


class SuiteFile(_Document):
    """A suite as it travels: its name, the BLAKE3 of its content, its size, and how many items it has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=128)
    blake3: str = Field(pattern=PATTERN_HASH)
    bytes: int = Field(ge=0)
    items: int = Field(ge=0)


class Request(_Document):
    """What is asked: by which weights (`shelf/name` in the home), on what, how, by which release of the engine."""

    format: int
    id: str = Field(pattern=PATTERN_ID)
    ref: str = Field(max_length=128)
    folder: str
    engine: str
    template: str
    limits: Limits
    suites: tuple[SuiteFile, ...] = Field(strict=False)

    @property
    def keys(self) -> Iterator[Key]:
        """Every answer that is asked for."""
        draws = (None, *range(self.limits.draws))
        return ((suite.name, n, draw) for suite in self.suites for n in range(suite.items) for draw in draws)


class Header(_Document):
    """The first line of answers: whose, made where, and in how many seconds."""

    format: int = FORMAT
    request: str
    engine: str
    template: str
    dtype: str = Field(pattern=r"^torch\.\w+$")
    device: str = Field(pattern="^(cpu|cuda)$")
    seconds: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Answers:
    """All that was asked for, and how it was made."""

    header: Header
    completions: Mapping[Key, Completion]


def waiting(home: Home) -> Request | None:
    """The request that is not answered yet, None where there is none."""
    request = current(home)
    return None if request is None or _answers(home, request.id).exists() else request


def current(home: Home) -> Request | None:
    """The newest request, answered or not; None where nothing was asked, or the disk changed it: it is asked anew."""
    try:
        return Request.model_validate_json((_folder(home) / REQUEST).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def weights_of(home: Home, request: Request) -> Path:
    """The published folder that is to answer, whole; NotFoundError where it went away meanwhile."""
    shelf, _, name = request.folder.partition("/")
    folder = home.root / shelf / name
    if not folder.is_dir():
        raise NotFoundError("these weights are gone", request.folder, "they are judged no more")
    return compaction.whole(home, folder) if folder.parent == home.versions else folder


def ask(home: Home, request: Request) -> None:
    """Makes this the request; another one is over, and its answers go. Answers to this one that are there stay."""
    if current(home) == request:
        return
    close(home)
    _folder(home).mkdir(exist_ok=True)
    write_atomic(_folder(home) / REQUEST, request.model_dump_json().encode(), disk=home.disk)


def close(home: Home) -> None:
    """Ends what was asked, and removes whatever came for it. The folder stays, for somebody may be sending answers."""
    home.disk.remove(_folder(home) / REQUEST)  # first: what a kill leaves behind answers nothing
    for path in _folder(home).glob("*"):
        home.disk.remove(path)


def accept(home: Home, request_id: str, came: Path) -> None:
    """Takes over the answers in the file `came`, which is moved.

    Raises NotFoundError where this is not asked (any more), IntegrityError naming the line that is no answer to it.
    """
    request = waiting(home)
    if request is None or request.id != request_id:
        raise NotFoundError("this is not asked any more", request_id[:16], "ask what is")
    read(came, request)
    home.disk.sync(came)
    home.disk.rename(came, _answers(home, request_id))


def ask_server(remote: Remote) -> dict[str, Any]:
    """What `remote` wants judged: its `settings`, and `request` and `offer` or None. One try."""
    document = remote.document(NEXT)
    try:
        found = orjson.loads(document.body if document else b"")
        return {name: found[name] for name in ("settings", "request", "offer")}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise IntegrityError("the server's answer is no request", remote.url, UNTRUSTED) from error


def note_visit(home: Home) -> None:
    """A node asked for work."""
    (home.status / VISITED).touch()


def silence_s(home: Home) -> float | None:
    """Seconds for which a request has waited without a node asking for it; None where none waits."""
    if waiting(home) is None:
        return None
    known = (path.stat().st_mtime for path in (_folder(home) / REQUEST, home.status / VISITED) if path.exists())
    return max(0.0, time.time() - max(known, default=0.0))


def answers(home: Home, request: Request) -> Answers | None:
    """What came back for the open request, None so far. What the disk changed since raises, and is asked for anew."""
    path = _answers(home, request.id)
    if not path.exists():
        return None
    try:
        return read(path, request)
    except IntegrityError:
        home.disk.remove(path)
        raise


def inbox(home: Home) -> Path:
    """The folder in which answers may be received before they are accepted."""
    _folder(home).mkdir(exist_ok=True)
    return _folder(home)


def write(path: Path, header: Header, found: Iterable[tuple[Key, Completion]], home: Home) -> None:
    """Answers as they travel: the header, then a line for each."""
    lines = [header.model_dump_json().encode()]
    lines += [orjson.dumps({"key": key, **asdict(completion)}) for key, completion in found]
    write_atomic(path, b"".join(line + b"\n" for line in lines), disk=home.disk)


def read(path: Path, request: Request) -> Answers:
    """The answers in a file, every one that was asked for once; IntegrityError names the line that is wrong."""
    wanted = set(request.keys)
    found: dict[Key, Completion] = {}
    with path.open("rb") as file:
        lines = enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1)
        header = _header(next(lines, (1, b""))[1], request)
        for number, line in lines:
            key, completion = _answer(line, number)
            if key not in wanted:
                raise _refused(number, "an answer that was not asked for, or is there twice")
            wanted.remove(key)
            found[key] = completion
    if wanted:
        raise IntegrityError(f"{len(wanted)} answers are missing", request.id, SAME)
    return Answers(header, found)


def _header(line: bytes, request: Request) -> Header:
    try:
        header = Header.model_validate_json(line)
    except ValidationError as error:
        raise _refused(1, "no header of answers") from error
    if header.format > FORMAT:
        raise _refused(1, f"answers of the newer format {header.format}")
    for name, said, asked in (
        ("request", header.request, request.id),
        ("engine", header.engine, request.engine),
        ("template", header.template, request.template),
    ):
        if said != asked:
            raise _refused(1, f"its {name} is {said[:64]!r}, not {asked!r}")
    return header


def _answer(line: bytes, number: int) -> tuple[Key, Completion]:
    try:
        found: dict[str, Any] = orjson.loads(line)
        key = _KEY.validate_python(found.pop("key"))
        completion = _COMPLETION.validate_python(found)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValidationError) as error:
        raise _refused(number, "no answer") from error
    values = [*completion.token_logprobs, completion.gold_nll or 0.0]
    if (
        len(completion.token_ids) != len(completion.token_logprobs)
        or completion.finish_reason not in FINISHED
        or not all(map(math.isfinite, values))
    ):
        raise _refused(number, "an answer that does not fit together")
    return key, completion


def _refused(number: int, what: str) -> IntegrityError:
    return IntegrityError(what, f"line {number} of the answers", SAME)


def _answers(home: Home, request_id: str) -> Path:
    return _folder(home) / f"{request_id}.jsonl"


def _folder(home: Home) -> Path:
    return home.status / "asked"
