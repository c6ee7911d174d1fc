"""`stoke demo`: the whole loop on the embedded default, from an untrained model to a promoted version that answers.

Nothing here is special to the demo: it makes a home, freezes suites, drops a file into the inbox and watches what
`stoke up` does with it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from stokehold.cli.demo_progress import watch
from stokehold.cli.init import TINY, make_home
from stokehold.cli.options import JsonOption
from stokehold.cli.output import console, emit, errors, share, table
from stokehold.cli.places import dashboard, start_detached, stop
from stokehold.core.config import Config, parse_config
from stokehold.core.errors import StokeholdError
from stokehold.store.db import journal
from stokehold.store.db.database import connect
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.store.judged import suites
from stokehold.store.models import versions
from stokehold.supervisor.processes import worker_environment
from stokehold.tasks.registry import draw, row

FAMILY = "syllo"
SUITES: Mapping[str, Mapping[int, int]] = {
    "easy": {1: 100, 2: 30, 3: 30},
    "medium": {4: 8, 5: 8, 6: 8},
    "hard": {7: 6, 8: 6, 10: 6},
}
"""Held-out items of each suite by level; level 1 is the one that the time allows to master."""

JUDGED = ("easy",)
"""What each checkpoint is judged on; the other suites are read before and after."""

HEADLINE = "1"
"""Level of `baseline_exact` and `holdout_exact`."""

MINUTES = 6.0
BATCH_TOKENS = 2048
"""Half the batch learns the words in two thirds of the tokens; a quarter learns them more slowly again."""

STEPS_PER_MINUTE = 185
"""Steps of `BATCH_TOKENS` that two cores take in a minute, rounded down, so that the decay ends within the time."""

FILES = 6
ROWS_PER_STEP = 13
"""Puzzles in a packed batch, over the levels that the curriculum comes to: files end where the decay does."""

SUITE_SEED, FILE_SEED = 2, 1


@dataclass
class Phases:
    """Seconds of each part of the demo, in order; `started` is by `time.monotonic`."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Announces a part on stderr and keeps how long it took."""
        errors.print(name, style="bold")
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun

    @property
    def total(self) -> float:
        return time.monotonic() - self.started


def add_to(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    minutes: Annotated[float, typer.Option(help="Minutes of training, at most.", min=0.1)] = MINUTES,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up at the end.")] = False,
    folder: Annotated[Path, typer.Option("--home", help="A new home.", show_default=".demo/<time>")] = Path(),
    port: Annotated[int, typer.Option(help="The dashboard's port; 0 takes a free one.")] = 8080,
    as_json: JsonOption = False,
) -> None:
    """From an untrained model to a promoted version, with the dashboard, on this machine alone."""
    root = folder if folder != Path() else Path(".demo") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    phases = Phases()
    with phases.measure("making a tiny Qwen3 and its tokenizer"):
        home = make_home(root, TINY, demo_config(minutes, port))
    with phases.measure("measuring the untrained model on held-out puzzles"):
        freeze_suites(home)
        baseline = judge(home, "base")
    drop_file(home, home.config().improvement.rows)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to go, it still takes its children along
    staying = False
    try:
        with phases.measure("training, evaluating, promoting"):
            start_detached(home)
            errors.print(f"dashboard: {dashboard(home)}")
            watch(home, minutes * 60)
        with phases.measure("measuring the champion"):
            final = judge(home, "champion")
        staying = keep
    finally:
        if not staying:
            stop(home)
    finish(home, phases, baseline, final, as_json)
    if keep:
        errors.print(f"still up: {dashboard(home)}; `stoke down --home {home.root}` stops it")


