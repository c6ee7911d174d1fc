"""What another machine may take: offers by name, files by hash in ranges, and nothing else."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from stokehold.store.db.database import Database
from stokehold.store.files import hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint
from tiny_world import safetensors

CONTENT = safetensors(os.urandom(3_000_000))
LARGE_BYTES = 200_000_000
WEIGHTS = "model.safetensors"


@pytest.fixture
def version(home: Home, db: Database) -> Path:
    """The champion: weights and a configuration; its checkpoint has an optimiser as well."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(CONTENT)
        (folder / "optimizer.safetensors").write_bytes(safetensors(b"moments"))
        (folder / "config.json").write_text("{}")

    made = versions.create(home, db, Path(publish_checkpoint(home, 1, write, {}).path))
    versions.set_alias(home, db, "champion", made.name)
    return Path(made.path)


def digest(folder: Path, name: str = WEIGHTS) -> str:
    return next(entry["blake3"] for entry in read_manifest(folder)["files"] if entry["path"] == name)


def test_an_offer_by_name_and_by_alias(api: TestClient, home: Home, version: Path) -> None:
    said = api.get("/api/versions/champion/manifest")
    assert said.json()["manifest"] == read_manifest(version)
    assert said.json()["settings"]["model"]["dtype"] == home.config().model.dtype
    assert str(home.root) not in said.text, "no path of this machine leaves it"
    assert api.get("/api/versions/v1/manifest").content == said.content
    known = {"if-none-match": said.headers["etag"]}
    assert api.get("/api/versions/champion/manifest", headers=known).status_code == 304
    for name in ("v0009", "latest", "step:1", "base", "..", "a" * 500, "%2e%2e%2fv0001", "%00"):
        assert api.get(f"/api/versions/{name}/manifest").status_code == 404, name


def test_the_offer_changes_with_the_champion(api: TestClient, home: Home, db: Database, version: Path) -> None:
    known = {"if-none-match": api.get("/api/versions/champion/manifest").headers["etag"]}
    made = versions.create(home, db, version, note="again")
    versions.set_alias(home, db, "champion", made.name)
    changed = api.get("/api/versions/champion/manifest", headers=known)
    assert (changed.status_code, changed.json()["name"]) == (200, "v0002")


def test_files_come_whole_and_in_ranges(api: TestClient, version: Path) -> None:
    path, mark = f"/api/blobs/{digest(version)}", f'"{digest(version)}"'
    whole = api.get(path)
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, CONTENT, mark)
    assert whole.headers["content-length"] == str(len(CONTENT))
    rest = api.get(path, headers={"range": "bytes=2000000-", "if-range": mark})
    assert (rest.status_code, rest.content) == (206, CONTENT[2_000_000:])
    assert rest.headers["content-range"] == f"bytes 2000000-{len(CONTENT) - 1}/{len(CONTENT)}"
    assert api.get(path, headers={"range": "bytes=0-9"}).content == CONTENT[:10]
    assert api.get(path, headers={"range": f"bytes={len(CONTENT)}-"}).status_code == 416
    assert api.get(path, headers={"range": "bytes=5-", "if-range": '"other"'}).status_code == 200


def test_only_what_a_version_names_can_be_taken(api: TestClient, home: Home, version: Path) -> None:
    checkpoint = home.checkpoints / "step_000000001"
    secret = hash_file(home.config_path)
    strange = ["", "manifest.json", "..%2f..%2fstoke.toml", digest(version).upper(), digest(version)[:-1], "0" * 64]
    for name in [*strange, secret, digest(checkpoint, "optimizer.safetensors"), f"{digest(version)}%00"]:
        assert api.get(f"/api/blobs/{name}").status_code == 404, name
    trash.discard(home, version, "test")
    assert api.get(f"/api/blobs/{digest(checkpoint)}").status_code == 404, "its version is gone, its blob is not"


def test_a_file_that_is_damaged_or_a_link_here_is_not_sent(api: TestClient, home: Home, version: Path) -> None:
    name = digest(version, "config.json")
    blob = home.blobs / name[:2] / name
    (version / "config.json").write_text("{ }")
    assert api.get(f"/api/blobs/{name}").content == b"{}", "the store's copy counts"
    blob.unlink()
    blob.symlink_to(home.config_path)
    said = api.get(f"/api/blobs/{name}")
    assert (said.status_code, "this file is damaged here" in said.json()["error"]) == (500, True)


def test_a_large_file_costs_little_memory_and_holds_nobody_up(home: Home, db: Database, page: Any) -> None:
    def write(folder: Path) -> None:
        with (folder / WEIGHTS).open("wb") as stream:
            header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (LARGE_BYTES, LARGE_BYTES)
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + LARGE_BYTES)

    made = versions.create(home, db, Path(publish_checkpoint(home, 1, write, {}).path))
    path = f"/api/blobs/{digest(Path(made.path))}"
    with page.client() as client:
        assert client.get("/health").status_code == 200
        before = peak_bytes(page.process.pid)
        with client.stream("GET", path) as slow, page.client() as other:
            pieces = slow.iter_raw()
            first = next(pieces)
            assert other.get("/health").status_code == 200, "answered while the transfer stands still"
            came = [0]
            reader = threading.Thread(target=lambda: came.append(sum(len(p) for p in other_file(page, path))))
            reader.start()
            total = len(first) + sum(len(piece) for piece in pieces)
            reader.join()
        assert total == came[-1] == int(slow.headers["content-length"])
        assert peak_bytes(page.process.pid) - before < LARGE_BYTES / 4


def other_file(page: Any, path: str) -> Any:
    with page.client() as client, client.stream("GET", path) as response:
        yield from response.iter_raw()


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
