"""What an answer commits to, read from its text: its final number, the choice it names, its JSON object.

Answers are data: nothing is evaluated, nothing raises on a text, and what cannot be read for certain is not read.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import Any, NoReturn

from stokehold.tasks.answers import MAX_ANSWER_CHARS

MAX_DIGITS = 1000
MAX_EXPONENT_CHARS = 4
"""Longer numbers are not read: arithmetic on them would take the time of a whole suite."""

MAX_BRACES = 100
"""Opening braces at which a JSON object is looked for; each costs a look at the rest of the answer."""

_GROUP = ",\u00a0\u2009\u202f"
_TIGHT = "'\u2019_"
"""Part groups only with a digit on either side: elsewhere they are quotes, or an index."""

_MINUS = "-\u2010\u2011\u2212"
_DASH = "\u2013"
_SIGNS = f"{_MINUS}+"
_CLOSED = (")", "]", "}", "%", "\u00b0", "\u2032", "\u2033")
"""Behind these, as behind a letter or a digit, a minus takes away or is the dash of a range."""

_BETWEEN = rf"[\d./:^{_GROUP}]|(?<=\d)(?:['\u2019](?=\d)|_(?=\d{{3}}))"
_TOKEN = re.compile(rf"(?:(?<![\w.])\.)?\d(?:(?:{_BETWEEN})*\d)?", re.ASCII)
_GROUPED = re.compile(rf"\d{{1,3}}([{_GROUP}{_TIGHT}])\d{{3}}(?:\1\d{{3}})*(?:\.\d+)?", re.ASCII)
_THREE = re.compile(r"\d{3}(?!\d)", re.ASCII)
_FEW = re.compile(r"\d{1,3}", re.ASCII)
_DECIMAL = re.compile(r"\d*\.?\d+", re.ASCII)
_RATIO = re.compile(r"(\d+)/(\d+)", re.ASCII)
_EXPONENT = re.compile(rf"[eE]([{_SIGNS}]?\d+)(\w?)", re.ASCII)

_PERCENT = re.compile(r"\s?\\?%")
_TIMES_TEN = re.compile(
    rf"(?<=\d)\s*(?:[×x*·⋅]|\\times|\\cdot)\s*10\s*\^\s*\{{?\s*([{_SIGNS}{_DASH}]?\d{{1,9}})\s*\}}?", re.ASCII
)
_DASHED = re.compile(rf"(?:(?<=\d[eE])|(?<=\^)|(?<=\^\{{)){_DASH}(?=\d)", re.ASCII)
_THIN = re.compile(r"(?<=\d)(?:,?\\[,;:!]|\{,\})(?=\d{3}(?!\d))", re.ASCII)
_FRAC = re.compile(r"(?<=(\d))?\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_MIXED = re.compile(r"(?<![\w./:^,])(\d{1,18}) (\d{1,18})/(\d{1,18})(?![\w/.^])", re.ASCII)


def final_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none, or where it is spelt in no way known here.

    Known: `42`, `-3.5` and `-$3` (a Unicode minus too), `1,234.5`, `1'234`, `.5`, `1e3`, `1.5×10^3`, `3/4`, `1 3/4`,
    `75%` (0.75), and the same in LaTeX; units behind it do not matter. A number inside a word (`CO2`, `GPT-4`, `m^2`)
    is none. Groups behind ordinary spaces (`12 345`) may as well be two numbers, and are not read.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    plain = _DASHED.sub("-", _THIN.sub("\u2009", _TIMES_TEN.sub(r"e\1", text)))
    plain = _MIXED.sub(_improper, _FRAC.sub(_ratio, plain))
    before = last = None
    for token in _TOKEN.finditer(plain):
        if _stands_alone(plain, token.start()):
            before, last = last, token
    if last is None or (before is not None and _may_be_one(plain, before, last)):
        return None
    return _value(plain, last)


def _may_be_one(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether an ordinary space parts two groups of one number here, or two numbers: nobody can tell."""
    near = text[one.end() : other.start()] == " "
    return near and bool(_FEW.fullmatch(one.group()) and _THREE.match(other.group()))


def _stands_alone(text: str, start: int) -> bool:
    """Whether the digits at `start` begin a number and not the end of a word, an index or an exponent."""
    before = text[max(0, start - 3) : start]
    if before[-1:] in tuple(_SIGNS):
        before = before[:-1]
    return not (before.endswith(("^", "_", "^{", "_{")) or before[-1:].isalpha())


def _value(text: str, token: re.Match[str]) -> Fraction | None:
    body, end = token.group(), token.end()
    if len(body) > MAX_DIGITS or text[end : end + 1] == "^":
        return None
    magnitude: Fraction | None = None
    if ratio := _RATIO.fullmatch(body):
        magnitude = Fraction(int(ratio[1]), int(ratio[2])) if int(ratio[2]) else None
    elif _GROUPED.fullmatch(body) or _DECIMAL.fullmatch(body):
        power = _EXPONENT.match(text, end)
        if power and (power[2] or len(power[1]) > MAX_EXPONENT_CHARS):
            return None
        shift = int(re.sub(f"[{_MINUS}]", "-", power[1])) if power else 0
        magnitude = Fraction(re.sub(f"[{_GROUP}{_TIGHT}]", "", body)) * Fraction(10) ** shift
        end = power.end() if power else end
    if magnitude is None:
        return None
    percent = _PERCENT.match(text, end)
    return _sign(text, token.start()) * magnitude / (100 if percent else 1)


