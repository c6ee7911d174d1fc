"""Text to token ids and back, as the model's own folder says, with what of a conversation is trained.

`tokenizer.json` and the chat template are read with `tokenizers` and sandboxed Jinja rather than with transformers,
whose import costs 2.6 s and loads torch; a folder in an older format is converted by transformers, never with remote
code. Training and inference share one form: ids of a prompt are a prefix of the ids trained on it.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stokehold.core.errors import InputError, NotFoundError
from stokehold.core.identity import short_id
from stokehold.core.records import Message, Sample
from stokehold.data.bytelevel import ByteLevel, byte_of
from stokehold.data.profile import EmojiThink, shown, unwrap
from stokehold.data.template import ChatTemplate, Rendering

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of tokenizer_config.json that a chat template may write."""

END_OF_TEXT, START_OF_TURN, END_OF_TURN, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

WORDS = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where text is cut before merging: runs of letters, single digits, runs of punctuation, line ends, spaces. A letter
run behind a quote never has the quote or a space in it, so a syllable has the same tokens in a bank and in JSON."""


TOGETHER = 256
"""Renderings encoded in one call, on every core it is given; an encoding takes about 100 bytes a token until it is
masked."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Token ids [n] and, per token, whether predicting it is trained [n]; the first is never: nothing precedes it."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


