"""The warm state of one lineage, and its form on disk: weights, optimiser, RNG, step, and a cursor per run over a file.

A checkpoint folder loads with `AutoModelForCausalLM.from_pretrained` as it is; `optimizer.safetensors` and
`trainer.json` beside the weights make the next step the one an uninterrupted run would have taken.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from stokehold.core.config import LOCKED_KEYS, Config, config_json
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.core.identity import content_hash
from stokehold.core.records import Checkpoint
from stokehold.data.batches import Cursor
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.store.failpoints import reach
from stokehold.training.model import load_model
from stokehold.training.optimizer import build_optimizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)
FORMAT = 1
STATE = "trainer.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far one run over a file got in these weights: `cursor` is where its next batch begins, `examples` rows are
    trained."""

    dataset: str
    cursor: Cursor
    examples: int = 0
    tokens: int = 0
    unusable: tuple[int, ...] = ()
    """Line numbers of rows that only their tokens disqualified: too long, or nothing to train."""
    skipped: int = 0
    """Examples of batches that were passed over because they spoilt a step."""
    steps: int = 0
    mean_loss: float | None = None
    """Exponential mean of the losses of this run's steps, in nats."""

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "cursor": self.cursor.to_dict(), "unusable": list(self.unusable)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Progress":
        typed = {"cursor": Cursor.from_dict(tree["cursor"]), "unusable": tuple(tree["unusable"])}
        return cls(**{**tree, **typed})


@dataclass
class Lineage:
    """Model and optimiser in memory, with the counters that belong to them. `step` optimiser steps were taken."""

    model: PreTrainedModel
    tokenizer: ChatTokenizer
    optimizer: torch.optim.AdamW
    config: Config
    source: Path
    """Folder the weights came from; retention may take it away while the model is warm."""
    tokenizer_files: Mapping[str, bytes]
    step: int = 0
    branch: int = 0
    runs: dict[str, Progress] = field(default_factory=dict)
    """How far each run over a file got in these weights."""
    parent: str | None = None
    saved: Checkpoint | None = None
    """The checkpoint that holds exactly these weights, None when a step was taken since."""
    parts: int = 1
    """Into how many parts batches are divided because memory does not hold them whole."""
    parts_since: int = 0
    """The step at which `parts` last changed."""
    differences: tuple[str, ...] = ()
    """What made the checkpoint not bit-comparable with this process: `threads 2 -> 8`."""

    @property
    def device(self) -> torch.device:
        return self.model.device


def open_lineage(folder: Path, config: Config) -> Lineage:
    """The lineage at a checkpoint, or a fresh one where `folder` is a base model (no trainer.json)."""
    if (folder / STATE).is_file():
        check_locked(folder, config)
    torch.manual_seed(config.training.seed)
    model = load_model(folder, config.model.dtype, config.devices.trainer)
    model.train()
    kept = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    lineage = Lineage(model, load_tokenizer(folder), build_optimizer(model, config.training), config, folder, kept)
    if (folder / STATE).is_file():
        _restore(lineage, folder)
    return lineage


def check_locked(folder: Path, config: Config) -> None:
    """Raises ConfigError naming the first locked key that differs from what the checkpoint was trained with."""
    for key, before in json.loads((folder / STATE).read_text())["locked"].items():
        if (now := _locked(config)[key]) != before:
            fix = f"set it back to {before!r} in stoke.toml, or make another home with `stoke init`"
            raise ConfigError("a key may not change once training has begun", f"{key} = {now!r}", fix)


@dataclass(frozen=True)
class Snapshot:
    """Everything a checkpoint holds, copied to host memory: the model may train on while it is written.

    Costs the bytes of weights and moments once more in host memory, and the time to copy them.
    """

    model: PreTrainedModel
    """Read for its config only, never for its weights."""
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]


def take_snapshot(lineage: Lineage) -> Snapshot:
    """The state of the lineage as it is now; tensors that share memory (tied heads) share it in the copy too."""
    facts = {
        "format": FORMAT,
        "step": lineage.step,
        "branch": lineage.branch,
        "parent": lineage.parent,
        "rng": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
        "schedule": lineage.config.training.model_dump(mode="json"),
        "config_hash": content_hash(config_json(lineage.config)),
        "locked": _locked(lineage.config),
        "parts": [lineage.parts, lineage.parts_since],
        "runs": {run: progress.to_json() for run, progress in lineage.runs.items()},
        **_arithmetic(lineage),
    }
    moments = _optimizer_tensors(lineage)
    return Snapshot(
        lineage.model, _copied(lineage.model.state_dict()), _copied(moments), lineage.tokenizer_files, facts
    )


def write_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Writes everything but the manifest into the empty `folder`. Any thread may."""
    snapshot.model.save_pretrained(folder, state_dict=dict(snapshot.weights))
    reach("checkpoint.weights")
    for name, content in snapshot.files.items():
        (folder / name).write_bytes(content)
    save_file(dict(snapshot.optimizer), folder / "optimizer.safetensors")
    reach("checkpoint.optimizer")
    (folder / STATE).write_text(json.dumps(snapshot.facts, indent=1))


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: dict[tuple[int, torch.Size], torch.Tensor] = {}
    copies = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen[key] = tensor.detach().to("cpu", copy=True).contiguous()
        copies[name] = seen[key]
    return copies


def _locked(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    return {key: tree[section][name] for key in LOCKED_KEYS for section, name in [key.split(".")]}


def _arithmetic(lineage: Lineage) -> dict[str, Any]:
    """What the order of floating-point sums depends on, beside the weights and the rows."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": lineage.device.type}


def _restore(lineage: Lineage, folder: Path) -> None:
    facts = json.loads((folder / STATE).read_text())
    if facts["format"] != FORMAT:
        raise IntegrityError(f"checkpoint format {facts['format']}", str(folder), f"this build reads format {FORMAT}")
    now = _arithmetic(lineage)
    lineage.differences = tuple(f"{key} {facts[key]} -> {now[key]}" for key in now if facts[key] != now[key])
    lineage.step, lineage.branch, lineage.parent = facts["step"], facts["branch"], folder.name
    lineage.parts, lineage.parts_since = facts.get("parts", (1, 0))
    lineage.runs = {run: Progress.from_json(tree) for run, tree in facts["runs"].items()}
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(facts["rng"])), dtype=torch.uint8))
    tensors = load_file(folder / "optimizer.safetensors", device=str(lineage.device))
    for name, parameter in lineage.model.named_parameters():
        state = {key: tensors[whole] for key in MOMENTS if (whole := f"{name}.{key}") in tensors}
        missing = [key for key in MOMENTS if key not in state]
        if missing and lineage.step:
            raise IntegrityError(f"optimiser state lacks {missing}", f"{folder.name}: {name}", "use an older one")
        if state:  # before the first step there is none, and AdamW makes it
            lineage.optimizer.state[parameter] = state


def _optimizer_tensors(lineage: Lineage) -> dict[str, torch.Tensor]:
    named = lineage.model.named_parameters()
    return {
        f"{name}.{key}": tensor
        for name, parameter in named
        for key, tensor in lineage.optimizer.state.get(parameter, {}).items()
    }
