"""The nouns: frozen records, every field with its unit. Data is the architecture; read this file first.

`None` always means unknown or not applicable, never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a sample came from.

    `line` counts from 1 in `file`; `generator` names the code that wrote it; `parent` is the id of the sample it was
    derived from; `depth` counts self-generations since human or procedural data.
    """

    file: str | None = None
    line: int | None = None
    generator: str | None = None
    parent: str | None = None
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. Plain language modelling has `text` and no messages; every token of it is trained.

    `id` is the identity of the row by content (16 hex). `metadata` carries what the source said: for procedural
    tasks `family`, `level`, `seed`, `index` and whatever the verifier needs to judge an answer.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    provenance: Provenance = Provenance()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gold(self) -> str:
        """Content of the last assistant turn, the answer to learn; empty where there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    @property
    def question(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return self.messages[:last]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line that was refused: its number (from 1), why, and its first 80 characters."""

    line: int
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Lengths in tokens over all rows of a file; `truncated_share` is the share longer than `max_length`."""

    rows: int
    max: int
    mean: float
    p50: int
    p95: int
    p99: int
    max_length: int
    truncated_share: float
    suggested_max_length: int
    masked_share: float
    """Share of tokens that carry no loss."""


@dataclass(frozen=True, slots=True)
class WindowTokens:
    """Tokens of one window of a file's rows, those that the chat template refuses left out.

    `lengths` are the tokens of each row's longest document, in order; `trained` counts tokens that carry loss, in all
    documents; `conversations` counts rows that are not plain text.
    """

    window_rows: int
    window: int
    lengths: tuple[int, ...]
    trained: int
    conversations: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """One accepted file. `accepted` = rows to train + `held_out`; `rejected` lines stand beside it. Immutable."""

    id: str
    content_hash: str
    file: str
    bytes: int
    accepted: int
    held_out: int
    rejected: int
    created: str
    notes: tuple[str, ...] = ()


class JobState(StrEnum):
    """Where a job stands; `partial` keeps its cursor and may be taken up again."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Smaller runs first, as DBOS orders queues."""
        return {"high": 1, "normal": 10, "low": 100}[self.value]


@dataclass(frozen=True, slots=True)
class Job:
    """One durable workflow run. `progress` is the share of its examples consumed, 0 to 1."""

    id: str
    kind: str
    file: str | None
    priority: Priority
    state: JobState
    progress: float
    attempt: int
    created: str
    dataset: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, as the journal keeps it.

    `loss` is the mean over `loss_tokens`; `components` are the weighted parts whose sum it is; `seconds` is the wall
    time of the step; `joules` is None without a power sensor; `fingerprint` is the short hash of the row ids in order.
    """

    step: int
    branch: int
    job: str
    dataset: str
    loss: float
    components: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    loss_tokens: int
    examples: int
    seconds: float
    joules: float | None
    fingerprint: str
    created: str
    token_entropy: float | None = None
    """Mean of -sum p log p over trained positions, in nats."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What one file took of the present weights: its steps, first to last, those of other files between left out.

    `joules` is None unless every step was measured.
    """

    file: str
    job: str
    dataset: str
    first: int
    last: int
    steps: int
    tokens: int
    seconds: float
    joules: float | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Resumable training state after `step`; immutable once its manifest exists. `weights_hash` is BLAKE3, hex."""

    step: int
    path: str
    weights_hash: str
    created: str
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """Weights a user may serve: numbered, immutable, with lineage."""

    name: str
    path: str
    weights_hash: str
    step: int | None
    parent: str | None
    datasets: tuple[str, ...]
    evaluation: str | None
    note: str
    created: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer to a suite item. `gold_nll` is in nats per token over gold and its end-of-turn token.

    `finish_reason` is stop, length or error; `token_logprobs` are natural logs, one per entry of `token_ids`.
    """

    sample_id: str
    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: str
    gold_nll: float | None = None
    gold_tokens: int | None = None
    error: str | None = None
    gold_matched: int | None = None
    """Leading tokens of the gold answer that are the model's own greedy choice; None where that was not asked."""

    tie: bool = False
    """Whether a choice on the way had a rival so near that rounding may decide it."""

    token_ends: tuple[int, ...] = ()
    """Characters of `text` that are there after each token; empty where that was not asked."""


