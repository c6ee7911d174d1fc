"""Identities are stable for ever, and equal exactly when the content is: hashes, the held-out share, prompts."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.identity import (
    HOLDOUT_MODULUS,
    ID_HEX_CHARS,
    content_hash,
    is_holdout,
    normalise,
    prompt_hash,
    short_id,
)
from stokehold.core.records import Message

TEXTS = st.text(max_size=30)
ROLES = st.sampled_from(["system", "user"])
QUESTIONS = st.lists(st.builds(Message, ROLES, TEXTS), min_size=1, max_size=4)
SPACES = st.text(" \t\n\r", min_size=1, max_size=4)

HELD_OUT = (13, 91, 109, 122, 124, 125)
"""Of the identities problem-0 to problem-127. Another set would put problems that models were trained on into suites,
and suite items into training files."""


def asked(*turns: str) -> list[Message]:
    """A conversation of user and assistant by turns."""
    return [Message(("user", "assistant")[n % 2], content) for n, content in enumerate(turns)]


def test_the_held_out_problems_are_those_of_the_first_release() -> None:
    assert tuple(n for n in range(128) if is_holdout(f"problem-{n}")) == HELD_OUT


def test_one_identity_in_sixteen_is_held_out() -> None:
    n = 20_000
    held = sum(is_holdout(f"any {number}") for number in range(n))
    # Six standard deviations of a binomial count.
    assert abs(held - n / HOLDOUT_MODULUS) < 6 * (n * 15 / 256) ** 0.5


def test_hashes_are_those_of_the_first_release() -> None:
    assert content_hash("a", "b") == blake3(bytes([1, *[0] * 7]) + b"a" + bytes([1, *[0] * 7]) + b"b").hexdigest()
    assert short_id("a", "b") == content_hash("a", "b")[:ID_HEX_CHARS]
    assert prompt_hash(asked("What colour is the sea?")).startswith("0f4f897594de1583")


@given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4))
def test_a_hash_knows_where_its_parts_end(one: list[str], other: list[str]) -> None:
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


@given(QUESTIONS, TEXTS, TEXTS)
def test_the_answer_and_what_follows_it_are_no_part_of_the_question(
    question: list[Message], gold: str, later: str
) -> None:
    whole = [*question, Message("assistant", gold)]
    assert prompt_hash(whole) == prompt_hash(question)
    assert prompt_hash([*whole, Message("user", later)]) == prompt_hash(question)


@given(st.lists(st.text("abcXYZ.", min_size=1, max_size=5), min_size=1, max_size=6), SPACES, SPACES)
def test_a_reformatted_prompt_is_that_prompt(words: list[str], gap: str, edge: str) -> None:
    spaced = edge + gap.join(words).upper() + edge
    assert prompt_hash(asked(spaced)) == prompt_hash(asked(" ".join(words)))


@given(TEXTS)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("two words"), asked("twowords")),
        (asked("a", "b", "c", "d"), asked("a", "x", "c", "d")),
        (asked("a", "b", "c", "d"), asked("c", "d")),
        ([Message("system", "a"), Message("user", "b")], [Message("user", "a"), Message("user", "b")]),
        ([Message("user", "a b")], [Message("user", "a"), Message("user", "b")]),
    ],
    ids=["words", "earlier answer", "earlier turns", "role", "boundary of turns"],
)
def test_other_questions_have_other_hashes(one: list[Message], other: list[Message]) -> None:
    assert prompt_hash(one) != prompt_hash(other)
