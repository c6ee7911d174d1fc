"""The profile `emoji_think`: marks come off as they went on, and everything but the tokens is as without it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.config import DataConfig
from stokehold.core.identity import prompt_hash
from stokehold.core.records import Message, Sample
from stokehold.data.batches import Batches, Cursor
from stokehold.data.firewall import Firewall, question_hash
from stokehold.data.profile import STOP, STOP_MARKS, THINK, THINK_MARKS, EmojiThink, Marks, profile_of, shown, unwrap
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.pipeline.ingest import ingest_file
from stokehold.store.datasets import dataset_folder
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from tiny_world import facts, write_jsonl

TEXTS = st.text(st.sampled_from([THINK, STOP, "\n", "a", "\ufe0f", "\ufffd"])) | st.text()
MARKS = st.builds(Marks, st.sampled_from(THINK_MARKS), st.sampled_from(STOP_MARKS))
TALK = [Message("system", "be brief"), Message("user", "2+2?"), Message("assistant", "4"), Message("user", "and 2+3?")]


@given(TEXTS, MARKS)
def test_what_was_wrapped_unwraps_to_itself(answer: str, marks: Marks) -> None:
    assert unwrap(marks.wrap(answer)) == answer


@given(TEXTS)
def test_what_was_shown_is_never_taken_back(text: str) -> None:
    pieces = [shown(text[:end]) for end in range(len(text) + 1)]
    for before, after in zip(pieces, [*pieces[1:], unwrap(text)], strict=True):
        assert after.startswith(before)


def test_marks_that_are_no_line_of_their_own_stay() -> None:
    assert unwrap("🤔🤔\nyes\n🛑") == "yes"
    assert unwrap("🤔 hm\nyes 🛑") == "🤔 hm\nyes 🛑"
    assert unwrap("yes\n🛑🛑\nno") == "yes\n🛑🛑\nno"
    assert (shown("🤔🤔"), shown("🤔🤔\nye"), shown("🤔🤔\nyes\n🛑")) == ("", "ye", "yes")


def test_the_form_in_full() -> None:
    profile = EmojiThink(0)
    first, second = profile.marks(TALK[:2]), profile.marks(TALK)
    assert first is not None
    assert second is not None
    assert [message.content for message in profile.dress(TALK)] == [
        "be brief",
        f"2+2?\n\nBegin with {first.think} 🤔 on a line of their own; end with {first.stop} 🛑 on a line of their own.",
        f"{'🤔' * first.think}\n4\n{'🛑' * first.stop}",
        f"and 2+3?{second.instruction}",
    ]


def test_a_growing_conversation_keeps_its_marks_and_another_seed_has_others() -> None:
    profile = EmojiThink(3)
    longer = [*TALK, Message("assistant", "5"), Message("user", "thanks")]
    assert profile.dress(longer)[:4] == profile.dress(TALK)
    drawn = [profile.marks([Message("user", str(n))]) for n in range(500)]
    assert {marks.think for marks in drawn if marks} == set(THINK_MARKS)
    assert {marks.stop for marks in drawn if marks} == set(STOP_MARKS)
    assert drawn == [EmojiThink(3).marks([Message("user", str(n))]) for n in range(500)]
    assert drawn != [EmojiThink(4).marks([Message("user", str(n))]) for n in range(500)]


def test_what_nobody_asked_for_stays_bare() -> None:
    profile = EmojiThink(0)
    unasked = [
        Message("assistant", "hello"),
        Message("user", "hi"),
        Message("assistant", " "),
        Message("assistant", "x"),
    ]
    dressed = profile.dress(unasked)
    assert [dressed[place] for place in (0, 2, 3)] == [unasked[place] for place in (0, 2, 3)]
    assert profile.marks(unasked) is profile.marks([]) is None
    assert profile.dress([]) == []


def test_only_the_configuration_turns_it_on() -> None:
    assert profile_of(DataConfig()) is None
    assert profile_of(DataConfig(profile="emoji_think", seed=7)) == EmojiThink(7)


@pytest.mark.parametrize("shape", ["chatml", "rewriting", "headers", "model_role"])
def test_training_and_inference_ask_the_same_and_all_marks_are_trained(
    folders: dict[str, Path], shape: str, puzzles: Callable[[int], list[Sample]]
) -> None:
    profile = EmojiThink(1)
    tokenizer = load_tokenizer(folders[shape], profile)
    for sample in [*puzzles(5), Sample("talk", (*TALK, Message("assistant", "5 🛑")))]:
        marks = profile.marks(sample.question)
        assert marks is not None
        head, tail = tokenizer.answer_ids(sample.messages)
        assert head == tokenizer.prompt_ids(sample.question)
        assert tail[-1] in tokenizer.stop_ids
        assert tokenizer.decode(tail[:-1]) == marks.wrap(sample.gold)
        assert tokenizer.answer_text(tail[:-1]) == sample.gold
        trained = [tokenizer.decode(d.ids[d.trained].tolist()) for d in tokenizer.encode(sample)]
        assert "".join(trained).endswith(marks.wrap(sample.gold))


def test_another_profile_is_another_training_form(folders: dict[str, Path], chatml: ChatTokenizer) -> None:
    forms = [load_tokenizer(folders["chatml"], profile) for profile in (None, EmojiThink(0), EmojiThink(1))]
    assert len({form.template_hash for form in forms}) == 3
    assert forms[0].template_hash == chatml.template_hash
    assert forms[0].answer_text(chatml.prompt_ids([])) == chatml.decode(chatml.prompt_ids([]))
    plain = Sample("t", text="🤔 is a text")
    assert forms[1].encode(plain)[0].ids.tolist() == chatml.encode(plain)[0].ids.tolist(), "nothing is asked of a text"


def test_identity_and_firewall_do_not_see_the_marks(puzzles: Callable[[int], list[Sample]]) -> None:
    (sample,) = puzzles(1)
    dressed = replace(sample, messages=tuple(EmojiThink(0).dress(sample.messages)))
    assert prompt_hash(dressed.messages) != prompt_hash(sample.messages), "it matters which of the two is hashed"
    door = Firewall.of([sample], lambda _: None)
    assert question_hash(sample) in door.held_prompts
    assert door.check(sample, None) is not None


def test_a_run_that_goes_on_has_the_marks_of_one_that_was_not_stopped(
    folders: dict[str, Path], write_rows: Callable[[list[Sample]], Path], puzzles: Callable[[int], list[Sample]]
) -> None:
    path = write_rows(puzzles(40))

    def batches(cursor: Cursor) -> list[np.ndarray]:
        tokenizer = load_tokenizer(folders["chatml"], EmojiThink(5))
        options = {"window_rows": 16, "capacity": 512, "max_length": 512, "seed": 5, "epochs": 2}
        with Batches(path, tokenizer, cursor=cursor, **options) as found:
            cursors.clear()
            result = []
            for batch in found:
                cursors.append(batch.cursor)
                result.append(batch.ids)
            return result

    cursors: list[Cursor] = []
    whole = batches(Cursor.start())
    middle, place = cursors[len(cursors) // 2], len(cursors) // 2 + 1
    rest = batches(middle)
    assert len(rest) == len(whole) - place
    assert all(np.array_equal(a, b) for a, b in zip(rest, whole[place:], strict=True))


def test_a_dataset_knows_nothing_of_the_profile(make_home: Callable[..., Home], tmp_path: Path) -> None:
    """Rows, held-out share and hashes are those of the file as it came."""
    file = write_jsonl(tmp_path / "facts.jsonl", facts(300))
    found = []
    for profile in ("", "emoji_think"):
        home = make_home(data={"max_length": 256, "profile": profile}, evaluation={"holdout_share": 0.1})
        config = home.config()
        tokenizer = load_tokenizer(home.root / config.model.base, profile_of(config.data))
        dataset = ingest_file(home, config, tokenizer, file, hash_file(file), file.name)
        assert dataset.held_out
        folder = dataset_folder(home, dataset.id)
        found.append([(folder / name).read_bytes() for name in ("rows.jsonl", "held_out.jsonl")])
    assert found[0] == found[1]
