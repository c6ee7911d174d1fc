"""The warm state of one lineage, and its form on disk: weights, optimiser, RNG, step, and a cursor per run over a file.

A checkpoint folder loads with `AutoModelForCausalLM.from_pretrained` as it is; `optimizer.safetensors` and
`trainer.json` beside the weights make the next step the one an uninterrupted run would have taken. Of a model with
adapters it holds these alone, and names the base they stand on.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from stokehold.core.config import LOCKED_ADAPTER_KEYS, LOCKED_KEYS, Config, config_json
from stokehold.core.errors import ConfigError, IntegrityError
from stokehold.core.identity import content_hash
from stokehold.core.records import Checkpoint
from stokehold.data.batches import Cursor
from stokehold.data.profile import profile_of
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer
from stokehold.store.disk import DISK, Disk
from stokehold.store.failpoints import reach
from stokehold.store.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from stokehold.store.models.weights import GOLDEN
from stokehold.training.arithmetic import arithmetic
from stokehold.training.cuda import check_device, random_states, set_random_states, wants_determinism
from stokehold.training.golden import golden
from stokehold.training.model import open_model
from stokehold.training.optimizer import Optimizer, build_optimizer
from stokehold.training.shards import write_weights

if TYPE_CHECKING:
    from stokehold.training.adapters import Adapters

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
MOMENTS = "optimizer.safetensors"
WITHOUT_RECORD = {"training.optimizer": "adamw", "model.freeze": []}
"""Locked keys that older checkpoints do not record, and what they were."""


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
    optimizer: Optimizer
    config: Config
    source: Path
    """Folder the weights came from; retention may take it away while the model is warm."""
    tokenizer_files: Mapping[str, bytes]
    adapters: "Adapters | None" = None
    """Those in the model, None where every weight is trained."""
    optimizer_since: int = 0
    """The step at which the optimiser began with nothing: 0, or where the adapters were last merged."""
    merged: tuple[str, ...] = ()
    """The runs whose adapters were merged into the base."""
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
    give_up_writing: Callable[[], None] = lambda: None
    """Before its checkpoints are set aside: returns when none of them is being written."""

    @property
    def device(self) -> torch.device:
        return self.model.device


def open_lineage(folder: Path, config: Config) -> Lineage:
    """The lineage at a checkpoint, or a fresh one where `folder` is a base model (no trainer.json)."""
    if (folder / STATE).is_file():
        check_locked(folder, config)
    check_device(config)
    torch.use_deterministic_algorithms(wants_determinism(config))
    torch.manual_seed(config.training.seed)
    model, adapters = open_model(folder, config)
    kept = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    optimizer = build_optimizer(model, config.training)
    tokenizer = load_tokenizer(folder, profile_of(config.data))
    lineage = Lineage(model, tokenizer, optimizer, config, folder, kept, adapters)
    if (folder / STATE).is_file():
        _restore(lineage, folder)
    return lineage


def check_locked(folder: Path, config: Config) -> None:
    """Raises ConfigError naming the first locked key that differs from what the checkpoint was trained with."""
    tree = config.model_dump(mode="json")
    for key, before in (WITHOUT_RECORD | json.loads((folder / STATE).read_text())["locked"]).items():
        if (now := _setting(tree, key)) != before:
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
    gradients: Mapping[str, torch.Tensor]
    """Of the adapters, after the last step; empty where every weight is trained."""
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]
    frozen: frozenset[str]
    """Names of `weights` that training never changes."""
    shard_bytes: int
    """Weights of more bytes than this are written in shards."""


def take_snapshot(lineage: Lineage) -> Snapshot:
    """The state of the lineage as it is now; tensors that share memory (tied heads) share it in the copy too."""
    facts = {
        "format": FORMAT,
        "step": lineage.step,
        "branch": lineage.branch,
        "base": f"base/{lineage.adapters.base.name}" if lineage.adapters else lineage.config.model.base,
        "parent": lineage.parent,
        "optimizer_since": lineage.optimizer_since,
        "merged": lineage.merged,
        **{name: base64.b64encode(state).decode() for name, state in random_states(lineage.device).items()},
        "schedule": lineage.config.training.model_dump(mode="json"),
        "config_hash": content_hash(config_json(lineage.config)),
        "locked": _locked(lineage.config),
        "parts": [lineage.parts, lineage.parts_since],
        "runs": {run: progress.to_json() for run, progress in lineage.runs.items()},
        **arithmetic(lineage.device),
    }
    weights = lineage.adapters.tensors() if lineage.adapters else lineage.model.state_dict()
    files = {**lineage.tokenizer_files, **(lineage.adapters.files if lineage.adapters else {})}
    files[GOLDEN] = golden(lineage.model).to_bytes()
    return Snapshot(
        model=lineage.model,
        weights=_copied(weights),
        optimizer=_copied(lineage.optimizer.state()),
        gradients=_copied(lineage.adapters.gradients() if lineage.adapters else {}),
        files=files,
        facts=facts,
        frozen=_frozen(lineage),
        shard_bytes=lineage.config.store.shard_bytes,
    )


def write_snapshot(snapshot: Snapshot, folder: Path, before: Path | None = None, disk: Disk = DISK) -> dict[str, str]:
    """Writes everything but the manifest into the empty `folder`. Any thread may.

    Shards of frozen weights are those of the checkpoint `before`, where it has them; returns these files' BLAKE3.
    """
    linked: dict[str, str] = {}
    if ADAPTER_CONFIG in snapshot.files:
        save_file(dict(snapshot.weights), folder / ADAPTER_WEIGHTS, {"format": "pt"})
    else:
        linked = write_weights(
            snapshot.model, snapshot.weights, folder, snapshot.shard_bytes, snapshot.frozen, before, disk
        )
    reach("checkpoint.weights")
    for name, content in snapshot.files.items():
        (folder / name).write_bytes(content)
    save_file(dict(snapshot.optimizer), folder / MOMENTS)
    reach("checkpoint.optimizer")
    (folder / STATE).write_text(json.dumps(snapshot.facts, indent=1))
    return linked


class StoredWeights(Mapping[str, torch.Tensor]):
    """The trained weights of a checkpoint by name, read from disk when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        opened: list[Any] = [safe_open(path, framework="pt") for path in files]
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - it is no dict

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def stored_weights(folder: Path) -> StoredWeights | None:
    """The weights that `write_snapshot` wrote into `folder`; None where there is no such checkpoint."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.name not in (MOMENTS, GOLDEN))
    return StoredWeights(files) if files else None


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: dict[tuple[int, torch.Size], torch.Tensor] = {}
    copies = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen[key] = tensor.detach().to("cpu", copy=True).contiguous()
        copies[name] = seen[key]
    return copies


def _frozen(lineage: Lineage) -> frozenset[str]:
    """Names in the model's state of the weights that have no gradient; none where adapters are all that is kept."""
    if lineage.adapters:
        return frozenset()
    kept = lineage.model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in kept if not parameter.requires_grad)


