"""The fast reading of JSON is the strict one: same trees, same reasons, for whatever lines there are."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stokehold.data import strict
from stokehold.data.strict import Refused, read_object

KEYS = st.sampled_from(["a", "b", "role", "content", "\\u0061", '\\"', "\\\\", "é", ""])
NUMBERS = st.sampled_from(
    [
        *("0", "-0", "-0.0", "1e400", "1e-400", "NaN", "-Infinity", "1E5", "0.1", "01", "1.", "9" * 4400),
        *("18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809"),
        *("9223372036854775808.0", "1e19", "99999999999999999999", "999999999999999999999"),
    ]
)
STRINGS = st.sampled_from(
    [
        '"x"',
        '"\\""',
        '"\\\\"',
        '"\\\\\\""',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0022"',
        '"\\u005c"',
        '"\t"',
        '"é"',
        '"a":',
    ]
)


def written(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as text, so that a key may stand twice, and lists."""
    members = st.lists(st.tuples(KEYS, inner), max_size=3)
    objects = members.map(lambda pairs: "{" + ", ".join(f'"{key}" :{value}' for key, value in pairs) + "}")
    return objects | st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")


LINES = written(st.recursive(NUMBERS | STRINGS | st.sampled_from(["true", "null", "nul"]), written, max_leaves=6))


def outcome(read: Any, given_: Any) -> tuple[str, object]:
    try:
        return "tree", json.dumps(read(given_))
    except Refused as refused:
        return "refused", str(refused)


@settings(max_examples=1500, deadline=None)
@given(LINES)
@example('{"a": "x", "\\u0061": "x"}')
@example('{"a": {"b": "\\"", "b": "\\""}}')
@example('{"a": ' + "[" * 300 + "]" * 300 + "}")
@example('{"a": [18446744073709551616]}')
@example(' {"a": -0}\t')
def test_reading_fast_changes_nothing(line: str) -> None:
    assert outcome(read_object, line.encode()) == outcome(strict._read_slowly, line)


def test_ordinary_rows_are_read_fast() -> None:
    row = {"messages": [{"role": "user", "content": 'say "a\\b"'}], "metadata": {"level": 3, "share": 0.5}}
    assert strict._read_fast(json.dumps(row).encode()) == row


@pytest.mark.parametrize("line", ['{"a": 1, "a": 1}', '{"a": 99999999999999999999}', '{"a": "\\ud800"}', "[]", "{"])
def test_what_orjson_would_let_pass_is_left_to_the_slow_reading(line: str) -> None:
    assert strict._read_fast(line.encode()) is None
