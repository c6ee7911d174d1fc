"""The figures of the status payload for Prometheus; what is unknown is absent, never 0."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stokehold.web.readings import Readings

GAUGES = {
    "current_step": "Optimiser steps taken",
    "loss": "Loss of the newest step, nats per token",
    "streaming_ce": "Exponential mean of the step loss, nats per token",
    "learning_rate": "Learning rate of the newest step",
    "tokens_per_sec": "Tokens trained per second",
    "fixed_eval_em": "Share of held-out items answered exactly",
    "fixed_eval_ce": "Held-out loss, nats per token",
    "fixed_eval_ece": "Expected calibration error on held-out items",
    "batch_queue_size": "Files waiting",
    "eta_seconds": "Seconds until the present file is trained",
}
MACHINE = {
    ("gpu", "temperature_c"): "GPU temperature, degrees Celsius",
    ("gpu", "power_w"): "GPU power, watts",
    ("gpu", "vram_used_gb"): "GPU memory used, 10^9 bytes",
    ("ram", "used_gb"): "Memory used, 10^9 bytes",
    ("disk", "free_gb"): "Free disk, 10^9 bytes",
}
STATES = ("idle", "training", "paused", "stopping", "crashed", "completed")


class StatusCollector(Collector):
    """Reads the status at each scrape."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        status = self._readings.status()
        figures: dict[str, tuple[str, Any]] = {key: (text, status[key]) for key, text in GAUGES.items()}
        figures |= {f"{group}_{key}": (text, status[group][key]) for (group, key), text in MACHINE.items()}
        for name, (text, value) in figures.items():
            if value is not None:
                yield GaugeMetricFamily(f"stokehold_{name}", text, value=float(value))
        yield _labelled("state", "1 for how training stands", "state", {s: s == status["status"] for s in STATES})
        kinds = {alert["kind"]: 1 for alert in status["active_alerts"]}
        yield _labelled("alert", "1 for each active alert", "kind", kinds)


def expose(registry: CollectorRegistry) -> bytes:
    """The text format of everything registered."""
    return generate_latest(registry)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"stokehold_{name}", text, labels=[label])
    for key, value in values.items():
        found.add_metric([key], float(value))
    return found
