"""Nothing that a model is judged on may be trained: the one door that every row, submitted or generated, passes.

Four checks: the normalised prompt of every answer in a conversation (each is trained); the user turn before it alone,
whatever stands before that, where the answer agrees too; the identity of a task's problem, which is held out also where
no suite has it yet when it falls into the family's held-out split; and for rows without one the template: the prompt
with numbers and names masked, which refuses only where the gold answer agrees too, and is otherwise reported.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from blake3 import blake3

from stokehold.core.identity import content_hash, framed, is_holdout, normalise, prompt_hash
from stokehold.core.records import Sample
from stokehold.data.formats import Turns

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")
_ASCII_NUMBER = re.compile(r"\b\d+(?:[.,]\d+)*", re.ASCII)
_ASCII_NAME = re.compile(r"\b[A-Z]\w*", re.ASCII)

TELLING_CHARS = 128
"""A task's gold answer of so many characters is that of one problem; many problems share a shorter one, as a number."""

Shape = tuple[tuple[str, int], ...]
"""Role and number of words of each turn of a prompt: masking changes neither, so equal templates have equal shapes."""


_FRAMES = {role: framed(role) for role in ("system", "user", "assistant")}


class Finding(NamedTuple):
    """What the firewall says of a row: its question's hash, why it may not be trained (None: it may), and whether
    its prompt is that of a held-out row but for numbers and names."""

    question: str
    refusal: str | None
    resembles: bool


@dataclass(frozen=True, slots=True)
class Firewall:
    """What is held out: prompt hashes, problem identities, and the gold answers' hashes per user turn and template."""

    held_prompts: frozenset[str] = frozenset()
    held_identities: frozenset[str] = frozenset()
    held_turns: Mapping[str, frozenset[str]] = field(default_factory=dict)
    held_templates: Mapping[str, frozenset[str]] = field(default_factory=dict)
    held_shapes: frozenset[Shape] = frozenset()
    """Shapes of the held templates: whatever has another is not worth masking, which takes longer than all the rest."""

    @classmethod
    def of(cls, samples: Iterable[Sample], identity_of: Callable[[Sample], str | None]) -> "Firewall":
        """The firewall around these held-out samples; `identity_of` tells the problem of a task's sample."""
        prompts: set[str] = set()
        identities: set[str] = set()
        templates: dict[str, set[str]] = {}
        shapes: set[Shape] = set()
        given = list(samples)
        for sample in given:
            prompts.add(question_hash(sample))
            identity = identity_of(sample)
            if identity is not None:
                identities.add(identity)
            if identity is None or len(sample.gold) >= TELLING_CHARS:
                templates.setdefault(template_fingerprint(sample), set()).add(_gold_hash(sample.gold))
                shapes.add(_shape(_asked(_turns(sample), sample.text)))
        held = (_frozen(_single_turns(given)), _frozen(templates))
        return cls(frozenset(prompts), frozenset(identities), *held, frozenset(shapes))

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for another process."""
        return {
            "prompts": list(self.held_prompts),
            "identities": list(self.held_identities),
            "turns": {turn: list(golds) for turn, golds in self.held_turns.items()},
            "templates": {template: list(golds) for template, golds in self.held_templates.items()},
            "shapes": list(self.held_shapes),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Firewall":
        return cls(
            frozenset(tree["prompts"]),
            frozenset(tree["identities"]),
            _frozen(tree["turns"]),
            _frozen(tree["templates"]),
            frozenset(tuple((role, words) for role, words in shape) for shape in tree["shapes"]),
        )

    def examine(self, turns: Turns, text: str | None, identity: str | None) -> Finding:
        """All that there is to say of this conversation or text; `identity` is its problem's, None without one.

        The cost grows with the text; only prompts of a held-out row's shape are masked and compared.
        """
        questions, exchanges, shape = _fold(turns, text)
        golds = None
        if identity is None and shape in self.held_shapes:
            golds = self.held_templates.get(_fingerprint(_asked(turns, text)))
        refusal = None
        if not self.held_prompts.isdisjoint(questions):
            refusal = "held out: its prompt is in an evaluation suite"
        elif self._hold_one(exchanges, turns):
            refusal = "held out: a user's turn and its answer are in an evaluation suite"
        elif identity is not None and identity in self.held_identities:
            refusal = "held out: its problem is in an evaluation suite"
        elif identity is not None and is_holdout(identity):
            refusal = "held out: its problem is of the family's held-out split, which suites are drawn from"
        elif golds and _gold_hash(gold_of(turns)) in golds:
            refusal = "held out: prompt but for numbers and names, and answer, are in an evaluation suite"
        return Finding(questions[-1], refusal, golds is not None)

    def _hold_one(self, exchanges: Sequence[tuple[str, int]], turns: Turns) -> bool:
        """Whether one of these user turns, by their hashes, is held out with the answer at its place."""
        for turn, place in exchanges:
            golds = self.held_turns.get(turn)
            if golds and _gold_hash(turns[place][1]) in golds:
                return True
        return False

    def check(self, sample: Sample, identity: str | None) -> str | None:
        """Why this sample may not be trained, None where it may; `identity` is its problem's, None without one."""
        return self.examine(_turns(sample), sample.text, identity).refusal

    def resembles(self, sample: Sample, identity: str | None) -> bool:
        """Whether its prompt is that of a held-out row but for numbers and names: to be reported, not refused."""
        return self.examine(_turns(sample), sample.text, identity).resembles


