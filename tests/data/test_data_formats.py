"""Every accepted format becomes a Sample, everything else a reason; what was accepted can be stored exactly."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.records import Message, Provenance, Rejection, Sample
from stokehold.data.formats import LEFT_OUT, Parsed, from_row, parse_line, to_row
from stokehold.data.lines import Line

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def parse(tree: Any, number: int = 7) -> Parsed | Rejection:
    raw = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return parse_line(Line(number, raw), "tickets.jsonl")


def accepted(tree: Any) -> Parsed:
    outcome = parse(tree)
    assert isinstance(outcome, Parsed), outcome
    return outcome


def refused(tree: Any) -> str:
    outcome = parse(tree)
    assert isinstance(outcome, Rejection), outcome
    assert outcome.line == 7
    return outcome.reason


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


def test_the_own_format_comes_without_a_note() -> None:
    parsed = accepted({"messages": [{"role": "system", "content": "Be brief."}, *CHAT], "metadata": {"level": 3}})
    assert parsed.note is None
    assert turns(parsed.sample) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
    assert parsed.sample.metadata == {"level": 3}
    assert parsed.sample.provenance == Provenance(file="tickets.jsonl", line=7)
    assert len(parsed.sample.id) == 16


CONVERSIONS = [
    ({"prompt": "P", "completion": "C"}, [("user", "P"), ("assistant", "C")]),
    ({"instruction": "Do", "input": "this", "output": "done"}, [("user", "Do\n\nthis"), ("assistant", "done")]),
    ({"instruction": "Do", "input": "", "output": "done"}, [("user", "Do"), ("assistant", "done")]),
    ({"instruction": "Do", "output": "done"}, [("user", "Do"), ("assistant", "done")]),
    (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "H"},
                {"from": "gpt", "value": "G"},
            ]
        },
        [("system", "S"), ("user", "H"), ("assistant", "G")],
    ),
]


@pytest.mark.parametrize(("tree", "expected"), CONVERSIONS)
def test_other_formats_are_converted_with_a_note(tree: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    parsed = accepted(tree)
    assert turns(parsed.sample) == expected
    assert parsed.note is not None
    assert parsed.note.startswith("converted from ")


def test_relational_rows_keep_what_their_objective_reads() -> None:
    tree = {"input": "I", "output": "O", "type": "bond", "has_presence": True, "context": "C", "metadata": {"x": 1}}
    parsed = accepted(tree)
    assert turns(parsed.sample) == [("user", "I"), ("assistant", "O")]
    assert parsed.sample.metadata == {"x": 1, "type": "bond", "has_presence": True, "context": "C"}
    assert parsed.note == "converted from input and output"


def test_plain_text_has_no_messages() -> None:
    parsed = accepted({"text": "Once upon a time"})
    assert parsed.sample.text == "Once upon a time"
    assert parsed.sample.messages == ()
    assert parsed.note == "plain text: every token is trained"


def test_keys_that_are_left_out_are_noted() -> None:
    assert accepted({"messages": CHAT, "source": "web"}).note == LEFT_OUT
    assert accepted({"messages": [{**CHAT[0], "name": "Ann"}, CHAT[1]]}).note == LEFT_OUT
    note = accepted({"prompt": "P", "completion": "C", "id": 1}).note
    assert note == f"converted from prompt and completion; {LEFT_OUT}"


REFUSALS = [
    (b'{"messages": [', "not JSON: Expecting value at column 15"),
    (b"[1, 2]", "not a JSON object but a list"),
    (b'"text"', "not a JSON object but a string"),
    (b'{"text": "a", "metadata": {"x": NaN}}', "NaN is not JSON"),
    (b'{"text": "a", "metadata": {"x": -Infinity}}', "-Infinity is not JSON"),
    (b'{"text": "a", "metadata": {"x": 1e999}}', "beyond what a float holds"),
    (b'{"text": "a", "metadata": {"x": ' + b"9" * 5000 + b"}}", "an integer beyond 64 bits"),
    (b'{"text": "a", "metadata": {"x": 99999999999999999999}}', "cannot be stored"),
    (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
    (b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}', "the key 'role' stands twice"),
    (b'{"text": "a \\ud800 b"}', "cannot be stored"),
    (b'{"text": "a", "metadata": {"\\udfff": 1}}', "cannot be stored"),
    (b'{"text": "a", "metadata": ' + b"[" * 400 + b"]" * 400 + b"}", "metadata is a list"),
    (b'{"text": "a", "metadata": {"x": ' + b"[" * 400 + b"]" * 400 + b"}}", "cannot be stored"),
    (b'{"text": "a", "metadata": {"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}}", "nested too deeply"),
    ({"text": "  \n"}, "text is empty"),
    ({"text": 3}, "text is a number, not a string"),
    ({"text": "a", "metadata": "x"}, "metadata is a string"),
    ({"prompt": "", "completion": "x"}, "prompt is empty"),
    ({"prompt": "x", "completion": " "}, "no assistant turn with content"),
    ({"prompt": ["x"], "completion": "y"}, "prompt is a list, not a string"),
    ({"question": "x", "answer": "y"}, "no known format; keys: answer, question"),
    ({}, "no known format; keys: none"),
    ({"messages": []}, "messages is an empty list"),
    ({"messages": {}}, "messages is an object"),
    ({"messages": ["x"]}, "messages 1 is a string"),
    ({"messages": CHAT[:1]}, "no assistant turn with content"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "no assistant turn with content"),
    ({"messages": [CHAT[0], {"role": "assistant"}]}, "message 2: no content"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "message 2: content is null"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}, CHAT[1]]}, "message 1: content is a list"),
    ({"messages": [{"role": "tool", "content": "x"}, CHAT[1]]}, "message 1 has role 'tool'"),
    ({"messages": [{"role": ["user"], "content": "x"}, CHAT[1]]}, "message 1 has role ['user']"),
    ({"messages": [{**CHAT[1], "tool_calls": [{}]}]}, "messages 1 calls a tool"),
    ({"conversations": [{"from": "function_call", "value": "x"}]}, "turn 1 is from 'function_call'"),
    ({"instruction": "a", "input": 1, "output": "b"}, "input is a number"),
]


@pytest.mark.parametrize(("tree", "reason"), REFUSALS, ids=range(len(REFUSALS)))
def test_a_bad_line_says_why(tree: Any, reason: str) -> None:
    assert reason in refused(tree)


def test_true_surrogate_pairs_and_every_64_bit_integer_are_kept() -> None:
    sample = accepted(
        b'{"text": "\\ud83d\\ude00", "metadata": {"a": 18446744073709551615, "b": -9223372036854775808}}'
    ).sample
    assert sample.text == "😀"
    assert from_row(orjson.loads(orjson.dumps(to_row(sample)))).metadata == {"a": 2**64 - 1, "b": -(2**63)}


def test_an_empty_turn_beside_an_answer_is_no_fault() -> None:
    assert turns(accepted({"messages": [{"role": "system", "content": ""}, *CHAT]}).sample)[0] == ("system", "")


def test_the_id_is_that_of_what_is_said() -> None:
    first = accepted({"messages": CHAT, "metadata": {"a": 1}}).sample.id
    again = accepted(
        b'{ "metadata": {}, "messages":[{"content":"Hi","role":"user"},{"role":"assistant","content":"Hello"}]}'
    )
    assert again.sample.id == first
    assert accepted({"messages": [CHAT[0], {"role": "assistant", "content": "Hello!"}]}).sample.id != first
    assert accepted({"prompt": "Hi", "completion": "Hello"}).sample.id == first


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1)
SAMPLES = st.builds(
    Sample,
    id=st.text(min_size=1),
    messages=MESSAGES.map(tuple),
    provenance=st.builds(
        Provenance,
        file=st.just("tickets.jsonl"),
        line=st.integers(1, 10**9),
        generator=st.none() | st.text(min_size=1),
        parent=st.none() | st.text(min_size=1),
        depth=st.integers(0, 5),
    ),
    metadata=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
) | st.builds(Sample, id=st.text(min_size=1), text=st.text(), provenance=st.just(Provenance(file="tickets.jsonl")))


@given(SAMPLES)
def test_a_stored_row_is_the_sample_again(sample: Sample) -> None:
    assert from_row(orjson.loads(orjson.dumps(to_row(sample))), "tickets.jsonl") == sample


KEYS = ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "metadata"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES) | JSON_VALUES)
def test_any_json_is_either_a_storable_sample_or_a_reason(tree: Any) -> None:
    outcome = parse(tree)
    if isinstance(outcome, Parsed):
        stored = orjson.loads(orjson.dumps(to_row(outcome.sample)))
        assert from_row(stored, "tickets.jsonl") == outcome.sample
    else:
        assert outcome.reason


@given(st.binary(max_size=80).filter(lambda raw: raw.strip()))
def test_any_bytes_that_are_utf8_are_survived(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    assert isinstance(parse(text.encode()), Parsed | Rejection)


@given(MESSAGES)
def test_stored_conversations_parse_to_the_same_id(messages: list[Message]) -> None:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    outcome = parse({"messages": rows})
    if isinstance(outcome, Parsed):
        assert accepted(orjson.dumps({"messages": to_row(outcome.sample)["messages"]})).sample.id == outcome.sample.id
    else:
        assert not any(m.role == "assistant" and m.content.strip() for m in messages)


@pytest.mark.parametrize("quotes", range(1, 9))
@pytest.mark.parametrize("twice", ['"role":"user",', '"content":"",'])
def test_escaped_quotes_do_not_hide_a_key_that_stands_twice(twice: str, quotes: int) -> None:
    content = "\\u0022" * quotes
    turns = f'{{"role":"user","content":"{content}"}},{{{twice}"role":"assistant","content":"A"}}'
    assert "stands twice" in refused(f'{{"messages":[{turns}]}}'.encode())


def test_the_order_of_keys_makes_no_other_row() -> None:
    metadata = {"level": 3, "of": [1.5, None]}
    one = accepted({"messages": CHAT, "metadata": metadata})
    other = accepted({"metadata": metadata, "messages": [{"content": m["content"], "role": m["role"]} for m in CHAT]})
    assert one == other
    assert orjson.loads(one.row) == to_row(one.sample)
