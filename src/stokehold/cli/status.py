"""`stoke status` for people: a line per thing that is known, within 80 columns; what is unknown has no line."""

from collections.abc import Iterator, Mapping
from typing import Any

from stokehold.cli.output import share
from stokehold.store.home import Home
from stokehold.supervisor.processes import holder

LABEL = 10
"""Width of the first column."""

TRENDS = ("improving", "stable", "degrading")


def status_lines(home: Home, facts: Mapping[str, Any]) -> list[str]:
    """The payload `facts` of `home` in lines; alerts and what to do next stand at the end."""
    pairs = [
        ("file", _file(facts)),
        ("step", _step(facts)),
        ("loss", _loss(facts)),
        ("samples", _samples(facts)),
        ("held out", _held_out(facts)),
        ("gpu", _gpu(facts["gpu"])),
        ("memory", _of(facts["ram"]["used_gb"], facts["ram"]["total_gb"])),
        ("disk", _number(facts["disk"]["free_gb"], "{:.1f} GB free")),
    ]
    lines = [f"{facts['status']}  {home.root}", ""]
    lines += [f"{label:<{LABEL}}{said}" for label, said in pairs if said]
    lines += [f"{alert['severity']}: {alert['text']}" for alert in facts["active_alerts"]]
    return [*lines, *_advice(home, facts)]


def _file(facts: Mapping[str, Any]) -> str:
    waiting = facts["batch_queue_size"]
    return _joined(
        facts["current_file"],
        _number(facts["epoch"] if facts["current_file"] else None, "epoch {:.2f}"),
        f"{waiting} more waiting" if waiting and facts["current_file"] else f"{waiting} waiting" if waiting else None,
    )


def _step(facts: Mapping[str, Any]) -> str:
    """Where the lineage stands, and the pace while there is one."""
    if facts["current_step"] is None:
        return ""
    total = facts["total_steps"]
    left, error = facts["eta_seconds"], facts["eta_error_seconds"]
    within = f" ± {duration(error)}" if left is not None and error is not None and error >= 1 else ""
    return _joined(
        f"{facts['current_step']:,}" + (f" of {total:,}" if total is not None else ""),
        f"{duration(left)}{within} left" if left is not None else None,
        _number(facts["tokens_per_sec"], "{:,.0f} tokens/s"),
    )


def _loss(facts: Mapping[str, Any]) -> str:
    return _joined(
        _number(facts["loss"], "{:.4f}"),
        _number(facts["streaming_ce"], "mean {:.4f}"),
        _trend(facts["loss_trend"]),
    )


def _samples(facts: Mapping[str, Any]) -> str:
    """How the rows it is trained on are answered."""
    last = facts["accuracy_last_50"]
    return _joined(_number(last, "{:.0f} % of the last " + str(min(50, facts["total_evals"])) + " right"))


def _held_out(facts: Mapping[str, Any]) -> str:
    exact = facts["fixed_eval_em"]
    return _joined(
        f"exact {share(exact)}" if exact is not None else None,
        _number(facts["fixed_eval_ce"], "loss {:.4f}"),
        _number(facts["fixed_eval_ece"], "calibration error {:.3f}"),
        _trend(facts["fixed_eval_trend"]),
    )


def _gpu(gpu: Mapping[str, float | None]) -> str:
    memory = _of(gpu["vram_used_gb"], gpu["vram_total_gb"])
    return _joined(_number(gpu["temperature_c"], "{:.0f} °C"), memory, _number(gpu["power_w"], "{:.0f} W"))


def _advice(home: Home, facts: Mapping[str, Any]) -> Iterator[str]:
    """What a person may do now; nothing while work goes on."""
    said = {
        "paused": "" if _waits_for_room(facts) else "`stoke resume` goes on",
        "crashed": "the trainer was killed or failed; `stoke up` goes on from its last checkpoint",
        "idle": _idle(home, facts),
        "completed": "everything is trained; the next file goes into inbox/",
    }.get(facts["status"])
    if facts["status"] == "crashed" and holder(home, ("supervisor",)):
        said = "the trainer is gone and is being started again; see `stoke logs trainer`"
    if said:
        yield ""
        yield said


def _idle(home: Home, facts: Mapping[str, Any]) -> str:
    if holder(home, ("supervisor", "trainer")) is None:
        return "not up: `stoke up` trains what waits" if facts["batch_queue_size"] else "not up: `stoke up` starts it"
    return "" if facts["batch_queue_size"] else "nothing waits: drop a JSONL file into inbox/"


def _waits_for_room(facts: Mapping[str, Any]) -> bool:
    return any(alert["kind"] == "disk_full" for alert in facts["active_alerts"])


def duration(seconds: float) -> str:
    """Two units at most: 42 s, 3 min, 3 h 5 min, 2 d 7 h."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _of(used: float | None, total: float | None) -> str | None:
    return None if used is None or total is None else f"{used:.1f} of {total:.1f} GB"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _trend(word: str) -> str | None:
    """A trend that is one; too little data is not worth a word."""
    return word if word in TRENDS else None


def _joined(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)
