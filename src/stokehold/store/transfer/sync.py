"""A version of another home, taken over by what is missing here: verified, published whole, then switched to.

Blobs come into `store/partial/` first, where a broken transfer goes on where it broke, and become blobs only when they
are what their hash says. The version has the name, the number and the manifest that it has on the server. Until its
folder is published nothing shows; until its alias is switched nothing serves it. No clock of either machine matters.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import orjson
import sqlalchemy as sa

from stokehold.core.errors import ConfigError, DiskFullError, IntegrityError, NotFoundError, StokeholdError
from stokehold.core.records import Version
from stokehold.store.blobs import LINK_BYTES, BlobStore
from stokehold.store.db import events, tables
from stokehold.store.db.database import Database, connect
from stokehold.store.files import MANIFEST, SEAL, hash_file, publish, read_manifest, refusals, utc_now, write_atomic
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction, gc
from stokehold.store.models import versions
from stokehold.store.models.adapters import ADAPTER_CONFIG, reference
from stokehold.store.models.weights import check_headers
from stokehold.store.transfer.offers import Folder, Offer, parse
from stokehold.store.transfer.remote import PATIENCE, Document, Patience, Remote, Tell, quiet, size_of

LOCK = "sync"
REMEMBERED = "node.json"
KEPT = "what has come is kept; make room and pull again"

Report = Callable[[int, int], None]
"""Told (bytes that are here, bytes that had to come)."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server that a node follows: its address and its token."""

    url: str
    token: str


def pull(
    home: Home,
    url: str,
    token: str,
    ref: str = versions.CHAMPION,
    *,
    report: Report = lambda _here, _wanted: None,
    tell: Tell = quiet,
    patience: Patience = PATIENCE,
) -> Version:
    """The version that `ref` names at the server, here; where `ref` is an alias, the alias here names it as well.

    Raises BusyError beside another pull, DiskFullError before the transfer, IntegrityError for what cannot be trusted
    or came damaged twice, NotFoundError for what the server does not have, LinkError when the link broke too often,
    StokeholdError where the name is taken here. After each of them everything here is as it was, and what has come is
    kept for the next time.
    """
    with Remote(url, token, tell, patience) as remote:
        document = remote.retrying(lambda: ask(remote, ref))
        offer = parse(document.body if document else b"", remote.url)
        return receive(home, remote, offer, None if versions.NAME.fullmatch(ref) else ref, report)


def ask(remote: Remote, ref: str, etag: str = "") -> Document | None:
    """The server's offer of what `ref` names, in one try; None while it is the one that `etag` marks."""
    return remote.document(f"/api/versions/{quote(ref, safe='')}/manifest", etag)


def receive(home: Home, remote: Remote, offer: Offer, alias: str | None, report: Report) -> Version:
    """Makes the offered version one of this home, as `pull` does."""
    name = offer.version.name
    folder = home.versions / name
    with home.lock(LOCK, f"pulling {name} from {remote.url}"):
        db = connect(home)
        try:
            _reserve(home, db, offer)
            if not _is_here(folder, offer.version):
                _fetch(home, remote, name, offer.blobs, report)
                _publish(home, offer, folder)
            versions.remember(db, offer.version.manifest)
            if alias is not None and versions.set_alias(home, db, alias, name) != name:
                events.record(db, "sync", f"{alias} is {name} now, from {remote.url}")
        finally:
            db.close()
        _tidy(home, set())
        return versions.load_version(folder)


def borrow(home: Home, remote: Remote, offer: Offer, others: Mapping[str, int], folder: Path, report: Report) -> None:
    """The offered weights in `folder`, two levels below the home, and other blobs (bytes by hash), for a while.

    Nothing of it becomes a version of this home. Errors as `pull`.
    """
    with home.lock(LOCK, f"taking {offer.version.name} from {remote.url}"):
        _fetch(home, remote, offer.version.name, {**offer.blobs, **others}, report)
        if not _is_here(folder, offer.version):
            folder.parent.mkdir(exist_ok=True)
            _publish(home, offer, folder)
        _tidy(home, set())


def give_back(home: Home, folder: Path) -> None:
    """Removes borrowed weights and every blob that nothing names; bases stay, the next weights stand on them too."""
    with home.lock(LOCK, "removing weights that were borrowed"):
        home.disk.remove_tree(folder)
        db = connect(home)
        try:
            for path in gc.orphans(home, db, set(), of_any_age=True):
                home.disk.remove(path)
        finally:
            db.close()


def remember(home: Home, server: Server) -> None:
    """Writes down whom this home follows, readable by its owner only."""
    content = orjson.dumps({"url": server.url, "token": server.token})
    write_atomic(home.status / REMEMBERED, content, mode=0o600, disk=home.disk)


def remembered(home: Home) -> Server | None:
    """Whom this home follows, None where it is no node."""
    path = home.status / REMEMBERED
    if not path.is_file():
        return None
    try:
        return Server(**orjson.loads(path.read_bytes()))
    except (orjson.JSONDecodeError, TypeError) as error:
        raise ConfigError("cannot be read", str(path), "remove it, and join again with address and token") from error


