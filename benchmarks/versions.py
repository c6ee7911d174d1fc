"""Versions of one checkpoint beside copies of it: seconds, and bytes that the disk holds more afterwards.

`python benchmarks/versions.py [--gb 1 5 10] [--folder DIR]` prints JSON; room for four times the largest is needed.
`--packing` trains a small model instead, four files one after another with a version after each, by all weights in
float32 and bfloat16 and by adapters, and tells what `stoke gc --compact` makes of the older versions.

One after another, per size: `stokehold` is create, verify, restore of a version whose configuration is missing, and
`gc` (without effect on what is young), each as a function call but `gc`, which is the command; `cp`, `rsync`, `restic`
and `borg`, as far as they are installed, make a copy or a backup, a second one of the same content, and (but for `cp`)
verify and restore it. The checkpoint holds random bytes, so that nothing compresses, in shards of 1 GB. Bytes are
`st_blocks` of every file, each inode once. Reading is from the page cache where it fits: the same for all.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from timing import machine

from stokehold.core.config import Config, describe, parse_config
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.housekeeping import retention
from stokehold.store.models import restores, versions
from stokehold.store.models.bases import import_base
from stokehold.store.models.checkpoints import publish_checkpoint

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

GB = 10**9
PIECE_BYTES = 2**24
PACKED = (("full", "float32"), ("full", "bfloat16"), ("lora", "float32"))
PACKING_FILES = 4
PACKING_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
SECRET = {"RESTIC_PASSWORD": "x", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


def shard(path: Path, size: int) -> None:
    """A safetensors file of one tensor of random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, PIECE_BYTES):
            stream.write(os.urandom(min(PIECE_BYTES, size - start)))


def used(folder: Path) -> int:
    found = [path.lstat() for path in folder.rglob("*")]
    return sum({status.st_ino: status.st_blocks * 512 for status in found}.values())


def timed(folder: Path, work: Callable[[], Any]) -> dict[str, float]:
    os.sync()
    before, started = used(folder), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 4), "bytes_added": used(folder) - before}


def command(*words: object) -> Callable[[], Any]:
    environment = {**os.environ, **SECRET}
    return lambda: subprocess.run([*map(str, words)], check=True, capture_output=True, env=environment)


def ours(root: Path, gigabytes: float) -> tuple[Path, dict[str, Any]]:
    """The home is left for the peers to read the checkpoint from."""
    home = Home.create(root / "home", Config())
    db = connect(home)

    def write(folder: Path) -> None:
        for number in range(max(1, round(gigabytes))):
            shard(folder / f"model-{number:05d}.safetensors", int(min(gigabytes, 1) * GB))
        (folder / "config.json").write_text("{}")

    source = Path(publish_checkpoint(home, 1, write, {}).path)
    found = {"create": timed(home.root, lambda: versions.create(home, db, source))}
    folder = home.versions / "v0001"
    found["create_again"] = timed(home.root, lambda: versions.create(home, db, source))
    found["verify"] = timed(home.root, lambda: versions.verify(home, folder))
    (folder / "config.json").unlink()
    found["restore"] = timed(home.root, lambda: restores.restore(home, db, "v1"))
    found["gc"] = timed(home.root, command(Path(sys.executable).parent / "stoke", "gc", "--home", home.root))
    db.close()
    return source, found


