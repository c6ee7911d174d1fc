"""Weights a user may serve: numbered, immutable folders with lineage, made without reading or copying the weights.

`versions/v0007/` has the model files of a checkpoint and its place in training, never its optimiser unless asked. Their
content is shared with the checkpoint through the blob store, by the hashes the checkpoint's manifest states. A number
is never given twice, not even after its version was deleted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Version
from stokehold.store import files
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.db import tables
from stokehold.store.db.database import Database, upsert
from stokehold.store.files import Bad, hash_file, publish, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.models import bases, checkpoints
from stokehold.store.models.adapters import ADAPTER_CONFIG, base_of, reference
from stokehold.store.models.weights import check_headers

NAME = re.compile(r"v(\d{1,9})")
NUMBER_DIGITS = 4
KIND = "version"
CHAMPION = "champion"
OPTIMISER = re.compile(r"optimizer.*")
TRAINING_ONLY = re.compile(r"optimizer.*|trainer\.json")
"""Files that only resuming needs. Of them a version has `trainer.json`, which is small."""


def create(
    home: Home,
    db: Database,
    source: Path,
    *,
    parent: str | None = None,
    datasets: Sequence[str] = (),
    evaluation: str | None = None,
    note: str = "",
    config_hash: str | None = None,
    optimiser: bool = False,
) -> Version:
    """The next version from a published folder (a checkpoint, or another version).

    Raises `IntegrityError` where the folder has no manifest, no weights, or changed files. Large files are
    linked, not read; `optimiser` keeps what resuming needs.
    """
    origin = read_manifest(source)
    chosen = [entry for entry in origin["files"] if optimiser or not OPTIMISER.fullmatch(entry["path"])]
    weights_hash = checkpoints.weights_hash(chosen)
    if not weights_hash:
        raise IntegrityError("no weights to make a version of", str(source), "name a checkpoint")
    blobs = BlobStore(home.blobs, home.disk)

    def write(stage: Path) -> None:
        for entry in chosen:
            (stage / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            _take(blobs, source / entry["path"], entry, stage / entry["path"])
        check_headers(stage)

    lineage = {"parent": parent, "datasets": list(datasets), "evaluation": evaluation, "note": note}
    base = f"base/{source.name}" if origin["kind"] == bases.KIND else origin.get("base")
    lineage |= {"config_hash": config_hash, "source": source.name, "step": origin.get("step"), "base": base}
    lineage["branch"] = origin.get("branch", 0)
    known = {entry["path"]: entry["blake3"] for entry in chosen if entry["bytes"] >= LINK_BYTES}
    name = _next_name(home, db, weights_hash)
    manifest = publish(home.versions / name, write, {"kind": KIND, "name": name, **lineage}, known, disk=home.disk)
    remember(db, manifest)
    return load_version(home.versions / name)


def _take(blobs: BlobStore, path: Path, entry: Mapping[str, Any], target: Path) -> None:
    """One file of the source; a blob that is not what it was is replaced, for small ones are never taken on trust."""
    digest, size = entry["blake3"], entry["bytes"]
    try:
        blobs.adopt(path, digest, size)
        blobs.place(digest, target)
        if target.stat().st_size != size or (size < LINK_BYTES and hash_file(target) != digest):
            blobs.mend(path, digest)
            target.unlink()
            blobs.place(digest, target)
    except FileNotFoundError as error:
        raise NotFoundError("taken away meanwhile", str(path), "name another; nothing was changed") from error


def load_version(folder: Path) -> Version:
    """The record of one version folder by its manifest."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise IntegrityError("not a version", str(folder), "name a folder under versions/")
    return Version(
        name=manifest["name"],
        path=str(folder),
        weights_hash=checkpoints.weights_hash(compaction.entries(manifest)),
        step=manifest["step"],
        parent=manifest["parent"],
        datasets=tuple(manifest["datasets"]),
        evaluation=manifest["evaluation"],
        note=manifest["note"],
        created=manifest["created"],
    )


def list_versions(home: Home) -> list[Version]:
    """Every published version by number."""
    found = []
    for path in home.versions.iterdir():
        try:
            if NAME.fullmatch(path.name):
                found.append(load_version(path))
        except IntegrityError:
            continue  # without a manifest it does not exist; `verify` of its name says so
    return sorted(found, key=lambda version: int(version.name[1:]))


def find_version(home: Home, name: str) -> Version:
    """The version of this name (`v7` is `v0007`), or `NotFoundError`."""
    full = full_name(name)
    if full is None or not (home.versions / full / files.MANIFEST).is_file():
        there = ", ".join(version.name for version in list_versions(home)[-5:]) or "none yet"
        raise NotFoundError("no such version", name, f"there are: {there}")
    return load_version(home.versions / full)


def verify(home: Home, folder: Path) -> list[Bad]:
    """As `files.verify`; a damaged file names every other folder of the home that shares the bad content.

    Adapters are no better than the base they stand on, which is verified with them.
    """
    found = []
    for bad in files.verify(folder):
        others = _holders(home, folder, bad.path)
        found.append(Bad(bad.path, f"{bad.reason}; shared with {', '.join(others)}") if others else bad)
    return found or _faults_of_headers(folder) or _faults_of_base(folder)


