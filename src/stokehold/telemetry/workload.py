"""What the machine was doing: told by the trainer while it runs, else guessed from utilisation; the source is kept."""

from dataclasses import dataclass
from enum import StrEnum

from stokehold.core.errors import UsageError

HIGH_CPU_PCT, HIGH_GPU_PCT = 80.0, 70.0
SOME_CPU_PCT, SOME_GPU_PCT = 50.0, 30.0


class WorkloadState(StrEnum):
    TRAINING_STEP = "training_step"
    DATA_PREP = "data_prep"
    EVAL = "eval"
    CHECKPOINT = "checkpoint"
    IDLE = "idle"


class WorkloadSource(StrEnum):
    TRAINER = "trainer"
    UTILISATION = "utilisation"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Workload:
    """`state` is None exactly when `source` is unknown; `step` is the optimiser step the trainer named."""

    state: WorkloadState | None
    source: WorkloadSource
    step: int | None = None


def told(state: str, step: int | None) -> Workload:
    """What the trainer says; `UsageError` naming the states for a word that is none."""
    try:
        return Workload(WorkloadState(state), WorkloadSource.TRAINER, step)
    except ValueError as error:
        raise UsageError(
            f"unknown workload state {state!r}", "telemetry", f"one of {', '.join(WorkloadState)}"
        ) from error


def guessed(cpu_pct: float | None, gpu_pct: float | None) -> Workload:
    """Busy is taken for training, half busy for data preparation: utilisation cannot tell evaluation from either.

    `gpu_pct` is the busiest card's. With neither known the state is unknown.
    """
    if cpu_pct is None and gpu_pct is None:
        return Workload(None, WorkloadSource.UNKNOWN)
    cpu, gpu = cpu_pct or 0.0, gpu_pct or 0.0
    if cpu > HIGH_CPU_PCT or gpu > HIGH_GPU_PCT:
        state = WorkloadState.TRAINING_STEP
    elif cpu > SOME_CPU_PCT or gpu > SOME_GPU_PCT:
        state = WorkloadState.DATA_PREP
    else:
        state = WorkloadState.IDLE
    return Workload(state, WorkloadSource.UTILISATION)
