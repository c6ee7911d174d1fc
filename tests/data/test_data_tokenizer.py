"""What is trained, in every shape of template: the answers, their ends of turn, and no token more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stokehold.core.errors import InputError, NotFoundError
from stokehold.core.records import Message, Sample
from stokehold.data.bytelevel import ByteLevel
from stokehold.data.tokenizer import ChatTokenizer, Document, load_tokenizer, train_tokenizer

ENDS = {"chatml": "<|im_end|>", "rewriting": "<|im_end|>", "headers": "<|eot_id|>", "model_role": "<end_of_turn>"}
SHAPES = sorted(ENDS)

CONTROL = ["<|im_end|>", "<|im_start|>", "<bos>", "<|eot_id|>"]
PIECES = ["\n", "\n\n", " ", "a", "é", "漢", "😀", '"au"', "7", *CONTROL]
CONTENT = st.text(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
"""What people type, control tokens and the white space that a template puts before answers among it."""

QUESTION, ANSWER = Message("user", "How many tiles?"), Message("assistant", "12 tiles.")


def conversation(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant turns in alternation."""
    turns = [Message("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents)]
    return ((Message("system", system),) if system is not None else ()) + tuple(turns)


def documents(tokenizer: ChatTokenizer, messages: tuple[Message, ...]) -> list[Document]:
    return tokenizer.encode(Sample("s", messages))


def spans(tokenizer: ChatTokenizer, document: Document) -> list[str]:
    """The text of every stretch of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], document.trained, [False]]).astype(int)))
    return [tokenizer.decode(document.ids[a:b].tolist(), keep_special=True) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("shape", ["chatml", "headers", "model_role"])
def test_every_answer_is_trained_with_its_end_of_turn_and_nothing_else(
    tokenizers: dict[str, ChatTokenizer], shape: str
) -> None:
    tokenizer = tokenizers[shape]
    (document,) = documents(tokenizer, conversation("One?", "First.", "Two?", "Second."))
    assert spans(tokenizer, document) == ["First." + ENDS[shape], "Second." + ENDS[shape]]
    assert tokenizer.decode(document.ids.tolist(), keep_special=True) == tokenizer.render(
        conversation("One?", "First.", "Two?", "Second.")
    )


def test_a_template_that_rewrites_earlier_turns_gives_a_document_per_answer(
    tokenizers: dict[str, ChatTokenizer],
) -> None:
    tokenizer = tokenizers["rewriting"]
    messages = conversation("One?", "First.", "Two?", "Second.", system="Be brief.")
    first, second = documents(tokenizer, messages)
    assert spans(tokenizer, first) == ["First.<|im_end|>"]
    assert spans(tokenizer, second) == ["Second.<|im_end|>"]
    for document, asked in ((first, messages[:2]), (second, messages[:4])):
        prompt = tokenizer.prompt_ids(asked)
        assert document.ids[: len(prompt)].tolist() == prompt
        assert not document.trained[: len(prompt)].any()
        assert document.trained[len(prompt)]


def test_thoughts_of_an_answer_are_trained_where_inference_would_write_them(
    tokenizers: dict[str, ChatTokenizer],
) -> None:
    tokenizer = tokenizers["rewriting"]
    messages = conversation("One?", "<think>\nHm.\n</think>\n\nFirst.")
    (document,) = documents(tokenizer, messages)
    assert spans(tokenizer, document) == ["<think>\nHm.\n</think>\n\nFirst.<|im_end|>"]
    prompt, gold = tokenizer.answer_ids(messages)
    assert prompt == tokenizer.prompt_ids(messages[:1], thinking=True)
    assert gold == document.ids[document.trained].tolist()


def test_no_token_crosses_into_any_answer_of_a_prompt(chatml: ChatTokenizer) -> None:
    messages = conversation("", "\n0", "", "0")
    assert chatml.answer_ids(messages)[0] == chatml.prompt_ids(messages[:3])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4))
def test_training_and_inference_share_one_form(
    tokenizers: dict[str, ChatTokenizer], shape: str, contents: list[str]
) -> None:
    """Whatever is typed: the prompt of inference is the untrained head of what is trained, token for token."""
    assume(contents[1].strip() and contents[3].strip())
    tokenizer = tokenizers[shape]
    messages = conversation(*contents)
    for document, turns in zip(documents(tokenizer, messages)[::-1], (messages, messages[:2]), strict=False):
        prompt, gold = tokenizer.answer_ids(turns)
        assert prompt == tokenizer.prompt_ids(turns[:-1])
        head = len(prompt)
        assert document.ids[: head + len(gold)].tolist() == prompt + gold
        assert document.trained[head : head + len(gold)].all()
        assert not document.trained[head + len(gold) :].any()
        assert gold[-1] in tokenizer.stop_ids
        assert not tokenizer.stop_ids.intersection(gold[:-1]), "what is typed never ends a turn"


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(CONTENT, min_size=6, max_size=6), system=st.none() | CONTENT)
def test_trained_text_is_the_answers_to_the_letter(
    chatml: ChatTokenizer, contents: list[str], system: str | None
) -> None:
    answers = [content for content in contents[1::2] if content.strip()]
    assume(answers)
    (document,) = documents(chatml, conversation(*contents, system=system))
    assert spans(chatml, document) == [answer + "<|im_end|>" for answer in answers]
    assert not document.trained[0]


def test_an_answer_without_content_teaches_nothing(chatml: ChatTokenizer) -> None:
    (document,) = documents(chatml, conversation("One?", " ", "Two?", "Second."))
    assert spans(chatml, document) == ["Second.<|im_end|>"]
    with pytest.raises(InputError, match="no assistant turn with content"):
        documents(chatml, conversation("One?", " "))


def test_turns_after_the_last_answer_are_not_read(chatml: ChatTokenizer) -> None:
    (document,) = documents(chatml, conversation("One?", "First.", "Two?"))
    (shorter,) = documents(chatml, conversation("One?", "First."))
    assert document.ids.tolist() == shorter.ids.tolist()


def test_a_token_never_crosses_into_an_answer(tmp_path: Path) -> None:
    """Line ends merge with the one that closes the header, unless they are cut where the answer begins."""
    train_tokenizer(["a\n\nb\n\n\nc"] * 50, 400, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(documents(tokenizer, conversation("q", "x\n\ny"))[0].ids) < len("user\nq\nassistant\nx\n\ny") + 4
    messages = conversation("q", "\n\nx")
    prompt, gold = tokenizer.answer_ids(messages)
    assert prompt == tokenizer.prompt_ids(messages[:1])
    assert tokenizer.decode(gold, keep_special=True) == "\n\nx<|im_end|>"
    uncut = tokenizer._chat.encode(tokenizer.render(messages), add_special_tokens=False).ids
    assert documents(tokenizer, messages)[0].ids.tolist() != uncut


def test_plain_text_trains_every_token_but_the_first(chatml: ChatTokenizer) -> None:
    (document,) = chatml.encode(Sample("s", text="Once upon a time"))
    assert chatml.decode(document.ids.tolist()) == "Once upon a time"
    assert document.trained.tolist() == [False] + [True] * (len(document.ids) - 1)
    assert document.ids.dtype == np.int32


def test_many_rows_are_encoded_in_order_with_the_refused_ones_in_place(tokenizers: dict[str, ChatTokenizer]) -> None:
    tokenizer = tokenizers["model_role"]
    good, bad = conversation("One?", "First."), (QUESTION, QUESTION, ANSWER)
    outcomes = tokenizer.encode_many(
        [Sample("a", good), Sample("b", bad), Sample("c", text="abc"), Sample("d", good)] + [Sample("e", good)] * 130
    )
    assert isinstance(outcomes[1], InputError)
    assert "Conversation roles must alternate" in outcomes[1].what
    assert [len(outcome) for outcome in outcomes if not isinstance(outcome, InputError)] == [1] * 133
    expected = documents(tokenizer, good)[0].ids.tolist()
    for place in (0, 3, 133):
        outcome = outcomes[place]
        assert not isinstance(outcome, InputError)
        assert outcome[0].ids.tolist() == expected


def test_a_refused_system_turn_is_folded_into_the_user_turn(tokenizers: dict[str, ChatTokenizer]) -> None:
    tokenizer = tokenizers["model_role"]
    assert tokenizer.folds_system
    assert not any(tokenizers[shape].folds_system for shape in ("chatml", "rewriting", "headers"))
    folded = conversation("Be brief.\n\nOne?", "First.")
    system = conversation("One?", "First.", system="Be brief.")
    assert tokenizer.render(system) == tokenizer.render(folded)
    assert tokenizer.prompt_ids(system[:2]) == tokenizer.prompt_ids(folded[:1])
    assert documents(tokenizer, system)[0].ids.tolist() == documents(tokenizer, folded)[0].ids.tolist()
    assert tokenizer.render((Message("system", "A"), ANSWER)) == tokenizer.render((Message("user", "A"), ANSWER))
    assert tokenizer.render((Message("system", "A"),)) == tokenizer.render((Message("user", "A"),))


def test_special_ids_and_size(tokenizers: dict[str, ChatTokenizer], folders: dict[str, Path]) -> None:
    for shape, tokenizer in tokenizers.items():
        vocabulary = Tokenizer.from_file(str(folders[shape] / "tokenizer.json")).get_vocab()
        assert tokenizer.size == max(vocabulary.values()) + 1
        assert vocabulary[ENDS[shape]] in tokenizer.stop_ids
    ends = {vocabulary_id(folders, "model_role", token) for token in ("<eos>", "<end_of_turn>")}
    assert tokenizers["model_role"].stop_ids == ends
    assert tokenizers["chatml"].pad_id == vocabulary_id(folders, "chatml", "<|pad|>")
    assert tokenizers["headers"].pad_id in tokenizers["headers"].stop_ids
    assert len({tokenizer.template_hash for tokenizer in tokenizers.values()}) == len(tokenizers)


def vocabulary_id(folders: dict[str, Path], shape: str, token: str) -> int:
    return Tokenizer.from_file(str(folders[shape] / "tokenizer.json")).get_vocab()[token]


def test_generation_config_names_more_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    copy_folder(folders["chatml"], tmp_path, **{"generation_config.json": {"eos_token_id": [0, 2]}})
    assert load_tokenizer(tmp_path).stop_ids == {0, 2}


def test_saved_truncation_and_padding_do_not_come_back(folders: dict[str, Path], tmp_path: Path) -> None:
    copy_folder(folders["chatml"], tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=64)
    saved.save(str(tmp_path / "tokenizer.json"))
    expected = documents(load_tokenizer(folders["chatml"]), (QUESTION, ANSWER))[0]
    assert documents(load_tokenizer(tmp_path), (QUESTION, ANSWER))[0].ids.tolist() == expected.ids.tolist()


def copy_folder(source: Path, target: Path, **changes: Any) -> None:
    """A copy of a tokenizer folder; a change is a file's text or JSON, or None to leave the file out."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    for name, content in changes.items():
        if content is None:
            (target / name).unlink()
        else:
            (target / name).write_text(content if isinstance(content, str) else json.dumps(content))


UNUSABLE = [
    ({"tokenizer.json": None}, "no tokenizer.json"),
    ({"chat_template.jinja": None}, "no chat template"),
    ({"chat_template.jinja": "{% for %}"}, "does not compile"),
    ({"chat_template.jinja": "{% for m in messages %}{{ m.content }}\n{% endfor %}"}, "ends no answer"),
    ({"tokenizer_config.json": "{"}, "not JSON"),
]


@pytest.mark.parametrize(("changes", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_folder_says_what_is_missing_and_what_to_do(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    copy_folder(folders["chatml"], tmp_path, **changes)
    with pytest.raises(InputError, match=reason) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.where
    assert caught.value.fix


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_tokenizer(tmp_path / "nowhere")


def test_templates_are_found_wherever_models_keep_them(folders: dict[str, Path], tmp_path: Path) -> None:
    template = (folders["chatml"] / "chat_template.jinja").read_text()
    expected = load_tokenizer(folders["chatml"]).render((QUESTION, ANSWER))
    config = {"eos_token": "<|im_end|>"}
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    for number, changes in enumerate(
        [
            {"tokenizer_config.json": {**config, "chat_template": template}},
            {"tokenizer_config.json": {**config, "chat_template": listed}},
            {"chat_template.json": {"chat_template": template}},
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        copy_folder(folders["chatml"], folder, **{"chat_template.jinja": None}, **changes)
        assert load_tokenizer(folder).render((QUESTION, ANSWER)) == expected


def test_the_trained_tokenizer_is_deterministic_and_bounded(tmp_path: Path) -> None:
    texts = ['1. ___ ___ - a large group of listeners\nBank: "au" "di" "ence"'] * 20 + ["être 1234 漢字"]
    for name in ("one", "two"):
        train_tokenizer(texts, 330, tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
    assert load_tokenizer(tmp_path / "one").size <= 330


def tokens(tokenizer: ChatTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(Sample("s", text=text))[0].ids.tolist()]


def test_a_syllable_has_the_same_tokens_in_a_bank_and_in_json(chatml: ChatTokenizer) -> None:
    for syllable in ("au", "ence", "tion", "zyg"):
        alone = tokens(chatml, syllable)
        for text in (f'"di" "{syllable}" "un"', f'["{syllable}"]', f'{{"syllables":["di","{syllable}"],"answer":"X"}}'):
            found = tokens(chatml, text)
            assert any(found[i : i + len(alone)] == alone for i in range(len(found))), (syllable, found)
    assert tokens(chatml, '"ence"') == ['"', "ence", '"']


def test_digits_stand_alone_and_known_prompts_are_short(chatml: ChatTokenizer) -> None:
    assert [t for t in tokens(chatml, "x2024y, 1234567.") if t.isdigit()] == list("20241234567")
    assert len(tokens(chatml, "1. ___ ___ - a large group of listeners")) <= 11


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1) | CONTENT.filter(bool))
def test_every_text_decodes_to_itself(chatml: ChatTokenizer, text: str) -> None:
    (document,) = chatml.encode(Sample("s", text=text))
    assert chatml.decode(document.ids.tolist(), keep_special=True) == text


HOSTILE = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__.os }}",
]


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_template_cannot_leave_its_sandbox(folders: dict[str, Path], tmp_path: Path, attack: str) -> None:
    template = "{% if messages | length > 2 %}" + attack + "{% endif %}" + CHATML_TAIL
    copy_folder(folders["chatml"], tmp_path, **{"chat_template.jinja": template})
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="refuses the conversation"):
        tokenizer.render(conversation("One?", "First.", "Two?"))


CHATML_TAIL = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_renderings_do_not_depend_on_the_day(folders: dict[str, Path], tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }}\n" + CHATML_TAIL
    copy_folder(folders["chatml"], tmp_path, **{"chat_template.jinja": template})
    assert load_tokenizer(tmp_path).render((QUESTION,)).startswith("26 Jul 2024\n")


def test_a_template_that_loses_the_answer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content | replace('a', 'b') }}<|im_end|>{{ loop.length }}{% endfor %}"
    copy_folder(folders["chatml"], tmp_path, **{"chat_template.jinja": template})
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="does not write the answer as it is"):
        documents(tokenizer, (QUESTION, Message("assistant", "banana")))


