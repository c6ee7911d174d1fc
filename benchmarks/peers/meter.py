"""What each peer counts and prints: tokens of documents per second after warm-up, memory, time to the first step."""

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What every peer is told: the folder with model and rows, steps in all and of those to warm up, type, threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--skip", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    return parser


class Meter:
    """Steps from their first batch to their end; the first `skip` are kept out of the rate."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.steps: list[tuple[float, int]] = []
        self.first_step_s = 0.0
        self._tokens = 0
        self._last = 0.0

    def begin(self) -> None:
        """Before the first step: later steps begin where the one before ended, so that nothing between them is lost."""
        if not self._last:
            self._last = time.perf_counter()

    def batch(self, tokens: int) -> None:
        """`tokens` of documents go into the present step, padding not counted."""
        self._tokens += tokens

    def end(self) -> None:
        now = time.perf_counter()
        if not self.steps:
            self.first_step_s = process_age_s()
        self.steps.append((now - self._last, self._tokens))
        self._last, self._tokens = now, 0

    def emit(self, **more: Any) -> None:
        """Prints the readings as one line of JSON."""
        measured = self.steps[self.skip :]
        seconds, tokens = sum(one[0] for one in measured), sum(one[1] for one in measured)
        facts = {
            "tokens_per_s": tokens / seconds,
            "steps": len(measured),
            "tokens": tokens,
            "first_step_s": self.first_step_s,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print("RESULT " + json.dumps(facts | more), flush=True)


def process_age_s() -> float:
    """Seconds since this process was started, its imports included."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started
