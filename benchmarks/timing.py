"""Timing in turn, for comparisons on a machine whose speed drifts: every round runs each candidate once.

Within a round the order rotates, so that none always comes after the same other. What is compared is the ratio within
a round, and of those the median: a slow minute slows both sides of a ratio.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers


def in_turn(candidates: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; it is called with the round's number."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = time.perf_counter()
            candidates[name](number)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: Mapping[str, Sequence[float]], tokens: Mapping[str, Sequence[int]], ours: str) -> dict[str, Any]:
    """Median tokens/s of each candidate, and how many times as fast as it `ours` was: median and quartiles of pairs."""
    rates = {name: [n / s for n, s in zip(tokens[name], spent, strict=True)] for name, spent in seconds.items()}
    answer: dict[str, Any] = {name: {"tokens_per_s": statistics.median(rate)} for name, rate in rates.items()}
    for name, rate in rates.items():
        if name != ours:
            ratios = [mine / theirs for mine, theirs in zip(rates[ours], rate, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            answer[name]["ours_is_times_as_fast"] = {"median": middle, "quartiles": [low, high]}
    return answer


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 -- a kernel table, not a file
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