def test_a_prompt_that_is_no_prefix_still_trains_the_answer_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in templates whose generation prompt opens a thinking block that finished turns do not have."""
    template = CHATML_TAIL + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    copy_folder(folders["chatml"], tmp_path, **{"chat_template.jinja": template})
    tokenizer = load_tokenizer(tmp_path)
    (document,) = documents(tokenizer, conversation("First.", "First.", "Two?", "Second."))
    assert spans(tokenizer, document) == ["First.<|im_end|>", "Second.<|im_end|>"]
    assert tokenizer.decode(document.ids[document.trained].tolist()) == "First.Second."
    assert int(np.argmax(document.trained)) > len(tokens(tokenizer, "user\nFirst.\n"))


def test_loading_leaves_torch_out(folders: dict[str, Path]) -> None:
    program = (
        "import sys, pathlib\nfrom stokehold.data.tokenizer import load_tokenizer\n"
        f"load_tokenizer(pathlib.Path({str(folders['headers'])!r}))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.lists(CONTENT, min_size=4, max_size=4), min_size=1, max_size=3))
def test_encoding_by_bytes_gives_what_offsets_give(
    tokenizers: dict[str, ChatTokenizer], folders: dict[str, Path], shape: str, rows: list[list[str]]
) -> None:
    """The fast way, piece by piece between added tokens, against the whole text with offsets."""
    fast = tokenizers[shape]
    assert fast._bytes is not None
    renderings = []
    for contents in rows:
        try:
            renderings += fast.template.documents(conversation(*contents))
        except InputError:
            continue
    slow = list(fast._by_offsets(renderings))
    for document, expected in zip(fast._encode_chunk(renderings), slow, strict=True):
        assert document.ids.tolist() == expected.ids.tolist()
        assert document.trained.tolist() == expected.trained.tolist()
        assert document.ids.dtype == expected.ids.dtype


def test_ordinary_rows_are_encoded_by_bytes(chatml: ChatTokenizer) -> None:
    renderings = chatml.template.documents(conversation("One? é", "First.", "Two?", "Second."))
    assert [document is not None for document in chatml._by_bytes(renderings)] == [True]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}},
        {"decoder": None},
        {"lstrip": True},
    ],
)
def test_other_tokenizers_are_asked_for_offsets(folders: dict[str, Path], change: dict[str, Any]) -> None:
    tree = json.loads((folders["chatml"] / "tokenizer.json").read_text())
    if "lstrip" in change:
        tree["added_tokens"][1] |= change
    else:
        tree |= change
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    assert ByteLevel.read(tokenizer, tokenizer) is None


def test_under_a_normaliser_only_ascii_is_encoded_by_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    tree = json.loads((folders["chatml"] / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    copy_folder(folders["chatml"], tmp_path, **{"tokenizer.json": tree})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer._bytes is not None
    assert (tokenizer._bytes.takes("abc"), tokenizer._bytes.takes("e\u0301")) == (True, False)
    (document,) = documents(tokenizer, conversation("e\u0301", "e\u0301"))
    assert tokenizer.decode(document.ids[document.trained].tolist()) == "é"
