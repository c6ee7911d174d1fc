"""Versions pulled from another home: by what is missing, over links that break and lie, and never half."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from answering import Answer, answering
from link import Link, linked, page, port_of, serving
from stokehold.core.config import Config
from stokehold.core.errors import (
    BusyError,
    DiskFullError,
    IntegrityError,
    NotFoundError,
    StokeholdError,
    UsageError,
)
from stokehold.core.records import Version
from stokehold.store.blobs import BlobStore
from stokehold.store.db.database import Database, connect
from stokehold.store.files import hash_file, publish, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction, trash
from stokehold.store.models import versions
from stokehold.store.models.bases import KIND as BASE
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.transfer import offers, sync
from stokehold.store.transfer.remote import BATCH_BYTES, LinkError, Patience, checked_url
from store.matrix import every_fault
from tiny_world import safetensors
from waiting import PATIENCE_S, free_ports

MIB = 2**20
CONTENT = 3 * MIB + 17
LARGE = len(safetensors(bytes(CONTENT)))
OVERHEAD = 40_000
"""More than the headers and the manifest of any pull here."""

FIRM = Patience(enough_bytes=100_000, tries=4, pause_s=0.01, longest_pause_s=0.05)
HASTY = Patience(silence_s=2, window_s=1, window_bytes=1000, tries=2, pause_s=0.01)
WEIGHTS = "model.safetensors"
PULL = """
import sys
from pathlib import Path
from stokehold.store.transfer import sync
from stokehold.store.home import Home
from stokehold.store.transfer.remote import Patience
patience = Patience(tries=1000, longest_pause_s=0.2)
sync.pull(Home.open(Path(sys.argv[1])), sys.argv[2], sys.argv[3], patience=patience)
"""


def put(home: Home, db: Database, step: int, files: dict[str, bytes], **facts: Any) -> Version:
    """A version of the server's, from a checkpoint with these files; it is the champion."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    files = {n: safetensors(content) if n.endswith("s") else content for n, content in files.items()}
    made = versions.create(home, db, Path(publish_checkpoint(home, step, write, facts).path), note=f"step {step}")
    versions.set_alias(home, db, "champion", made.name)
    return made


def small_files() -> dict[str, bytes]:
    return {"config.json": b'{"architectures": ["X"]}', "tokenizer/vocab.json": b"{}", "empty": b""}


@pytest.fixture
def server(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "server", Config())


@pytest.fixture
def server_db(server: Home) -> Iterator[Database]:
    database = connect(server)
    yield database
    database.close()


@pytest.fixture
def offered(server: Home, server_db: Database) -> Version:
    return put(server, server_db, 100, {WEIGHTS: os.urandom(CONTENT), **small_files()})


@pytest.fixture
def link(server: Home) -> Iterator[Link]:
    with serving(server) as url, linked(Link(port_of(url))) as opened:
        yield opened


@pytest.fixture
def told() -> list[str]:
    return []


def nothing_shows(home: Home, db: Database) -> None:
    assert versions.list_versions(home) == []
    assert versions.alias(db) is None
    assert list(home.versions.iterdir()) == []


def same(one: Home, other: Home, name: str) -> None:
    """The version in both homes, manifest and files, and whole."""
    assert (one.versions / name / "manifest.json").read_bytes() == (
        other.versions / name / "manifest.json"
    ).read_bytes()
    assert verify(one.versions / name) == verify(other.versions / name) == []


def test_a_version_comes_whole_as_it_was_and_is_switched_to(
    home: Home, db: Database, server: Home, offered: Version, link: Link
) -> None:
    seen: list[tuple[int, int]] = []
    got = sync.pull(home, link.url, server.token(), report=lambda here, wanted: seen.append((here, wanted)))
    assert (got.name, got.weights_hash, got.created, got.note) == (
        "v0001",
        offered.weights_hash,
        offered.created,
        "step 100",
    )
    same(home, server, "v0001")
    assert versions.alias(db) == "v0001"
    total = sum(entry["bytes"] for entry in read_manifest(home.versions / "v0001")["files"])
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [here for here, _ in seen] == sorted(here for here, _ in seen)
    assert list((home.root / "store" / "partial").iterdir()) == []
    passed = link.passed
    assert passed < total + OVERHEAD
    assert sync.pull(home, link.url, server.token()) == got
    assert link.passed - passed < OVERHEAD, "what is here is not sent again"
    local = put(home, db, 5, {WEIGHTS: b"local"})
    assert local.name == "v0002", "the number is taken here too"


