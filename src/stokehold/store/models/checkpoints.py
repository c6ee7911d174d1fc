"""Resumable training states: published whole, found by what verifies, never by the highest number alone.

`checkpoints/step_000001200/`. Going back never reuses a name: what came after the point returned to moves to the
trash, and a checkpoint of an abandoned branch is passed over even when a crash left it in place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.identity import content_hash
from stokehold.core.records import Checkpoint
from stokehold.store.db import journal
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, Bad, publish, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash

NAME = re.compile(r"step_(\d+)")
STEP_DIGITS = 9
KIND = "checkpoint"
WEIGHTS = re.compile(r"(model|adapter_model)[\w.-]*\.safetensors|adapter_config\.json|base_quantization\.json")
"""Files that say which weights these are. Adapters' own configuration names their base by its hash, and their scale."""

Mark = tuple[tuple[str, int, int, int], ...]
_verified: dict[Path, Mark] = {}
"""Checkpoints this process has verified, by inode, size and time of their files: whatever is written into one makes it
unverified again, and reading untouched gigabytes twice proves little more."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A newer checkpoint that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Latest:
    """The checkpoint to go on from, or None, and the newer ones that were passed over, newest first."""

    checkpoint: Checkpoint | None
    passed_over: tuple[PassedOver, ...]


def checkpoint_folder(home: Home, step: int) -> Path:
    """Where the checkpoint of this step is or would be."""
    return home.checkpoints / f"step_{step:0{STEP_DIGITS}d}"


def publish_checkpoint(
    home: Home,
    step: int,
    write: Callable[[Path], None],
    facts: Mapping[str, Any],
    known: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Publishes what `write(folder)` makes as the state after `step`; durable when it returns.

    `facts` go into the manifest: `branch` (default 0), `parent`, `datasets`, … `known` are hashes of files that are
    not worth reading again; `write` may add to it. One of the same step that is there already (the step was repeated,
    or its file was skipped) gives way to the new one and moves to the trash.
    """
    folder = checkpoint_folder(home, step)
    manifest = {"kind": KIND, "branch": 0, "parent": None, **facts, "step": step}
    replaced = trash.reserve(home, folder, "the step was taken again") if folder.exists() else None
    publish(folder, write, manifest, known, replaced, home.disk)
    _verified[folder] = _mark(folder)
    return load_checkpoint(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The record of one folder by its manifest, content not read; `IntegrityError` where it is no checkpoint."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND or not isinstance(manifest.get("step"), int):
        raise IntegrityError("not a checkpoint", str(folder), "name a folder under checkpoints/")
    return Checkpoint(
        step=manifest["step"],
        path=str(folder),
        weights_hash=weights_hash(manifest["files"]),
        created=manifest["created"],
        parent=manifest.get("parent"),
    )


def list_checkpoints(home: Home) -> list[Checkpoint]:
    """Every published checkpoint by step, content not read; those without a readable manifest do not exist."""
    found = []
    for _, folder in _folders(home):
        try:
            found.append(load_checkpoint(folder))
        except IntegrityError:
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(home: Home, db: Database | None = None, read: bool = True) -> Latest:
    """The newest checkpoint that verifies, of the present branch where `db` is given.

    With `read=False` the sizes of its files are compared, and not one of them is read.
    """
    spans = journal.spans(db) if db is not None else None
    passed: list[PassedOver] = []
    for _, folder in sorted(_folders(home), reverse=True):
        if (reason := _unusable(folder, spans, read)) is None:
            return Latest(load_checkpoint(folder), tuple(passed))
        passed.append(PassedOver(str(folder), reason))
    return Latest(None, tuple(passed))


def find_step(home: Home, step: int) -> Path:
    """The folder of this step's checkpoint, or `NotFoundError` naming the nearest."""
    folder = checkpoint_folder(home, step)
    if (folder / MANIFEST).is_file():
        return folder
    steps = [checkpoint.step for checkpoint in list_checkpoints(home)]
    near = f"the nearest is step:{min(steps, key=lambda s: abs(s - step))}" if steps else "there is none yet"
    raise NotFoundError("no checkpoint of this step", f"step:{step}", near)


def find_weights(home: Home, step: int, weights: str) -> Checkpoint | None:
    """The checkpoint of this step where it has these weights, by their hash: None once pruned, given up or replaced."""
    found = (checkpoint for checkpoint in list_checkpoints(home) if checkpoint.step == step)
    return next((checkpoint for checkpoint in found if checkpoint.weights_hash == weights), None)


def verify_checkpoint(folder: Path) -> list[Bad]:
    """As `files.verify`, remembered by this process for as long as no file of it is touched."""
    mark = _mark(folder)
    if _verified.get(folder) == mark:
        return []
    bad = verify(folder)
    if not bad:
        _verified[folder] = mark
    return bad


def prune(home: Home, keep: set[int], n: int) -> list[Path]:
    """Moves to the trash all but the steps in `keep` and the newest `n` that verify; returns the folders as they were.

    What does not verify stays for a person to look at; without `n` verified ones nothing older than them goes.
    """
    good = [folder for _, folder in sorted(_folders(home), reverse=True) if not verify_checkpoint(folder)]
    gone = [folder for folder in good[n:] if _step_of(folder) not in keep]
    for folder in gone:
        trash.discard(home, folder, trash.PRUNED)
    return gone


def set_aside(home: Home, after_step: int, reason: str, branch: int | None = None) -> list[Path]:
    """Moves every checkpoint after `after_step` to the trash with the reason; returns the folders as they were.

    Call `journal.new_branch` first: from then on they do not count, so a crash in between loses nothing. With
    `branch`, its number, checkpoints that it has already made stay: the call may be repeated at any time.
    """
    later = [folder for step, folder in sorted(_folders(home)) if step > after_step]
    gone = [folder for folder in later if branch is None or _branch_of(folder) < branch]
    for folder in gone:
        trash.discard(home, folder, reason)
    return gone


def weights_hash(entries: Sequence[Mapping[str, Any]]) -> str:
    """One hash of the model's weights from the entries of a manifest: of the one file, or over names and hashes of all.

    Empty where there are none.
    """
    weights = sorted((e["path"], e["blake3"]) for e in entries if WEIGHTS.fullmatch(e["path"]))
    if len(weights) == 1:
        return str(weights[0][1])
    return content_hash(*(part for pair in weights for part in pair)) if weights else ""


def _folders(home: Home) -> list[tuple[int, Path]]:
    named = ((NAME.fullmatch(path.name), path) for path in home.checkpoints.iterdir() if path.is_dir())
    return [(int(match[1]), path) for match, path in named if match is not None]


def _step_of(folder: Path) -> int:
    match = NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _branch_of(folder: Path) -> int:
    try:
        return int(read_manifest(folder).get("branch", 0))
    except IntegrityError:
        return 0


def _unusable(folder: Path, spans: Sequence[journal.Span] | None, read: bool) -> str | None:
    try:
        manifest = read_manifest(folder)
        load_checkpoint(folder)
    except IntegrityError as error:
        return error.what
    if spans is not None and not any(span.holds(manifest.get("branch", 0), manifest["step"]) for span in spans):
        return f"belongs to the abandoned branch {manifest.get('branch', 0)}"
    bad = verify_checkpoint(folder) if read else _of_another_size(folder, manifest["files"])
    return "; ".join(f"{fault.path}: {fault.reason}" for fault in bad) if bad else None


def _of_another_size(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[Bad]:
    paths = [(entry, folder / entry["path"]) for entry in entries]
    whole = (path.is_file() and path.stat().st_size == entry["bytes"] for entry, path in paths)
    return [Bad(e["path"], "missing or cut short") for (e, _), ok in zip(paths, whole, strict=True) if not ok]


def _mark(folder: Path) -> Mark:
    found = ((str(path), path.lstat()) for path in sorted(folder.rglob("*")))
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)
