"""One line of JSONL to one Sample, in every accepted format, and the canonical row that accepted samples are stored as.

JSON is read strictly: no NaN, no key twice, no lone surrogate, nothing that cannot be stored again exactly. Whatever
is not the product's own format is converted with a note; notes are few and fixed, so that they can be counted.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import orjson

from stokehold.core.identity import short_id
from stokehold.core.records import Message, Provenance, Rejection, Sample
from stokehold.data.lines import Line, excerpt

ROLES = ("system", "user", "assistant")

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
}

RELATIONAL_KEYS = ("type", "has_presence", "context")
"""Kept in the metadata of a relational row: its objective reads them."""

LEFT_OUT = "other keys left out"

MAX_DIGITS = 20
"""No 64-bit integer is written longer, and rows are stored with no more; reading longer ones takes quadratic time."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An accepted line; `note` says what was converted, None for the product's own format."""

    sample: Sample
    note: str | None = None


class _Refused(ValueError):
    """Why a line cannot be used; becomes the reason of its Rejection."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What a format holds: a conversation or a text, metadata of the format's own, and the keys that were read."""

    keys: tuple[str, ...]
    note: str | None
    messages: tuple[Message, ...] = ()
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    lossy: bool = False


def parse_line(line: Line, file: str) -> Parsed | Rejection:
    """The sample of a line of `file`, or why there is none. Its id is that of what is said: equal for equal lines."""
    try:
        tree = _read(line.raw.decode())
        content = _convert(tree)
        sample = _sample(content, tree, Provenance(file=file, line=line.number))
    except _Refused as refused:
        return Rejection(line.number, str(refused), excerpt(line.raw))
    left_out = content.lossy or bool(set(tree) - {*content.keys, "metadata"})
    notes = [note for note in (content.note, LEFT_OUT if left_out else None) if note]
    return Parsed(sample, "; ".join(notes) or None)


def to_row(sample: Sample) -> dict[str, Any]:
    """`{"id", "messages" or "text", "metadata", "line"}`, and `provenance` where more than file and line is known.

    The file is not repeated in every row: the dataset names it.
    """
    row: dict[str, Any] = {"id": sample.id, **_said(sample), "metadata": dict(sample.metadata)}
    row["line"] = sample.provenance.line
    origin = {k: v for k, v in asdict(sample.provenance).items() if k in ("generator", "parent", "depth") and v}
    return {**row, "provenance": origin} if origin else row


def from_row(row: Mapping[str, Any], file: str | None = None) -> Sample:
    """The sample of a row that `to_row` wrote; `file` is the dataset's. KeyError where it is no such row."""
    text = row.get("text")
    messages = () if text is not None else tuple(Message(m["role"], m["content"]) for m in row["messages"])
    provenance = Provenance(file=file, line=row.get("line"), **row.get("provenance", {}))
    return Sample(row["id"], messages, text, provenance, row.get("metadata") or {})


def _said(sample: Sample) -> dict[str, Any]:
    if sample.text is not None:
        return {"text": sample.text}
    return {"messages": [{"role": m.role, "content": m.content} for m in sample.messages]}


def _read(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise _Refused(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise _Refused("nested too deeply") from error
    if not isinstance(tree, dict):
        raise _Refused(f"not a JSON object but {_kind(tree)}")
    return tree


def _sample(content: _Content, tree: Mapping[str, Any], provenance: Provenance) -> Sample:
    metadata = tree.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise _Refused(f"metadata is {_kind(metadata)}, not an object")
    merged = {**(metadata or {}), **(content.metadata or {})}
    sample = Sample("", content.messages, content.text, provenance, merged)
    try:
        # The whole row is written once here: what cannot be stored (surrogates, depth) must not get past this line.
        orjson.dumps(to_row(sample))
        identity = short_id(orjson.dumps(_said(sample)).decode())
    except TypeError as error:
        raise _Refused(f"cannot be stored: {error}") from error
    return Sample(identity, content.messages, content.text, provenance, merged)


def _convert(tree: dict[str, Any]) -> _Content:
    for keys, convert in _FORMATS:
        if all(key in tree for key in keys):
            content = convert(tree)
            if content.text is None and not any(m.role == "assistant" and m.content.strip() for m in content.messages):
                raise _Refused("no assistant turn with content")
            return content
    raise _Refused(f"no known format; keys: {', '.join(sorted(tree)[:8]) or 'none'}")


def _chat(tree: dict[str, Any]) -> _Content:
    turns = _turns(tree, "messages", {"role", "content"})
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = turn.get("role")
        if role not in ROLES:
            raise _Refused(f"message {number} has role {role!r}, not system, user or assistant")
        messages.append(Message(role, _string(turn, "content", f"message {number}: ")))
    lossy = any(set(turn) - {"role", "content"} for turn in turns)
    return _Content(("messages",), None, tuple(messages), lossy=lossy)


def _sharegpt(tree: dict[str, Any]) -> _Content:
    turns = _turns(tree, "conversations", {"from", "value"})
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            raise _Refused(f"turn {number} is from {turn.get('from')!r}")
        messages.append(Message(role, _string(turn, "value", f"turn {number}: ")))
    lossy = any(set(turn) - {"from", "value"} for turn in turns)
    return _Content(("conversations",), "converted from ShareGPT conversations", tuple(messages), lossy=lossy)


def _completion(tree: dict[str, Any]) -> _Content:
    messages = _exchange(_filled(tree, "prompt"), _string(tree, "completion"))
    return _Content(("prompt", "completion"), "converted from prompt and completion", messages)


def _instruction(tree: dict[str, Any]) -> _Content:
    given = _string(tree, "input") if tree.get("input") is not None else ""
    question = _filled(tree, "instruction") + (f"\n\n{given}" if given.strip() else "")
    messages = _exchange(question, _string(tree, "output"))
    return _Content(("instruction", "input", "output"), "converted from instruction, input and output", messages)


def _relational(tree: dict[str, Any]) -> _Content:
    messages = _exchange(_filled(tree, "input"), _string(tree, "output"))
    metadata = {key: tree[key] for key in RELATIONAL_KEYS if key in tree}
    return _Content(
        ("input", "output", *RELATIONAL_KEYS), "converted from input and output", messages, metadata=metadata
    )


def _text(tree: dict[str, Any]) -> _Content:
    return _Content(("text",), "plain text: every token is trained", text=_filled(tree, "text"))


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any]], _Content]], ...] = (
    (("messages",), _chat),
    (("conversations",), _sharegpt),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _instruction),
    (("input", "output"), _relational),
    (("text",), _text),
)
"""The keys that make a format, tried in this order."""


def _exchange(question: str, answer: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", answer)


def _turns(tree: dict[str, Any], key: str, keys: set[str]) -> list[dict[str, Any]]:
    turns = tree[key]
    if not isinstance(turns, list) or not turns:
        raise _Refused(f"{key} is {_kind(turns)}, not a filled list")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _Refused(f"{key} {number} is {_kind(turn)}, not an object")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise _Refused(f"{key} {number} calls a tool, which is not supported")
    return turns


def _string(tree: Mapping[str, Any], key: str, where: str = "") -> str:
    value = tree.get(key)
    if not isinstance(value, str):
        raise _Refused(f"{where}{key} is {_kind(value)}, not a string" if key in tree else f"{where}no {key}")
    return value


def _filled(tree: Mapping[str, Any], key: str) -> str:
    value = _string(tree, key)
    if not value.strip():
        raise _Refused(f"{key} is empty")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return tree


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused("a number beyond what a float holds")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused("an integer beyond 64 bits")
    return int(digits)
