"""JSON read strictly: no NaN, no key twice, no lone surrogate, no number that would be stored as another.

orjson reads a line several times as fast as the standard library, and lets two things pass that we refuse: a key that
stands twice, and an integer that only a float holds. Both leave a mark that is cheap to look for. A line that bears
one, or that orjson refuses, is read by the standard library, whose answer is the one that counts.
"""

import json
import math
from typing import Any, NoReturn

import orjson

MAX_DIGITS = 20
"""No 64-bit integer is written longer, and rows are stored with no more; reading longer ones takes quadratic time."""

INTEGER_BOUND = 2.0**63
"""orjson turns integers beyond 64 bits into floats, none of them smaller than this."""


class Refused(ValueError):
    """Why a line cannot be used; becomes the reason of its Rejection."""


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that `raw`, valid UTF-8, is; raises Refused with the reason where it is none."""
    tree = _read_fast(raw)
    return _read_slowly(raw.decode()) if tree is None else tree


def quotes(raw: bytes) -> int | None:
    """Quotes in a line, which its tree written again has too unless a key stood twice; None where they do not tell."""
    return None if b"\\u0022" in raw else raw.count(b'"')


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")


def _read_fast(raw: bytes) -> dict[str, Any] | None:
    """The object where orjson's reading is certainly the strict one, else None."""
    try:
        tree = orjson.loads(raw)
        if not isinstance(tree, dict) or quotes(raw) != orjson.dumps(tree).count(b'"'):
            return None  # a key that stood twice took its quotes along
    except (orjson.JSONDecodeError, TypeError):  # the latter: nested deeper than orjson writes
        return None
    return None if has_odd_float(tree) else tree


def has_odd_float(tree: dict[str, Any]) -> bool:
    """Whether a float in it may have been written as an integer of more than 64 bits."""
    waiting: list[Any] = [tree]
    for value in waiting:
        for item in value.values() if type(value) is dict else value:
            kind = type(item)
            if kind is dict or kind is list:
                waiting.append(item)
            elif kind is float and abs(item) >= INTEGER_BOUND:
                return True
    return False


def _read_slowly(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise Refused(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise Refused("nested too deeply") from error
    if not isinstance(tree, dict):
        raise Refused(f"not a JSON object but {kind_of(tree)}")
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Refused(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return tree


def _constant(name: str) -> NoReturn:
    raise Refused(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Refused("a number beyond what a float holds")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Refused("an integer beyond 64 bits")
    return int(digits)