def _faults_of_headers(folder: Path) -> list[Bad]:
    """Of weights that are as they were published, and were published broken."""
    try:
        check_headers(folder)
    except IntegrityError as error:
        return [Bad(Path(error.where).name, error.what)]
    return []


def _faults_of_base(folder: Path) -> list[Bad]:
    try:
        base = base_of(folder)
    except IntegrityError as error:
        return [Bad(ADAPTER_CONFIG, error.what)]
    return [Bad(f"{reference(base)}/{bad.path}", bad.reason) for bad in files.verify(base)] if base else []


def alias(db: Database, name: str = CHAMPION) -> str | None:
    """The version that an alias names now."""
    with db.read() as connection:
        query = sa.select(tables.aliases.c.version).where(tables.aliases.c.name == name)
        return connection.execute(query).scalar()


def previous(db: Database, name: str = CHAMPION) -> str | None:
    """The version that the alias named before."""
    with db.read() as connection:
        query = sa.select(tables.aliases.c.previous).where(tables.aliases.c.name == name)
        return connection.execute(query).scalar()


def aliases(db: Database) -> dict[str, str]:
    """Every alias with the version that it names now."""
    with db.read() as connection:
        found = connection.execute(sa.select(tables.aliases.c.name, tables.aliases.c.version)).all()
    return {row.name: row.version for row in found}


def set_alias(home: Home, db: Database, name: str, version: str) -> str | None:
    """Points an alias at a published version; returns what it named before."""
    with one_at_a_time(db) as connection:
        target = find_version(home, version).name
        before = connection.execute(sa.select(tables.aliases.c.version).where(tables.aliases.c.name == name)).scalar()
        if before != target:
            upsert(tables.aliases, connection, name=name, version=target, previous=before, updated=files.utc_now())
    return before


def pinned(db: Database) -> set[str]:
    """Versions that a person wants kept whatever retention says."""
    with db.read() as connection:
        return set(connection.execute(sa.select(tables.pins.c.version)).scalars())


def pin(home: Home, db: Database, name: str) -> str:
    """Keeps a version from every deletion until it is unpinned; returns its name. Pinning twice changes nothing."""
    with one_at_a_time(db) as connection:
        version = find_version(home, name).name
        upsert(tables.pins, connection, version=version, created=files.utc_now())
    return version


def unpin(home: Home, db: Database, name: str) -> str:
    """Takes the pin off; returns the version's name. `NotFoundError` where there is none."""
    version = find_version(home, name).name
    with db.write() as connection:
        gone = connection.execute(tables.pins.delete().where(tables.pins.c.version == version)).rowcount
    if not gone:
        raise NotFoundError("not pinned", version, "`stoke versions list` shows what is")
    return version


@contextmanager
def one_at_a_time(db: Database) -> Iterator[sa.Connection]:
    """A write transaction beside which no other of these is: what it found about versions holds until its end."""
    with db.write() as connection:
        connection.execute(sa.select(tables.schema_version).with_for_update())
        yield connection


def remember(db: Database, manifest: Mapping[str, Any]) -> None:
    """Keeps what a version was published as; the same again overwrites it."""
    with db.write() as connection:
        upsert(tables.version_manifests, connection, version=manifest["name"], manifest=dict(manifest))


def remembered(db: Database, name: str) -> dict[str, Any] | None:
    """The manifest that the version of this name was published with, if it is known."""
    query = sa.select(tables.version_manifests.c.manifest).where(tables.version_manifests.c.version == name)
    with db.read() as connection:
        found: dict[str, Any] | None = connection.execute(query).scalar()
    return found


def name_of(number: int) -> str:
    """The one way to write it: `v0007`."""
    return f"v{number:0{NUMBER_DIGITS}d}"


def full_name(name: str) -> str | None:
    """`v7` is `v0007`; None for what is no name of a version."""
    match = NAME.fullmatch(name)
    return name_of(int(match[1])) if match else None


def _next_name(home: Home, db: Database, weights_hash: str) -> str:
    """Reserves a number for ever: above every one in the database, and every folder (a database may be restored)."""
    taken = [int(match[1]) for path in home.versions.iterdir() if (match := NAME.fullmatch(path.name))]
    with one_at_a_time(db) as connection:
        given = connection.execute(sa.select(sa.func.max(tables.versions.c.number))).scalar()
        number = max([given or 0, *taken]) + 1
        connection.execute(
            tables.versions.insert().values(number=number, weights_hash=weights_hash, created=files.utc_now())
        )
    return name_of(number)


def _holders(home: Home, folder: Path, path: str) -> list[str]:
    wanted = {entry["blake3"] for entry in entries(folder) if entry["path"] == path}
    shelves = (*home.checkpoints.iterdir(), *home.versions.iterdir())
    others = (other for other in shelves if other != folder)
    return sorted(o.name for o in others if any(entry["blake3"] in wanted for entry in entries(o)))


def entries(folder: Path) -> list[dict[str, Any]]:
    """The files in a published folder, as its manifest states them; none where it has no manifest that can be read."""
    try:
        found: list[dict[str, Any]] = read_manifest(folder)["files"]
    except IntegrityError:
        return []
    return found
