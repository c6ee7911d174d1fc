"""One line of JSONL to one Sample, in every accepted format, and the canonical row that accepted samples are stored as.

JSON is read strictly: no NaN, no key twice, no lone surrogate, nothing that cannot be stored again exactly. Whatever
is not the product's own format is converted with a note; notes are few and fixed, so that they can be counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import orjson

from stokehold.core.identity import short_id_of
from stokehold.core.records import Message, Provenance, Rejection, Sample
from stokehold.data.lines import Line, excerpt
from stokehold.data.strict import Refused, has_odd_float, kind_of, quotes, read_object

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


Turns = Sequence[tuple[str, str]]
"""Role and content of each turn of a conversation."""


class Parsed(NamedTuple):
    """An accepted line, under the id of what is said: equal for equal lines. Either `turns` or `text` is filled.

    `note` says what was converted, None for the product's own format; `stored` is the row that `to_row` makes, written
    as JSON, from behind its id.
    """

    id: str
    turns: Turns
    text: str | None
    metadata: Mapping[str, Any]
    file: str
    line: int
    stored: bytes
    note: str | None = None

    @property
    def sample(self) -> Sample:
        """The line as a record, which takes longer to make than all the rest."""
        messages = tuple(Message(role, content) for role, content in self.turns)
        return Sample(self.id, messages, self.text, Provenance(self.file, self.line), self.metadata)

    @property
    def row(self) -> bytes:
        """The row as a dataset holds it, with its line end."""
        return b'{"id":"%s"%s\n' % (self.id.encode(), self.stored)


class _Content(NamedTuple):
    """What a format holds: a conversation or a text, metadata of the format's own, and the keys that were read."""

    keys: tuple[str, ...]
    note: str | None
    turns: Turns = ()
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    lossy: bool = False


def parse_line(line: Line, file: str) -> Parsed | Rejection:
    """What a line of `file` holds, or why it cannot be used."""
    plain = _parse_plain(line, file)
    if plain is not None:
        return plain
    try:
        tree = read_object(line.raw)
        content = _convert(tree)
        parsed = _stored(content, tree, file, line.number)
    except Refused as refused:
        return Rejection(line.number, str(refused), excerpt(line.raw))
    left_out = content.lossy or not (tree.keys() <= {*content.keys, "metadata"})
    notes = [note for note in (content.note, LEFT_OUT if left_out else None) if note]
    return parsed._replace(note="; ".join(notes) or None)


def to_row(sample: Sample) -> dict[str, Any]:
    """`{"id", "messages" or "text", "metadata", "line"}`, and `provenance` where more than file and line is known.

    The file is not repeated in every row: the dataset names it.
    """
    row: dict[str, Any] = {"id": sample.id, **_said_by(sample.messages, sample.text), "metadata": dict(sample.metadata)}
    row["line"] = sample.provenance.line
    origin = {k: v for k, v in asdict(sample.provenance).items() if k in ("generator", "parent", "depth") and v}
    return {**row, "provenance": origin} if origin else row


def from_row(row: Mapping[str, Any], file: str | None = None) -> Sample:
    """The sample of a row that `to_row` wrote; `file` is the dataset's. KeyError where it is no such row."""
    text = row.get("text")
    messages = () if text is not None else tuple(Message(m["role"], m["content"]) for m in row["messages"])
    provenance = Provenance(file=file, line=row.get("line"), **row.get("provenance", {}))
    return Sample(row["id"], messages, text, provenance, row.get("metadata") or {})