@dataclass(frozen=True, slots=True)
class Score:
    """One judgement of one completion. `value` in [0, 1], or None when unscored: then `reason` says why.

    `parts` holds the separate scores that are not in `value` (SYLLO: `per_word`, `format`, `inventory`).
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def exact(self) -> bool:
        """Fully right; an unscored completion is not, and is counted apart."""
        return self.value == 1.0


class SuiteState(StrEnum):
    OK = "ok"
    NO_DATA = "no_data"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Readings of one suite. Shares are in [0, 1]; intervals are 95 %; None where nothing was measured.

    `n` items were scored, `unscored` could not be; `by_level` maps a level to its own exact share and count.
    """

    suite: str
    state: SuiteState
    n: int
    unscored: int = 0
    exact: float | None = None
    exact_ci: tuple[float, float] | None = None
    nll_per_token: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reason: str | None = None
    confidence: str | None = None
    """The signal that the calibration is about, by name."""

    ece: float | None = None
    ece_equal_mass: float | None = None
    smooth_ece: float | None = None
    brier: float | None = None
    ties: int = 0
    """Completions that rounding may have decided."""


class Verdict(StrEnum):
    BETTER = "BETTER"
    WORSE = "WORSE"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired comparison of B against A on shared items. Deltas are B - A; `delta_exact` in [-1, 1], NLL in nats.

    `p_value` is that of correctness, `p_nll` that of likelihood, each alone; intervals are 95 %, each alone.
    `p_adjusted` is the smaller of the two after Holm's correction over all tests of the comparison; nothing is claimed
    above `alpha`, the chance that BETTER or WORSE is said anywhere in it were A and B alike. Items of one of the
    `clusters` may be right or wrong together. `margin` is the difference of exact match that does not matter, and
    `smallest_detectable` the one that so many items show with 80 % power. `items_needed` in all would settle an
    INCONCLUSIVE one, were the differences found the true ones. `by_suite` is empty where there is but one suite.
    """

    verdict: Verdict
    items: int
    delta_exact: float | None = None
    delta_exact_ci: tuple[float, float] | None = None
    p_value: float | None = None
    delta_nll_per_token: float | None = None
    delta_nll_ci: tuple[float, float] | None = None
    reason: str | None = None
    alpha: float | None = None
    margin: float | None = None
    clusters: int | None = None
    p_nll: float | None = None
    p_adjusted: float | None = None
    smallest_detectable: float | None = None
    items_needed: int | None = None
    by_suite: Mapping[str, "Comparison"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One set of weights judged on suites; completions lie beside it in `path`."""

    id: str
    ref: str
    weights_hash: str
    fingerprint: str
    suites: Mapping[str, SuiteResult]
    seconds: float
    path: str
    created: str
    step: int | None = None
    verdict: Verdict | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    """How the answers were made, by name: template, engine, number type, limits. `fingerprint` begins with its hash."""

    suite_hashes: Mapping[str, str] = field(default_factory=dict)
    """Content of each suite as it was judged."""

    tokens: int | None = None
    """Generated tokens, all suites together."""

    joules: float | None = None
    """Energy of the run above, None without a sensor."""

    @property
    def how(self) -> str:
        """Hash of `conditions`: only evaluations that agree here may be compared, whatever became of their suites."""
        return self.fingerprint.partition("-")[0]


class Source(StrEnum):
    """How a reading came about. A constant is never written as a reading."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Reading:
    """One number from a sensor, with how it was had; `value` is None exactly when unavailable."""

    value: float | None
    source: Source


@dataclass(frozen=True, slots=True)
class Session:
    """One telemetry recording with its hardware, its conditions and its summary."""

    id: str
    path: str
    started: str
    seconds: float
    model_name: str | None
    training_mode: str | None
    hardware: Mapping[str, Any]
    summary: Mapping[str, Any]