def _sign(text: str, start: int) -> int:
    """-1 where a minus belongs to the number at `start`, perhaps before its currency: behind a digit, a letter or a
    bracket it takes away instead, or is the dash of a range."""
    head = _without_currency(text[max(0, start - 6) : start])
    if head[-1:] not in tuple(f"{_MINUS}{_DASH}"):
        return 1
    before = _without_currency(head[:-1])
    return 1 if before[-1:].isalnum() or head[:-1].endswith(_CLOSED) else -1


def _without_currency(text: str) -> str:
    """Without the one sign of a currency that it may end with, `$` in LaTeX too."""
    return text[:-1].removesuffix("\\") if text and unicodedata.category(text[-1]) == "Sc" else text


def _improper(found: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in found.groups())
    return f"{whole * below + above}/{below}" if above < below else found.group()


def _ratio(found: re.Match[str]) -> str:
    return f"{' ' if found[1] else ''}{found[2]}/{found[3]}"


_STATEMENT = re.compile(r"\b(?:answer|choice|option)\b[*_]*\s*(?:is\b|:|=)[\s:*_]*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}\n]*)\}")
_NAMED = re.compile(r"^(?:the )?(?:answer|choice|option) ")
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)")
_REASON = re.compile(r"\s*(?:[,;:.!)\]*–-]|because\b|since\b|$)")
_EDGES = " \t\r\n.,;:!\"'*_`"


def chosen(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that a text commits to; None for no choice, or for more than one.

    A text commits by being a choice (`B`, `(b).`, `B) Paris`, `Paris`), by saying so (`The answer is (B).`, the last
    time it does), or by a first or last line that is a choice. To mention one is not to choose it.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    if (whole := _choice(text, choices)) is not None:
        return whole
    stated = [(m.end(), text[m.end() :].partition("\n")[0]) for m in _STATEMENT.finditer(text)]
    stated += [(m.end(), m[1]) for m in _BOXED.finditer(text)]
    if stated:
        return _stated(max(stated)[1], choices)
    lines = [line for line in text.splitlines() if line.strip()]
    found = {_choice(line, choices) for line in (*lines[:1], *lines[-1:])} - {None}
    return found.pop() if len(found) == 1 else None


def folded(text: str) -> str:
    """NFC, without case, runs of white space, and the punctuation and marks around it: how choices are compared."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).strip(_EDGES)


def _choice(text: str, choices: Mapping[str, str]) -> str | None:
    """The choice that the text is."""
    said = _NAMED.sub("", folded(text), count=1)
    for label, meaning in choices.items():
        if said.strip("()[] ") == label.casefold():
            return label
        marked = re.match(rf"[(\[]?{re.escape(label.casefold())}[)\].:]*\s", said)
        if marked and folded(said[marked.end() :]) == folded(meaning):
            return label
    return next((label for label, meaning in choices.items() if folded(text) == folded(meaning)), None)


def _stated(said: str, choices: Mapping[str, str]) -> str | None:
    """The choice at the beginning of what was said behind `the answer is`, where no other follows in its sentence."""
    sentence = _SENTENCE_END.split(said, maxsplit=1)[0]
    found = _choice(said, choices) or _choice(sentence, choices)
    if found is not None:
        return found
    for label in choices:
        opening = re.match(rf"[\s(\[*_]*{re.escape(label)}[)\]*_]*(?!\w)", sentence)
        if opening and _REASON.match(sentence, opening.end()):
            others = "|".join(re.escape(other) for other in choices if other != label)
            return None if others and re.search(rf"\b(?:{others})\b", sentence[opening.end() :]) else label
    return None


def first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, whatever stands around it; None where there is none.

    Read strictly: no key twice, no NaN, no infinity. Numbers that are not integers come as Decimal, exactly.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return None
    place = -1
    for _ in range(MAX_BRACES):
        place = text.find("{", place + 1)
        if place < 0:
            break
        try:
            found: dict[str, Any] = _DECODER.raw_decode(text, place)[0]
        except (ValueError, DecimalException, RecursionError):
            continue
        return found
    return None


def same_json(gold: object, given: object) -> bool:
    """Whether two JSON values are equal: numbers by value (1 is 1.0), text after NFC, lists in order; true is not 1."""
    if isinstance(gold, dict) and isinstance(given, dict):
        return gold.keys() == given.keys() and all(same_json(value, given[key]) for key, value in gold.items())
    if isinstance(gold, list) and isinstance(given, list):
        return len(gold) == len(given) and all(map(same_json, gold, given))
    if isinstance(gold, str) and isinstance(given, str):
        return unicodedata.normalize("NFC", gold) == unicodedata.normalize("NFC", given)
    if isinstance(gold, bool) or isinstance(given, bool) or gold is None or given is None:
        return gold is given
    return isinstance(gold, (int, Decimal)) and isinstance(given, (int, Decimal)) and gold == given


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key stands twice")
    return tree


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=Decimal)