class ChatTokenizer:
    """A tokenizer with its chat template; `load_tokenizer` makes one. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, special: dict[str, str], stops: set[int]) -> None:
        """`special` names tokens (`eos_token`, …); `stops` are ids that end an answer beside the template's own."""
        self.template = template
        self._text = tokenizer
        # The post-processor would add tokens that the template writes itself, and trims the offsets we map spans with.
        self._chat = _copy(tokenizer)
        self._chat.post_processor = None
        self._typed = Tokenizer.from_str(json.dumps({**json.loads(self._chat.to_str()), "added_tokens": []}))
        self._bytes = ByteLevel.read(self._chat, self._typed)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        ends = {special.get("eos_token", template.end_of_turn), template.end_of_turn}
        self.stop_ids = frozenset(stops | {vocabulary[token] for token in ends if token in vocabulary})
        self.pad_id = vocabulary.get(special.get("pad_token", ""), min(self.stop_ids))

    @property
    def template_hash(self) -> str:
        """Identity of the chat template and the profile: another one is another training form."""
        return short_id(self.template.source, *([self.profile.identity] if self.profile else []))

    @property
    def profile(self) -> EmojiThink | None:
        """What conversations are dressed in on their way to tokens, and answers freed of on their way back."""
        return self.template.profile

    @property
    def folds_system(self) -> bool:
        """Whether system turns are folded into user turns because the template refuses them."""
        return self.template.folds_system

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text; InputError in the template's words where it refuses it."""
        return self.template.render(messages, add_generation_prompt).text

    def encode(self, sample: Sample) -> list[Document]:
        """The documents to train on one row; InputError where the template refuses it. See `encode_many`."""
        (outcome,) = self.encode_many([sample])
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    def encode_many(self, samples: Sequence[Sample]) -> list[list[Document] | InputError]:
        """Per row its documents, or why it has none, in the order given.

        Conversations train every answer with its end-of-turn token; plain text trains every token but its first.
        """
        outcomes: list[list[Document] | InputError] = [[] for _ in samples]
        texts: list[tuple[int, str]] = []
        renderings: list[tuple[int, Rendering]] = []
        for number, sample in enumerate(samples):
            if sample.text is not None:
                texts.append((number, sample.text))
                continue
            try:
                renderings += [(number, rendering) for rendering in self.template.documents(sample.messages)]
            except InputError as error:
                outcomes[number] = error
        documents = [
            *self._encode_texts([text for _, text in texts]),
            *self._encode_renderings([rendering for _, rendering in renderings]),
        ]
        for (number, _), document in zip([*texts, *renderings], documents, strict=True):
            place = outcomes[number]
            assert isinstance(place, list)
            place.append(document)
        return outcomes

    def prompt_ids(self, messages: Sequence[Message], thinking: bool = False) -> list[int]:
        """Ids of the conversation through the point where an answer begins. `thinking` leaves the thinking block of
        a template that has one to the model; without it the block is written empty, as it is in training."""
        rendering = self.template.render(messages, add_generation_prompt=True, thinking=thinking)
        return list(self._encode_rendering(rendering).ids)

    def answer_ids(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Prompt and gold ids of the last assistant turn, the end of turn included: what training trains for it."""
        rendering = self.template.documents(messages)[-1]
        encoding = self._encode_rendering(rendering)
        first, last = _tokens_of(encoding, rendering.spans[-1])
        ids = encoding.ids
        return ids[:first], ids[first:last]

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """The text of `ids`; special tokens are skipped unless they are to be seen."""
        return str(self._text.decode(list(ids), skip_special_tokens=not keep_special))

    def answer_text(self, ids: Iterable[int], complete: bool = True) -> str:
        """The answer that these generated tokens are, without the profile's marks; of one that is not `complete`, what
        is certain."""
        text = self.decode(ids)
        if self.profile is None:
            return text
        return unwrap(text) if complete else shown(text)

    def _encode_texts(self, texts: list[str]) -> list[Document]:
        """Plain text with what the tokenizer itself puts around it (some models read a begin-of-text token)."""
        return [_document(encoding.ids, slice(None)) for encoding in self._text.encode_batch_fast(texts)]

    def _encode_renderings(self, renderings: list[Rendering]) -> Iterator[Document]:
        for chunk in (renderings[i : i + TOGETHER] for i in range(0, len(renderings), TOGETHER)):
            yield from self._encode_chunk(chunk)

    def _encode_chunk(self, renderings: list[Rendering]) -> list[Document]:
        fast = [self._bytes is not None and not r.typed and self._bytes.takes(r.text) for r in renderings]
        documents = iter(self._by_bytes([r for r, is_fast in zip(renderings, fast, strict=True) if is_fast]))
        done = [next(documents) if is_fast else None for is_fast in fast]
        left = [r for r, document in zip(renderings, done, strict=True) if document is None]
        others = iter(self._by_offsets(left))
        return [next(others) if document is None else document for document in done]

    def _by_bytes(self, renderings: list[Rendering]) -> Iterator[Document | None]:
        """The documents whose tokens' bytes tell their places, None where one crosses the beginning of an answer."""
        if self._bytes is None or not renderings:
            return
        for rendering, ids in zip(renderings, self._bytes.encode([r.text for r in renderings]), strict=True):
            ends = self._bytes.ends(rendering.text, ids)
            yield None if ends is None else _masked(rendering, ids, ends)

    def _by_offsets(self, renderings: list[Rendering]) -> Iterator[Document]:
        simple = [r.text for r in renderings if not r.typed]
        encodings = iter(self._chat.encode_batch(simple, add_special_tokens=False))
        for rendering in renderings:
            encoding = self._encode_rendering(rendering, None if rendering.typed else next(encodings))
            yield _document(encoding.ids, *(slice(*_tokens_of(encoding, span)) for span in rendering.spans))

    def _encode_rendering(self, rendering: Rendering, whole: Encoding | None = None) -> Encoding:
        """The tokens of a rendering; it is encoded in pieces where a token would cross the beginning of an answer."""
        if not rendering.typed:
            whole = whole or self._chat.encode(rendering.text, add_special_tokens=False)
            if not any(_crosses(whole, cut) for cut in rendering.cuts):
                return whole
        typed_edges = (edge for span in rendering.typed for edge in span)
        edges = sorted({0, len(rendering.text), *rendering.cuts, *typed_edges})
        typed = set(rendering.typed)
        pieces = [
            (self._typed if (start, end) in typed else self._chat).encode(
                rendering.text[start:end], add_special_tokens=False
            )
            for start, end in itertools.pairwise(edges)
        ]
        return Encoding.merge(pieces, growing_offsets=True)


def load_tokenizer(folder: Path, profile: EmojiThink | None = None) -> ChatTokenizer:
    """The tokenizer of a model folder. InputError with the fix where it has no tokenizer or no chat template."""
    if not folder.is_dir():
        raise NotFoundError("there is no such model folder", str(folder))
    config = _read_json(folder / "tokenizer_config.json")
    special = {**_named(_read_json(folder / "special_tokens_map.json")), **_named(config)}
    tokenizer = _read_tokenizer(folder)
    stops = _read_json(folder / "generation_config.json").get("eos_token_id") or []
    stop_ids = {stops} if isinstance(stops, int) else set(stops)
    added = tokenizer.get_added_tokens_decoder()
    control = [t.content for i, t in added.items() if t.special or i in stop_ids or t.content in special.values()]
    try:
        template = ChatTemplate(_read_template(folder, config), special, control, profile)
    except InputError as error:
        raise InputError(error.what, error.where or str(folder), error.fix) from error
    return ChatTokenizer(tokenizer, template, special, stop_ids)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Writes a byte-level BPE tokenizer of at most `vocab_size` tokens with a ChatML template into `folder`.

    Deterministic in `texts`. Lossless: every string decodes to itself. transformers' AutoTokenizer loads the folder.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True) for t in (END_OF_TEXT, START_OF_TURN, END_OF_TURN, PAD)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_with_roles(texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHATML)


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """The role names too, as often as the template writes them: each is then one token and not seven."""
    for text in texts:
        yield text
        yield from ("system", "user", "assistant")


def _document(ids: Sequence[int] | NDArray[np.int32], *trained: slice) -> Document:
    mask = np.zeros(len(ids), dtype=np.bool_)
    for part in trained:
        mask[part] = True
    mask[:1] = False
    return Document(np.asarray(ids, dtype=np.int32), mask)


def _masked(rendering: Rendering, ids: NDArray[np.int32], ends: NDArray[np.int64]) -> Document | None:
    """The document of tokens that end at these bytes; None where one crosses a cut or an edge of a span."""
    edges = [*rendering.cuts, *itertools.chain.from_iterable(rendering.spans)]
    at = [byte_of(rendering.text, edge) for edge in edges]
    places = ends.searchsorted(at).tolist()  # of the token that ends there
    if any(byte and ends[place] != byte for byte, place in zip(at, places, strict=True)):
        return None
    tokens = [place + 1 if byte else 0 for byte, place in zip(at, places, strict=True)][len(rendering.cuts) :]
    return _document(ids, *(slice(*pair) for pair in zip(tokens[::2], tokens[1::2], strict=True)))


def _tokens_of(encoding: Encoding, span: tuple[int, int]) -> tuple[int, int]:
    """The token range [first, last) of a character range. Characters that a normaliser dropped belong to no token."""
    start, end = span
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
    assert first is not None, "a span holds at least the end-of-turn token"
    assert last is not None, "a span holds at least the end-of-turn token"
    return first, last + 1


def _crosses(encoding: Encoding, edge: int) -> bool:
    """Whether one token holds characters on both sides of `edge`."""
    token = encoding.char_to_token(edge)
    place = None if token is None else encoding.token_to_chars(token)
    return place is not None and place[0] < edge


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _read_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _copy(Tokenizer.from_file(str(folder / "tokenizer.json")))
    if any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")):
        return _convert(folder)
    raise InputError("no tokenizer.json", str(folder), "use a model folder that has its tokenizer files")


def _convert(folder: Path) -> Tokenizer:
    # Deferred: it loads torch, and only folders in an older format need it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _copy(loaded.backend_tokenizer)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        fix = "save it as tokenizer.json with the library it came from"
        raise InputError(f"the tokenizer cannot be converted: {error}", str(folder), fix) from error


def _read_template(folder: Path, config: dict[str, Any]) -> str:
    """The default template; the file of its own wins over the key, as in transformers."""
    path = folder / "chat_template.jinja"
    found = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    found = found or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        found = next((t["template"] for t in found if t["name"] == "default"), None)
    if not isinstance(found, str):
        fix = "use the instruct version of the model, or add a chat_template.jinja"
        raise InputError("no chat template", str(folder), fix)
    return found


def _named(config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by their name; older files write them as objects."""
    values = {k: v.get("content") if isinstance(v, dict) else v for k, v in config.items() if k in NAMED_TOKENS}
    return {k: v for k, v in values.items() if isinstance(v, str)}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON: {error}", str(path), "take the file from the model again") from error
    return tree if isinstance(tree, dict) else {}