def _parse_plain(line: Line, file: str) -> Parsed | None:
    """A line in the product's own format and with nothing else in it, as most are; None where that is not certain.

    It is written once, for its id, its row and the search for a key that stood twice.
    """
    try:
        tree = orjson.loads(line.raw)
        if type(tree) is not dict or len(tree) != 1 + ("metadata" in tree):
            return None
        metadata, turns, answered = tree.get("metadata", {}), [], False
        for turn in tree.get("messages") or ():
            role, content = turn["role"], turn["content"]
            if len(turn) != 2 or role not in ROLES or type(content) is not str:
                return None
            turns.append((role, content))
            answered = answered or (role == "assistant" and bool(content.strip()))
        if not answered or type(metadata) is not dict or has_odd_float(metadata):
            return None
        said, rest = _written(turns, None), orjson.dumps({"metadata": metadata, "line": line.number})
    except (orjson.JSONDecodeError, TypeError, KeyError):  # TypeError: no list of objects, or too deep to be written
        return None
    ours = 2 if "metadata" in tree else 4
    if quotes(line.raw) != said.count(b'"') + rest.count(b'"') - ours:
        return None
    return Parsed(short_id_of(said), turns, None, metadata, file, line.number, b",%s,%s" % (said[1:-1], rest[1:]))


def _said_by(messages: Sequence[Message], text: str | None) -> dict[str, Any]:
    if text is not None:
        return {"text": text}
    return {"messages": [{"role": m.role, "content": m.content} for m in messages]}


def _written(turns: Turns, text: str | None) -> bytes:
    """As `_said_by`, in JSON."""
    if text is not None:
        return orjson.dumps({"text": text})
    return orjson.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def _stored(content: _Content, tree: Mapping[str, Any], file: str, number: int) -> Parsed:
    metadata = tree.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise Refused(f"metadata is {kind_of(metadata)}, not an object")
    merged = {**(metadata or {}), **(content.metadata or {})}
    try:
        # The whole row is written here: what cannot be stored (surrogates, depth) must not get past these lines.
        said = _written(content.turns, content.text)
        rest = orjson.dumps({"metadata": merged, "line": number})
    except TypeError as error:
        raise Refused(f"cannot be stored: {error}") from error
    stored = b",%s,%s" % (said[1:-1], rest[1:])
    return Parsed(short_id_of(said), content.turns, content.text, merged, file, number, stored)


def _convert(tree: dict[str, Any]) -> _Content:
    for keys, convert in _FORMATS:
        if all(key in tree for key in keys):
            content = convert(tree)
            if content.text is None and not any(r == "assistant" and said.strip() for r, said in content.turns):
                raise Refused("no assistant turn with content")
            return content
    raise Refused(f"no known format; keys: {', '.join(sorted(tree)[:8]) or 'none'}")


def _chat(tree: dict[str, Any]) -> _Content:
    turns = _turns(tree, "messages", {"role", "content"})
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = turn.get("role")
        if role not in ROLES:
            raise Refused(f"message {number} has role {role!r}, not system, user or assistant")
        messages.append((role, _string(turn, "content", f"message {number}: ")))
    lossy = any(not (turn.keys() <= {"role", "content"}) for turn in turns)
    return _Content(("messages",), None, tuple(messages), lossy=lossy)


def _sharegpt(tree: dict[str, Any]) -> _Content:
    turns = _turns(tree, "conversations", {"from", "value"})
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            raise Refused(f"turn {number} is from {turn.get('from')!r}")
        messages.append((role, _string(turn, "value", f"turn {number}: ")))
    lossy = any(not (turn.keys() <= {"from", "value"}) for turn in turns)
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


def _exchange(question: str, answer: str) -> Turns:
    return ("user", question), ("assistant", answer)


def _turns(tree: dict[str, Any], key: str, keys: set[str]) -> list[dict[str, Any]]:
    turns = tree[key]
    if not isinstance(turns, list) or not turns:
        raise Refused(f"{key} is {kind_of(turns)}, not a filled list")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise Refused(f"{key} {number} is {kind_of(turn)}, not an object")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise Refused(f"{key} {number} calls a tool, which is not supported")
    return turns


def _string(tree: Mapping[str, Any], key: str, where: str = "") -> str:
    value = tree.get(key)
    if not isinstance(value, str):
        raise Refused(f"{where}{key} is {kind_of(value)}, not a string" if key in tree else f"{where}no {key}")
    return value


def _filled(tree: Mapping[str, Any], key: str) -> str:
    value = _string(tree, key)
    if not value.strip():
        raise Refused(f"{key} is empty")
    return value
