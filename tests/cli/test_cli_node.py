"""A node: another home's champion here, followed and served."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from link import Link, linked, port_of, serving
from stokehold.core.config import Config, describe, parse_config
from stokehold.store.db.database import connect
from stokehold.store.files import verify
from stokehold.store.home import Home
from stokehold.store.models import versions
from stokehold.store.models.checkpoints import publish_checkpoint
from stokehold.store.transfer import sync
from tiny_world import safetensors
from waiting import free_ports, until


def promote(home: Home, step: int, content: bytes = b"weights") -> str:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(safetensors(content))

    db = connect(home)
    made = versions.create(home, db, Path(publish_checkpoint(home, step, write, {}).path))
    versions.set_alias(home, db, "champion", made.name)
    db.close()
    return made.name


def champion(root: Path) -> str | None:
    home = Home.open(root)
    db = connect(home)
    try:
        return versions.alias(db)
    finally:
        db.close()


@pytest.fixture
def server(tmp_path: Path) -> Home:
    settings = {"model": {"dtype": "bfloat16"}, "data": {"profile": "emoji_think"}}
    return Home.create(tmp_path / "server", parse_config(settings))


@pytest.fixture
def url(server: Home) -> Iterator[str]:
    with serving(server) as address:
        yield address


@contextmanager
def following(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`stoke node join ARGUMENTS` until the end of the block; then it leaves in order."""
    command = [sys.executable, "-m", "stokehold.cli.main", "node", "join", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_joining_makes_a_home_with_the_champion_and_remembers(
    stoke: Any, server: Home, url: str, tmp_path: Path
) -> None:
    promote(server, 1)
    root = tmp_path / "node"
    answer = stoke("node", "join", url, "--token", server.token(), "--once", "--json", "--home", root).answer
    assert (answer["home"], answer["champion"]) == (str(root), "v0001")
    node = Home.open(root)
    assert verify(node.versions / "v0001") == []
    assert (node.config().model.dtype, node.config().data.profile) == ("bfloat16", "emoji_think")
    assert (node.status / "node.json").stat().st_mode & 0o777 == 0o600
    promote(server, 2)
    again = stoke("node", "join", "--once", "--home", root)
    assert again.out.startswith("champion: v0002 (")
    assert f"pulling from {url}: 0.0 of 0.0 MB" in again.err


def test_what_is_refused_leaves_nothing_behind(stoke: Any, server: Home, url: str, tmp_path: Path) -> None:
    root, token = tmp_path / "node", server.token()
    assert "no version goes by this name yet" in stoke("node", "join", url, "--token", token, "--home", root).error
    promote(server, 1)
    wrong = stoke("node", "join", url, "--token", "wrong", "--home", root)
    assert (wrong.code, "refuses the token" in wrong.error) == (2, True)
    assert "no address of a server" in stoke("node", "join", "--home", root).error
    assert "no token of a server" in stoke("node", "join", url, "--home", root).error
    assert not root.exists()
    (root / "photos").mkdir(parents=True)
    assert "not empty, and no home" in stoke("node", "join", url, "--token", token, "--home", root).error
    assert [path.name for path in root.iterdir()] == ["photos"]
    trains = Home.create(tmp_path / "trains", Config())
    promote(trains, 1)
    assert "models of its own" in stoke("node", "join", url, "--token", token, "--home", trains.root).error
    assert sync.remembered(trains) is None
    assert "one JSON document has an end" in stoke("node", "join", url, "--json", "--home", root).error
    assert "evaluations have no end" in stoke("node", "join", url, "--once", "--judge", "--home", root).error


def test_a_wrong_token_does_not_replace_the_right_one(stoke: Any, server: Home, url: str, tmp_path: Path) -> None:
    promote(server, 1)
    root = tmp_path / "node"
    assert stoke("node", "join", url, "--token", server.token(), "--once", "--home", root).code == 0
    assert stoke("node", "join", "--token", "wrong", "--once", "--home", root).code == 2
    assert sync.remembered(Home.open(root)) == sync.Server(url, server.token())


def test_a_node_follows_through_a_broken_link_and_a_server_that_is_away(server: Home, tmp_path: Path) -> None:
    promote(server, 1)
    root = tmp_path / "node"
    with (
        serving(server) as url,
        linked(Link(port_of(url))) as link,
        following(link.url, "--token", server.token(), "--home", str(root), "--no-serve"),
    ):
        until(lambda: (root / "stoke.toml").exists() and champion(root) == "v0001")
        link.breaks = [300_000, 0]
        promote(server, 2, os.urandom(1_000_000))
        until(lambda: champion(root) == "v0002")
    with following("--home", str(root), "--no-serve") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("node ")
        assert "cannot be reached" in process.stdout.readline()
    assert champion(root) == "v0002"


def test_it_answers_with_the_new_champion_without_a_restart(make_home: Callable[..., Home], tmp_path: Path) -> None:
    server, root = make_home(), tmp_path / "node"
    base = server.root / server.config().model.base
    token, (port,) = server.token(), free_ports(1)

    def put(step: int, scale: float) -> str:
        def write(folder: Path) -> None:
            for path in base.iterdir():
                if path.name not in ("manifest.json", "model.safetensors"):
                    (folder / path.name).write_bytes(path.read_bytes())
            tensors = {name: tensor * scale for name, tensor in load_file(base / "model.safetensors").items()}
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        db = connect(server)
        made = versions.create(server, db, Path(publish_checkpoint(server, step, write, {}).path))
        versions.set_alias(server, db, "champion", made.name)
        db.close()
        return made.weights_hash

    def fingerprint() -> tuple[str, str] | None:
        asked = {"model": "champion", "messages": [{"role": "user", "content": "sea"}], "max_tokens": 2}
        headers = {"authorization": f"Bearer {Home.open(root).token()}"}
        try:
            said = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, headers=headers, trust_env=False, timeout=60
            )
        except httpx.TransportError:
            return None
        return (said.json()["system_fingerprint"], said.json()["model"]) if said.status_code == 200 else None

    first = put(1, 1.0)
    with serving(server) as url:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "stokehold.cli.main",
                "node",
                "join",
                url,
                "--token",
                token,
                "--once",
                "--home",
                root,
            ],
            check=True,
        )
        assert done.returncode == 0
        node = Home.open(root)
        tree = node.config().model_dump(mode="json")
        node.write_config(describe(parse_config(tree | {"serve": {**tree["serve"], "port": port}})))
        with following("--home", str(root)):
            assert until(fingerprint)[0] == first
            second = put(2, 0.5)
            assert second != first
            until(lambda: (fingerprint() or ("",))[0] == second)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the inference server leaves with the node"
