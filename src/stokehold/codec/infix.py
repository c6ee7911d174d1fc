"""Arithmetic as people write it (`3 + 4 * (2 - 1)`) to its tree. A hand-written parser; nothing is evaluated."""

import re
from dataclasses import dataclass
from fractions import Fraction

from stokehold.codec.sexpr import MAX_DEPTH, MAX_DIGITS, CodecError, Form, Number, Tree

_LEXEME = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?)|(\S))")
_SIGNS = {"+": "+", "-": "-", "−": "-", "–": "-", "*": "*", "×": "*", "·": "*", "/": "/", "÷": "/", "(": "(", ")": ")"}


def parse_infix(text: str) -> Tree:
    """The tree as written, a run of + or of * as one form. `CodecError` with its position for anything else.

    `*` and `/` bind before `+` and `-`, equals from the left; a sign binds to what follows it; decimals are exact.
    """
    reader = _Reader(_lexemes(text))
    tree = reader.sum(0)
    if reader.sign != "":
        raise CodecError(f"{reader.lexeme.text!r} does not fit here", reader.lexeme.position)
    return tree


@dataclass(frozen=True, slots=True)
class _Lexeme:
    """`sign` is the operator or parenthesis meant, None for a number, empty at the end of the text."""

    position: int
    text: str
    sign: str | None


def _lexemes(text: str) -> list[_Lexeme]:
    found = []
    for match in _LEXEME.finditer(text):
        number, sign = match.groups()
        position = match.start(1 if number is not None else 2)
        if sign is not None and sign not in _SIGNS:
            raise CodecError(f"{sign!r} is no part of an expression", position, f"use {' '.join(_SIGNS)}")
        found.append(_Lexeme(position, match[0].strip(), None if sign is None else _SIGNS[sign]))
    return [*found, _Lexeme(len(text), "the end", "")]


class _Reader:
    """Recursive descent over the lexemes; recursion only through parentheses, whose depth is bounded."""

    def __init__(self, lexemes: list[_Lexeme]) -> None:
        self._lexemes, self._at = lexemes, 0

    @property
    def lexeme(self) -> _Lexeme:
        return self._lexemes[self._at]

    @property
    def sign(self) -> str | None:
        return self.lexeme.sign

    def sum(self, depth: int) -> Tree:
        run = [self.product(depth)]
        while self.sign in ("+", "-"):
            sign, position = self.sign, self._next().position
            if sign == "+":
                run.append(self.product(depth))
            else:
                run = [self._form("-", [self._run("+", run, position), self.product(depth)], position)]
        return self._run("+", run, self.lexeme.position)

    def product(self, depth: int) -> Tree:
        run = [self.signed(depth)]
        while self.sign in ("*", "/"):
            sign, position = self.sign, self._next().position
            if sign == "*":
                run.append(self.signed(depth))
            else:
                run = [self._form("/", [self._run("*", run, position), self.signed(depth)], position)]
        return self._run("*", run, self.lexeme.position)

    def signed(self, depth: int) -> Tree:
        minuses = []
        while self.sign == "-":
            minuses.append(self._next().position)
        tree = self.primary(depth)
        for position in reversed(minuses):
            negative = isinstance(tree, Number) and tree.value >= 0
            tree = Number(-tree.value) if negative and isinstance(tree, Number) else self._form("neg", [tree], position)
        return tree

    def primary(self, depth: int) -> Tree:
        lexeme = self._next()
        if lexeme.sign is None:
            return self._number(lexeme)
        if lexeme.sign != "(":
            raise CodecError(f"a number or ( must stand here, not {lexeme.text}", lexeme.position)
        if depth == MAX_DEPTH:
            raise CodecError(f"parentheses nested deeper than {MAX_DEPTH}", lexeme.position)
        tree = self.sum(depth + 1)
        if self.sign != ")":
            raise CodecError("a ( that is never closed", lexeme.position)
        self._next()
        return tree

    def _next(self) -> _Lexeme:
        lexeme = self.lexeme
        self._at = min(self._at + 1, len(self._lexemes) - 1)
        return lexeme

    def _number(self, lexeme: _Lexeme) -> Number:
        if len(lexeme.text) > MAX_DIGITS:
            raise CodecError(f"a number of more than {MAX_DIGITS} digits", lexeme.position)
        return Number(Fraction(lexeme.text))

    def _run(self, op: str, operands: list[Tree], position: int) -> Tree:
        return operands[0] if len(operands) == 1 else self._form(op, operands, position)

    def _form(self, op: str, args: list[Tree], position: int) -> Form:
        try:
            return Form(op, tuple(args))
        except CodecError as error:
            raise CodecError(error.what, position, error.fix) from error
