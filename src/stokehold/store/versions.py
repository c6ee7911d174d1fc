"""Weights a user may serve: numbered, immutable folders with lineage, made without reading or copying the weights.

`versions/v0007/` has the model files of a checkpoint, never its optimiser unless asked. Their content is shared with
the checkpoint through the blob store, by the hashes the checkpoint's manifest states. A number is never given twice,
not even after its version was deleted.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from stokehold.core.errors import IntegrityError, NotFoundError, StokeholdError
from stokehold.core.records import Version
from stokehold.store import bases, checkpoints, files, tables, trash
from stokehold.store.adapters import ADAPTER_CONFIG, base_of, reference
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.database import Database, upsert
from stokehold.store.files import Bad, publish, read_manifest
from stokehold.store.home import Home

NAME = re.compile(r"v(\d{1,9})")
STEP_REF = re.compile(r"step:(\d{1,12})")
NUMBER_DIGITS = 4
KIND = "version"
CHAMPION = "champion"
TRAINING_ONLY = re.compile(r"optimizer.*|trainer\.json")
"""Files of a checkpoint that only resuming needs."""


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
    chosen = [entry for entry in origin["files"] if optimiser or not TRAINING_ONLY.fullmatch(entry["path"])]
    weights_hash = checkpoints.weights_hash(chosen)
    if not weights_hash:
        raise IntegrityError("no weights to make a version of", str(source), "name a checkpoint")
    blobs = BlobStore(home.blobs, home.disk)

    def write(stage: Path) -> None:
        for entry in chosen:
            target = stage / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            blobs.adopt(source / entry["path"], entry["blake3"], entry["bytes"])
            blobs.place(entry["blake3"], target)

    lineage = {"parent": parent, "datasets": list(datasets), "evaluation": evaluation, "note": note}
    base = f"base/{source.name}" if origin["kind"] == bases.KIND else origin.get("base")
    lineage |= {"config_hash": config_hash, "source": source.name, "step": origin.get("step"), "base": base}
    known = {entry["path"]: entry["blake3"] for entry in chosen if entry["bytes"] >= LINK_BYTES}
    name = _next_name(home, db, weights_hash)
    publish(home.versions / name, write, {"kind": KIND, "name": name, **lineage}, known=known, disk=home.disk)
    return load_version(home.versions / name)


def load_version(folder: Path) -> Version:
    """The record of one version folder by its manifest."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise IntegrityError("not a version", str(folder), "name a folder under versions/")
    return Version(
        name=manifest["name"],
        path=str(folder),
        weights_hash=checkpoints.weights_hash(manifest["files"]),
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
    match = NAME.fullmatch(name)
    folder = home.versions / _name(int(match[1]) if match else -1)
    if not (folder / files.MANIFEST).is_file():
        there = ", ".join(version.name for version in list_versions(home)[-5:]) or "none yet"
        raise NotFoundError("no such version", name, f"there are: {there}")
    return load_version(folder)


def resolve(home: Home, db: Database, ref: str, paths: bool = True) -> Path:
    """The folder that `latest`, `champion`, `base`, `v0007`, `step:1200` or a path names, or `NotFoundError`.

    Give `paths=False` for what comes over a network: then a path names nothing.
    """
    if ref == "latest":
        newest = checkpoints.latest(home, db).checkpoint
        if newest is None:
            raise NotFoundError("there is no checkpoint yet", ref, "train first, or use `base`")
        return Path(newest.path)
    if ref == "base":
        return _base(home)
    if match := STEP_REF.fullmatch(ref):
        return checkpoints.find_step(home, int(match[1]))
    if NAME.fullmatch(ref):
        return Path(find_version(home, ref).path)
    if (version := alias(db, ref)) is not None:
        return Path(find_version(home, version).path)
    folder = Path(ref) if Path(ref).is_absolute() or Path(ref).is_dir() else home.root / ref
    if paths and (folder / "config.json").is_file():
        return folder.absolute()
    fix = "promote one first" if ref == CHAMPION else "latest, champion, base, v0007, step:1200, or a model's folder"
    raise NotFoundError("nothing goes by this name", ref, fix)


def verify(home: Home, folder: Path) -> list[Bad]:
    """As `files.verify`; a damaged file names every other folder of the home that shares the bad content.

    Adapters are no better than the base they stand on, which is verified with them.
    """
    found = []
    for bad in files.verify(folder):
        others = _holders(home, folder, bad.path)
        found.append(Bad(bad.path, f"{bad.reason}; shared with {', '.join(others)}") if others else bad)
    return found or _faults_of_base(folder)


def _faults_of_base(folder: Path) -> list[Bad]:
    try:
        base = base_of(folder)
    except IntegrityError as error:
        return [Bad(ADAPTER_CONFIG, error.what)]
    return [Bad(f"{reference(base)}/{bad.path}", bad.reason) for bad in files.verify(base)] if base else []


def delete(home: Home, db: Database, name: str) -> Path:
    """Moves a version to the trash; one that an alias names is refused. Its number is not given again."""
    version = find_version(home, name)
    with db.read() as connection:
        query = sa.select(tables.aliases.c.name).where(tables.aliases.c.version == version.name)
        holder = connection.execute(query).scalar()
    if holder is not None:
        raise StokeholdError(f"{holder} is this version", version.name, "promote another one first")
    return trash.discard(home, Path(version.path), "deleted")


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


def set_alias(home: Home, db: Database, name: str, version: str) -> str | None:
    """Points an alias at a published version; returns what it named before."""
    target = find_version(home, version).name
    with db.write() as connection:
        before = connection.execute(sa.select(tables.aliases.c.version).where(tables.aliases.c.name == name)).scalar()
        if before != target:
            upsert(tables.aliases, connection, name=name, version=target, previous=before, updated=files.utc_now())
    return before


def _name(number: int) -> str:
    return f"v{number:0{NUMBER_DIGITS}d}"


def _next_name(home: Home, db: Database, weights_hash: str) -> str:
    """Reserves a number for ever: above every one in the database, and every folder (a database may be restored)."""
    taken = [int(match[1]) for path in home.versions.iterdir() if (match := NAME.fullmatch(path.name))]
    with db.write() as connection:
        given = connection.execute(sa.select(sa.func.max(tables.versions.c.number))).scalar()
        number = max([given or 0, *taken]) + 1
        connection.execute(
            tables.versions.insert().values(number=number, weights_hash=weights_hash, created=files.utc_now())
        )
    return _name(number)


def _base(home: Home) -> Path:
    named = home.config().model.base
    folder = home.root / named
    if not named or not folder.is_dir():
        raise NotFoundError("this home has no base model", named or "model.base", "`stoke init DIR --model …`")
    return folder


def _holders(home: Home, folder: Path, path: str) -> list[str]:
    wanted = {entry["blake3"] for entry in _entries(folder) if entry["path"] == path}
    shelves = (*home.checkpoints.iterdir(), *home.versions.iterdir())
    others = (other for other in shelves if other != folder)
    return sorted(o.name for o in others if any(entry["blake3"] in wanted for entry in _entries(o)))


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = read_manifest(folder)["files"]
        return entries
    except IntegrityError:
        return []
