"""Nothing that a model is judged on may be trained: the one door that every row, submitted or generated, passes.

Three checks: the normalised prompt of every answer in a conversation (each is trained), the identity of a task's
problem, and for rows without one the template: the prompt with numbers and names masked, which refuses only where
the gold answer agrees too, and is otherwise reported.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from stokehold.core.identity import content_hash, normalise, prompt_hash
from stokehold.core.records import Sample

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")


@dataclass(frozen=True, slots=True)
class Firewall:
    """What is held out: prompt hashes, problem identities, and per template fingerprint the gold answers' hashes."""

    held_prompts: frozenset[str] = frozenset()
    held_identities: frozenset[str] = frozenset()
    held_templates: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Iterable[Sample], identity_of: Callable[[Sample], str | None]) -> "Firewall":
        """The firewall around these held-out samples; `identity_of` tells the problem of a task's sample."""
        prompts: set[str] = set()
        identities: set[str] = set()
        templates: dict[str, set[str]] = {}
        for sample in samples:
            prompts.add(question_hash(sample))
            identity = identity_of(sample)
            if identity is not None:
                identities.add(identity)
            else:
                templates.setdefault(template_fingerprint(sample), set()).add(_gold_hash(sample))
        held = {template: frozenset(golds) for template, golds in templates.items()}
        return cls(frozenset(prompts), frozenset(identities), held)

    def check(self, sample: Sample, identity: str | None) -> str | None:
        """Why this sample may not be trained, None where it may; `identity` is its problem's, None without one."""
        if not self.held_prompts.isdisjoint(_question_hashes(sample)):
            return "held out: its prompt is in an evaluation suite"
        if identity is not None:
            return "held out: its problem is in an evaluation suite" if identity in self.held_identities else None
        golds = self.held_templates.get(template_fingerprint(sample), frozenset())
        if _gold_hash(sample) in golds:
            return "held out: prompt but for numbers and names, and answer, are in an evaluation suite"
        return None

    def resembles(self, sample: Sample, identity: str | None) -> bool:
        """Whether its prompt is that of a held-out row but for numbers and names: to be reported, not refused."""
        return identity is None and template_fingerprint(sample) in self.held_templates


def question_hash(sample: Sample) -> str:
    """Identity of what a sample asks: its prompt, or where nothing is asked what is said."""
    if sample.question:
        return prompt_hash(sample.messages)
    return content_hash("text", normalise(sample.gold if sample.text is None else sample.text))


def template_fingerprint(sample: Sample) -> str:
    """Hash of the prompt (or plain text) with every number and every capitalised word masked."""
    turns = [(m.role, m.content) for m in sample.question or sample.messages] or [("text", sample.text or "")]
    return content_hash(*(part for role, said in turns for part in (role, _masked(said))))


def _question_hashes(sample: Sample) -> Iterable[str]:
    """The prompts of all answers: an earlier turn of a conversation is trained as much as the last."""
    ends = [i + 1 for i, m in enumerate(sample.messages) if m.role == "assistant"]
    return [question_hash(replace(sample, messages=sample.messages[:end])) for end in ends] or [question_hash(sample)]


def _gold_hash(sample: Sample) -> str:
    return content_hash(normalise(sample.gold))


def _masked(text: str) -> str:
    return normalise(_WORD.sub(_mask, text))


def _mask(match: re.Match[str]) -> str:
    word = match.group()
    if word[0].isdecimal():
        return "#"
    return "@" if word[0].isupper() else word
