"""How much of the text is there after each token: what decoding so many tokens gives, half characters left out."""

from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from stokehold.data.profile import STOP, THINK, EmojiThink, answer_span, unwrap
from stokehold.data.template import ChatTemplate
from stokehold.data.tokenizer import CHATML, ChatTokenizer
from stokehold.inference.text_ends import TextEnds

HALF = "\ufffd"


def fallback_tokenizer(profile: EmojiThink | None = None) -> ChatTokenizer:
    """As Llama-2: words with ▁ for a space, the first space left out, everything else in bytes."""
    words = ["<unk>", "<|im_start|>", "<|im_end|>", "▁", "▁ok", "ok", "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    template = ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|im_end|>"], profile)
    return ChatTokenizer(tokenizer, template, {"eos_token": "<|im_end|>"}, set())


def right(tokenizer: ChatTokenizer, ids: list[int]) -> None:
    text, ends = TextEnds(tokenizer)(ids)
    assert text == tokenizer.decode(ids)
    assert len(ends) == len(ids)
    assert list(ends) == there(tokenizer, ids)


def there(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    """Characters after each token, by decoding all of them every time; what was there stays."""
    readable = [len(tokenizer.decode(ids[:count]).rstrip(HALF)) for count in range(1, len(ids))]
    return [*accumulate(readable, max), len(tokenizer.decode(ids))] if ids else []


@settings(deadline=None, max_examples=150)
@given(text=st.text(alphabet="the quick é ü 日本 🤔🛑\n fox", max_size=40))
def test_text_in_its_own_tokens(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer._chat.encode(text, add_special_tokens=False).ids
    right(tokenizer, ids)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 319), max_size=40))
@example(ids=[])
def test_tokens_at_random_which_are_text_only_in_parts(tokenizer: ChatTokenizer, ids: list[int]) -> None:
    """Bytes that are never a character may hide what stands before them until they are passed; nothing else does."""
    ids = [token % tokenizer.size for token in ids]
    text, ends = TextEnds(tokenizer)(ids)
    assert text == tokenizer.decode(ids)
    assert len(ends) == len(ids)
    assert not ends or ends[-1] == len(text)
    for count, end in enumerate(ends, start=1):
        assert tokenizer.decode(ids[:count]).startswith(text[:end].rstrip(HALF))


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.sampled_from(["▁", "▁ok", "ok", "\n", "日", "🛑", "é"]), max_size=14))
def test_a_tokenizer_that_writes_a_first_word_otherwise(parts: list[str]) -> None:
    tokenizer = fallback_tokenizer()
    known = tokenizer._text.get_vocab()
    ids = [
        token
        for part in parts
        for token in ([known[part]] if part in known else [known[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]
    right(tokenizer, ids)


@pytest.mark.parametrize("tail", ["", "\n", f"\n{STOP * 2}", f"{STOP}\n{STOP}"])
@pytest.mark.parametrize("head", ["", f"{THINK}\n", f"{THINK * 3}\n", THINK])
def test_marks_of_the_profile_are_not_text(head: str, tail: str) -> None:
    tokenizer = fallback_tokenizer(EmojiThink(1))
    whole = f"{head}ok é{tail}"
    known = tokenizer._text.get_vocab()
    ids = [
        token
        for char in whole
        for token in ([known[char]] if char in known else [known[f"<0x{byte:02X}>"] for byte in char.encode()])
    ]
    text, ends = TextEnds(tokenizer)(ids)
    start, end = answer_span(whole)
    assert text == unwrap(whole) == tokenizer.answer_text(ids) == whole[start:end]
    assert list(ends) == [min(max(place - start, 0), len(text)) for place in there(tokenizer, ids)]
