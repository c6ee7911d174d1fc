"""Nothing that a model is judged on may be trained: the one door that every row, submitted or generated, passes.

Three checks: the normalised prompt of every answer in a conversation (each is trained), the identity of a task's
problem, and for rows without one the template: the prompt with numbers and names masked, which refuses only where
the gold answer agrees too, and is otherwise reported.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from stokehold.core.identity import content_hash, framed, normalise, prompt_hash
from stokehold.core.records import Sample

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")
_ASCII_NUMBER = re.compile(r"\b\d+(?:[.,]\d+)*", re.ASCII)
_ASCII_NAME = re.compile(r"\b[A-Z]\w*", re.ASCII)

Shape = tuple[tuple[str, int], ...]
"""Role and number of words of each turn of a prompt: masking changes neither, so equal templates have equal shapes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the firewall says of a sample: its question's hash, why it may not be trained (None: it may), and whether
    its prompt is that of a held-out row but for numbers and names."""

    question: str
    refusal: str | None
    resembles: bool


@dataclass(frozen=True, slots=True)
class Firewall:
    """What is held out: prompt hashes, problem identities, and per template fingerprint the gold answers' hashes."""

    held_prompts: frozenset[str] = frozenset()
    held_identities: frozenset[str] = frozenset()
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
        for sample in samples:
            prompts.add(question_hash(sample))
            identity = identity_of(sample)
            if identity is not None:
                identities.add(identity)
            else:
                templates.setdefault(template_fingerprint(sample), set()).add(_gold_hash(sample))
                shapes.add(_shape(sample))
        held = {template: frozenset(golds) for template, golds in templates.items()}
        return cls(frozenset(prompts), frozenset(identities), held, frozenset(shapes))

    def examine(self, sample: Sample, identity: str | None) -> Finding:
        """All that there is to say of this sample; `identity` is its problem's, None without one.

        The cost grows with the text; only prompts of a held-out row's shape are masked and compared.
        """
        questions = _question_hashes(sample)
        golds = self._golds(sample) if identity is None else None
        refusal = None
        if not self.held_prompts.isdisjoint(questions):
            refusal = "held out: its prompt is in an evaluation suite"
        elif identity is not None and identity in self.held_identities:
            refusal = "held out: its problem is in an evaluation suite"
        elif golds and _gold_hash(sample) in golds:
            refusal = "held out: prompt but for numbers and names, and answer, are in an evaluation suite"
        return Finding(questions[-1], refusal, golds is not None)

    def check(self, sample: Sample, identity: str | None) -> str | None:
        """Why this sample may not be trained, None where it may; `identity` is its problem's, None without one."""
        return self.examine(sample, identity).refusal

    def resembles(self, sample: Sample, identity: str | None) -> bool:
        """Whether its prompt is that of a held-out row but for numbers and names: to be reported, not refused."""
        return identity is None and self._golds(sample) is not None

    def _golds(self, sample: Sample) -> frozenset[str] | None:
        """The held-out answers to a prompt that differs in numbers and names only; None where there is no such."""
        if not self.held_shapes or _shape(sample) not in self.held_shapes:
            return None
        return self.held_templates.get(template_fingerprint(sample))


def question_hash(sample: Sample) -> str:
    """Identity of what a sample asks: its prompt, or where nothing is asked what is said."""
    if sample.question:
        return prompt_hash(sample.messages)
    return content_hash("text", normalise(sample.gold if sample.text is None else sample.text))


def template_fingerprint(sample: Sample) -> str:
    """Hash of the prompt (or plain text) with every number and every capitalised word masked."""
    return content_hash(*(part for role, said in _asked(sample) for part in (role, _masked(said))))


def _asked(sample: Sample) -> list[tuple[str, str]]:
    """Roles and contents of the prompt; of what is said where nothing is asked."""
    return [(m.role, m.content) for m in sample.question or sample.messages] or [("text", sample.text or "")]


def _shape(sample: Sample) -> Shape:
    return tuple((role, len(said.split())) for role, said in _asked(sample))


def _question_hashes(sample: Sample) -> list[str]:
    """`question_hash` through each answer: an earlier turn of a conversation is trained as much as the last."""
    found, before = [], b""
    for place, message in enumerate(sample.messages):
        if message.role == "assistant":
            first = place == 0  # nothing is asked: what is said counts
            found.append(blake3(framed("text", normalise(message.content)) if first else before).hexdigest())
        before += framed(message.role, normalise(message.content))
    return found or [question_hash(sample)]


def _gold_hash(sample: Sample) -> str:
    return content_hash(normalise(sample.gold))


def _masked(text: str) -> str:
    if not text.isascii():
        return normalise(_WORD.sub(_mask, text))
    return normalise(_ASCII_NAME.sub("@", _ASCII_NUMBER.sub("#", text)))  # the same, without a call per word


def _mask(match: re.Match[str]) -> str:
    word = match.group()
    if word[0].isdecimal():
        return "#"
    return "@" if word[0].isupper() else word
