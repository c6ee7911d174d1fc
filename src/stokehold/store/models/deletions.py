"""Versions taken away and brought back: what is in use is refused, and the rest lies in the trash for a week."""

from pathlib import Path

from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.core.records import Version
from stokehold.store import files
from stokehold.store.backup import backups
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import going_back
from stokehold.store.models.versions import (
    aliases,
    find_version,
    full_name,
    list_versions,
    load_version,
    one_at_a_time,
    pinned,
)

DELETED = "deleted"


def delete(home: Home, db: Database, name: str, despite_children: bool = False) -> Path:
    """Moves a version to the trash, after a snapshot; returns where it is. Its number is not given again.

    Refused are the newest one, one that is pinned or that an alias names, and one that another was made from, unless
    `despite_children`: the lineage of those then names a version that is gone.
    """
    _refuse(home, db, find_version(home, name), despite_children)
    backups.snapshot(home, db, f"before {full_name(name)} is deleted")
    with one_at_a_time(db):
        version = find_version(home, name)
        _refuse(home, db, version, despite_children)
        return trash.discard(home, Path(version.path), DELETED)


def undelete(home: Home, db: Database, name: str) -> Version:
    """Brings a version back from the trash, once it verifies.

    `NotFoundError` where it is not there, `StokeholdError` where it is there and damaged, or was never deleted.
    """
    full = full_name(name) or name
    target = home.versions / full
    with one_at_a_time(db):
        if (target / files.MANIFEST).is_file():
            raise StokeholdError("it is not deleted", full, "`stoke versions list` shows what there is")
        found = trash.find(home, target)
        if not found:
            raise NotFoundError("not in the trash", full, f"`stoke versions restore {full}` makes it from its blobs")
        if bad := files.verify(found[0]):
            what = f"damaged in the trash: {bad[0].path}: {bad[0].reason}"
            raise StokeholdError(what, full, f"`stoke versions restore {full}` makes it anew")
        trash.put_back(home, found[0], target)
    return load_version(target)


def _refuse(home: Home, db: Database, version: Version, despite_children: bool) -> None:
    there = list_versions(home)
    named = sorted(name for name, target in aliases(db).items() if target == version.name)
    if named:
        raise StokeholdError(f"in use as {' and '.join(named)}", version.name, "promote another one first")
    if version.name == there[-1].name:
        raise StokeholdError("the newest version stays", version.name, "make another one first")
    if version.name in pinned(db):
        raise StokeholdError("it is pinned", version.name, f"`stoke versions unpin {version.name}` first")
    if going_back.pending(db) == version.name:
        raise StokeholdError("training goes back to it", version.name, "start the trainer first: it ends that")
    children = [other.name for other in there if other.parent == version.name]
    if children and not despite_children:
        what = f"{', '.join(children)} was made from it"
        raise StokeholdError(what, version.name, "delete that first, or say --despite-children")
