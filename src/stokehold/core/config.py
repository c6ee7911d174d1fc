"""One typed config tree, read from `HOME/stoke.toml`; the resolved copy is saved with every run.

Unknown keys are refused with the nearest known name. Every key has a docstring; `describe` turns them into the
commented file that `stoke init` writes.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stokehold.core.errors import ConfigError

LOCKED_KEYS = (
    "model.base",
    "model.architecture",
    "model.vocabulary",
    "model.method",
    "model.dtype",
    "model.freeze",
    "data.max_length",
    "data.profile",
    "training.optimizer",
)
"""Keys that may not change under a running lineage: resumed steps would train another model."""

LOCKED_ADAPTER_KEYS = ("adapter.rank", "adapter.alpha", "adapter.targets", "adapter.dora", "adapter.rslora")
"""Locked too where adapters are trained."""

RETIRED = frozenset({("serve", "max_batch")})
"""Keys that an older release wrote into every home and that nothing reads: passed over, and not written again."""


class Section(BaseModel):
    """Base of every table: frozen, unknown keys refused, docstrings kept as descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    base: str = ""
    """Folder of the imported base model, relative to the home (`base/<hash>`)."""
    architecture: str = ""
    """Class name from the base model's config.json, filled in by `stoke init`."""
    vocabulary: int = Field(0, ge=0)
    """Rows of the embedding, filled in by `stoke init`; 0 before there is a model."""
    source: str = ""
    """Where the base came from: a folder, or a hub id."""
    revision: str = ""
    """Commit of the hub repository the base was taken at; empty for a folder."""
    licence: str = ""
    """Licence the base names in its model card, empty where it names none."""
    method: Literal["full", "lora", "qlora"] = "full"
    """What is trained: every weight, adapters beside frozen weights, or adapters beside 4-bit weights (CUDA)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations."""
    freeze: tuple[str, ...] = ()
    """Weights that stay as they are with the method `full`: names as `model.layers.0.*`, with `*` for anything."""


class AdapterConfig(Section):
    rank: int = Field(16, ge=1)
    """Inner dimension of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: alpha/rank, or alpha/sqrt(rank) with `rslora`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter; empty takes all but the head."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA)."""
    rslora: bool = False
    """Rank-stabilised scale (rsLoRA)."""
    merge_files: int = Field(0, ge=0)
    """Merge the adapters into the weights and go on with fresh ones after this many files; 0 for never."""


class DataConfig(Section):
    max_length: int = Field(2048, ge=16)
    """Longest document in tokens; longer rows are rejected, with their number."""
    window_rows: int = Field(1024, ge=1)
    """Rows shuffled, tokenised and packed together; memory and the resume cursor depend on it."""
    max_line_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """A longer line is rejected without being read into memory."""
    strict: bool = False
    """Refuse a file with any bad line instead of training on its good ones."""
    seed: int = 0
    """Order of rows; with the content it decides every batch."""
    profile: Literal["", "emoji_think"] = ""
    """Marks put around the answers; `emoji_think` begins them with thinking marks and ends them with stop marks."""


class TrainingConfig(Section):
    epochs: int = Field(1, ge=1)
    """How often each accepted example is trained."""
    micro_batch_tokens: int = Field(4096, ge=16)
    """Capacity of one packed batch in tokens."""
    accumulation: int = Field(1, ge=1)
    """Packed batches per optimiser step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "muon"] = "adamw"
    """`adamw_8bit` and `paged_adamw` need CUDA; `muon` takes the matrices, AdamW the rest."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    muon_learning_rate: float = Field(2e-2, gt=0)
    """Peak learning rate of the matrices under `muon`; it follows the same schedule."""
    schedule: Literal["constant", "wsd", "cosine"] = "constant"
    """Shape after warm-up; it depends on configuration and step only."""
    warmup_steps: int = Field(50, ge=0)
    """Steps from 0 to the peak."""
    total_steps: int = Field(0, ge=0)
    """Where `cosine` and `wsd` end their decay, and hold their floor; 0 with `constant`."""
    decay_share: float = Field(0.3, gt=0, le=1)
    """Share of total_steps that `wsd` spends decaying."""
    floor_share: float = Field(0.05, ge=0, le=1)
    """Learning rate after the decay, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's second moment."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    checkpoint_steps: int = Field(200, ge=1)
    """Steps between checkpoints; pause, stop and the end of a file always make one."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations inside a file, within `evaluation.overhead`; 0 evaluates at its end only."""
    sample_steps: int = Field(100, ge=0)
    """Steps between in-training samples (prompt, gold, answer, match); 0 for none."""
    seed: int = 0
    """Dropout and initialisation."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 takes the cores. Part of exactness on a CPU."""
    deterministic: bool = False
    """On CUDA, only kernels that give the same bits every time; a CPU's always do."""
    spike_factor: float = Field(5.0, ge=0)
    """A batch whose loss is this many times the recent mean is taken back and skipped; 0 for never."""
    hang_s: float = Field(1800.0, ge=0)
    """Seconds without a finished step after which the worker writes its stacks to the log and restarts; 0 for never."""


