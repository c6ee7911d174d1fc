"""Old answers, sensor readings and logs, made small: their results stay.

An evaluation that no version names keeps each item's score and loss and loses the words and tokens of the answers; a
telemetry session keeps its metadata and summary and loses its samples. Published folders are replaced as a whole.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import RetentionConfig
from stokehold.core.errors import IntegrityError
from stokehold.store import trash, versions
from stokehold.store.compaction import OWN_KEYS
from stokehold.store.files import MANIFEST, publish, read_manifest, refusals
from stokehold.store.gc import LEFT_OVER, Line
from stokehold.store.home import Home
from stokehold.store.policy import older_than

COMPLETIONS = "completions.jsonl"
THINNED = "thinned"
"""Key of the manifest of an evaluation whose answers lost their words."""

WORDS = ("text", "token_ids", "token_logprobs")


def age(home: Home, now: datetime, ages: RetentionConfig, dry_run: bool = False) -> list[Line]:
    """Thins what is old, or only tells it."""
    with refusals(home.root, LEFT_OVER):
        answers = _completions(home, older_than(now, ages.completions_days), dry_run)
        samples = _sessions(home, older_than(now, ages.sessions_days), dry_run)
        return [*answers, *samples, *_logs(home, older_than(now, ages.logs_days), dry_run)]


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
        size = (folder / COMPLETIONS).stat().st_size
        found.append(Line("answers", folder.name, False, "old, and no version has these weights; scores stay", size))
        if not dry_run:
            _without_words(home, folder, manifest)
    return found


def _without_words(home: Home, folder: Path, manifest: Mapping[str, Any]) -> None:
    def write(stage: Path) -> None:
        for entry in manifest["files"]:
            if entry["path"] != COMPLETIONS:
                home.disk.copy(folder / entry["path"], stage / entry["path"])
        lines = [orjson.loads(line) for line in (folder / COMPLETIONS).read_bytes().splitlines()]
        content = b"".join(orjson.dumps({**line, **dict.fromkeys(WORDS)}) + b"\n" for line in lines)
        home.disk.write(stage / COMPLETIONS, content)

    facts = {key: value for key, value in manifest.items() if key not in OWN_KEYS}
    old = trash.reserve(home, folder, trash.PRUNED)
    publish(folder, write, {**facts, THINNED: list(WORDS)}, replaced=old, disk=home.disk)


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
