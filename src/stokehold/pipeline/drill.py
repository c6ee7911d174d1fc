"""`stoke versions drill`: restores a version elsewhere, loads it, and asks what it answered when it was made.

`python -m stokehold.pipeline.drill --home H [REF] [--device D] [--json] [--unrecorded-passes]`

Exit 1 where the version did not answer as it did, could not be restored, or has nothing recorded to compare with. The
last, which nobody can mend, is 0 with `--unrecorded-passes`: every night would fail by it.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError
from stokehold.data.profile import profile_of
from stokehold.inference.registry import load
from stokehold.pipeline.foreground import Meter, told
from stokehold.pipeline.worker import use_threads
from stokehold.store.backup import drills
from stokehold.store.backup.drills import Drill
from stokehold.store.blobs import BlobStore, share
from stokehold.store.db.database import Database, connect
from stokehold.store.files import MANIFEST, read_manifest, staging, utc_now
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.models import versions
from stokehold.store.models.adapters import QUANTISATION
from stokehold.store.models.weights import GOLDEN
from stokehold.training.golden import Agreement, Golden, agreement, golden


def drill(home: Home, ref: str | None = None, device: str | None = None, meter: Meter | None = None) -> Drill:
    """Drills the version `ref` (the champion, else the newest) in this process, and keeps the result.

    Loads a model: never call it in the process of a trainer. The device is the trainer's where that is a CPU, else
    a CPU too, so that a training's memory is left alone; 4-bit weights need theirs. NotFoundError before there is a
    version.
    """
    config, db = home.config(), connect(home)
    started = time.perf_counter()
    folder = _version(home, db, ref)
    size = 0
    try:
        with _restored(home, folder, meter) as place:
            size = sum(entry["bytes"] for entry in read_manifest(place)["files"])
            found = _asked(place, config, device, meter)
    except (StokeholdError, OSError) as error:
        found = Drill(folder.name, False, str(error))
    seconds = time.perf_counter() - started
    done = replace(found, version=folder.name, bytes=size, seconds=seconds, created=utc_now())
    drills.save(home, db, done)
    return done


def _version(home: Home, db: Database, ref: str | None) -> Path:
    name = ref or versions.alias(db)
    if name is None:
        there = versions.list_versions(home)
        if not there:
            raise NotFoundError("there is no version yet", str(home.root), "`stoke versions create` makes one")
        name = there[-1].name
    return Path(versions.find_version(home, versions.alias(db, name) or name).path)


@contextmanager
def _restored(home: Home, folder: Path, meter: Meter | None) -> Iterator[Path]:
    """The version's files at a place that is removed afterwards, each read whole and compared with its hash.

    From the blobs, where they have it. The place is as deep in the home as the version, for adapters name their base
    from there.
    """
    source, blobs = compaction.whole(home, folder), BlobStore(home.blobs, home.disk)
    entries = read_manifest(source)["files"]
    total, done = sum(entry["bytes"] for entry in entries) or 1, 0
    with staging(home.versions / "drill", home.disk) as place:
        for entry in entries:
            target = place / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if blobs.path(entry["blake3"]).is_file():
                blobs.place(entry["blake3"], target)
            else:
                share(source / entry["path"], target, home.disk)
            done += entry["bytes"]
            if meter:
                meter.show(folder.name, done / total, "restoring")
        share(source / MANIFEST, place / MANIFEST, home.disk)
        if bad := versions.verify(home, place):
            raise IntegrityError(f"{bad[0].path}: {bad[0].reason}", folder.name, "restore it from a backup")
        yield place


def _asked(place: Path, config: Config, device: str | None, meter: Meter | None) -> Drill:
    if not (place / GOLDEN).is_file():
        reason = "loaded, but nothing is recorded of what it answered: it is of before, or was imported"
        load(place, config.model.dtype, device or _device(place, config), profile_of(config.data))
        return Drill("", None, reason)
    before = Golden.from_bytes((place / GOLDEN).read_bytes(), GOLDEN)
    if meter:
        meter.show(place.name, 1.0, "loading")
    engine = load(place, before.facts["dtype"], device or _device(place, config), profile_of(config.data)).engine
    return _result(agreement(before, golden(engine.model, before)))


def _device(place: Path, config: Config) -> str:
    needs_own = config.devices.trainer == "cpu" or (place / QUANTISATION).is_file()
    return config.devices.trainer if needs_own else "cpu"


def _result(found: Agreement) -> Drill:
    worst = found.worst if math.isfinite(found.worst) else None
    if found.equal:
        reason = "answers as it did, to the bit"
    elif found.ok:
        reason = f"answers as it did within {found.worst:.1e} nats (at most {found.tolerance:g}): other arithmetic"
    else:
        off = "is not finite" if worst is None else f"is off by {worst:.3g} nats"
        asked = "the same bits were expected" if found.exact else f"at most {found.tolerance:g} were expected"
        reason = f"does not answer as it did: a log-probability {off}, {asked}"
    return Drill("", found.ok, reason, worst, found.tolerance, found.exact, found.differences)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.drill")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("ref", nargs="?")
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--unrecorded-passes", action="store_true", help="exit 0 also with nothing to compare with")
    arguments = parser.parse_args(given)
    with told("drill", arguments.home), Meter() as meter:
        home = Home.open(arguments.home)
        use_threads(home.config())
        done = drill(home, arguments.ref, arguments.device, meter)
    if arguments.json:
        sys.stdout.write(orjson.dumps(asdict(done)).decode() + "\n")
    else:
        verdict = {True: "ok", False: "FAILED", None: "not compared"}[done.ok]
        sys.stdout.write(f"{done.version}: {verdict}, {done.reason}\n")
        sys.stdout.write(f"  {done.bytes} bytes restored and verified, {done.seconds:.1f} s\n")
        sys.stdout.writelines(f"  {difference}\n" for difference in done.differences)
    passed = arguments.unrecorded_passes if done.ok is None else done.ok
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
