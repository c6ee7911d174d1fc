"""Versions as a person sees them: what names them, how they were judged, what they cost, where they come from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation, Version
from stokehold.store.db.database import Database
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping.compaction import is_packed
from stokehold.store.judged import evaluations
from stokehold.store.models.versions import aliases, entries, list_versions, pinned


@dataclass(frozen=True, slots=True)
class Overview:
    """One version. `bytes_own` are in no other folder: what its deletion frees. `exact` is the share over all items
    judged, None where there are none; `verdict` is that against the champion of its time."""

    version: Version
    aliases: tuple[str, ...]
    pinned: bool
    packed: bool
    bytes: int
    bytes_own: int
    exact: float | None
    verdict: str | None


def overview(home: Home, db: Database) -> list[Overview]:
    """Every version by number."""
    named, kept, held = aliases(db), pinned(db), _holders(home)
    found = []
    for version in list_versions(home):
        folder = Path(version.path)
        judged = judgement(home, version.evaluation) or evaluations.latest_for(home, db, version.weights_hash)
        names = tuple(sorted(name for name, target in named.items() if target == version.name))
        sizes = weigh(folder, held)
        packed = is_packed(read_manifest(folder))
        exact, verdict = share_exact(judged), verdict_of(db, judged)
        found.append(Overview(version, names, version.name in kept, packed, *sizes, exact, verdict))
    return found


def details(home: Home, db: Database, folder: Path) -> dict[str, Any]:
    """What `stoke versions show` adds to a manifest: lineage, evaluation, bytes, names, and whether sizes are right."""
    manifest = read_manifest(folder)
    total, own = weigh(folder, _holders(home))
    named = sorted(name for name, target in aliases(db).items() if target == folder.name)
    judged = judgement(home, manifest.get("evaluation"))
    short = [entry["path"] for entry in manifest["files"] if not _has_size(folder / entry["path"], entry["bytes"])]
    facts = {"lineage": ancestry(home, manifest), "aliases": named, "pinned": folder.name in pinned(db)}
    facts |= {"packed": is_packed(manifest), "bytes": {"total": total, "own": own, "shared": total - own}}
    return {**facts, "exact": share_exact(judged), "verdict": verdict_of(db, judged), "wrong_size": short}


def ancestry(home: Home, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The versions it was made from, its parent first, down to the base; one that was deleted ends what is known."""
    there = {version.name: version for version in list_versions(home)}
    found: list[dict[str, Any]] = []
    name, base = manifest.get("parent"), manifest.get("base")
    while name is not None and name not in {each["name"] for each in found}:
        version = there.get(name)
        found.append({"name": name, "step": version.step if version else None, "there": version is not None})
        if version is None:
            return found
        name = version.parent
    return [*found, {"name": base, "step": None, "there": (home.root / base).is_dir()}] if base else found


def weigh(folder: Path, holders: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of a folder, and of them those that no other has."""
    mine = {entry["blake3"]: entry["bytes"] for entry in entries(folder)}
    total = sum(entry["bytes"] for entry in entries(folder))
    return total, sum(size for digest, size in mine.items() if holders.get(digest, 0) <= 1)


def judgement(home: Home, named: str | None) -> Evaluation | None:
    """The evaluation that a version names as the one it was made on; None where it names none, or it is gone."""
    try:
        return evaluations.load(home, named) if named else None
    except (NotFoundError, IntegrityError):
        return None


def share_exact(judged: Evaluation | None) -> float | None:
    """Of the items of all suites, the share that was answered exactly."""
    results = [result for result in judged.suites.values() if result.exact is not None] if judged else []
    items = sum(result.n for result in results)
    return sum((result.exact or 0.0) * result.n for result in results) / items if items else None


def verdict_of(db: Database, judged: Evaluation | None) -> str | None:
    """The verdict that was noted when it was decided on, else the evaluation's own."""
    if judged is None:
        return None
    verdict = evaluations.decided(db, judged.id)[0] or judged.verdict
    return verdict.value if verdict else None


def _holders(home: Home) -> Counter[str]:
    """In how many published folders each content is."""
    shelves = (home.checkpoints, home.versions, home.base)
    folders = (folder for shelf in shelves for folder in shelf.iterdir())
    return Counter(digest for folder in folders for digest in {entry["blake3"] for entry in entries(folder)})


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