def _locked(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    adapters = LOCKED_ADAPTER_KEYS if config.model.method != "full" else ()
    return {key: _setting(tree, key) for key in (*LOCKED_KEYS, *adapters)}


def _setting(tree: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    return tree[section][name]


def _restore(lineage: Lineage, folder: Path) -> None:
    facts = json.loads((folder / STATE).read_text())
    if facts["format"] != FORMAT:
        raise IntegrityError(f"checkpoint format {facts['format']}", str(folder), f"this build reads format {FORMAT}")
    now = arithmetic(lineage.device)
    different = (key for key in now if key in facts and facts[key] != now[key])
    lineage.differences = tuple(f"{key} {facts[key]} -> {now[key]}" for key in different)
    lineage.step, lineage.branch, lineage.parent = facts["step"], facts["branch"], folder.name
    lineage.parts, lineage.parts_since = facts.get("parts", (1, 0))
    lineage.optimizer_since, lineage.merged = facts.get("optimizer_since", 0), tuple(facts.get("merged", ()))
    lineage.runs = {run: Progress.from_json(tree) for run, tree in facts["runs"].items()}
    states = {name: base64.b64decode(facts[name]) for name in ("rng", "rng_cuda") if name in facts}
    set_random_states(states, lineage.device)
    tensors = load_file(folder / MOMENTS, device=str(lineage.device))
    if not tensors and lineage.step > lineage.optimizer_since:
        raise IntegrityError("optimiser state lacks everything", str(folder), "use an older one")
    lineage.optimizer.load_state(tensors, folder.name)