def demo_config(minutes: float, port: int) -> Config:
    """Settings under which two cores master level 1 within six minutes."""
    steps = max(20, round(minutes * STEPS_PER_MINUTE))
    return parse_config(
        {
            "data": {"max_length": 2048},
            "training": {
                "micro_batch_tokens": BATCH_TOKENS,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_steps": min(50, steps // 4),
                "total_steps": steps,
                "checkpoint_steps": 200,
                "sample_steps": 100,
            },
            "evaluation": {"holdout_share": 0.0, "suites": list(JUDGED), "batch_size": 80, "gold_multiple": 1.5},
            "improvement": {
                "enabled": True,
                "family": FAMILY,
                "levels": sorted(SUITES["easy"]),
                "rows": max(64, steps * ROWS_PER_STEP // FILES),
                "max_files": FILES - 1,
            },
            "web": {"port": port},
        }
    )


def freeze_suites(home: Home) -> None:
    """Held-out puzzles only: ingest refuses every row with one of their identities."""
    for name, levels in SUITES.items():
        drawn = (draw(FAMILY, level, count, SUITE_SEED, "holdout") for level, count in levels.items())
        rows = [{"id": s.id, "line": None, **row(s)} for samples in drawn for s in samples]
        suites.save_suite(home, name, rows)


def drop_file(home: Home, rows: int) -> None:
    """The first file, into the inbox like anybody's."""
    samples = draw(FAMILY, 1, rows, FILE_SEED, "train")
    write_atomic(home.inbox / "level-1.jsonl", b"".join(orjson.dumps(row(sample)) + b"\n" for sample in samples))


def judge(home: Home, ref: str) -> dict[str, Any]:
    """What `stoke evaluate REF` answers on all suites, from a process of its own."""
    named = [part for name in SUITES for part in ("--suite", name)]
    command = [sys.executable, "-m", "stokehold.pipeline.judge", "--home", str(home.root), "evaluate", ref]
    environment = {**os.environ, **worker_environment(home.config())}
    done = subprocess.run([*command, *named, "--json"], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise StokeholdError("the evaluation failed", ref, done.stderr[-800:])
    answer: dict[str, Any] = orjson.loads(done.stdout)
    return answer


def finish(home: Home, phases: Phases, baseline: Mapping[str, Any], final: Mapping[str, Any], as_json: bool) -> None:
    """The closing table, or its JSON."""
    steps = journal.steps(db := connect(home))
    tokens, seconds = sum(s.tokens for s in steps), sum(s.seconds for s in steps)
    before, now = (answer["suites"]["easy"]["by_level"][HEADLINE] for answer in (baseline, final))
    facts = {
        "home": str(home.root),
        "seconds": phases.total,
        "baseline_exact": before["exact"],
        "holdout_exact": now["exact"],
        "holdout_items": now["n"],
        "steps": len(steps),
        "tokens": tokens,
        "training_seconds": seconds,
        "tokens_per_s": tokens / seconds if seconds else None,
        "phases": phases.seconds,
        "versions": len(versions.list_versions(home)),
        "champion": versions.alias(db),
    }
    if emit(facts, as_json):
        return
    table(("held-out SYLLO", "items", "baseline", "now", "loss"), list(_levels(baseline, final)))
    rate = f"{tokens / seconds:,.0f} tokens/s" if seconds else "no step"
    console.print(f"\n{len(steps)} steps, {tokens:,} tokens, {seconds / 60:.1f} minutes of training, {rate}")
    console.print(f"champion {facts['champion']} of {facts['versions']}; {phases.total / 60:.1f} minutes in all")
    for name, spent in phases.seconds.items():
        console.print(f"  {spent:6.1f} s  {name}")
    console.print(f"home: {home.root}")
    console.print(f"ask it: stoke serve --home {home.root}")


def _levels(baseline: Mapping[str, Any], final: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """A row per level, then per suite the parts that are not in `exact`."""
    for name, suite in final["suites"].items():
        first = baseline["suites"][name]
        for level, now in suite["by_level"].items():
            before = first["by_level"].get(level, {"exact": None})
            yield f"{name}, level {level}", round(now["n"]), share(before["exact"]), share(now["exact"]), None
        parts = [share(answer["parts"].get("inventory")) for answer in (first, suite)]
        yield f"{name}, inventory", suite["n"], *parts, f"{first['nll_per_token']:.2f} -> {suite['nll_per_token']:.4f}"