class ObjectivesConfig(Section):
    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the next-token loss over assistant tokens."""


class EvaluationConfig(Section):
    holdout_share: float = Field(0.02, ge=0, lt=1)
    """Share of a submitted file set aside for the suite `inbox`."""
    suites: tuple[str, ...] = ()
    """Suites each checkpoint is judged on; empty takes every file in `suites/`."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest generated answer in tokens."""
    gold_multiple: float = Field(0.0, ge=0)
    """Answers also end at this multiple of their gold answer's tokens plus 16; 0 for no such end."""
    batch_size: int = Field(64, ge=1)
    """Items generated together."""
    draws: int = Field(0, ge=0)
    """Answers drawn for each item beside the greedy one, for pass@k and self-consistency."""
    temperature: float = Field(1.0, gt=0)
    """Of drawn answers; greedy ones have none."""
    equivalence_margin: float = Field(0.02, gt=0, lt=1)
    """A difference in exact match that does not matter."""
    overhead: float = Field(0.1, ge=0)
    """Largest share of training time for evaluations inside a file; a costlier one waits. 0 for no limit."""
    rollback_margin: float = Field(0.2, gt=0, le=1)
    """A loss of exact match against the champion beyond which training goes on from the champion at once."""


class JudgeConfig(Section):
    url: str = ""
    """Where a judge answers, up to `/v1` (`http://127.0.0.1:8000/v1`); empty asks nobody."""
    model: str = ""
    """Name of the model that judges, as its server knows it."""
    api_key_env: str = ""
    """Environment variable that holds the server's key; empty sends none."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds that one reply may take."""
    concurrency: int = Field(4, ge=1)
    """Questions that are asked at the same time."""


class ImprovementConfig(Section):
    enabled: bool = False
    """Write mined failures and fresh problems back into the inbox after each evaluation."""
    family: str = "syllo"
    """Task family that the generator draws from."""
    levels: tuple[int, ...] = (1, 2, 3)
    """Levels it may draw."""
    rows: int = Field(2000, ge=1)
    """Rows per generated file."""
    failure_share: float = Field(0.3, ge=0, le=1)
    """Largest share of a generated file that answers mined failures."""
    unsure_below: float = Field(0.0, ge=0, le=1)
    """Right answers given with less confidence than this are mined like failures; 0 for none."""
    correction_share: float = Field(0.0, ge=0, le=1)
    """Share of a generated file that corrects errors which come again: is this correct, find the correct solution."""
    max_depth: int = Field(2, ge=0)
    """Longest queue that generation may add to."""
    max_files: int = Field(0, ge=0)
    """Generated files in all; 0 for no bound."""


class DevicesConfig(Section):
    trainer: str = "cpu"
    """`cpu` or `cuda:N`."""
    evaluator: str = Field("share", pattern=r"^(share|cpu|node|cuda(:\d+)?)$")
    """`share` evaluates in the trainer's process, `cpu` or `cuda:N` in one of its own, `node` on another machine."""

    @property
    def own_evaluator(self) -> bool:
        """Whether checkpoints are judged by a process of their own while training goes on."""
        return self.evaluator != "share"


class TelemetryConfig(Section):
    interval_s: float = Field(1.0, gt=0)
    """Seconds between samples."""
    gpu_rated_w: float = Field(200.0, gt=0)
    """Rated power for α when the card does not tell its own limit."""
    gpu_limit_c: float = Field(83.0, gt=0)
    """Temperature limit for T_s when the card does not tell it."""
    cpu_rated_w: float = Field(125.0, gt=0)
    """Rated CPU power for α."""
    cpu_limit_c: float = Field(80.0, gt=0)
    """CPU temperature limit."""


