"""The least that a training loop can do: packed rows, attention document by document, the head where loss is.

`python bare.py FOLDER` trains FOLDER/model on FOLDER/train.jsonl and prints one line. No journal, no checkpoint, no
check, everything tokenised before the first step. With `--loss-of FILE` it prints the mean loss of that file's rows
under the untouched weights instead.
"""

import bisect
import json
from pathlib import Path
from typing import Any

import torch
from meter import Meter, parser_of
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
Document = tuple[list[int], list[int]]
"""Token ids and labels."""

lengths: list[int] = []
"""Of the documents of the batch under way; the attention reads them."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row; a batch is two")
    parser.add_argument("--loss-of", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    meter = Meter(given.skip)
    AttentionInterface.register("documents", attention)
    AttentionMaskInterface.register("documents", lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(
        given.folder / "model", dtype=getattr(torch, given.dtype), attn_implementation="documents"
    )
    found = documents(given.loss_of or given.folder / "train.jsonl", given.folder / "model")
    if given.loss_of:
        print("RESULT " + json.dumps({"loss": loss_of(model, found).item()}), flush=True)
        return
    rows = pack(found, given.length)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    first = 0.0
    for step in range(given.steps):
        batch = [document for at in order[2 * step : 2 * step + 2] for document in rows[at]]
        meter.begin()
        meter.batch(sum(len(ids) for ids, _ in batch))
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        first = first or loss.item()
        meter.end()
    meter.emit(first_loss=first, last_loss=loss.item())


def documents(path: Path, model: Path) -> list[Document]:
    """Every conversation tokenised piece by piece, with labels on what the assistant says and its end of turn."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    pieces: list[tuple[int, str, bool]] = []
    for number, line in enumerate(path.read_text().splitlines()):
        for message in json.loads(line)["messages"]:
            pieces.append((number, f"<|im_start|>{message['role']}\n", False))
            pieces.append((number, message["content"] + "<|im_end|>", message["role"] == "assistant"))
            pieces.append((number, "\n", False))
    encoded = tokenizer.backend_tokenizer.encode_batch([text for _, text, _ in pieces], add_special_tokens=False)
    found: dict[int, Document] = {}
    for (number, _, trained), piece in zip(pieces, encoded, strict=True):
        ids, labels = found.setdefault(number, ([], []))
        ids.extend(piece.ids)
        labels.extend(piece.ids if trained else [IGNORED] * len(piece.ids))
    return list(found.values())


def pack(found: list[Document], length: int) -> list[list[Document]]:
    """Best fit, longest first, into rows of `length`."""
    rows: list[list[Document]] = []
    space: list[tuple[int, int]] = []
    for document in sorted(found, key=lambda one: -len(one[0])):
        size = len(document[0])
        at = bisect.bisect_left(space, (size, -1))
        if at == len(space):
            rows.append([document])
            bisect.insort(space, (length - size, len(rows) - 1))
        else:
            left, row = space.pop(at)
            rows[row].append(document)
            bisect.insort(space, (left - size, row))
    return rows


def loss_of(model: Any, batch: list[Document]) -> torch.Tensor:
    """Mean over the labelled tokens; the first token of a document is never one."""
    lengths[:] = [len(ids) for ids, _ in batch]
    ids = torch.tensor([token for document, _ in batch for token in document])[None]
    labels = torch.tensor([label for _, own in batch for label in [IGNORED, *own[1:]]])[None]
    positions = torch.tensor([position for length in lengths for position in range(length)])[None]
    states = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    targets = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    keep = targets != IGNORED
    return cross_entropy(model.lm_head(states[keep]).float(), targets[keep])


def attention(
    _module: Any, q: Any, k: Any, v: Any, _mask: Any, scaling: float | None = None, **_: Any
) -> tuple[torch.Tensor, None]:
    parts = [
        scaled_dot_product_attention(*one, is_causal=True, scale=scaling, enable_gqa=True)
        for one in zip(*(torch.split(whole, lengths, 2) for whole in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


if __name__ == "__main__":
    main()
