"""Lines come one by one, whole and checked, in memory bounded by the longest line allowed."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Rejection
from stokehold.data.lines import BOM, Line, cut, read_lines, read_part

MEGABYTE = 1 << 20


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file.jsonl"
    path.write_bytes(content)
    return path


def test_a_huge_line_is_rejected_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.seek(200 * MEGABYTE)
        file.write(b'"}\n{"good": 1}\n')
    tracemalloc.start()
    outcomes = list(read_lines(path, MEGABYTE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MEGABYTE
    assert isinstance(outcomes[0], Rejection)
    assert outcomes[0].line == 1
    assert "longer than 1048576 bytes" in outcomes[0].reason
    assert outcomes[0].excerpt.startswith('{"text": "')
    assert outcomes[1:] == [Line(2, b'{"good": 1}')]


def test_a_huge_last_line_without_an_end_is_rejected_too(tmp_path: Path) -> None:
    outcomes = list(read_lines(write(tmp_path, b"ok\n" + b"x" * (3 * MEGABYTE)), 100))
    assert outcomes[0] == Line(1, b"ok")
    assert isinstance(outcomes[1], Rejection)
    assert len(outcomes) == 2


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    content = BOM + b'{"a":1}\r\n\r\n   \n\t\r\n{"b":2}\n{"c":3}'
    assert list(read_lines(write(tmp_path, content), 100)) == [
        Line(1, b'{"a":1}'),
        Line(5, b'{"b":2}'),
        Line(6, b'{"c":3}'),
    ]


def test_a_byte_order_mark_is_only_dropped_at_the_start(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path, b"a\n" + BOM + b"b"), 100))[1] == Line(2, BOM + b"b")


def test_invalid_utf8_names_the_byte_and_shows_the_line(tmp_path: Path) -> None:
    (outcome,) = read_lines(write(tmp_path, b'{"a": "\xff"}\n'), 100)
    assert outcome == Rejection(1, "not UTF-8 at byte 8", '{"a": "�"}')


def test_an_encoded_surrogate_is_not_utf8(tmp_path: Path) -> None:
    (outcome,) = read_lines(write(tmp_path, b'"\xed\xa0\x80"\n'), 100)
    assert isinstance(outcome, Rejection)


def test_the_excerpt_is_eighty_characters_of_any_width(tmp_path: Path) -> None:
    (outcome,) = read_lines(write(tmp_path, "😀".encode() * 500), 100)
    assert isinstance(outcome, Rejection)
    # The line is cut at the limit, inside a character, and only that one is shown broken.
    assert outcome.excerpt.startswith("😀" * 25)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("length", [9, 10, 11, 12, 13, 14])
def test_the_limit_counts_the_bytes_of_the_line_alone(tmp_path: Path, length: int, mark: bytes, ending: bytes) -> None:
    outcomes = list(read_lines(write(tmp_path, mark + b"x" * length + ending + b"y"[: len(ending)]), 10))
    expected_rest = [Line(2, b"y")] if ending else []
    assert outcomes[1:] == expected_rest
    assert isinstance(outcomes[0], Rejection) == (length > 10)


@given(content=st.binary(max_size=60).map(lambda b: b.replace(b"\xef", b"")), limit=st.integers(1, 12))
def test_every_line_is_seen_once_and_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, limit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(content)
    expected = {}
    for number, raw in enumerate(content.split(b"\n"), start=1):
        line = raw.removesuffix(b"\r")
        if len(line) > limit:
            expected[number] = None
        elif line.strip():
            expected[number] = line if _is_utf8(line) else None
    outcomes = list(read_lines(path, limit))
    got = {o.number: o.raw for o in outcomes if isinstance(o, Line)} | {
        o.line: None for o in outcomes if isinstance(o, Rejection)
    }
    assert got == expected
    assert len(outcomes) == len(expected)


@given(content=st.text("ab\n\r\ufeff", min_size=1, max_size=60), count=st.integers(1, 9), limit=st.integers(1, 12))
def test_the_lines_are_the_same_however_many_parts_the_file_is_cut_into(
    tmp_path_factory: pytest.TempPathFactory, content: str, count: int, limit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "parts.jsonl"
    path.write_bytes(content.encode())
    parts = cut(path, count)
    assert len(parts) <= count
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == path.stat().st_size
    assert all(part.start < part.end for part in parts)
    with path.open("rb") as file:
        assert [line for part in parts for line in read_part(file, part, limit)] == list(read_lines(path, limit))


def test_parts_are_of_about_one_size_and_cut_in_any_block(tmp_path: Path) -> None:
    path = write(tmp_path, b"0123456\n" * (MEGABYTE // 2))
    assert [part.end - part.start for part in cut(path, 8)] == [MEGABYTE // 2] * 8
    assert [part.before for part in cut(path, 4)] == [n * MEGABYTE // 8 for n in range(4)]


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