class WebConfig(Section):
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs the token."""
    port: int = Field(8080, ge=0, le=65535)
    """0 takes a free port."""


class ServeConfig(Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8090, ge=0, le=65535)
    """0 takes a free port."""


class StoreConfig(Section):
    database_url: str = ""
    """SQLAlchemy URL; empty for `HOME/stoke.db`."""
    keep_checkpoints: int = Field(3, ge=1)
    """Newest checkpoints kept beside those of the champion and of unfinished jobs."""
    backup_to: str = ""
    """Second place for backups: a path, or a URL as `s3://bucket/prefix`; empty for none. No credentials here."""
    keep_bytes: int = Field(0, ge=0)
    """Bytes that versions may take in all; beyond it the oldest go that may. 0 for no bound."""
    warn_free_share: float = Field(0.15, ge=0, lt=1)
    """Share of the disk that is free below which a warning is given; 0 for never."""
    pause_free_share: float = Field(0.05, ge=0, lt=1)
    """Share of the disk that is free below which training waits for room; 0 for never."""
    shard_bytes: int = Field(4 * 1024**3, ge=1024)
    """Weights of more bytes are cut into files of up to this many; those that are frozen into files of their own."""


class RetentionConfig(Section):
    rows_days: int = Field(90, ge=1)
    """Older journal rows become sums of 100 steps; older samples, events and finished workflows go."""
    completions_days: int = Field(90, ge=1)
    """Evaluations of this age that no version names keep their readings, not the answers' words."""
    sessions_days: int = Field(365, ge=1)
    """Telemetry sessions of this age keep their summary, not their samples."""
    logs_days: int = Field(90, ge=1)
    """Logs put aside are kept for this long."""


class Config(Section):
    model: ModelConfig = ModelConfig()
    """The base model."""
    adapter: AdapterConfig = AdapterConfig()
    """Adapters, for the methods `lora` and `qlora`."""
    data: DataConfig = DataConfig()
    """From lines to batches."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    """Weights of the loss components."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out work and the verdict."""
    judge: JudgeConfig = JudgeConfig()
    """A model that judges the answers of suites with the scorer `judge`."""
    improvement: ImprovementConfig = ImprovementConfig()
    """What the model got wrong becomes the next file."""
    devices: DevicesConfig = DevicesConfig()
    """Where the work runs."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Sensors."""
    web: WebConfig = WebConfig()
    """The dashboard."""
    serve: ServeConfig = ServeConfig()
    """The inference node."""
    store: StoreConfig = StoreConfig()
    """Database, room on the disk, and what is kept."""
    retention: RetentionConfig = RetentionConfig()
    """Ages at which small things are thinned."""


def parse_config(tree: Mapping[str, Any], source: str = "stoke.toml") -> Config:
    """The checked config, or a `ConfigError` that names the key and the nearest known one."""
    try:
        return Config.model_validate(_without_retired(tree))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise ConfigError("unknown key", f"{source}: {'.'.join(path)}", _nearest(path)) from error
        raise ConfigError(
            first["msg"], f"{source}: {'.'.join(path)} = {first['input']!r}", "correct the value"
        ) from error


def config_json(config: Config) -> str:
    """Canonical JSON of the tree: equal settings print equal; what lineage hashes."""
    return config.model_dump_json()


def describe(config: Config) -> str:
    """The config as commented TOML: each key under its one-line meaning."""
    lines: list[str] = []
    for name, section in _sections(config):
        lines += ["", f"# {Config.model_fields[name].description}", f"[{name}]"]
        for key, info in type(section).model_fields.items():
            lines += [f"# {info.description}", f"{key} = {_toml(getattr(section, key))}"]
    return "\n".join(lines).lstrip() + "\n"


def _without_retired(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in table.items() if (name, key) not in RETIRED}
        if isinstance(table, Mapping)
        else table
        for name, table in tree.items()
    }


def _sections(config: Config) -> Iterator[tuple[str, Section]]:
    for name in Config.model_fields:
        yield name, getattr(config, name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON does, and DEL
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)


def _nearest(path: list[str]) -> str:
    fields: Any = Config
    for part in path[:-1]:
        fields = fields.model_fields[part].annotation
    close = difflib.get_close_matches(path[-1], list(fields.model_fields), n=1, cutoff=0.0)
    return f"did you mean {'.'.join([*path[:-1], close[0]])}?"
