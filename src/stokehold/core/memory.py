"""How much memory a training run needs, from the model's shape and the settings alone: no model, no torch, no I/O.

The parts are counted where counting is possible (weights, gradients, moments, keys and values) and measured where it
is not: `ACTIVATION_FACTORS` is fitted to real steps by `benchmarks/memory.py`, on a CPU. What needs CUDA (8-bit and
paged optimisers, NF4 weights, logits in chunks) is counted from the formats and has not been measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stokehold.core.config import Config

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FLOAT_BYTES = 4

ACTIVATION_FACTORS = {"cpu": {"float32": 1.25, "bfloat16": 1.3}, "cuda": {"float32": 1.8, "bfloat16": 2.3}}
"""Numbers kept for the backward pass per token and block, over the sum of the inputs and outputs of its matrices.

Those for CUDA were taken on a CPU too, from models' own layers, which a CPU runs in forms that keep less.
"""

ADAPTER_FACTORS = {"float32": 2.1, "bfloat16": 3.6}
"""The same where adapters are trained, which keep their own inputs in float32."""

RECOMPUTED_BLOCKS = 2.0
"""Blocks' worth of activations at once while one is recomputed: what it keeps, and the gradients of that."""

LOGIT_CHUNK_BYTES = 64 * 1024**2
"""Cross-entropy takes positions in chunks whose logits are at most this large."""

LOGIT_COPIES = 4
"""Arrays as large as a chunk's logits in float32 at once, as measured: they, their logarithms, the next chunk's, room
that the allocator keeps."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A 4-bit weight with its doubly quantised scale: a byte per 64 weights, four more per 256 of those."""

EIGHT_BIT_BYTES = 2 * (1 + 4 / 256)
"""Both moments in 8 bits, a float32 scale per 256 numbers."""

MUON_SCRATCH = 4
"""bfloat16 arrays the size of one matrix while Muon orthogonalises it."""

CACHE_GROWTH = 1.5
"""The evaluation's cache reserves room ahead, in multiples of what is needed."""

ROUND_TOKENS = 64
"""Suggested batches are multiples of this."""

RUNTIME_BYTES = 400 * 1024**2
"""Resident size of a trainer before it opens a model: Python, torch, transformers."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix of a block: of the layer `name`, `rows` × `columns`."""

    name: str
    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on; `matrices` are those of the blocks.

    `parameters` counts tied weights once; `key_value_width` is kv heads × head size, of keys alone.
    """

    parameters: int
    matrices: tuple[Matrix, ...]
    layers: int
    hidden: int
    vocabulary: int
    key_value_width: int
    context_tokens: int | None

    @property
    def largest(self) -> int:
        """Parameters of the largest matrix of a block."""
        return max((matrix.parameters for matrix in self.matrices), default=0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of each part at its height. Activations and the evaluation's cache never meet: a step is over before it.

    `snapshot` is host memory, held while a checkpoint is written beside training; `paged` moments may move there.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    evaluation: int
    snapshot: int
    paged: int
    cuda: bool

    @property
    def step(self) -> int:
        """While a step is taken: what the device holds of the model, its optimiser and one batch."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def answers(self) -> int:
        """While answers are generated between two steps."""
        return self.weights + self.gradients + self.optimizer + self.evaluation

    @property
    def host(self) -> int:
        """Main memory beside what the device holds: the process itself, and a checkpoint that is being written."""
        return RUNTIME_BYTES + self.snapshot + self.paged

    @property
    def training(self) -> int:
        """The most that training needs of the device; a CPU is its own host."""
        return self.step if self.cuda else self.step + self.host

    @property
    def evaluating(self) -> int:
        """The most that evaluation needs of the device."""
        return self.answers if self.cuda else self.answers + self.host

    def judging(self, cuda: bool) -> int:
        """What an evaluator in a process of its own needs of its device, which trains nothing."""
        return self.weights + self.evaluation + (0 if cuda else RUNTIME_BYTES)

    @property
    def device(self) -> int:
        """The most that the device must hold at once."""
        return max(self.training, self.evaluating)


def estimate(shape: ModelShape, config: Config, prompt_tokens: int | None = None) -> Memory:
    """The memory of training `shape` under `config`.

    `prompt_tokens` is the longest prompt of an evaluation, None for the longest allowed.
    """
    size = DTYPE_BYTES[config.model.dtype]
    full = config.model.method == "full"
    trained = shape.parameters if full else adapter_parameters(shape, config)
    trained_size = size if full else FLOAT_BYTES
    moments = _optimizer_bytes(shape, config, trained, trained_size)
    paged = config.training.optimizer == "paged_adamw"
    tokens = max(config.training.micro_batch_tokens, _longest(shape, config))
    return Memory(
        weights=_weight_bytes(shape, config.model.method, size) + (0 if full else trained * trained_size),
        gradients=trained * trained_size,
        optimizer=0 if paged else moments,
        activations=_activation_bytes(shape, config, tokens),
        logits=_logit_bytes(shape, tokens, full),
        evaluation=_evaluation_bytes(shape, config, prompt_tokens),
        snapshot=trained * trained_size + moments,
        paged=moments if paged else 0,
        cuda=config.devices.trainer != "cpu",
    )


