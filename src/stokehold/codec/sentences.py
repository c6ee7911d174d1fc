"""Categorical sentences ("All A are B. Some B are not C. Therefore, …") to premises and arguments.

Terms are compared without case, spaces become `-`: "Red birds" is `red-birds`. Singular and plural differ.
"""

import re
import unicodedata
from collections.abc import Sequence

from stokehold.codec.sexpr import CodecError, Form, Symbol

_SENTENCE = re.compile(r"[^.!?;\n]+")
_CONCLUDES = re.compile(r"(?:therefore|hence|thus|so|consequently|conclusion|it follows that)\b[\s,:]*", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"not all (.+?) (?:are|is) (.+)", re.IGNORECASE), "some-not"),
    (re.compile(r"(?:all|every|each) (.+?) (?:are|is) (?!not\b)(.+)", re.IGNORECASE), "all"),
    (re.compile(r"no (.+?) (?:are|is) (?!not\b)(.+)", re.IGNORECASE), "no"),
    (re.compile(r"some (.+?) (?:are|is) not (.+)", re.IGNORECASE), "some-not"),
    (re.compile(r"some (.+?) (?:are|is) (.+)", re.IGNORECASE), "some"),
)
_ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:are|is|not)\b", re.IGNORECASE)
_SHAPES = "All A are B. No A are B. Some A are B. Some A are not B."


def parse_sentences(text: str) -> Form:
    """`(premises …)`, or `(argument (premises …) conclusion)` when the last sentence begins "Therefore" or like it.

    `CodecError` with its position for a sentence of another shape, an ambiguous one ("All A are not B"), or a
    conclusion that is not the last.
    """
    premises: list[Form] = []
    conclusion: Form | None = None
    for match in _SENTENCE.finditer(text):
        if not match.group().strip():
            continue
        start = match.start() + len(match.group()) - len(match.group().lstrip())
        if conclusion is not None:
            raise CodecError("a sentence after the conclusion", start)
        leads = _CONCLUDES.match(text, start, match.end())
        if leads:
            conclusion = parse_sentence(text[leads.end() : match.end()], leads.end())
        else:
            premises.append(parse_sentence(text[start : match.end()], start))
    return argument(premises, conclusion, len(text))


def parse_sentence(sentence: str, position: int = 0) -> Form:
    """One proposition; `position` is the sentence's offset, for the error."""
    words = " ".join(sentence.strip().rstrip(".").split())
    for pattern, op in _PATTERNS:
        if match := pattern.fullmatch(words):
            return Form(op, (_term(match[1], position), _term(match[2], position)))
    raise CodecError(f"not a categorical sentence: {words[:60]!r}", position, f"write {_SHAPES}")


def argument(premises: Sequence[Form], conclusion: Form | None, position: int = 0) -> Form:
    """Premises with or without a conclusion; `CodecError` without any premise."""
    if not premises:
        raise CodecError("no premise", position, f"write {_SHAPES}")
    given = Form("premises", tuple(premises))
    return given if conclusion is None else Form("argument", (given, conclusion))


def _term(words: str, position: int) -> Symbol:
    if _COPULA.search(words):
        raise CodecError(f"an ambiguous term {words[:60]!r}", position, f"write {_SHAPES}")
    name = unicodedata.normalize("NFC", re.sub(r"[\s-]+", "-", _without_article(words).casefold()))
    try:
        return Symbol(name)
    except CodecError as error:
        raise CodecError(f"{words[:60]!r} cannot be a term", position, error.fix) from error


def _without_article(words: str) -> str:
    article = _ARTICLE.match(words)
    return words[article.end() :] if article else words