def question_hash(sample: Sample) -> str:
    """Identity of what a sample asks: its prompt, or where nothing is asked what is said."""
    if sample.question:
        return prompt_hash(sample.messages)
    return content_hash("text", normalise(sample.gold if sample.text is None else sample.text))


def template_fingerprint(sample: Sample) -> str:
    """Hash of the prompt (or plain text) with every number and every capitalised word masked."""
    return _fingerprint(_asked(_turns(sample), sample.text))


def gold_of(turns: Turns) -> str:
    """As `Sample.gold`."""
    return next((said for role, said in reversed(turns) if role == "assistant"), "")


def _frozen(golds: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    return {asked: frozenset(answers) for asked, answers in golds.items()}


def _single_turns(samples: Iterable[Sample]) -> dict[str, set[str]]:
    """The gold answers' hashes per user turn that asks all by itself.

    That is a prompt of one turn, and one behind a system turn that other turns stand behind too: that one says how to
    answer. A system turn of its own may be what the question is about, and what a conversation ends with says little.
    """
    behind: dict[Turns, dict[str, set[str]]] = {}
    for sample in samples:
        *before, asked = _turns(sample)[: len(sample.question)] or [("", "")]
        if asked[0] == "user" and all(role == "system" for role, _ in before) and sample.gold.strip():
            standing = behind.setdefault(tuple((role, normalise(said)) for role, said in before), {})
            standing.setdefault(content_hash("user", normalise(asked[1])), set()).add(_gold_hash(sample.gold))
    found: dict[str, set[str]] = {}
    for system, standing in behind.items():
        for turn, golds in standing.items() if not system or len(standing) > 1 else ():
            found.setdefault(turn, set()).update(golds)
    return found


def _turns(sample: Sample) -> Turns:
    return [(m.role, m.content) for m in sample.messages]


def _fingerprint(asked: Turns) -> str:
    return content_hash(*(part for role, said in asked for part in (role, _masked(said))))


def _last_answer(turns: Turns) -> int:
    """The place of the last assistant turn, -1 without one."""
    return next((place for place in range(len(turns) - 1, -1, -1) if turns[place][0] == "assistant"), -1)


def _asked(turns: Turns, text: str | None) -> Turns:
    """The turns of the prompt; what is said where nothing is asked."""
    last = _last_answer(turns)
    return (turns[:last] if last > 0 else turns) or [("text", text or "")]


def _shape(asked: Turns) -> Shape:
    return tuple((role, len(said.split())) for role, said in asked)


def _fold(turns: Turns, text: str | None) -> tuple[list[str], list[tuple[str, int]], Shape]:
    """`question_hash` through each answer (an earlier turn of a conversation is trained as much as the last), per
    answer the hash of the user turn before it with the answer's place, and the shape of what is asked, from one pass
    over the words."""
    last = _last_answer(turns)
    if last < 1:
        asked = _asked(turns, text)
        whole = asked if last < 0 and turns else [("text", turns[0][1] if turns else asked[0][1])]
        return [blake3(b"".join(framed(role, normalise(said)) for role, said in whole)).hexdigest()], [], _shape(asked)
    hashes, exchanges, shape, before, asking = [], [], [], b"", b""
    for place, (role, said) in enumerate(turns[:last]):
        words = said.split()
        folded = " ".join(words).casefold().encode()
        length = len(folded).to_bytes(8, "little")
        if role == "assistant":  # where nothing is asked, what is said counts
            hashes.append(blake3(before or framed("text") + length + folded).hexdigest())
            if asking:
                exchanges.append((_turn_hash(asking, before, hashes[-1]), place))
        piece = (_FRAMES.get(role) or framed(role)) + length + folded
        before += piece
        if role == "user":
            asking = piece
        shape.append((role, len(words)))
    hashes.append(blake3(before).hexdigest())
    if asking:
        exchanges.append((_turn_hash(asking, before, hashes[-1]), last))
    return hashes, exchanges, tuple(shape)


def _turn_hash(asking: bytes, before: bytes, whole: str) -> str:
    """The hash of a turn, which is that of the whole prompt where nothing stands before it."""
    return whole if asking == before else blake3(asking).hexdigest()


def _gold_hash(gold: str) -> str:
    return content_hash(normalise(gold))


def _masked(text: str) -> str:
    if not text.isascii():
        return normalise(_WORD.sub(_mask, text))
    return normalise(_ASCII_NAME.sub("@", _ASCII_NUMBER.sub("#", text)))  # the same, without a call per word


def _mask(match: re.Match[str]) -> str:
    word = match.group()
    if word[0].isdecimal():
        return "#"
    return "@" if word[0].isupper() else word