def adapter_parameters(shape: ModelShape, config: Config) -> int:
    """Parameters of the adapters: two matrices beside each target, and with DoRA a magnitude per row."""
    adapter = config.adapter
    chosen = [m for m in shape.matrices if not adapter.targets or m.name in adapter.targets]
    return sum(adapter.rank * (m.rows + m.columns) + (m.rows if adapter.dora else 0) for m in chosen)


def largest_batch(shape: ModelShape, config: Config, room: int) -> int | None:
    """The most `training.micro_batch_tokens`, up to the present, with which training fits into `room` bytes; None for
    none.

    Rows of up to `data.max_length` tokens are batches of their own, so a smaller value than that saves nothing.
    """

    def fits(tokens: int) -> bool:
        training = config.training.model_copy(update={"micro_batch_tokens": tokens})
        return estimate(shape, config.model_copy(update={"training": training})).training <= room

    longest = _longest(shape, config)
    found = _last_true(fits, longest, max(longest, config.training.micro_batch_tokens))
    return None if found is None else max(longest, found - found % ROUND_TOKENS)


def most_answers(shape: ModelShape, config: Config, room: int, prompt_tokens: int | None = None) -> int | None:
    """The most `evaluation.batch_size`, up to the present, with which evaluation fits into `room` bytes; None for
    none."""

    def fits(answers: int) -> bool:
        evaluation = config.evaluation.model_copy(update={"batch_size": answers})
        tried = config.model_copy(update={"evaluation": evaluation})
        return estimate(shape, tried, prompt_tokens).evaluating <= room

    return _last_true(fits, 1, config.evaluation.batch_size)


def _last_true(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number of low…high for which `holds`, which is true up to some number and false after it."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _longest(shape: ModelShape, config: Config) -> int:
    return min(config.data.max_length, shape.context_tokens or config.data.max_length)


def _weight_bytes(shape: ModelShape, method: str, size: int) -> int:
    if method != "qlora":
        return shape.parameters * size
    quantised = sum(matrix.parameters for matrix in shape.matrices)
    return round(quantised * NF4_BYTES) + (shape.parameters - quantised) * size + shape.largest * size


def _optimizer_bytes(shape: ModelShape, config: Config, trained: int, size: int) -> int:
    kind = config.training.optimizer
    if kind == "adamw_8bit":
        return round(trained * EIGHT_BIT_BYTES)
    if kind == "paged_adamw":
        return 2 * FLOAT_BYTES * trained
    masters = FLOAT_BYTES * trained if size < FLOAT_BYTES else 0
    size = FLOAT_BYTES  # of moments: they belong to the masters
    if kind == "muon":
        full = config.model.method == "full"
        matrices = sum(matrix.parameters for matrix in shape.matrices) if full else trained
        return masters + size * (matrices + 2 * (trained - matrices)) + MUON_SCRATCH * 2 * shape.largest
    return masters + 2 * size * trained


def _activation_bytes(shape: ModelShape, config: Config, tokens: int) -> int:
    """What the forward pass keeps; with checkpointing the input of each block, and all of one block."""
    size = DTYPE_BYTES[config.model.dtype]
    widths = sum(matrix.rows + matrix.columns for matrix in shape.matrices)
    kind = "cpu" if config.devices.trainer == "cpu" else "cuda"
    factors = ACTIVATION_FACTORS[kind] if config.model.method == "full" else ADAPTER_FACTORS
    factor = factors[config.model.dtype]
    whole = factor * widths * size * tokens
    if config.training.gradient_checkpointing:
        kept = shape.layers * shape.hidden * size * tokens
        return round(min(whole, kept + RECOMPUTED_BLOCKS * whole / max(1, shape.layers)))
    return round(whole)


def _logit_bytes(shape: ModelShape, tokens: int, full: bool) -> int:
    """A chunk of logits, and the head's gradient, which is summed over chunks in float32."""
    logits = min(LOGIT_CHUNK_BYTES, FLOAT_BYTES * shape.vocabulary * tokens)
    head = FLOAT_BYTES * shape.vocabulary * shape.hidden if full else 0
    return LOGIT_COPIES * logits + head


def _evaluation_bytes(shape: ModelShape, config: Config, prompt_tokens: int | None) -> int:
    """Keys and values of one batch of answers at full length."""
    settings = config.evaluation
    longest = (prompt_tokens or _longest(shape, config)) + settings.max_new_tokens
    if shape.context_tokens is not None:
        longest = min(longest, shape.context_tokens)
    numbers = 2 * shape.layers * shape.key_value_width * longest * settings.batch_size
    return round(CACHE_GROWTH * numbers * DTYPE_BYTES[config.model.dtype])
