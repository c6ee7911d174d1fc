"""A model's own chat template: conversations become text, with the character span of every answer.

Templates come with downloaded models, so they run in Jinja's immutable sandbox, see nothing but strings, and may read
no clock. What somebody typed can never become a control token: its places in the text are told apart from the
template's own (`Rendering.typed`), and the tokenizer encodes them as ordinary text.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stokehold.core.errors import InputError
from stokehold.core.records import Message
from stokehold.data.profile import EmojiThink

THE_DATE = datetime(2024, 7, 26)
"""What `strftime_now` answers: with today's date the batches of a resumed run would differ. Llama's own default."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters of Unicode, never valid in a text, mark what was typed while the template runs."""

_VARIANTS: tuple[Mapping[str, Any], ...] = ({"enable_thinking": False}, {})
"""Without thinking first: the prompt then ends where the answer begins, and no template token has to be learned."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, with places in it counted in characters.

    `spans` are the ranges to train, each from the first character that inference would generate through the
    end-of-turn token; `typed` are ranges that look like control tokens and are not; `cuts` are places where an answer
    begins, which no token may cross, because at inference none can.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    typed: tuple[tuple[int, int], ...] = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Turn:
    """A conversation through one answer, marked; `head` is its prompt where that is a prefix, as it mostly is."""

    answer: str
    marked: str
    head: str | None


class _Generation(Extension):
    """Accepts {% generation %} marks, which other trainers read; ours come from the text itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """The template `source`, with the special tokens it may name (`bos_token`, …), the control tokens that typed text
    must not make, and the `profile` that conversations are dressed in before the template sees them."""

    def __init__(
        self, source: str, special: Mapping[str, str], control: Iterable[str], profile: EmojiThink | None = None
    ) -> None:
        self.source, self.profile = source, profile
        self._special = dict(special)
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        try:
            self._compiled = _environment().from_string(source)
        except TemplateError as error:
            raise InputError(f"the chat template does not compile: {error}", fix="use another model folder") from error
        # A dictionary, where there was a chain of them: every rendering copies it, which took most of its time.
        self._compiled.globals = dict(self._compiled.globals)
        self.folds_system = not self._accepts_system()
        self.end_of_turn = self._find_end_of_turn()

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, thinking: bool = False
    ) -> Rendering:
        """The conversation as the model reads it; InputError with the template's words when it refuses it."""
        prepared = self._prepare(messages)
        marked = self._run(prepared, add_generation_prompt, {} if thinking else _VARIANTS[0])
        return replace(_unmark(marked), cuts=_cuts(marked, self._turns(prepared)))

    def documents(self, messages: Sequence[Message]) -> list[Rendering]:
        """What to train: one rendering with every answer's span, or one per answer where the template rewrites
        earlier turns, each in the form that inference will see. Answers without content are not trained."""
        turns = self._turns(self._prepare(messages))
        trained = [turn for turn in turns if turn.answer.strip()]
        if not trained:
            raise InputError("no assistant turn with content")
        whole = trained[-1].marked
        one = all(whole.startswith(turn.marked) for turn in trained)
        parts = [(whole, trained)] if one else [(turn.marked, [turn]) for turn in trained]
        return [self._document(marked, answers, turns) for marked, answers in parts]

    def _document(self, marked: str, answers: Sequence[_Turn], turns: Sequence[_Turn]) -> Rendering:
        spans = tuple(self._span(turn) for turn in answers)
        cuts = {*_cuts(marked, turns), *(start for start, _ in spans)}
        return replace(_unmark(marked), spans=spans, cuts=tuple(sorted(cuts)))

    def _turns(self, messages: list[dict[str, str]]) -> list[_Turn]:
        return [self._turn(messages[: i + 1]) for i, m in enumerate(messages) if m["role"] == "assistant"]

    def _turn(self, messages: list[dict[str, str]]) -> _Turn:
        for variant in _VARIANTS:
            marked = self._run(messages, False, variant)
            head = self._run(messages[:-1], True, variant)
            if marked.startswith(head):
                return _Turn(messages[-1]["content"], marked, head)
        return _Turn(messages[-1]["content"], marked, None)

    def _span(self, turn: _Turn) -> tuple[int, int]:
        text = _unmark(turn.marked).text
        # Where the prompt that inference sees is no prefix of the text, the answer itself is searched for in it.
        searched = text.rfind(_unmark(turn.answer).text.strip())
        start = searched if turn.head is None else len(_unmark(turn.head).text)
        if start < 0:
            raise InputError("the chat template does not write the answer as it is")
        end = text.rfind(self.end_of_turn)
        if end < start:
            raise InputError(f"the chat template does not end this answer with {self.end_of_turn}")
        return start, end + len(self.end_of_turn)

    def _prepare(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        dressed = messages if self.profile is None else self.profile.dress(messages)
        plain = [{"role": m.role, "content": self._mark(m.content)} for m in dressed]
        return fold_system(plain) if self.folds_system else plain

    def _mark(self, content: str) -> str:
        if not self._control.search(content):
            return content
        if _OPEN in content or _CLOSE in content:
            raise InputError("a control token beside the noncharacter U+FDD0 or U+FDD1")
        return self._control.sub(f"{_OPEN}\\g<0>{_CLOSE}", content)

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool, variant: Mapping[str, Any]) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
                **variant,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from error

    def _accepts_system(self) -> bool:
        """Asked rather than read: some templates raise on a system turn, others leave it out without a word."""
        try:
            text = self._run([{"role": "system", "content": "q1z"}, {"role": "user", "content": "a"}], True, {})
        except InputError:
            return False
        return "q1z" in text

    def _find_end_of_turn(self) -> str:
        """The first control token that the template writes after an answer."""
        text = self._run([{"role": "user", "content": "a"}, {"role": "assistant", "content": "q1z"}], False, {})
        found = self._control.search(text, text.rfind("q1z"))
        if found is None:
            fix = "use a model whose template closes each answer with a special token"
            raise InputError("the chat template ends no answer, so a model would never learn to stop", fix=fix)
        return found.group()


def fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """System turns put in front of the user turn that follows; one that no user turn follows becomes a user turn."""
    folded: list[dict[str, str]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif waiting and message["role"] == "user":
            folded.append({"role": "user", "content": "\n\n".join((*waiting, message["content"]))})
            waiting = []
        else:
            folded += [{"role": "user", "content": "\n\n".join(waiting)}] if waiting else []
            folded.append(message)
            waiting = []
    return folded + ([{"role": "user", "content": "\n\n".join(waiting)}] if waiting else [])


def _cuts(marked: str, turns: Sequence[_Turn]) -> tuple[int, ...]:
    """Where the answers of `turns` begin in `marked`, those whose prompt stands in it as inference saw it."""
    heads = (turn.head for turn in turns if turn.head is not None)
    return tuple(len(_unmark(head).text) for head in heads if marked.startswith(head))


def _unmark(marked: str) -> Rendering:
    """The text without marks, and where they stood. A filter of the template may have torn a pair: then the lone
    mark is dropped and the rest is ordinary text."""
    if _OPEN not in marked and _CLOSE not in marked:
        return Rendering(marked)
    text, typed, length = [], [], 0
    for number, piece in enumerate(re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}", marked)):
        clean = piece.replace(_OPEN, "").replace(_CLOSE, "")
        if number % 2:
            typed.append((length, length + len(clean)))
        text.append(clean)
        length += len(clean)
    return Rendering("".join(text), typed=tuple(typed))


def _environment() -> ImmutableSandboxedEnvironment:
    """Block trimming and names as chat templates expect them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = THE_DATE.strftime
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
