"""Nothing that is judged gets trained, however it is reformatted; nothing else is turned away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.identity import is_holdout, normalise
from stokehold.core.records import Message, Sample
from stokehold.data import firewall
from stokehold.data.firewall import Firewall, question_hash, template_fingerprint
from stokehold.tasks.registry import draw
from stokehold.tasks.registry import identity_of as tasks_identity


def ask(question: str, answer: str, **metadata: str) -> Sample:
    return Sample("s", (Message("user", question), Message("assistant", answer)), metadata=metadata)


def identity_of(sample: Sample) -> str | None:
    return sample.metadata.get("identity")


HELD = Firewall.of(
    [
        ask("What is the capital of France?", "Paris"),
        ask("Anna has 3 apples and eats 1. How many are left?", "2"),
        ask("Rewrite: the ship sails at 7.", "At 7 the ship sails.", identity="problem-1"),
        Sample("t", text="Plain held-out text about 4 ships."),
        Sample("o", (Message("assistant", "An answer to nothing."),)),
    ],
    identity_of,
)


@pytest.mark.parametrize("question", ["What is the capital of France?", "  what is\n the CAPITAL of  france? "])
def test_a_held_out_prompt_is_refused_however_it_is_spaced_and_answered(question: str) -> None:
    assert "prompt is in an evaluation suite" in (HELD.check(ask(question, "Lyon"), None) or "")


def test_a_held_out_prompt_inside_a_longer_conversation_is_refused() -> None:
    first = ask("What is the capital of France?", "Paris").messages
    later = (Message("user", "And its river?"), Message("assistant", "The Seine."))
    assert HELD.check(Sample("s", first + later), None)
    assert HELD.check(Sample("s", later), None) is None


def said(*turns: str) -> Sample:
    """A conversation written as `role: content`."""
    return Sample("s", tuple(Message(*turn.split(": ", 1)) for turn in turns))


@pytest.mark.parametrize(
    "turns",
    [
        ["system: Be kind.", "user: What is the capital of France?", "assistant: Paris"],
        ["user: Hello", "assistant: Hi!", "user: what is the CAPITAL  of France?", "assistant: paris "],
        ["system: s", "user: Hello", "user: What is the capital of France?", "assistant: Paris", "user: Thanks"],
        ["system: s", "user: What is the capital of France?", "assistant: Paris", "user: And?", "assistant: No."],
    ],
)
def test_a_held_out_turn_is_refused_behind_other_turns_where_the_answer_agrees(turns: list[str]) -> None:
    assert "user's turn and its answer" in (HELD.check(said(*turns), None) or "")
    assert "user's turn and its answer" in (HELD.check(said(*turns), "problem-9") or "")
    other = [turn if "aris" not in turn else "assistant: Lyon" for turn in turns]
    assert HELD.check(said(*other), None) is None
    assert Firewall.from_dict(HELD.to_dict()) == HELD


def test_a_turn_behind_a_shared_system_turn_is_held_out_and_one_behind_its_own_is_not() -> None:
    kind, text = "system: Be kind.", "system: Dear all, the ship is late."
    refund = ("user: What is the refund window?", "assistant: 30 days")
    held = Firewall.of(
        [
            said(kind, *refund),
            said(kind, "user: Who pays?", "assistant: We do."),
            said(text, "user: Is this spam?", "assistant: no"),
            said("user: Hello", "assistant: Hi!", "user: Thanks", "assistant: You're welcome."),
        ],
        identity_of,
    )
    assert held.check(said(*refund), None)
    assert held.check(said("system: Be rude.", *refund), None)
    assert held.check(said("system: You won a ship.", "user: Is this spam?", "assistant: no"), None) is None
    assert (
        held.check(said("user: it works", "assistant: !", "user: Thanks", "assistant: You're welcome."), None) is None
    )


def test_a_tasks_problem_without_its_metadata_is_refused_where_its_long_answer_agrees() -> None:
    (puzzle,) = draw("syllo", 3, 1, 0, "holdout")
    held = Firewall.of([puzzle], tasks_identity)
    asked = puzzle.messages[0].content
    assert asked.startswith("Puzzle ")
    copied = ask(asked.replace("Puzzle ", "Puzzle 9"), puzzle.gold)
    assert "but for numbers and names" in (held.check(copied, None) or "")
    assert held.check(ask(copied.messages[0].content, "{}"), None) is None
    (sum_,) = draw("arithmetic", 1, 1, 0, "holdout")
    alike = ask(sum_.messages[0].content.replace("Compute: ", "Compute: 0"), sum_.gold)
    assert Firewall.of([sum_], tasks_identity).check(alike, None) is None, "many sums have that value"


def test_an_identity_is_refused_whatever_the_wording() -> None:
    assert "problem" in (HELD.check(ask("Say it otherwise.", "x"), "problem-1") or "")
    assert HELD.check(ask("Say it otherwise.", "x"), "problem-2") is None


def test_an_identity_of_the_held_out_split_is_refused_whatever_the_suites_hold() -> None:
    identities = [f"arithmetic|{number}" for number in range(200)]
    refused = [one for one in identities if Firewall().check(ask(f"Compute {one}.", "x"), one)]
    assert refused == [one for one in identities if is_holdout(one)]
    assert 0 < len(refused) < 30


def test_a_template_refuses_only_where_the_gold_agrees_and_is_reported_otherwise() -> None:
    same = ask("Bert has 9 apples and eats 7. How many are left?", " 2 ")
    other = ask("Bert has 9 apples and eats 4. How many are left?", "5")
    assert "but for numbers and names" in (HELD.check(same, None) or "")
    assert HELD.check(other, None) is None
    assert HELD.resembles(other, None)
    assert not HELD.resembles(ask("How many apples are left?", "2"), None)


def test_templates_bind_only_rows_without_an_identity() -> None:
    same = ask("Bert has 9 apples and eats 7. How many are left?", "2")
    assert HELD.check(same, "problem-9") is None
    assert not HELD.resembles(same, "problem-9")
    assert HELD.check(ask("Rewrite: the ship sails at 9.", "At 7 the ship sails."), None) is None


def test_plain_text_and_answers_without_a_question_are_told_apart() -> None:
    assert HELD.check(Sample("s", text="plain HELD-OUT text  about 4 ships."), None)
    assert HELD.check(Sample("s", text="Another text about 4 ships."), None) is None
    assert HELD.check(Sample("s", (Message("assistant", "An answer to nothing."),)), None)
    assert HELD.check(Sample("s", (Message("assistant", "Another answer."),)), None) is None
    assert question_hash(Sample("a", text="x")) != question_hash(Sample("a", text="y"))


def test_an_empty_firewall_lets_everything_pass() -> None:
    assert Firewall.of([], identity_of).check(ask("a", "b"), "c") is None
    assert Firewall().check(ask("a", "b"), None) is None


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Tom pays 3.50", "Eve pays 1,200", True),
        ("Tom pays 3", "Tom pays three", False),
        ("In Paris", "in Paris", False),
        ("call  Ann", "call Bo\n", True),
        ("Élan 4", "Orly 77", True),
    ],
)
def test_fingerprints_mask_numbers_and_names(one: str, other: str, equal: bool) -> None:
    assert (template_fingerprint(ask(one, "")) == template_fingerprint(ask(other, ""))) is equal


PIECES = st.sampled_from(
    ["12", "3.5", "1,000.5", "Abc", "12Abc", "12abc", "a1B", "_X", "A_1", ".", ",", " ", "\n", "5.A", "x"]
)


@given(st.lists(PIECES).map("".join) | st.text(st.characters(max_codepoint=127)))
def test_masking_ascii_without_a_call_per_word_changes_nothing(text: str) -> None:
    assert firewall._masked(text) == normalise(firewall._WORD.sub(firewall._mask, text))


@given(st.lists(PIECES | st.text(max_size=4)).map("".join))
def test_masking_keeps_the_number_of_words(text: str) -> None:
    assert len(firewall._masked(text).split()) == len(text.split())
