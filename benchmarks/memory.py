"""The memory estimate of `stokehold.core.memory` beside what real steps take on a CPU.

`python benchmarks/memory.py [--case NAME …]` prints JSON: for each case the growth of the process's resident set from
before the model is opened to its height after `STEPS` optimiser steps (and one checkpoint, where the case says so),
the estimate of the same, and estimate ÷ measured.

Every case runs in a process of its own with one thread, because a resident set never forgets its height.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 2
SEED = 5
VOCABULARY = 4096
MANY = 32768
TRAINED_EVERY = 2
"""Every second token carries loss."""


@dataclass(frozen=True)
class Case:
    """A Qwen3 of this shape, and the settings it is trained under."""

    shape: dict[str, int]
    documents: int
    document_tokens: int
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: bool = False


def shape(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int = VOCABULARY
) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 4096,
    }


SMALL = shape(256, 768, 6, 4, 2)
WIDE = shape(512, 1024, 4, 8, 2)
DEEP = shape(128, 384, 12, 4, 4)
CASES = {
    "small": Case(SMALL, 8, 256),
    "wide": Case(WIDE, 8, 128),
    "deep": Case(DEEP, 16, 128),
    "vocabulary": Case(shape(128, 384, 4, 4, 2, MANY), 8, 256),
    "bfloat16": Case(SMALL, 8, 256, {"model": {"dtype": "bfloat16"}}),
    "recomputed": Case(SMALL, 8, 256, {"training": {"gradient_checkpointing": True}}),
    "checkpoint": Case(WIDE, 2, 64, checkpoint=True),
    "lora": Case(SMALL, 8, 256, {"model": {"method": "lora"}}),
    "lora, bfloat16": Case(SMALL, 8, 256, {"model": {"method": "lora", "dtype": "bfloat16"}}),
    "muon": Case(WIDE, 8, 128, {"training": {"optimizer": "muon"}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(CASES[arguments.measure], arguments.folder)))
        return
    found = {name: run(name) for name in arguments.case or CASES}
    print(json.dumps({"python": platform.python_version(), "steps": STEPS, "cases": found}, indent=1))


def run(name: str) -> dict[str, Any]:
    """One case, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        make(CASES[name], Path(folder))
        command = [sys.executable, __file__, "--measure", name, "--folder", folder]
        answer = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(answer)
    return found


def make(case: Case, folder: Path) -> None:
    """Writes the case's model, with random weights, and a tokenizer that nothing here is tokenised by."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from stokehold.data.tokenizer import train_tokenizer

    train_tokenizer(["one two three"] * 10, 300, folder)
    Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **case.shape)).save_pretrained(folder)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Opens the model, takes the steps, and compares."""
    from stokehold.core.config import parse_config
    from stokehold.core.memory import estimate
    from stokehold.store.models.weights import read_shape
    from stokehold.training.state import open_lineage, take_snapshot, write_snapshot
    from stokehold.training.step import optimiser_step

    tokens = case.documents * case.document_tokens
    tree = {name: dict(table) for name, table in case.settings.items()}
    tree["training"] = {"micro_batch_tokens": tokens, "warmup_steps": 0, **tree.get("training", {})}
    tree["data"] = {"max_length": case.document_tokens}
    config = parse_config(tree)
    _touch_everything_once()
    before = resident()
    lineage = open_lineage(folder, config)
    for _ in range(STEPS):
        optimiser_step(lineage, [batch(case, read_shape(folder).vocabulary)])
    if case.checkpoint:
        (folder / "saved").mkdir()
        write_snapshot(take_snapshot(lineage), folder / "saved")
    measured = highest_resident() - before
    found = estimate(read_shape(folder), config)
    expected = found.step + (found.snapshot if case.checkpoint else 0)
    return {
        "parameters": read_shape(folder).parameters,
        "tokens": tokens,
        "runtime_mib": round(before / 2**20),
        "activations_mib": round(found.activations / 2**20),
        "logits_mib": round(found.logits / 2**20),
        "estimate_mib": round(expected / 2**20),
        "measured_mib": round(measured / 2**20),
        "ratio": round(expected / measured, 2),
    }


def _touch_everything_once() -> None:
    """Loads what the first step would load lazily, so that it is not counted as the model's."""
    import torch

    layer = torch.nn.Linear(8, 8)
    torch.nn.functional.cross_entropy(layer(torch.randn(8, 8)), torch.zeros(8, dtype=torch.int64)).backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def batch(case: Case, vocabulary: int) -> Any:
    """Random documents packed in one row."""
    import numpy as np

    from stokehold.data.batches import Batch, Cursor

    tokens = case.documents * case.document_tokens
    drawn = np.random.default_rng(SEED).integers(0, vocabulary, tokens)
    positions = np.tile(np.arange(case.document_tokens), case.documents)
    lengths = (case.document_tokens,) * case.documents
    trained = positions % TRAINED_EVERY == 1
    rows = tuple(map(str, range(case.documents)))
    return Batch(drawn, trained, positions, lengths, rows, case.documents, Cursor.start(), "random")


def resident() -> int:
    """Bytes of this process in memory now."""
    with Path("/proc/self/statm").open() as counts:
        return int(counts.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def highest_resident() -> int:
    """The most bytes of this process that were in memory at once.

    Of this program alone: `getrusage` also remembers the process that started it.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