def _reserve(home: Home, db: Database, offer: Offer) -> None:
    """Takes the version's number; refuses a name, or a base's, that means something else in this home, now or ever."""
    fix = "the two homes grew apart: give the node a home of its own"
    number, column = int(offer.version.name[1:]), tables.versions.c
    with versions.one_at_a_time(db) as connection:
        given = connection.execute(sa.select(column.weights_hash).where(column.number == number)).scalar()
        if given is None:
            values = {"number": number, "weights_hash": offer.weights_hash, "created": utc_now()}
            connection.execute(tables.versions.insert().values(values))
        elif given != offer.weights_hash:
            raise StokeholdError("this name was given to other weights here", offer.version.name, fix)
    taken = [(home.versions, offer.version), *([(home.base, offer.base)] if offer.base else [])]
    for shelf, folder in taken:
        if (shelf / folder.name).exists() and not _is_here(shelf / folder.name, folder):
            raise StokeholdError("this name belongs to something else here", str(shelf / folder.name), fix)


def _is_here(folder: Path, wanted: Folder) -> bool:
    """Whether the folder is published with the same files; one that was packed since counts as whole."""
    if not (folder / MANIFEST).is_file():
        return False
    entries = compaction.entries(read_manifest(folder))
    return {(e["path"], e["blake3"]) for e in entries} == {(e["path"], e["blake3"]) for e in wanted.files}


def _fetch(home: Home, remote: Remote, name: str, wanted_blobs: Mapping[str, int], report: Report) -> None:
    """These blobs (bytes by hash) into the store of this home; one that is there and damaged comes anew."""
    blobs = BlobStore(home.blobs, home.disk)
    missing = {digest: size for digest, size in wanted_blobs.items() if blobs.verify(digest) is not None}
    _tidy(home, set(missing))
    _check_room(home, name, missing)
    wanted, whole = sum(missing.values()), 0
    report(0, wanted)
    for digest, size in missing.items():

        def came(here: int, before: int = whole) -> None:
            report(before + here, wanted)

        with refusals(home.root, KEPT):
            _fetch_one(home, remote, digest, size, came)
        whole += size


def _fetch_one(home: Home, remote: Remote, digest: str, size: int, came: Callable[[int], None]) -> None:
    partial = _partials(home) / digest
    for last in (False, True):
        try:
            remote.blob(digest, size, partial, came, home.disk)
        except NotFoundError as error:
            fix = "it was deleted there meanwhile; pull again"
            raise NotFoundError("the server has this file no more", f"{remote.url}: {digest[:12]}", fix) from error
        home.disk.sync(partial)
        # The file is read again, not what came: so a disk that changes a bit is seen as well as a link that does.
        if hash_file(partial) == digest:
            BlobStore(home.blobs, home.disk).take(partial, digest)
            return
        home.disk.remove(partial)
        if not last:
            remote.tell(f"{digest[:12]} ({size} bytes) came damaged and was thrown away; once more")
    fix = "`stoke versions verify` on the server tells whether it is whole there; then look at network and disk"
    raise IntegrityError("came damaged twice", f"{remote.url}: {digest[:12]}", fix)


def _check_room(home: Home, name: str, missing: dict[str, int]) -> None:
    """Refuses before the first byte what would not fit; small files lie in the store and in the folder."""
    small = sum(size for size in missing.values() if size < LINK_BYTES)
    here = sum(min(size, size_of(_partials(home) / digest)) for digest, size in missing.items())
    wanted, free = sum(missing.values()) + small - here, shutil.disk_usage(home.root).free
    if wanted > free:
        what = f"{name} needs {wanted / 1e9:.3f} GB more, and {free / 1e9:.3f} GB are free"
        raise DiskFullError(what, str(home.root), f"make room for {(wanted - free) / 1e9:.3f} GB and pull again")


def _publish(home: Home, offer: Offer, folder: Path) -> None:
    """The base first, then the weights: what stands on a base must find it."""
    if offer.base is not None and not _is_here(home.base / offer.base.name, offer.base):
        _publish_folder(home, home.base / offer.base.name, offer.base)
    under = offer.base.name if offer.base else None
    _publish_folder(home, folder, offer.version, under)


def _publish_folder(home: Home, folder: Path, wanted: Folder, base: str | None = None) -> None:
    """The folder with the manifest that it has on the server; what lies in it is what that manifest says."""
    blobs = BlobStore(home.blobs, home.disk)

    def write(stage: Path) -> None:
        for entry in wanted.files:
            target = stage / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            blobs.place(entry["blake3"], target)
            if target.stat().st_size != entry["bytes"] or (
                entry["bytes"] < LINK_BYTES and hash_file(target) != entry["blake3"]
            ):
                raise IntegrityError("the disk changed it", str(target), "nothing was changed; pull again")
        check_headers(stage)
        if base is not None:
            _check_base(stage, base)

    hashes = {entry["path"]: entry["blake3"] for entry in wanted.files}
    manifest = {key: value for key, value in wanted.manifest.items() if key not in ("files", SEAL)}
    publish(folder, write, manifest, known=hashes, disk=home.disk)


def _check_base(stage: Path, base: str) -> None:
    """Adapters from elsewhere may stand on nothing but the base that came with them."""
    try:
        named = json.loads((stage / ADAPTER_CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise IntegrityError("cannot be read", ADAPTER_CONFIG, "verify the version on the server") from error
    if named != reference(Path(base)):
        raise IntegrityError(f"the adapters name another base: {named!r}", ADAPTER_CONFIG, "verify it on the server")


def _partials(home: Home) -> Path:
    folder = home.blobs.parent / "partial"
    folder.mkdir(exist_ok=True)
    return folder


def _tidy(home: Home, wanted: set[str]) -> None:
    """Removes what came of transfers that nobody goes on with."""
    with refusals(home.root, KEPT):
        for path in _partials(home).iterdir():
            if path.name not in wanted:
                home.disk.remove(path)
