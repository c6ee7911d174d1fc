"""The bytes of a suite file in, its items out, and what is wrong with the file, by line: it is never half judged.

A line that cannot be read makes the whole file faulty, because its author meant another suite than what is left. An
item without a gold answer is kept: it stays unscored, with that reason, and the others are judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stokehold.core.identity import short_id
from stokehold.core.records import Message, Provenance, Rejection, Sample
from stokehold.data.formats import ROLES, from_row, parse_line
from stokehold.data.lines import BOM, Line
from stokehold.data.strict import Refused, read_object

ASKING = ("prompt", "instruction", "input")
ANSWERING = ("completion", "output")
"""Keys under which a row without messages asks its question, and answers it."""


@dataclass(frozen=True, slots=True)
class SuiteItems:
    """The items that could be read, in order, and the fault of the file (None: it has none), with line and fix.

    The items of a faulty file are not to be judged; they are held out of training all the same.
    """

    samples: tuple[Sample, ...]
    fault: str | None = None


def read_suite(content: bytes, where: str) -> SuiteItems:
    """The items of a file that people call `where`: rows as datasets hold them, or lines in any accepted format."""
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    faults: list[str] = []
    for number, raw in enumerate(content.removeprefix(BOM).splitlines(), 1):
        if not raw.strip():
            continue
        found = _item(Line(number, raw), where)
        if isinstance(found, str):
            faults.append(f"{found} · {where}, line {number} · correct the line")
            continue
        if found.id in lines:
            faults.append(f"the item of line {lines[found.id]} again · {where}, line {number} · remove one of the two")
            continue
        lines[found.id] = number
        samples.append(found)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return SuiteItems(tuple(samples), faults[0] + more if faults else None)


def _item(line: Line, where: str) -> Sample | str:
    """The item of a line, or what is wrong with it."""
    try:
        line.raw.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1} of the line"
    tree = _object(line.raw)
    if tree is not None and (stored := _stored(tree)) is not None:
        return stored
    parsed = parse_line(line, where)
    if not isinstance(parsed, Rejection):
        return parsed.sample
    unanswered = None if tree is None else _unanswered(tree, line.number, where)
    return unanswered or parsed.reason


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        return read_object(raw)
    except Refused:
        return None


def _stored(tree: Mapping[str, Any]) -> Sample | None:
    """The sample of a row that a dataset holds; None for what somebody wrote by hand."""
    if not ("id" in tree and "line" in tree and isinstance(tree.get("metadata", {}), dict)):
        return None
    try:
        sample = from_row(tree)
    except (KeyError, TypeError):
        return None
    texts = [sample.id, *(part for m in sample.messages for part in (m.role, m.content))]
    return sample if all(isinstance(text, str) for text in texts) and (sample.gold or sample.text) else None


def _unanswered(tree: Mapping[str, Any], number: int, where: str) -> Sample | None:
    """A question that has no gold answer; None where there is not even a question."""
    turns: Any = (
        tree.get("messages") or [{"role": "user", "content": tree.get(key)} for key in ASKING if key in tree][:1]
    )
    metadata = tree.get("metadata", {})
    if not isinstance(turns, Sequence) or not turns or not isinstance(metadata, dict):
        return None
    if any(str(tree.get(key) or "").strip() for key in ANSWERING):
        return None  # there is an answer, and something else is wrong
    if not all(isinstance(turn, dict) and turn.get("role") in ROLES for turn in turns):
        return None
    if turns[-1]["role"] == "assistant" and not str(turns[-1].get("content") or "").strip():
        turns = turns[:-1]
    said = [turn.get("content") for turn in turns]
    if not said or not all(isinstance(text, str) and text.strip() for text in said):
        return None
    if any(turn["role"] == "assistant" for turn in turns):
        return None  # an earlier answer would be taken for gold
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    identity = short_id("unanswered", *(part for m in messages for part in (m.role, m.content)))
    return Sample(identity, messages, None, Provenance(where, number), metadata)