def peers(root: Path, source: Path) -> dict[str, Any]:
    """What each installed one needs for the same; None for what it has no command for."""
    repository = root / "repository"
    restic = ("restic", "-r", repository / "restic")
    borg, stored = "borg", repository / "borg"
    target = root / "target"
    plans: dict[str, dict[str, tuple[object, ...]]] = {
        "cp": {
            "create": ("cp", "-r", source, repository / "1"),
            "create_again": ("cp", "-r", source, repository / "2"),
        },
        "rsync": {
            "create": ("rsync", "-a", f"{source}/", f"{repository}/1/"),
            "create_again": ("rsync", "-a", f"--link-dest={repository}/1", f"{source}/", f"{repository}/2/"),
            "verify": ("rsync", "-anc", f"{source}/", f"{repository}/1/"),
            "restore": ("rsync", "-a", f"{repository}/1/", f"{target}/"),
        },
        "restic": {
            "init": (*restic, "init"),
            "create": (*restic, "backup", source),
            "create_again": (*restic, "backup", source),
            "verify": (*restic, "check", "--read-data"),
            "restore": (*restic, "restore", "latest", "--target", target),
            "gc": (*restic, "prune"),
        },
        "borg": {
            "init": (borg, "init", "-e", "none", stored),
            "create": (borg, "create", f"{stored}::1", source),
            "create_again": (borg, "create", f"{stored}::2", source),
            "verify": (borg, "check", "--verify-data", stored),
            "gc": (borg, "compact", stored),
        },
    }
    found: dict[str, Any] = {}
    for name, plan in plans.items():
        if shutil.which(name) is None:
            found[name] = None
            continue
        for folder in (repository, target):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        found[name] = {what: timed(root, command(*words)) for what, words in plan.items()}
    return found


def packing(root: Path, method: str, dtype: str) -> dict[str, Any]:
    """Bytes of each old version's weights before and after; the newest stays whole."""
    from stokehold.pipeline.foreground import Meter, train_files
    from stokehold.pipeline.worker import Leave
    from tiny_world import facts, write_jsonl

    home = packing_home(root, method, dtype)
    db, parent = connect(home), None
    for seed in range(PACKING_FILES):
        file = write_jsonl(root / f"{method}-{dtype}-{seed}.jsonl", facts(400, seed))
        answer = train_files(home, [file], None, True, Leave(), Meter())
        made = versions.create(home, db, Path(answer["checkpoint"]), parent=parent)
        os.utime(made.path, (0, 0))  # nobody asked for it within the last hour
        parent = made.name
    packed = retention.compact(home, db, datetime.now().astimezone() + timedelta(days=3))
    db.close()
    before, after = (sum(getattr(one, which) for one in packed.savings) for which in ("before", "after"))
    left = {line.name: line.why for line in packed.left}
    share = round(1 - after / before, 3) if before else None
    return {"saved": share, "versions": [asdict(one) for one in packed.savings], "left": left}


def packing_home(root: Path, method: str, dtype: str) -> Home:
    from stokehold.data.tokenizer import train_tokenizer
    from stokehold.training.model import create_tiny
    from tiny_world import facts, held_out_facts

    rows, model = [*facts(400), *held_out_facts()], root / "model"
    if not model.exists():
        train_tokenizer((message["content"] for row in rows for message in row["messages"]), 400, model)
        create_tiny(model, seed=3, **PACKING_SHAPE)
    home = Home.create(root / f"{method}-{dtype}", Config())
    base = import_base(home, model)
    facts_of = {"base": base.path, "architecture": base.architecture, "vocabulary": base.vocabulary}
    training = {"learning_rate": 3e-4, "micro_batch_tokens": 1024, "sample_steps": 0, "threads": 1}
    tree = {
        "model": {**facts_of, "method": method, "dtype": dtype},
        "training": training,
        "evaluation": {"holdout_share": 0.0},
    }
    home.write_config(describe(parse_config(tree)))
    return home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, nargs="+", default=[1, 5, 10])
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument("--packing", action="store_true", help="what packing saves, after real small trainings")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.packing:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results = {f"{how[0]}, {how[1]}": packing(Path(folder), *how) for how in PACKED}
        print(json.dumps({"machine": machine(), "packing": results}, indent=1))
        return
    for gigabytes in options.gb:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source, found = ours(Path(folder), gigabytes)
            results[f"{gigabytes:g} GB"] = {"stokehold": found, **peers(Path(folder), source)}
    print(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
