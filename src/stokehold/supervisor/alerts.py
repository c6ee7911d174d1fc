"""What a person should be told now: one pure rule each, over the same facts as the status payload."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stokehold.core.config import Config, StoreConfig
from stokehold.core.records import Evaluation, Step, SuiteState
from stokehold.store.backup.drills import Drill
from stokehold.store.backup.offsite import Standing
from stokehold.supervisor.facts import Facts
from stokehold.supervisor.trainer import Trainer
from stokehold.supervisor.trends import pooled

WARNING, CRITICAL = "warning", "critical"

SPIKE_FACTOR = 2.0
SPIKE_STEPS = 50
SPIKE_STEPS_NEEDED = 10
GRAD_NORM_HIGH = 100.0
GRAD_NORM_LOW = 1e-7
PLATEAU_EVALUATIONS = 50
PLATEAU_SHARE = 0.01
PLATEAU_ENDS = 10
"""Evaluations at each end of the window whose means are compared: one noisy suite is no progress."""

ECE_LIMIT = 0.3
GAP_LIMIT_NATS = 0.3
SLOW_SHARE = 0.6
SLOW_STEPS = 10
BASELINE_STEPS = 50
DISK_LOW_GB = 5.0
"""Room for a checkpoint with optimiser of a small model; below it publishing begins to fail."""

DISK_FULL = "disk_full"
"""State of a trainer that waits for room; it goes on by itself when there is some."""

RESTART_SHOWN_S = 600.0
BACKUP_STALE_S = 48 * 3600.0
"""Two nights without one."""

NODE_SILENT_S = 120.0
"""A node asks every few seconds, and while it answers at most once an evaluation."""

STALE_INTERVALS = 3
STALE_FILES = 3
"""Files begun since the last evaluation: that many without one between them were not evaluated at their ends."""


@dataclass(frozen=True, slots=True)
class Alert:
    """`kind` names the rule, `severity` is warning or critical, `text` says what is seen and against what."""

    kind: str
    severity: str
    text: str


def active(facts: Facts, status: Mapping[str, Any]) -> list[Alert]:
    """Every alert that holds; `status` is the payload of the same facts, its own alerts left out."""
    training = status["status"] == "training"
    limit_c = facts.config.telemetry.gpu_limit_c
    found = [
        loss_spike(facts.steps),
        grad_norm(facts.steps),
        plateau([em for e in facts.evaluations if (em := pooled(e, "exact")) is not None]),
        above("ece", "calibration error of the held-out answers", status["fixed_eval_ece"], ECE_LIMIT),
        above("val_train_gap", "held-out loss above training loss, nats", status["val_train_gap"], GAP_LIMIT_NATS),
        throughput(facts.steps) if training else None,
        disk_full(facts.trainer)
        or disk_short(facts.machine.disk_free_share, facts.config.store)
        or disk_low(status["disk"]["free_gb"]),
        backup_stale(facts.backup, facts.config.store.backup_to, facts.now),
        drill_failed(facts.drill),
        *restarts(facts.children, facts.boot_s),
        evaluator_broken(facts.evaluations[-1] if facts.evaluations else None),
        evaluator_stale(facts.steps, facts.evaluations, facts.config) if facts.suites else None,
        evaluation_damaged(facts.damaged),
        node_away(facts.node_silence_s),
        above("temperature", "GPU temperature, °C", status["gpu"]["temperature_c"], limit_c, CRITICAL),
    ]
    return [alert for alert in found if alert is not None]


def loss_spike(steps: Sequence[Step]) -> Alert | None:
    """The newest loss is twice the mean of the 50 before it."""
    before = [step.loss for step in steps[-SPIKE_STEPS - 1 : -1]]
    if len(before) < SPIKE_STEPS_NEEDED or steps[-1].loss <= SPIKE_FACTOR * (mean := statistics.fmean(before)):
        return None
    return Alert("loss_spike", WARNING, f"loss {steps[-1].loss:.3g} at step {steps[-1].step}, recent mean {mean:.3g}")


def grad_norm(steps: Sequence[Step]) -> Alert | None:
    """The newest gradient norm is beyond what training lives on."""
    if not steps or GRAD_NORM_LOW <= steps[-1].grad_norm <= GRAD_NORM_HIGH:
        return None
    word = "exploding" if steps[-1].grad_norm > GRAD_NORM_HIGH else "vanishing"
    return Alert("grad_norm", WARNING, f"gradient {word}: norm {steps[-1].grad_norm:.3g} at step {steps[-1].step}")


def plateau(exact: Sequence[float]) -> Alert | None:
    """The held-out share moved by less than one point over 50 evaluations, and there was room to move."""
    window = exact[-PLATEAU_EVALUATIONS:]
    if len(window) < PLATEAU_EVALUATIONS:
        return None
    then, now = statistics.fmean(window[:PLATEAU_ENDS]), statistics.fmean(window[-PLATEAU_ENDS:])
    if abs(now - then) >= PLATEAU_SHARE or now > 1 - PLATEAU_SHARE:
        return None
    return Alert("plateau", WARNING, f"held-out exact stays near {now:.1%} over {PLATEAU_EVALUATIONS} evaluations")


def above(kind: str, what: str, value: float | None, limit: float, severity: str = WARNING) -> Alert | None:
    """A reading is over its limit."""
    if value is None or value <= limit:
        return None
    return Alert(kind, severity, f"{what}: {value:.3g}, limit {limit:g}")


def throughput(steps: Sequence[Step]) -> Alert | None:
    """The last 10 steps make less than 60 % of the tokens per second that is usual here."""
    rates = [step.tokens / step.seconds for step in steps if step.seconds > 0]
    if len(rates) < BASELINE_STEPS + SLOW_STEPS:
        return None
    usual, now = statistics.median(rates[:-SLOW_STEPS]), statistics.median(rates[-SLOW_STEPS:])
    if now >= SLOW_SHARE * usual:
        return None
    return Alert("throughput", WARNING, f"{now:.0f} tokens/s, usual here {usual:.0f}")


def disk_full(trainer: Trainer | None) -> Alert | None:
    """Training stands still because a checkpoint or a journal row found no room."""
    if trainer is None or not trainer.alive or trainer.state != DISK_FULL:
        return None
    return Alert("disk_full", CRITICAL, "training waits for room on the disk, and goes on when there is some")


def disk_short(free_share: float | None, config: StoreConfig) -> Alert | None:
    """Little of the disk is free: a warning, and where it is so little that training waits for room, more than that."""
    if free_share is None or free_share >= max(config.warn_free_share, config.pause_free_share):
        return None
    told = f"{100 * free_share:.1f} % of the disk is free"
    if free_share < config.pause_free_share:
        return Alert("disk_pause", CRITICAL, f"{told}: training waits until there is room; `stoke gc --dry-run`")
    text = f"{told}; below {100 * config.pause_free_share:.0f} % training waits; `stoke gc --dry-run`"
    return Alert("disk_short", WARNING, text)


def disk_low(free_gb: float | None) -> Alert | None:
    """There is hardly room for the next checkpoint."""
    if free_gb is None or free_gb >= DISK_LOW_GB:
        return None
    return Alert("disk_low", CRITICAL, f"{free_gb:.1f} GB free: make room, checkpoints need it")


def backup_stale(backup: Standing | None, location: str, now: str) -> Alert | None:
    """The last good backup is two days old, or none reached the second place that is set."""
    if backup is None:
        return Alert("backup_stale", WARNING, f"nothing was copied to {location} yet") if location else None
    age = age_s(backup.taken, now)
    if age is not None and age <= BACKUP_STALE_S:
        return None
    since = "none yet" if age is None else f"{age / 3600:.0f} hours old"
    why = f"; the last try: {backup.error}" if backup.error else ""
    return Alert("backup_stale", WARNING, f"last backup{f' in {location}' if location else ''}: {since}{why}")


def drill_failed(drill: Drill | None) -> Alert | None:
    """The version that was restored and loaded last did not answer as it did when it was made."""
    if drill is None or drill.ok is not False:
        return None
    fix = f"`stoke versions verify {drill.version}`, then `stoke versions restore {drill.version}`"
    return Alert("drill_failed", CRITICAL, f"the drill of {drill.version} failed: {drill.reason}; {fix}")


def age_s(created: str | None, now: str) -> float | None:
    """Seconds between two times in ISO 8601, never negative; None where there is no first."""
    if created is None:
        return None
    return max(0.0, (datetime.fromisoformat(now) - datetime.fromisoformat(created)).total_seconds())


def restarts(children: Sequence[Mapping[str, Any]], boot_s: float) -> list[Alert]:
    """Roles that were restarted in the last 10 minutes, and those given up after a crash loop, with the reason.

    `boot_s` is the present, and exits have theirs, in seconds since the machine was started.
    """
    found = []
    for child in children:
        role = child["role"]
        recent = [e for e in child["exits"] if 0 <= boot_s - e["boot_s"] <= RESTART_SHOWN_S]
        if child["state"] == "stopped":
            last = child["exits"][-1]
            said = f": {last['said']}" if last["said"] else ""
            text = f"{role} was given up: it {last['how']} again and again{said}; correct it, then `stoke up`"
            found.append(Alert("crash_loop", CRITICAL, text))
        elif recent:
            times = "once" if len(recent) == 1 else f"{len(recent)} times"
            text = f"{role} was restarted {times} in 10 minutes, last exit {recent[-1]['exit']}"
            found.append(Alert("worker_restarted", WARNING, text))
    return found


def evaluator_broken(newest: Evaluation | None) -> Alert | None:
    """A suite of the newest evaluation could not be judged."""
    broken = [r for r in newest.suites.values() if r.state is SuiteState.BROKEN] if newest else []
    if not broken:
        return None
    why = "; ".join(f"{result.suite}: {result.reason or 'no reason given'}" for result in broken)
    return Alert("evaluator_broken", CRITICAL, why)


def evaluator_stale(steps: Sequence[Step], evaluations: Sequence[Evaluation], config: Config) -> Alert | None:
    """Training has gone on for long without an evaluation: three intervals, or two whole files.

    An interval is `training.eval_steps`, or longer where evaluations are so slow that they must wait for their share.
    """
    eval_steps, share = config.training.eval_steps, config.evaluation.overhead
    newest = max((e for e in evaluations if e.step is not None), key=lambda e: e.step or 0, default=None)
    judged = (newest.step or 0) if newest else 0
    since = [step for step in steps if step.step > judged]
    if not since:
        return None
    files = len({step.job for step in since})
    behind = since[-1].step - judged
    waits = newest is not None and share * sum(step.seconds for step in since) < STALE_INTERVALS * newest.seconds
    if (eval_steps and behind > STALE_INTERVALS * eval_steps and not (share and waits)) or (
        not eval_steps and files >= STALE_FILES
    ):
        return Alert("evaluator_stale", WARNING, f"no evaluation for {behind} steps")
    return None


def evaluation_damaged(damaged: Mapping[str, str]) -> Alert | None:
    """A record among the newest cannot be read, and is missing from everything that is shown."""
    if not damaged:
        return None
    told = "; ".join(f"{name}: {what}" for name, what in damaged.items())
    return Alert("evaluation_damaged", WARNING, f"{told}; restore it from a backup, or move it out of `evaluations/`")


def node_away(silence_s: float | None) -> Alert | None:
    """An evaluation waits for a node, and none asks."""
    if silence_s is None or silence_s < NODE_SILENT_S:
        return None
    text = f"an evaluation waits for a node, none has asked for {silence_s / 60:.0f} min: `stoke node judge` there"
    return Alert("node_away", WARNING, text)
