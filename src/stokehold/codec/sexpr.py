"""S-expressions `(op arg …)`: trees that cannot be malformed, one printing, and a parser whose errors have positions.

`parse(render(tree)) == tree` for every tree; `render(parse(text))` is the one printing of the text's tree. Depth is
bounded when a tree is made, so that no later walk over it can exhaust the stack.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from stokehold.core.errors import InputError

MAX_DEPTH = 64
"""Forms inside forms. No walk takes more than four frames a level, far below Python's limit of 1000."""

MAX_DIGITS = 1000
"""Digits of one number literal; Python itself refuses to read more than 4300."""

MAX_CODES = 1000
"""Codes are written with three digits."""

OPERATORS = ("+", "-", "*", "/", "=")
_WORD = re.compile(r"[^\W\d_][\w-]*")
_NUMBER = re.compile(r"(-?)([0-9]+)(?:/([0-9]+))?")
_CODE = re.compile(r"<E([0-9]{3})>")
_LEXEME = re.compile(r"[()]|[^\s()]+")


class CodecError(InputError):
    """Text or a tree that the language does not have; `position` is the character's offset from 0, where known."""

    def __init__(self, what: str, position: int | None = None, fix: str = "") -> None:
        self.position = position
        super().__init__(what, "" if position is None else f"character {position}", fix)


@dataclass(frozen=True, slots=True)
class Number:
    """A rational; printed `7` or, in lowest terms, `-3/4`."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A word: a letter, then letters, digits, `_` and `-`."""

    name: str

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.name):
            raise CodecError(f"{self.name!r} is no word", fix="begin with a letter; then letters, digits, _ or -")


@dataclass(frozen=True, slots=True)
class Code:
    """`<E000>`…`<E999>`: stands for a codebook's subtree."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_CODES:
            raise CodecError(f"no code {self.index}", fix=f"codes run from 0 to {MAX_CODES - 1}")


@dataclass(frozen=True, slots=True)
class Form:
    """`(op arg …)`; `op` is an operator sign or a word. `depth` counts this form as 1."""

    op: str
    args: "tuple[Tree, ...]"
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.op not in OPERATORS and not _WORD.fullmatch(self.op):
            raise CodecError(f"{self.op!r} is no operator")
        depth = 1 + max((arg.depth for arg in self.args if isinstance(arg, Form)), default=0)
        if depth > MAX_DEPTH:
            raise CodecError(f"forms nested deeper than {MAX_DEPTH}", fix="flatten or split the expression")
        object.__setattr__(self, "depth", depth)


Tree: TypeAlias = Number | Symbol | Code | Form
Maker: TypeAlias = Callable[[str, tuple[Tree, ...]], Form]


def render(tree: Tree) -> str:
    """The one printing: single spaces, numbers in lowest terms."""
    match tree:
        case Number(value):
            return str(value)
        case Symbol(name):
            return name
        case Code(index):
            return f"<E{index:03d}>"
        case Form(op, args):
            return f"({' '.join([op, *map(render, args)])})"


def parse(text: str, make: Maker = Form, expand: Callable[[Code], Tree] | None = None) -> Tree:
    """The tree of the text; white space is free, numbers may be unreduced. `CodecError` with its position otherwise.

    `make` builds each form (a domain's typed constructor); `expand` replaces each code; their errors get positions.
    """
    open_forms: list[_Open] = []
    done: Tree | None = None
    for lexeme in _LEXEME.finditer(text):
        if done is not None:
            raise CodecError("text after the expression", lexeme.start())
        word = lexeme.group()
        if open_forms and open_forms[-1].op is None:
            open_forms[-1].op = _operator(word, lexeme.start())
            continue
        if word == "(":
            if len(open_forms) == MAX_DEPTH:
                raise CodecError(f"forms nested deeper than {MAX_DEPTH}", lexeme.start())
            open_forms.append(_Open(lexeme.start()))
            continue
        if word == ")":
            tree: Tree = _close(open_forms, lexeme.start(), make)
        else:
            tree = _atom(word, lexeme.start(), expand)
        if open_forms:
            open_forms[-1].args.append(tree)
        else:
            done = tree
    if open_forms:
        raise CodecError("a ( that is never closed", open_forms[-1].position)
    if done is None:
        raise CodecError("nothing to read", 0)
    return done


def lexemes(text: str) -> int:
    """Number of parentheses and atoms: the language's own measure of length."""
    return sum(1 for _ in _LEXEME.finditer(text))


@dataclass(slots=True)
class _Open:
    """A form whose closing parenthesis has not come."""

    position: int
    op: str | None = None
    args: list[Tree] = field(default_factory=list)


def _operator(word: str, position: int) -> str:
    if word not in OPERATORS and not _WORD.fullmatch(word):
        raise CodecError(f"an operator must follow (, not {word!r}", position)
    return word


def _close(open_forms: list[_Open], position: int, make: Maker) -> Form:
    if not open_forms:
        raise CodecError("a ) that nothing opened", position)
    form = open_forms.pop()
    try:
        return make(form.op or "", tuple(form.args))
    except CodecError as error:
        raise CodecError(error.what, form.position, error.fix) from error


def _atom(word: str, position: int, expand: Callable[[Code], Tree] | None) -> Tree:
    if number := _NUMBER.fullmatch(word):
        return _number(number, position)
    if code := _CODE.fullmatch(word):
        try:
            return Code(int(code[1])) if expand is None else expand(Code(int(code[1])))
        except CodecError as error:
            raise CodecError(error.what, position, error.fix) from error
    if _WORD.fullmatch(word):
        return Symbol(word)
    raise CodecError(f"{word!r} is no number, word or code", position)


def _number(match: re.Match[str], position: int) -> Number:
    sign, top, bottom = match.groups()
    if len(top) > MAX_DIGITS or len(bottom or "") > MAX_DIGITS:
        raise CodecError(f"a number of more than {MAX_DIGITS} digits", position)
    if bottom is not None and int(bottom) == 0:
        raise CodecError("a fraction over 0", position)
    return Number(Fraction(int(sign + top), int(bottom or 1)))
