"""From a file renamed into the inbox to its first optimiser step, with a real `stoke up` on a tiny model.

`python benchmarks/ingest.py [--lines 1000 100000] [--repeats 2]` prints JSON; about three minutes on two cores.

`journey`   per number of lines, of about 1 kB each, the best of some repeats: seconds from the rename to the first
            journal row and their parts, by the times that the database keeps (milliseconds), and the peak memory until
            then of the trainer (VmHWM; a process of its own, and without those that read parts of a file for it). It
            is warm: it has trained a small file before, and its spare has loaded. `peak_growth_mb` is the last number
            of lines less the first.
`ingest`    `ingest_file` alone, in this process and those it starts: seconds and processor seconds of all of them,
            beside `json.loads` of the same lines.
`tokenise`  `Batches` alone over the rows of a file of 10,000 lines: render, tokenise, mask, pack; tokens per second and
            per processor second, on one thread (as beside training, which has every core) and on every core.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from restart import wait_for_spare
from timing import machine

from stokehold.core.config import Config, describe, parse_config
from stokehold.data.batches import Batches, Cursor
from stokehold.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from stokehold.pipeline.ingest import ingest_file
from stokehold.store.db import job_rows, journal
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import client
from stokehold.store.files import hash_file
from stokehold.store.home import Home
from stokehold.store.models.bases import import_base
from stokehold.training.model import create_tiny

SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
VOCABULARY = 2000
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
"""Small, so that what comes before the first step is seen and not the step."""

WAIT_S = 60.0
HURRY_S = 0.3
"""Between two signals to leave: sent at once, they may arrive as one."""

WARM_ROWS = 300
TOKENISED_ROWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = (turn["content"] for n in range(3000) for turn in exchange(random.Random(n)))
        train_tokenizer(texts, VOCABULARY, folder / "model")
        create_tiny(folder / "model", seed=0, **SHAPE)
        report: dict[str, Any] = {"machine": machine(), "journey": [], "ingest": []}
        for lines in given.lines:
            file = write_chats(folder / f"{lines}.jsonl", lines, seed=1)
            for name, measured in (("journey", journey), ("ingest", ingest)):
                runs = [measured(make_home(folder, f"{name}-{lines}-{n}"), file) for n in range(given.repeats)]
                best = min(runs, key=lambda run: run["seconds"])
                every = [run["seconds"] for run in runs]
                report[name].append({"lines": lines, "bytes": file.stat().st_size, **best, "every_run_s": every})
        report["peak_growth_mb"] = report["journey"][-1]["peak_mb"] - report["journey"][0]["peak_mb"]
        rows = write_chats(folder / "rows.jsonl", TOKENISED_ROWS, seed=3)
        report["tokenise"] = tokenise(make_home(folder, "tokenise"), rows, given.repeats)
    json.dump(report, sys.stdout, indent=2)
    print()


def write_chats(path: Path, count: int, seed: int) -> Path:
    """`count` conversations of sums and syllables, about 1 kB each."""
    chance = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            turns = [turn for _ in range(chance.randint(1, 2)) for turn in exchange(chance)]
            system = [{"role": "system", "content": "You are a careful solver. Answer in JSON only."}]
            messages = [*(system if chance.random() < 0.3 else []), *turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def exchange(chance: random.Random) -> Iterator[dict[str, str]]:
    sums = [(chance.randint(2, 999), chance.randint(2, 999)) for _ in range(chance.randint(4, 10))]
    words = ["".join(chance.choices(SYLLABLES, k=3)) for _ in range(chance.randint(6, 14))]
    asked = "\n".join(f"{n}. {a} + {b} = ?" for n, (a, b) in enumerate(sums, 1))
    answers = {"sums": [{"n": n, "value": a + b} for n, (a, b) in enumerate(sums, 1)], "words": sorted(words)}
    yield {"role": "user", "content": f"Add each line and sort the words.\n{asked}\n\nWords: {', '.join(words)}"}
    yield {"role": "assistant", "content": json.dumps(answers)}


def make_home(folder: Path, name: str) -> Home:
    home = Home.create(folder / name, parse_config({}))
    base = import_base(home, folder / "model")
    model = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
    tree = {
        "model": model,
        "training": {"micro_batch_tokens": 1024, "sample_steps": 0, "checkpoint_steps": 100_000},
        "data": {"max_length": 1024},
        "evaluation": {"holdout_share": 0.0},
        "web": {"port": 0},
    }
    home.write_config(describe(parse_config(tree)))
    return home


def journey(home: Home, file: Path) -> dict[str, Any]:
    """One file through the inbox of a supervised, warm trainer; it is stopped after its first steps."""
    up = subprocess.Popen(
        [sys.executable, "-m", "stokehold.supervisor.main", "--home", str(home.root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with client(home) as jobs:
            drop(home, write_chats(home.root / "warm.jsonl", WARM_ROWS, seed=2))
            wait_for(lambda: any(j.kind == "train" and j.state == "completed" for j in jobs.list_jobs()))
            wait_for_spare(home)  # it loads torch on the core that reads the file
            before = journal.last_step(jobs.db)
            renamed = drop(home, file)
            wait_for(lambda: journal.last_step(jobs.db) != before)
            return {**times(jobs.db, renamed, before.step + 1 if before else 1), "peak_mb": peak_mb(home)}
    finally:
        up.send_signal(signal.SIGINT)
        time.sleep(HURRY_S)
        up.send_signal(signal.SIGINT)
        up.wait()


def drop(home: Home, file: Path) -> float:
    """Renames the file into the inbox, as a careful writer does; returns when."""
    part = home.inbox / f".{file.name}.part"
    part.write_bytes(file.read_bytes())
    moment = time.time()
    part.rename(home.inbox / file.name)
    return moment


def wait_for(condition: Any) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the file did not get through")
        time.sleep(0.01)


def times(db: Database, renamed: float, first_step: int) -> dict[str, float]:
    """Seconds from the rename to each station."""
    jobs = {job.kind: job for job in job_rows.list_jobs(db)}
    ingested, queued = jobs["ingest"], jobs["train"]
    step = next(row for row in journal.steps(db) if row.step == first_step)
    at = {"submitted": ingested.created, "ingested": queued.created, "first_step": step.created}
    seconds = {name: datetime.fromisoformat(moment).timestamp() - renamed for name, moment in at.items()}
    return {"seconds": seconds["first_step"], **{f"to_{name}_s": value for name, value in seconds.items()}}


def peak_mb(home: Home) -> float:
    """The trainer's VmHWM."""
    pid = json.loads((home.status / "trainer.json").read_text())["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def ingest(home: Home, file: Path) -> dict[str, Any]:
    config = home.config()
    tokenizer = load_tokenizer(home.root / config.model.base)
    content = hash_file(file)
    lines = file.read_bytes().splitlines()
    began = processor_s()
    for line in lines:
        json.loads(line)
    plain = processor_s() - began
    started, began = time.perf_counter(), processor_s()
    ingest_file(home, config, tokenizer, file, content, file.name)
    seconds, spent = time.perf_counter() - started, processor_s() - began
    return {"seconds": seconds, "processor_s": spent, "json_loads_processor_s": plain}


def processor_s() -> float:
    """Of this process and of those it started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def tokenise(home: Home, file: Path, repeats: int) -> dict[str, Any]:
    config = home.config()
    tokenizer = load_tokenizer(home.root / config.model.base)
    dataset = ingest_file(home, config, tokenizer, file, hash_file(file), file.name)
    rows = home.datasets / dataset.id / "rows.jsonl"
    found = {}
    for name, parallel in (("one_thread", "false"), ("every_core", "true")):
        os.environ["TOKENIZERS_PARALLELISM"] = parallel
        runs = [batch(rows, tokenizer, config) for _ in range(repeats + 1)]
        found[name] = max(runs, key=lambda run: run["tokens_per_s"])
    return found


def batch(rows: Path, tokenizer: ChatTokenizer, config: Config) -> dict[str, Any]:
    started, began = time.perf_counter(), processor_s()
    with Batches(
        rows,
        tokenizer,
        window_rows=config.data.window_rows,
        capacity=config.training.micro_batch_tokens,
        max_length=config.data.max_length,
        seed=0,
        epochs=1,
        cursor=Cursor.start(),
    ) as batches:
        tokens = sum(len(batch.ids) for batch in batches)
    seconds, spent = time.perf_counter() - started, processor_s() - began
    return {"tokens": tokens, "tokens_per_s": tokens / seconds, "tokens_per_processor_s": tokens / spent}


if __name__ == "__main__":
    main()
