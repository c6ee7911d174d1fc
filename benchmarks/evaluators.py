"""Eight readings from one process, beside eight processes that each load the model and generate: seconds and memory.

`python benchmarks/evaluators.py [--model FOLDER] [--items N] [--rounds N]` prints JSON. Ours is `stoke evaluate`, from
the start of its process to its end: load, one pass, all readings, everything stored. The others are eight processes of
`benchmarks/peers/evaluator.py` started together, as the design that this replaces had them, and for one of them alone
the same figures. All answer the same held-out SYLLO items with the same model and the same limit, in float32, each with
its share of the cores as threads. `exact` of the others is equality of tokens, ours the verifier's. Memory is the
largest sum, over time, of the processes' proportional set size (shared pages are counted once).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil
from timing import machine

from stokehold.core.config import describe, parse_config
from stokehold.core.records import Sample
from stokehold.data.tokenizer import load_tokenizer
from stokehold.pipeline.tiny import make_tiny
from stokehold.store.home import Home
from stokehold.store.models.bases import import_base
from stokehold.tasks.registry import draw, row

PEER = Path(__file__).parent / "peers" / "evaluator.py"
PROCESSES = 8
SUITE = "syllo"
POLL_S = 0.05
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; default: the tiny one with random weights")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--level", type=int, default=1, help="SYLLO level")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = given.model or make_model(folder / "model")
        samples = list(draw("syllo", given.level, given.items, 0, "holdout"))
        prompts = write_prompts(folder / "prompts.jsonl", model, samples)
        rounds: list[dict[str, Any]] = []
        for number in range(given.rounds):
            home = make_home(folder / f"home{number}", model, samples, given.new_tokens)
            peer = [sys.executable, str(PEER), str(model), str(prompts)]
            peer += ["--new-tokens", str(given.new_tokens), "--batch", str(BATCH)]
            ours = [sys.executable, "-m", "stokehold.pipeline.judge", "--home", str(home), "evaluate", "base", "--json"]
            runs = {"one_process": [ours], "eight_processes": [peer] * PROCESSES, "one_of_the_eight": [peer]}
            names = list(runs)[number % 3 :] + list(runs)[: number % 3]
            rounds.append({name: together(runs[name]) for name in names})
    json.dump({"machine": machine(), "items": given.items, **report(rounds), "rounds": rounds}, sys.stdout, indent=2)
    print()


def report(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and how many times what ours takes the eight take."""
    kinds = ("seconds", "processor_seconds", "memory_mb")
    found: dict[str, Any] = {
        name: {kind: statistics.median(one[name][kind] for one in rounds) for kind in kinds} for name in rounds[0]
    }
    ratios = {
        kind: statistics.median(one["eight_processes"][kind] / one["one_process"][kind] for one in rounds)
        for kind in kinds
    }
    return {**found, "eight_are_times_ours": ratios}


def together(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Wall seconds, processor seconds and highest memory of commands run at the same time, and what each found."""
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    before, started = os.times(), time.perf_counter()
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        for command in commands
    ]
    highest = 0.0
    while any(child.poll() is None for child in children):
        highest = max(highest, sum(memory_mb(child.pid) for child in children))
        time.sleep(POLL_S)
    seconds = time.perf_counter() - started
    said = [child.communicate()[0] for child in children]
    assert all(child.returncode == 0 for child in children), said
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    exact = [exact_of(orjson.loads(text)) for text in said]
    return {"seconds": seconds, "processor_seconds": used, "memory_mb": highest, "exact": exact}


def memory_mb(process: int) -> float:
    try:
        return psutil.Process(process).memory_full_info().pss / 1e6
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0  # it ended meanwhile


def exact_of(answer: dict[str, Any]) -> float:
    return float(answer["suites"][SUITE]["exact"] if "suites" in answer else answer["exact"])


def make_model(folder: Path) -> Path:
    make_tiny(folder, seed=0)
    return folder


def write_prompts(path: Path, model: Path, samples: Sequence[Sample]) -> Path:
    """What our engine would show and expect, as token ids."""
    tokenizer, lines = load_tokenizer(model), []
    for sample in samples:
        prompt, gold = tokenizer.prompt_ids(sample.question), tokenizer.answer_ids(sample.messages)[1]
        lines.append(orjson.dumps({"prompt": prompt, "gold": gold}))
    path.write_bytes(b"\n".join(lines))
    return path


def make_home(folder: Path, model: Path, samples: Sequence[Sample], new_tokens: int) -> Path:
    home = Home.create(folder, parse_config({}))
    base = import_base(home, model)
    tree = {
        "model": {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary},
        "evaluation": {"max_new_tokens": new_tokens, "batch_size": BATCH},
        "training": {"threads": os.cpu_count()},
    }
    home.write_config(describe(parse_config(tree)))
    (home.suites / f"{SUITE}.jsonl").write_bytes(b"".join(orjson.dumps(row(one)) + b"\n" for one in samples))
    return home.root


if __name__ == "__main__":
    main()
