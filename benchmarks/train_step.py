"""One optimiser step on the demo's batches: ours beside two plain ways of training the same documents.

`python benchmarks/train_step.py [--rounds N] [--threads N]` prints JSON.

`ours`    the step of `stokehold.training`: packed documents, attention document by document, the vocabulary matrix at
          trained positions only.
`padded`  a plain PyTorch loop: the same documents padded to the longest, transformers' sdpa attention, its own loss
          over logits of every position, fused AdamW.
`dense`   as `padded`, but the documents packed in one row under a dense block-diagonal mask.

All three start from the same weights with the same optimiser settings, see the same documents, and must agree on the
first loss. Rates count the documents' own tokens, never padding.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import torch
from timing import in_turn, machine, summary
from transformers import AutoModelForCausalLM

from stokehold.core.config import Config, parse_config
from stokehold.data.batches import Batch, Batches, Cursor
from stokehold.data.formats import to_row
from stokehold.data.tokenizer import load_tokenizer
from stokehold.pipeline.tiny import make_tiny
from stokehold.tasks.registry import draw
from stokehold.training.optimizer import build_optimizer
from stokehold.training.state import Lineage, open_lineage
from stokehold.training.step import optimiser_step

IGNORED = -100
"""Label of positions without loss, as transformers reads it."""

AGREEMENT = 1e-3
"""Largest relative difference of the first loss: sums are taken in another order, nothing else differs."""

ROWS_PER_BATCH = 45
"""More level-1 puzzles than a batch of 4,096 tokens holds; batches that come out short are left out."""

Step = Callable[[Batch], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096, help="capacity of a packed batch")
    parser.add_argument("--level", type=int, default=1, help="SYLLO level")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_tiny(folder / "model", seed=0)
        config = parse_config({"training": {"micro_batch_tokens": arguments.tokens}})
        count = arguments.rounds + arguments.warm_up
        batches = read_batches(folder, config, arguments.level, count)
        steps = candidates(folder / "model", config)
        check_agreement(steps, batches[0])
        for batch in batches[: arguments.warm_up]:
            for step in steps.values():
                step(batch)
        timed = batches[arguments.warm_up :]
        seconds = in_turn({name: _on(step, timed) for name, step in steps.items()}, len(timed))
    tokens = [len(batch.ids) for batch in timed]
    report = {
        "machine": machine(),
        "rounds": len(timed),
        "tokens_per_batch": sum(tokens) / len(tokens),
        "padding_share_of_padded": padding_share(timed),
        **summary(seconds, dict.fromkeys(seconds, tokens), "ours"),
    }
    json.dump(report, sys.stdout, indent=2)
    print()


def read_batches(folder: Path, config: Config, level: int, count: int) -> list[Batch]:
    """Full packed batches of generated puzzles."""
    rows = folder / "rows.jsonl"
    samples = draw("syllo", level, count * ROWS_PER_BATCH * config.training.micro_batch_tokens // 4096, 1, "train")
    rows.write_bytes(b"".join(orjson.dumps(to_row(sample)) + b"\n" for sample in samples))
    with Batches(
        rows,
        load_tokenizer(folder / "model"),
        window_rows=config.data.window_rows,
        capacity=config.training.micro_batch_tokens,
        max_length=config.data.max_length,
        seed=0,
        epochs=1,
        cursor=Cursor.start(),
    ) as batches:
        full = [batch for batch in batches if len(batch.ids) > 0.9 * config.training.micro_batch_tokens]
    if len(full) < count:
        sys.exit(f"{len(full)} full batches instead of {count}: draw more rows")
    return full[:count]


def candidates(model: Path, config: Config) -> dict[str, Step]:
    lineage = open_lineage(model, config)
    return {
        "ours": lambda batch: ours(lineage, batch),
        "padded": plain(model, config, padded),
        "dense": plain(model, config, dense),
    }


def ours(lineage: Lineage, batch: Batch) -> float:
    return optimiser_step(lineage, [batch]).loss


def plain(folder: Path, config: Config, inputs: Callable[[Batch, int], dict[str, torch.Tensor]]) -> Step:
    """A loop as one writes it with transformers alone, over what `inputs` makes of a batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    optimizer = build_optimizer(model, config.training)
    pad = model.config.pad_token_id

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**inputs(batch, pad), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.max_grad_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def padded(batch: Batch, pad: int) -> dict[str, torch.Tensor]:
    """[documents, longest], padding on the right."""
    shape = (len(batch.lengths), max(batch.lengths))
    ids, labels, mask = np.full(shape, pad), np.full(shape, IGNORED), np.zeros(shape, dtype=np.int64)
    start = 0
    for row, length in enumerate(batch.lengths):
        span = slice(start, start + length)
        ids[row, :length], mask[row, :length] = batch.ids[span], 1
        labels[row, :length] = np.where(batch.trained[span], batch.ids[span], IGNORED)
        start += length
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


def dense(batch: Batch, _pad: int) -> dict[str, torch.Tensor]:
    """[1, tokens] under a mask [1, 1, tokens, tokens] that is true where a token may look."""
    document = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    may = np.tril(document[:, None] == document[None, :])
    labels = np.where(batch.trained, batch.ids, IGNORED)
    return {
        "input_ids": torch.from_numpy(batch.ids)[None],
        "position_ids": torch.from_numpy(batch.positions)[None],
        "attention_mask": torch.from_numpy(may)[None, None],
        "labels": torch.from_numpy(labels)[None],
    }


def check_agreement(steps: dict[str, Step], batch: Batch) -> None:
    """All start from the same weights: another first loss would mean another task."""
    losses = {name: step(batch) for name, step in steps.items()}
    low, high = min(losses.values()), max(losses.values())
    if high - low > AGREEMENT * high:
        sys.exit(f"the first losses differ, nothing is compared: {losses}")


def padding_share(batches: list[Batch]) -> float:
    """Share of positions that `padded` spends on padding."""
    cells = sum(len(batch.lengths) * max(batch.lengths) for batch in batches)
    return 1 - sum(len(batch.ids) for batch in batches) / cells


def _on(step: Step, batches: list[Batch]) -> Callable[[int], object]:
    return lambda number: step(batches[number])


if __name__ == "__main__":
    main()
