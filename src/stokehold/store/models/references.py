"""What `latest`, `champion`, `base`, `v0007`, `step:1200` or a path means."""

import re
from pathlib import Path

from stokehold.core.errors import NotFoundError
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.models import checkpoints
from stokehold.store.models.versions import CHAMPION, NAME, alias, find_version

STEP_REF = re.compile(r"step:(\d{1,12})")


def resolve(home: Home, db: Database, ref: str, paths: bool = True, read: bool = True) -> Path:
    """The folder that a reference names, or `NotFoundError`.

    Give `paths=False` for what comes over a network: then a path names nothing. `latest` reads the checkpoint to its
    end and passes over a damaged one, and a packed version is made whole; with `read=False` neither is done.
    """
    folder = _locate(home, db, ref, paths, read)
    return compaction.whole(home, folder) if read else folder


def _locate(home: Home, db: Database, ref: str, paths: bool, read: bool) -> Path:
    if ref == "latest":
        newest = checkpoints.latest(home, db, read).checkpoint
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


def _base(home: Home) -> Path:
    named = home.config().model.base
    folder = home.root / named
    if not named or not folder.is_dir():
        raise NotFoundError("this home has no base model", named or "model.base", "`stoke init DIR --model …`")
    return folder
