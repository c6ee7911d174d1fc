"""Units for systemd: one for each home, which systemd reads as it is meant, and never over somebody else's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokehold.core.config import Config
from stokehold.core.errors import BusyError, StokeholdError
from stokehold.store.home import Home
from stokehold.supervisor import service
from stokehold.supervisor.main import LEAVE_S

ODD = 'a b-%h $HOME ${X} "q" it\'s é\\n'


def home_at(root: Path) -> Home:
    return Home.create(root, Config())


def lines(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_the_unit_names_this_home_and_leaves_time_to_leave(tmp_path: Path) -> None:
    home = home_at(tmp_path / "home")
    found = lines(service.unit(home, {"PATH": "/usr/bin", "SECRET": "x"}, "/venv/bin/python"))
    wanted = f'"/venv/bin/python" "-m" "stokehold.supervisor.main" "--home" "{home.root}"'
    assert found["ExecStart"] == wanted
    assert found["WorkingDirectory"] == str(home.root)
    assert found["Environment"] == '"PATH=/usr/bin"', "and nothing else of the environment"
    assert (found["Restart"], found["KillSignal"], found["KillMode"]) == ("on-failure", "SIGTERM", "mixed")
    assert int(found["TimeoutStopSec"]) > 2 * LEAVE_S, "trainer and page may each take that long"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["home", ODD])
def test_systemd_takes_the_unit(tmp_path: Path, name: str) -> None:
    home = home_at(tmp_path / name)
    path = service.install(home, {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": "/a b:/usr/%bin"})
    command = ["systemd-analyze", "verify", "--user", "--man=no", "--recursive-errors=no", str(path)]
    runtime = {"PATH": os.defpath, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=runtime)
    ours = [line for line in said.stderr.splitlines() if path.name in line or str(path) in line]
    assert (said.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd is not installed")
@pytest.mark.parametrize("root", ["/", "/srv/models", "/srv/a-b_c.d:e", "/.hidden/x", "/home/me/a b", f"/x/{ODD}"])
def test_names_are_escaped_as_systemd_does(root: str) -> None:
    said = subprocess.run(["systemd-escape", "--path", root], capture_output=True, text=True, timeout=60, check=True)
    assert service.escape_path(Path(root)) == said.stdout.rstrip("\n")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), min_size=1, max_size=4))
def test_two_homes_never_share_a_unit(parts: list[str]) -> None:
    path = Path("/", *parts)
    name = service.escape_path(path)
    back = name.replace("-", "/").encode().decode("unicode_escape").encode("latin-1").decode()
    assert "/" not in name
    assert f"/{back}" == path.as_posix() or back == "/", "the name tells the whole path"


def test_only_our_own_unit_is_replaced_or_removed(tmp_path: Path) -> None:
    home, surroundings = home_at(tmp_path / "home"), {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert service.uninstall(home, surroundings) is None
    path = service.install(home, surroundings)
    assert service.install(home, surroundings) == path, "again, after an upgrade of Python"
    assert service.uninstall(home, surroundings) == path
    assert not path.exists()
    path.write_text("[Service]\nExecStart=/bin/true\n")
    for act in (service.install, service.uninstall):
        with pytest.raises(BusyError, match="not ours"):
            act(home, surroundings)
    assert path.read_text() == "[Service]\nExecStart=/bin/true\n"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BusyError, match="not ours"):
        service.install(home, surroundings)


def test_a_path_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StokeholdError, match="line break"):
        service.unit(home_at(tmp_path / "a\nb"), {})
