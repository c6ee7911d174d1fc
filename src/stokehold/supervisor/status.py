"""The status payload: every key of the definition, each from what was measured; unknown is None, never 0.

`payload` is what `GET /api/status` and `stoke status --json` answer and what `status/training_status.json` holds.
Losses are in nats per token, accuracies in percent, `fixed_eval_em` and `fixed_eval_ece` are shares. The present
pace (`tokens_per_sec`, `eta_seconds` with its standard error `eta_error_seconds`) is known only while there is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from stokehold.core.records import Evaluation, JobState
from stokehold.store.backup import drills
from stokehold.store.db.database import Database
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.supervisor import trends
from stokehold.supervisor.alerts import DISK_FULL, active, age_s
from stokehold.supervisor.facts import Facts, gather
from stokehold.supervisor.patterns import heatmap_of, loss_trends
from stokehold.supervisor.trends import Forecast

STATUS_FILE = "training_status.json"
LOSSES_SHOWN = 100
ACCURACIES_SHOWN = 100
FRESH_TELEMETRY_S = 60.0
"""Sensor readings of the trainer older than this are no longer how things are; a long step is shorter."""

GPU_KEYS = ("temperature_c", "vram_used_gb", "vram_total_gb", "power_w")
FROM_TRAINER = (
    "epoch",
    "total_steps",
    "batch_step",
    "batch_total_steps",
    "current_system_prompt",
    "layer_activity_summary",
    "lora_stats",
    "model_name",
)
"""Keys that only the trainer can know exactly; what it writes wins over what is worked out here."""


def payload(home: Home, db: Database) -> dict[str, Any]:
    """Every key of the status payload, as things are now."""
    return from_facts(gather(home, db))


def write_status(home: Home, content: Mapping[str, Any]) -> None:
    """Replaces `status/training_status.json`; a reader sees the old content or the new."""
    write_atomic(home.status / STATUS_FILE, orjson.dumps(dict(content)))


def from_facts(facts: Facts) -> dict[str, Any]:
    """The payload of these facts."""
    losses = [step.loss for step in facts.steps]
    found = {
        **_place(facts),
        **_sample(facts),
        **_accuracy(facts),
        "streaming_ce": trends.streaming_ce(losses),
        "loss_variance": trends.loss_variance(losses),
        "token_entropy": facts.steps[-1].token_entropy if facts.steps else None,
        "loss_trend": trends.loss_trend(losses),
        **_held_out(facts.evaluations, facts.judged_loss),
        **_pace(facts),
        "pattern_heatmap": heatmap_of(facts.evaluations[-1].path) if facts.evaluations else None,
        "pattern_loss_trend": loss_trends(facts.evaluations) or None,
        "layer_activity_summary": None,
        "lora_stats": None,
        "train_loss_history": losses[-LOSSES_SHOWN:],
        "accuracy_history": trends.running_percent(facts.matches, 20)[-ACCURACIES_SHOWN:],
        **_machine(facts),
        "drill": _drill(facts),
        "backup": _backup(facts),
    }
    told = facts.trainer.facts if facts.trainer is not None and facts.trainer.alive else {}
    found |= {key: told[key] for key in FROM_TRAINER if told.get(key) is not None}
    if (found["total_steps"] or 0) < (found["current_step"] or 0):
        found["total_steps"] = None  # training goes on after the end of its schedule
    return found | {"active_alerts": [asdict(alert) for alert in active(facts, found)]}


def state_word(facts: Facts) -> str:
    """idle, training, paused, stopping, crashed or completed."""
    trainer = facts.trainer
    if trainer is not None and trainer.crashed:
        return "crashed"
    if trainer is None or not trainer.alive or trainer.state in ("idle", "completed", "stopped"):
        done = facts.unfinished_jobs == 0 and facts.last_file_state is JobState.COMPLETED
        return "completed" if done else "idle"
    if trainer.state == "stopping" or facts.command == "stop":
        return "stopping"
    return "paused" if trainer.state in ("paused", DISK_FULL) else "training"


def _place(facts: Facts) -> dict[str, Any]:
    """Where training is: the step, the file, and how much is left of it."""
    last = facts.steps[-1] if facts.steps else None
    job = facts.current_job
    coming = _forecast(facts)
    left = coming.steps if coming else None
    trained = facts.job_steps or None
    return {
        "status": state_word(facts),
        "current_step": last.step if last else None,
        "total_steps": None if last is None or left is None else last.step + left,
        "epoch": None,
        "loss": last.loss if last else None,
        "learning_rate": last.learning_rate if last else None,
        "timestamp": facts.now,
        "model_name": facts.trainer.facts.get("model_name") if facts.trainer else None,
        "max_output_tokens": facts.config.evaluation.max_new_tokens,
        "context_window": facts.context_tokens,
        "batch_step": trained,
        "batch_total_steps": None if trained is None or left is None else trained + left,
        "batch_number": facts.started_files or None,
        "batch_queue_size": facts.waiting_files,
        "current_file": job.file if job else None,
    }


def _sample(facts: Facts) -> dict[str, Any]:
    sample = facts.sample
    return {
        "current_system_prompt": None,
        "current_prompt": sample.prompt if sample else None,
        "golden_answer": sample.gold if sample else None,
        "model_answer": sample.answer if sample else None,
        "answer_matches": sample.match if sample else None,
    }


def _accuracy(facts: Facts) -> dict[str, Any]:
    """Of the in-training samples."""
    matches = facts.matches
    return {
        "total_evals": facts.sampled,
        "total_correct": facts.correct,
        "accuracy_percent": 100 * facts.correct / facts.sampled if facts.sampled else None,
        "accuracy_last_20": trends.percent(matches, 20),
        "accuracy_last_50": trends.percent(matches, 50),
        "accuracy_trend": trends.accuracy_trend([100.0 * match for match in matches]),
    }


def _held_out(evaluations: Sequence[Evaluation], train: float | None) -> dict[str, Any]:
    """Of the frozen suites; several suites are averaged by their items. `train` is the loss at the same step."""
    newest = evaluations[-1] if evaluations else None
    series = [100 * em for e in evaluations if (em := trends.pooled(e, "exact")) is not None]
    ce = trends.pooled(newest, "nll_per_token") if newest else None
    return {
        "fixed_eval_em": trends.pooled(newest, "exact") if newest else None,
        "fixed_eval_ce": ce,
        "fixed_eval_ece": trends.pooled(newest, "ece") if newest else None,
        "fixed_eval_trend": trends.accuracy_trend(series),
        "val_train_gap": None if ce is None or train is None else ce - train,
    }


def _pace(facts: Facts) -> dict[str, Any]:
    training = state_word(facts) == "training"
    coming = _forecast(facts) if training else None
    return {
        "tokens_per_sec": trends.tokens_per_s(facts.steps) if training else None,
        "eta_seconds": coming.seconds if coming else None,
        "eta_error_seconds": coming.error_seconds if coming else None,
    }


def _forecast(facts: Facts) -> Forecast | None:
    """What is left of the present file, by the rows it has still to give; None before its first step."""
    job = facts.current_job
    if job is None or facts.job_examples is None or not job.progress:
        return None
    steps = [step for step in facts.steps if step.job == job.id]
    return trends.forecast(steps, (1 - job.progress) * facts.job_examples)


def _drill(facts: Facts) -> dict[str, Any] | None:
    """The last restore drill: of which version, whether it answered as it did, and how long ago that was."""
    last = facts.drill
    if last is None:
        return None
    told = {"version": last.version, "ok": last.ok, "age_s": drills.age_s(last, facts.now)}
    return {**told, "worst": last.worst, "reason": last.reason}


def _backup(facts: Facts) -> dict[str, Any] | None:
    """The last backup: how long ago it was taken, or copied where a second place is set, and how the last try ended."""
    last = facts.backup
    if last is None:
        return None
    told = {"snapshot": last.snapshot, "ok": last.ok, "age_s": age_s(last.taken, facts.now)}
    return {**told, "location": last.location, "error": last.error}


def _machine(facts: Facts) -> dict[str, Any]:
    trainer, machine = facts.trainer, facts.machine
    fresh = trainer is not None and trainer.alive and trainer.age_s is not None and trainer.age_s < FRESH_TELEMETRY_S
    telemetry = trainer.facts.get("telemetry") if trainer is not None and fresh else None
    gpu = telemetry.get("gpu") if isinstance(telemetry, dict) else None
    return {
        "gpu": {key: gpu.get(key) if isinstance(gpu, dict) else None for key in GPU_KEYS},
        "ram": {"used_gb": machine.ram_used_gb, "total_gb": machine.ram_total_gb, "percent": machine.ram_percent},
        "disk": {"free_gb": machine.disk_free_gb},
    }