def test_only_missing_files_come(home: Home, server: Home, server_db: Database, offered: Version, link: Link) -> None:
    shared = (Path(offered.path) / WEIGHTS).read_bytes()[-CONTENT:]
    put(server, server_db, 200, {"model-00001.safetensors": shared, "model-00002.safetensors": os.urandom(MIB)})
    sync.pull(home, link.url, server.token(), "v0001")
    before = link.passed
    sync.pull(home, link.url, server.token())
    assert MIB < link.passed - before < MIB + OVERHEAD
    same(home, server, "v0002")


def test_a_version_by_name_moves_no_alias(home: Home, db: Database, server: Home, offered: Version, link: Link) -> None:
    assert sync.pull(home, link.url, server.token(), "v1").name == "v0001"
    assert versions.alias(db) is None


def test_a_link_that_breaks_is_taken_up_where_it_broke(
    home: Home, server: Home, offered: Version, link: Link, told: list[str]
) -> None:
    link.breaks = [MIB, MIB // 2, 2000, 0, MIB]
    sync.pull(home, link.url, server.token(), tell=told.append, patience=FIRM)
    assert link.breaks == []
    assert len(told) == 5
    assert all("again in" in line for line in told)
    assert link.passed < LARGE + 2 * OVERHEAD, "nothing came twice"
    same(home, server, "v0001")


def test_a_link_that_always_breaks_is_given_up_and_what_came_is_kept(
    home: Home, db: Database, server: Home, offered: Version, link: Link
) -> None:
    link.breaks = [MIB + 9000] + [2000] * 50
    with pytest.raises(LinkError, match=f"4 times in a row · {link.url}"):
        sync.pull(home, link.url, server.token(), patience=FIRM)
    nothing_shows(home, db)
    kept = sum(path.stat().st_size for path in (home.root / "store" / "partial").iterdir())
    assert kept > MIB // 2
    link.breaks, before = [], link.passed
    sync.pull(home, link.url, server.token(), patience=FIRM)
    assert link.passed - before < LARGE - kept + OVERHEAD


def test_a_pull_killed_in_the_middle_costs_the_rest_the_second_time(
    home: Home, db: Database, server: Home, offered: Version, link: Link
) -> None:
    link.holds = 2 * MIB + MIB // 2
    client = subprocess.Popen([sys.executable, "-c", PULL, str(home.root), link.url, server.token()])
    assert link.held.wait(PATIENCE_S)
    partial = home.root / "store" / "partial" / offered.weights_hash
    while not (partial.exists() and partial.stat().st_size >= 2 * MIB):
        assert client.poll() is None
    with pytest.raises(BusyError, match=f"sync is held by process {client.pid}"):
        sync.pull(home, f"http://127.0.0.1:{link.port}", server.token())
    client.kill()
    assert client.wait() == -signal.SIGKILL
    nothing_shows(home, db)
    kept = partial.stat().st_size
    link.holds = None
    link.released.set()
    before = link.passed
    sync.pull(home, link.url, server.token())
    assert LARGE - kept < link.passed - before < LARGE - kept + OVERHEAD
    same(home, server, "v0001")


def test_a_bit_turned_over_on_the_way_is_seen_and_the_file_comes_again(
    home: Home, server: Home, offered: Version, link: Link, told: list[str]
) -> None:
    link.flips = {MIB}
    sync.pull(home, link.url, server.token(), tell=told.append)
    assert len(told) == 1
    assert f"{offered.weights_hash[:12]} ({LARGE} bytes) came damaged" in told[0]
    assert link.passed > 2 * LARGE
    same(home, server, "v0001")


def test_a_file_that_comes_damaged_twice_is_refused_and_the_server_named(
    home: Home, db: Database, server: Home, offered: Version, link: Link
) -> None:
    blob = BlobStore(server.blobs).path(offered.weights_hash)
    blob.chmod(0o644)
    with blob.open("r+b") as stream:
        stream.write(b"damaged")
    with pytest.raises(IntegrityError, match=f"came damaged twice · {link.url}.*stoke versions verify"):
        sync.pull(home, link.url, server.token())
    nothing_shows(home, db)
    assert list((home.root / "store" / "partial").iterdir()) == []


def test_a_damaged_or_overlong_rest_of_an_earlier_transfer_does_no_harm(
    home: Home, server: Home, offered: Version, link: Link, told: list[str]
) -> None:
    folder = home.root / "store" / "partial"
    folder.mkdir()
    (folder / offered.weights_hash).write_bytes(bytes(MIB))
    (folder / hash_file(Path(offered.path) / "config.json")).write_bytes(bytes(500))
    (folder / "of another version").write_bytes(bytes(500))
    sync.pull(home, link.url, server.token(), tell=told.append)
    assert len(told) == 1
    assert list(folder.iterdir()) == []
    same(home, server, "v0001")


def test_a_damaged_blob_of_this_home_is_not_built_on(home: Home, server: Home, offered: Version, link: Link) -> None:
    sync.pull(home, link.url, server.token())
    trash.discard(home, home.versions / "v0001", "test")
    blob = BlobStore(home.blobs).path(offered.weights_hash)
    blob.chmod(0o644)
    blob.write_bytes(bytes(LARGE))
    before = link.passed
    sync.pull(home, link.url, server.token())
    assert LARGE < link.passed - before < LARGE + OVERHEAD
    same(home, server, "v0001")


def test_a_server_that_is_started_again_in_between(home: Home, server: Home, offered: Version) -> None:
    home_port, link_port = free_ports(2)
    with page(server, home_port), linked(Link(home_port, holds=MIB), link_port) as link:
        command = [sys.executable, "-c", PULL, str(home.root), link.url, server.token()]
        client = subprocess.Popen(command)
        assert link.held.wait(PATIENCE_S)
    link.released.set()
    with page(server, home_port), linked(link, link_port):
        assert client.wait(PATIENCE_S) == 0
    same(home, server, "v0001")
    assert link.passed < LARGE + MIB + OVERHEAD


def test_a_version_deleted_on_the_server_meanwhile(
    home: Home, db: Database, server: Home, server_db: Database, offered: Version, link: Link
) -> None:
    link.holds, link.breaks = MIB, [2 * MIB]
    command = [sys.executable, "-c", PULL, str(home.root), link.url, server.token()]
    client = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert link.held.wait(PATIENCE_S)
    put(server, server_db, 200, {WEIGHTS: b"new"})
    trash.discard(server, server.versions / "v0001", "test")
    link.released.set()
    _, said = client.communicate(timeout=PATIENCE_S)
    assert "NotFoundError: the server has this file no more" in said
    nothing_shows(home, db)
    assert sync.pull(home, link.url, server.token()).name == "v0002"
    assert list((home.root / "store" / "partial").iterdir()) == []


def test_a_wrong_token_and_nothing_to_pull(home: Home, db: Database, server: Home, link: Link) -> None:
    with pytest.raises(UsageError, match=r"refuses the token · .* · pass the one in HOME/status/token"):
        sync.pull(home, link.url, "wrong")
    with pytest.raises(NotFoundError, match="no version goes by this name yet"):
        sync.pull(home, link.url, server.token())
    with pytest.raises(NotFoundError, match="no such version"):
        sync.pull(home, link.url, server.token(), "v0009")
    nothing_shows(home, db)


def test_a_name_that_means_something_else_here_is_refused(
    home: Home, db: Database, server: Home, offered: Version, link: Link
) -> None:
    put(home, db, 1, {WEIGHTS: b"other"})
    with pytest.raises(StokeholdError, match=r"given to other weights here · v0001 · .*a home of its own"):
        sync.pull(home, link.url, server.token())
    assert link.passed < OVERHEAD
    assert [version.note for version in versions.list_versions(home)] == ["step 1"]


def test_adapters_bring_the_base_that_they_stand_on(home: Home, server: Home, server_db: Database, link: Link) -> None:
    files = {WEIGHTS: safetensors(os.urandom(MIB)), "config.json": b"{}"}

    def base(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    publish(server.base / "0123456789abcdef", base, {"kind": BASE})
    adapters = {"base_model_name_or_path": "../../base/0123456789abcdef"}
    parts = {"adapter_model.safetensors": os.urandom(5000), "adapter_config.json": json.dumps(adapters).encode()}
    put(server, server_db, 100, parts, base="base/0123456789abcdef")
    sync.pull(home, link.url, server.token())
    same(home, server, "v0001")
    assert versions.verify(home, home.versions / "v0001") == []
    assert read_manifest(home.base / "0123456789abcdef") == read_manifest(server.base / "0123456789abcdef")
    put(server, server_db, 200, parts | {"adapter_model.safetensors": os.urandom(5000)}, base="base/0123456789abcdef")
    before = link.passed
    sync.pull(home, link.url, server.token())
    assert link.passed - before < OVERHEAD, "the base is here already"


def test_adapters_on_a_base_elsewhere_are_refused(
    home: Home, db: Database, server: Home, server_db: Database, link: Link, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    publish(server.base / "aaaa", lambda folder: (folder / "config.json").write_text("{}"), {"kind": BASE})  # type: ignore[arg-type,return-value]
    named = json.dumps({"base_model_name_or_path": str(server.base / "aaaa")}).encode()
    put(server, server_db, 1, {"adapter_model.safetensors": b"a", "adapter_config.json": named})
    with pytest.raises(IntegrityError, match="the adapters name another base"):
        sync.pull(home, link.url, server.token())
    nothing_shows(home, db)


def test_a_packed_version_comes_whole_and_is_packed_no_more(
    home: Home, db: Database, server: Home, server_db: Database, link: Link
) -> None:
    put(server, server_db, 1, {WEIGHTS: bytes(MIB), **small_files()})
    put(server, server_db, 2, {WEIGHTS: os.urandom(1000), **small_files()})
    folder = server.versions / "v0001"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    then = folder.stat().st_mtime - 2 * compaction.FRESH_S
    os.utime(folder, (then, then))
    assert compaction.pack(server, folder, None) is not None
    assert not (folder / WEIGHTS).exists()
    for blob in server.blobs.glob("*/*"):
        blob.unlink()  # as retention leaves it: nobody names the whole file any more
    sync.pull(home, link.url, server.token(), "v0001")
    same(home, server, "v0001")
    assert {name: (home.versions / "v0001" / name).read_bytes() for name in before if name != "manifest.json"} == {
        name: content for name, content in before.items() if name != "manifest.json"
    }
    assert compaction.depth(server, folder) == 0


def test_whom_a_node_follows_is_read_by_its_owner_only(home: Home) -> None:
    assert sync.remembered(home) is None
    sync.remember(home, sync.Server("http://a:1", "t"))
    assert sync.remembered(home) == sync.Server("http://a:1", "t")
    assert (home.status / "node.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "url", ["", "host:8080", "ftp://h", "http://", "http://h/page", "http://h/?token=t", "http://u:p@h", "http://[::"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        checked_url(url)


def prepare(root: Path) -> None:
    """A node that has one version already, and whose server is written down in it."""
    home = Home.create(root, Config())
    sync.remember(home, sync.Server(os.environ["MATRIX_URL"], os.environ["MATRIX_TOKEN"]))
    sync.pull(home, os.environ["MATRIX_URL"], os.environ["MATRIX_TOKEN"], "v0001")
    db = connect(home)
    versions.set_alias(home, db, "champion", "v0001")
    db.close()


def pull_champion(home: Home) -> None:
    server = sync.remembered(home)
    assert server is not None
    sync.pull(home, server.url, server.token)


def judge(home: Home, told: str | None) -> str:
    db = connect(home)
    champion = versions.alias(db)
    db.close()
    listed = [version.name for version in versions.list_versions(home)]
    if damaged := [path for path in home.versions.iterdir() if path.name not in listed]:
        assert all(map(verify, damaged)), "nothing half"
        return "named"
    assert verify(home.versions / "v0001") == []
    if "v0002" in listed and verify(home.versions / "v0002"):
        return "named"
    assert champion in listed
    return "new" if champion == "v0002" else "old"


@contextmanager
def two_offered(root: Path) -> Iterator[None]:
    """A server with two versions, whose address and token `prepare` finds in the environment."""
    server = Home.create(root, Config())
    db = connect(server)
    put(server, db, 1, {WEIGHTS: b"old", "config.json": b"{}"})
    # Less than a batch: how many changes a pull makes must not depend on how the bytes come.
    put(server, db, 2, {WEIGHTS: os.urandom(BATCH_BYTES // 2), "config.json": b"{ }"})
    db.close()
    with page(server) as url, pytest.MonkeyPatch.context() as patched:
        patched.setenv("MATRIX_URL", url)
        patched.setenv("MATRIX_TOKEN", server.token())
        yield


def test_a_pull_broken_off_anywhere_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    with two_offered(tmp_path / "server"):
        counts = every_fault(prepare, pull_champion, judge, tmp_path)
    assert counts["kill"]["old"] > 20, "the alias moves after the last change of the disk"
    assert counts["flip"]["new"] >= 1
    assert counts["flip"]["old"] + counts["flip"]["new"] > counts["flip"]["named"]


# What a server may say that is not ours.


def an_offer(**changes: Any) -> dict[str, Any]:
    content = b"weights"
    entry = {"path": WEIGHTS, "bytes": len(content), "blake3": offers.files.blake3(content).hexdigest()}
    manifest = {
        **{"format": 1, "created": "2026-01-01T00:00:00.000Z", "kind": "version", "name": "v0001", "note": ""},
        **{"parent": None, "datasets": [], "evaluation": None, "step": 1, "base": None, "files": [entry]},
    }
    config = Config()
    settings = {t: {key: getattr(getattr(config, t), key) for key in keys} for t, keys in offers.SETTINGS.items()}
    return {"format": 1, "name": "v0001", "manifest": {**manifest, **changes}, "base": None, "settings": settings}


def entries(**changes: Any) -> dict[str, Any]:
    (entry,) = an_offer()["manifest"]["files"]
    return an_offer(files=[entry | changes])


BAD_OFFERS = {
    "a path outside": entries(path="../../evil"),
    "an absolute path": entries(path="/etc/passwd"),
    "the manifest itself": entries(path="manifest.json"),
    "a long path": entries(path="a" * 300),
    "a hash that is a path": entries(blake3="../" * 21 + "a"),
    "a hash in capitals": entries(blake3="A" * 64),
    "a negative size": entries(bytes=-1),
    "a size that is a truth": entries(bytes=True),
    "a size in words": entries(bytes="7"),
    "one path twice": an_offer(files=an_offer()["manifest"]["files"] * 2),
    "one content with two sizes": an_offer(
        files=[*entries()["manifest"]["files"], *entries(path="b", bytes=8)["manifest"]["files"]]
    ),
    "no weights": entries(path="config.json"),
    "no files": an_offer(files=None),
    "another kind": an_offer(kind="checkpoint"),
    "a name that is a path": an_offer(name="../v0001") | {"name": "../v0001"},
    "two names": an_offer(name="v0002"),
    "an unpadded name": an_offer(name="v1") | {"name": "v1"},
    "a newer format": an_offer() | {"format": 2},
    "a newer manifest": an_offer(format=2),
    "a step in words": an_offer(step="1"),
    "no lineage": {
        **an_offer(),
        "manifest": {"format": 1, "kind": "version", "name": "v0001", "files": entries()["manifest"]["files"]},
    },
    "a base without adapters": an_offer() | {"base": {"name": "abc", "manifest": an_offer(kind="base")["manifest"]}},
    "adapters without a base": entries(path="adapter_config.json"),
    "unknown settings": an_offer() | {"settings": {"model": {"dtype": "int1"}}},
    "a list": [1],
    "nothing": None,
}


@pytest.mark.parametrize("said", BAD_OFFERS.values(), ids=BAD_OFFERS.keys())
def test_an_offer_that_cannot_be_right_is_refused(said: Any) -> None:
    with pytest.raises(IntegrityError, match="http://server"):
        offers.parse(orjson.dumps(said), "http://server")


def test_an_offer_that_is_right(home: Home) -> None:
    offer = offers.parse(orjson.dumps(an_offer()), "http://server")
    assert offer.blobs == {offer.weights_hash: 7}
    assert offer.settings == Config()


def manifest_of(offer: dict[str, Any]) -> dict[str, Answer]:
    return {"/api/versions/champion/manifest": Answer(orjson.dumps(offer))}


def test_what_does_not_fit_is_refused_before_the_first_byte(home: Home, db: Database) -> None:
    with answering(manifest_of(entries(bytes=10**15))) as server:
        with pytest.raises(
            DiskFullError, match=r"v0001 needs 1000000\.000 GB more, and .* GB are free .* make room for"
        ):
            sync.pull(home, server.url, "t")
        assert server.asked == ["/api/versions/champion/manifest"]
    nothing_shows(home, db)


WORDS = b'{"error": "said\\u001b[31m there"}'
LIES = {
    "more than it said": (Answer(b"weights and more", length=None), IntegrityError, "more than 7 bytes"),
    "another length": (Answer(b"weights!"), IntegrityError, "sends 8 bytes of a file of 7"),
    "something compressed": (Answer(b"weights", headers={"content-encoding": "gzip"}), IntegrityError, "compressed"),
    "a part nobody asked for": (Answer(b"ghts", 206, {"content-range": "bytes 3-6/7"}), IntegrityError, "another part"),
    "another place": (Answer(b"", 302, {"location": "http://elsewhere/x"}), StokeholdError, "sends us to http://else"),
    "less": (Answer(b"wei", length=7), LinkError, "2 times in a row"),
    "nothing": (Answer(b"", length=7, silent=True), LinkError, "the server says nothing, 2 times in a row"),
    "a byte now and then": (Answer(b"weights", each_s=0.6), LinkError, "2 times in a row"),
    "not now": (Answer(WORDS, 503), LinkError, "answers 503: said .31m there, 2 times"),
    "not here": (Answer(WORDS, 404), NotFoundError, "has this file no more"),
    "not yet": (Answer(WORDS, 409), BusyError, "said .31m there"),
    "not you": (Answer(WORDS, 403), StokeholdError, "answers 403: said .31m there"),
    "not well": (Answer(b"<html>", 500), StokeholdError, "answers 500: Internal Server Error"),
    "an endless error": (Answer(b"x" * 100_000, 500, length=None), StokeholdError, "answers 500"),
    "other weights": (Answer(b"WEIGHTS"), IntegrityError, "came damaged twice"),
}


@pytest.mark.parametrize(("said", "kind", "words"), LIES.values(), ids=LIES.keys())
def test_a_server_that_lies_or_stalls_is_refused_in_bounded_time(
    home: Home, db: Database, said: Answer, kind: type[StokeholdError], words: str
) -> None:
    offer = an_offer()
    (entry,) = offer["manifest"]["files"]
    with answering({**manifest_of(offer), f"/api/blobs/{entry['blake3']}": said}) as server:
        with pytest.raises(kind, match=words) as raised:
            sync.pull(home, server.url, "t", patience=HASTY)
        assert server.url in raised.value.where
    nothing_shows(home, db)


def test_an_endless_manifest_is_bounded(home: Home) -> None:
    endless = {"/api/versions/champion/manifest": Answer(b" " * MIB, length=None, times=100)}
    with answering(endless) as server, pytest.raises(IntegrityError, match=f"more than {16 * MIB} bytes"):
        sync.pull(home, server.url, "t", patience=HASTY)


def test_no_server_no_tls(home: Home, told: list[str]) -> None:
    with pytest.raises(LinkError, match="cannot be reached"):
        sync.pull(home, "http://127.0.0.1:9", "t", patience=HASTY, tell=told.append)
    assert len(told) == HASTY.tries - 1
    with answering({}) as server, pytest.raises(StokeholdError, match=r"no TLS with the server.*SSL_CERT_FILE"):
        sync.pull(home, server.url.replace("http:", "https:"), "t", patience=HASTY)
