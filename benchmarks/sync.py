"""A version pulled from one home to another over the loopback, beside rsync from a daemon: seconds and bytes.

`python benchmarks/sync.py [--gb 1] [--rounds 3] [--folder DIR]` prints JSON; room for six times the size is needed.

`new` pulls a version of one file by a node that has nothing; `changed` the next version, of which a tenth of the bytes
is other, in one stretch of that one file; `changed shard` the same tenth as a shard of its own beside nine that stayed.
Stokehold and rsync take turns, each into a fresh place; rsync finds the version before as its basis, and both have
synced their files when they end. `bytes` is what the loopback carried towards the puller. A pull verifies every byte
that came against its hash; rsync's own checksums cover what it sends.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import machine

from stokehold.core.config import Config
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.transfer import sync

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from link import page

GB = 10**9
SHARDS = 10
PIECE_BYTES = 2**24
PATIENCE_S = 30.0
TRAFFIC = Path("/sys/class/net/lo/statistics/rx_bytes")


def write_tensor(path: Path, size: int) -> None:
    """A safetensors file of one tensor of random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, PIECE_BYTES):
            stream.write(os.urandom(min(PIECE_BYTES, size - start)))


def change_a_tenth(path: Path) -> None:
    """Other bytes in one stretch in the middle."""
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(os.urandom(size // 10))


def make_server(root: Path, size: int) -> Home:
    """v0001 and v0002 are one file, a tenth of it changed; v0003 and v0004 ten shards, one of them changed."""
    home, drafts = Home.create(root / "server", Config()), root / "drafts"
    db = connect(home)
    drafts.mkdir()

    def publish(step: int) -> None:
        def write(folder: Path) -> None:
            for path in drafts.iterdir():
                shutil.copy(path, folder / path.name)

        versions.create(home, db, Path(publish_checkpoint(home, step, write, {}).path))

    write_tensor(drafts / "model.safetensors", size)
    publish(1)
    change_a_tenth(drafts / "model.safetensors")
    publish(2)
    (drafts / "model.safetensors").unlink()
    for number in range(SHARDS):
        write_tensor(drafts / f"model-{number:05d}.safetensors", size // SHARDS)
    publish(3)
    write_tensor(drafts / "model-00004.safetensors", size // SHARDS)
    publish(4)
    shutil.rmtree(drafts)
    db.close()
    return home


@contextmanager
def rsync_daemon(shelf: Path, root: Path) -> Iterator[str]:
    """The address of a daemon that gives away what is in `shelf`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = root / "rsyncd.conf"
    settings.write_text(f"use chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n[versions]\npath = {shelf}\n")
    command = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={settings}"]
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + PATIENCE_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > end or process.poll() is not None:
                sys.exit("the rsync daemon did not come up")
            time.sleep(0.05)
        yield f"rsync://127.0.0.1:{port}/versions"
    finally:
        process.terminate()
        process.wait()


def timed(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and bytes on the loopback."""
    os.sync()
    before, started = int(TRAFFIC.read_text()), time.perf_counter()
    work()
    return time.perf_counter() - started, int(TRAFFIC.read_text()) - before


def one_round(root: Path, url: str, token: str, daemon: str) -> dict[str, dict[str, tuple[float, int]]]:
    node, copy = Home.create(root / "node", Config()), root / "copy"

    def pull(name: str) -> Callable[[], object]:
        return lambda: sync.pull(node, url, token, name)

    def copied(name: str) -> Callable[[], object]:
        command = [
            "rsync",
            "-a",
            "--fsync",
            "--modify-window=-1",
            "--exclude=manifest.json",
            f"{daemon}/{name}/",
            f"{copy}/",
        ]
        return lambda: subprocess.run(command, check=True, capture_output=True)

    found: dict[str, dict[str, tuple[float, int]]] = {}
    for what, name in (("new", "v0001"), ("changed", "v0002"), ("", "v0003"), ("changed shard", "v0004")):
        took = {"stokehold": timed(pull(name)), "rsync": timed(copied(name))}
        if what:
            found[what] = took
        else:
            (copy / "model.safetensors").unlink()
    shutil.rmtree(node.root)
    shutil.rmtree(copy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root, size = Path(folder), int(options.gb * GB)
        server = make_server(root, size)
        with page(server) as url, rsync_daemon(server.versions, root) as daemon:
            rounds = [one_round(root, url, server.token(), daemon) for _ in range(options.rounds)]
    results: dict[str, Any] = {}
    for what in rounds[0]:
        results[what] = {}
        for who in rounds[0][what]:
            seconds, sent = zip(*(each[what][who] for each in rounds), strict=True)
            median_s = statistics.median(seconds)
            told = {
                "seconds": round(median_s, 2),
                "all": [round(s, 2) for s in seconds],
                "bytes": round(statistics.median(sent)),
            }
            results[what][who] = told
    print(json.dumps({"machine": machine(), "gb": options.gb, "results": results}, indent=1))


if __name__ == "__main__":
    main()
