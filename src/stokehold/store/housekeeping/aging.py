"""Old answers, sensor readings and logs, made small: their results stay.

An evaluation that no version names keeps each item's score and loss and loses the words and tokens of the answers; a
telemetry session keeps its metadata and summary and loses its samples. Published folders are replaced as a whole.
"""

from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from blake3 import blake3

from stokehold.core.config import RetentionConfig
from stokehold.core.errors import IntegrityError
from stokehold.store.files import MANIFEST, publish, read_manifest, refusals
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.housekeeping.compaction import OWN_KEYS
from stokehold.store.housekeeping.gc import LEFT_OVER, Line
from stokehold.store.housekeeping.policy import older_than
from stokehold.store.judged.items import COMPLETIONS, DRAWS
from stokehold.store.judged.suites import kept_versions
from stokehold.store.models import versions

THINNED = "thinned"
"""Key of the manifest of an evaluation whose answers lost their words."""

WORDS = frozenset(("text", "token_ids", "token_logprobs", "token_ends"))


def age(home: Home, now: datetime, ages: RetentionConfig, dry_run: bool = False) -> list[Line]:
    """Thins what is old, or only tells it."""
    with refusals(home.root, LEFT_OVER):
        answers = _completions(home, older_than(now, ages.completions_days), dry_run)
        gone = {line.name for line in answers}
        rows = _suites(home, older_than(now, ages.completions_days), gone, dry_run)
        samples = _sessions(home, older_than(now, ages.sessions_days), dry_run)
        return [*answers, *rows, *samples, *_logs(home, older_than(now, ages.logs_days), dry_run)]


def _completions(home: Home, old: Callable[[str], bool], dry_run: bool) -> list[Line]:
    """Evaluations of the versions that there are stay whole, and so do those that are not old."""
    named = {version.weights_hash for version in versions.list_versions(home)}
    found = []
    for folder in sorted(home.evaluations.iterdir()):
        try:
            manifest = read_manifest(folder)
        except IntegrityError:
            continue  # not a published folder
        record = manifest.get("evaluation", {})
        whole = THINNED not in manifest and (folder / COMPLETIONS).is_file()
        if not whole or record.get("weights_hash") in named or not old(manifest["created"]):
            continue
        size = sum(path.stat().st_size for path in (folder / COMPLETIONS, folder / DRAWS) if path.is_file())
        found.append(Line("answers", folder.name, False, "old, and no version has these weights; scores stay", size))
        if not dry_run:
            _without_words(home, folder, manifest)
    return found


def _suites(home: Home, old: Callable[[str], bool], gone: Set[str], dry_run: bool) -> list[Line]:
    """Kept contents of suites go with the answers to them: `gone` evaluations lose theirs in this round."""
    needed: set[str] = set()
    for folder in home.evaluations.iterdir():
        try:
            manifest = read_manifest(folder)
        except IntegrityError:
            continue  # not a published folder
        if THINNED not in manifest and folder.name not in gone:
            needed.update(manifest.get("evaluation", {}).get("suite_hashes", {}).values())
    found = []
    for path in kept_versions(home):
        if path.stem in needed or not old(_written(path)):
            continue
        found.append(Line("suite", path.stem, False, "old, and no answers to it are kept", path.stat().st_size))
        if not dry_run:
            home.disk.remove(path)
    return found


def _without_words(home: Home, folder: Path, manifest: Mapping[str, Any]) -> None:
    lines = [orjson.loads(line) for line in (folder / COMPLETIONS).read_bytes().splitlines()]
    content = b"".join(orjson.dumps({**line, **dict.fromkeys(WORDS & line.keys())}) + b"\n" for line in lines)
    known = {entry["path"]: entry["blake3"] for entry in manifest["files"]}
    known[COMPLETIONS] = blake3(content).hexdigest()
    known.pop(DRAWS, None)  # what they showed is among the suite's readings

    def write(stage: Path) -> None:
        for name in known:
            if name == COMPLETIONS:
                home.disk.write(stage / name, content)
            else:
                home.disk.copy(folder / name, stage / name)

    facts = {key: value for key, value in manifest.items() if key not in OWN_KEYS}
    old = trash.reserve(home, folder, trash.PRUNED)
    publish(folder, write, {**facts, THINNED: sorted(WORDS)}, known, old, home.disk)


def _sessions(home: Home, old: Callable[[str], bool], dry_run: bool) -> list[Line]:
    """Samples of sessions that ended in order; one without its summary keeps them, for it is made from them."""
    found = []
    for path in sorted(home.sessions.glob("*/*.csv")):
        told = path.with_name(f"{path.stem}_metadata.json")
        if not old(_written(path)) or (path.parent / MANIFEST).exists() or not told.is_file():
            continue
        if orjson.loads(told.read_bytes()).get("summary") is None:
            continue
        name = path.relative_to(home.sessions).as_posix()
        found.append(Line("session", name, False, "old; its summary stays", path.stat().st_size))
        if not dry_run:
            home.disk.remove(path)
    return found


def _logs(home: Home, old: Callable[[str], bool], dry_run: bool) -> list[Line]:
    """Logs put aside; the one that is written to ends in `.log` and stays."""
    found = []
    for path in sorted(home.logs.iterdir()):
        if path.suffix == ".log" or not path.is_file() or not old(_written(path)):
            continue
        found.append(Line("log", path.name, False, "old, and put aside long ago", path.stat().st_size))
        if not dry_run:
            home.disk.remove(path)
    return found


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
