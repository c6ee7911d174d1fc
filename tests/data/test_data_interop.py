"""The same folders read by transformers: one rendering, one tokenisation, one mask."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from stokehold.core.records import Message, Sample
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer

MESSAGES = (
    Message("user", "One? é 漢"),
    Message("assistant", " First.\n"),
    Message("user", "Two?"),
    Message("assistant", "Second."),
)
SYSTEM = Message("system", "Be brief.")


def dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("shape", ["chatml", "rewriting", "headers", "model_role"])
def test_renderings_and_ids_equal_those_of_transformers(
    folders: dict[str, Path], tokenizers: dict[str, ChatTokenizer], shape: str
) -> None:
    theirs, ours = load(folders[shape]), tokenizers[shape]
    messages = MESSAGES if shape == "model_role" else (SYSTEM, *MESSAGES)
    assert theirs.apply_chat_template(dicts(messages), tokenize=False) == ours.render(messages)
    head = messages[:-1]
    asked = {"conversation": dicts(head), "add_generation_prompt": True, "return_dict": False}
    assert theirs.apply_chat_template(**asked, enable_thinking=False) == ours.prompt_ids(head)
    assert theirs.apply_chat_template(**asked) == ours.prompt_ids(head, thinking=True)
    whole = theirs.apply_chat_template(dicts(messages), return_dict=False)
    assert ours.encode(Sample("s", messages))[-1].ids.tolist() == whole


def test_generation_marks_of_our_template_mean_what_we_train(folders: dict[str, Path], chatml: ChatTokenizer) -> None:
    theirs = load(folders["chatml"]).apply_chat_template(
        dicts(MESSAGES), return_assistant_tokens_mask=True, return_dict=True
    )
    (document,) = chatml.encode(Sample("s", MESSAGES))
    assert theirs["input_ids"] == document.ids.tolist()
    assert theirs["assistant_masks"] == document.trained.astype(int).tolist()


def test_transformers_sees_the_special_tokens_we_trained(folders: dict[str, Path], chatml: ChatTokenizer) -> None:
    theirs = load(folders["chatml"])
    assert theirs.eos_token_id in chatml.stop_ids
    assert (theirs.pad_token_id, len(theirs)) == (chatml.pad_id, chatml.size)


def test_a_folder_in_an_older_format_is_converted(folders: dict[str, Path], tmp_path: Path) -> None:
    """vocab.json and merges.txt instead of tokenizer.json, as GPT-2 had them."""
    tree = json.loads((folders["chatml"] / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(tree["model"]["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in tree["model"]["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    config |= {"unk_token": "<|endoftext|>", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    # Code beside a model must stay unread: this one would leave a file behind.
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "chat_template.jinja").write_text((folders["chatml"] / "chat_template.jinja").read_text())
    tokenizer = load_tokenizer(tmp_path)
    (document,) = tokenizer.encode(Sample("s", MESSAGES[:2]))
    assert tokenizer.decode(document.ids[document.trained].tolist(), keep_special=True) == " First.\n<|im_end|>"
    assert not (tmp_path / "ran").exists()


def test_a_begin_of_text_token_is_put_before_plain_text_where_the_model_reads_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    for path in folders["headers"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = saved.token_to_id("<|begin_of_text|>")
    saved.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    saved.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    (document,) = tokenizer.encode(Sample("s", text="abc"))
    assert document.ids[0] == bos
    assert tokenizer.decode(document.ids[document.trained].tolist()) == "abc"
    (chat,) = tokenizer.encode(Sample("s", MESSAGES[:2]))
    assert chat.ids.tolist().count(bos) == 1
