"""A home that comes up with the machine: a `systemd --user` unit of its own, without root.

The unit names this interpreter and this home by absolute paths and runs no shell. systemd asks only the supervisor to
leave, which sees to its children, and waits longer than that may take. A unit of this name that is not ours, or is
another home's, is left alone.
"""

import os
import re
import sys
from pathlib import Path

from stokehold.core.errors import BusyError, StokeholdError
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.supervisor.main import LEAVE_S

MARK = "# Written by `stoke up --install`; `stoke up --uninstall` removes it."
STOP_S = 2 * LEAVE_S + 60
"""Trainer and page may each take `LEAVE_S`."""

RESTART_S = 2
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME")
"""Of the environment that the unit is installed from: what the programs need to be found with."""

PLAIN = re.compile(r"[A-Za-z0-9:_.]")


def unit_name(home: Home) -> str:
    """`stoke-<path>.service`, the path escaped as `systemd-escape --path` does: one unit for each home."""
    return f"stoke-{escape_path(home.root)}.service"


def escape_path(path: Path) -> str:
    """The path without its first slash; every other slash is `-`, and what is not plain `\\xNN`."""
    said = []
    for index, char in enumerate(path.as_posix().strip("/") or "/"):
        if char == "/":
            said.append("-")
        elif PLAIN.fullmatch(char) and not (char == "." and index == 0):
            said.append(char)
        else:
            said.append("".join(f"\\x{byte:02x}" for byte in char.encode()))
    return "".join(said)


def unit(home: Home, environment: dict[str, str], python: str = sys.executable) -> str:
    """The text of the unit. Raises `StokeholdError` for a path that no unit can name."""
    root = str(home.root)
    if any(char in root + python for char in "\n\r"):
        raise StokeholdError("a path with a line break cannot be in a unit", root, "rename the folder")
    command = (python, "-m", "stokehold.supervisor.main", "--home", root)
    kept = [f"{name}={environment[name]}" for name in KEPT_VARIABLES if environment.get(name)]
    lines = (
        MARK,
        "[Unit]",
        f"Description=Stokehold home {_specifiers(root)}",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_word(part, in_command=True) for part in command)}",
        f"WorkingDirectory={_specifiers(root)}",
        *(f"Environment={_word(pair)}" for pair in kept if "\n" not in pair),
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        "KillSignal=SIGTERM",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S:.0f}",
        "",
        "[Install]",
        "WantedBy=default.target",
    )
    return "\n".join(lines) + "\n"


def folder(environment: dict[str, str]) -> Path:
    """Where units of this user are looked for."""
    configured = environment.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "systemd" / "user"


def install(home: Home, environment: dict[str, str] | None = None) -> Path:
    """Writes the unit, over an older one of ours; returns where. `BusyError` where somebody else's is there."""
    surroundings = dict(os.environ) if environment is None else environment
    path = folder(surroundings) / unit_name(home)
    _check_ours(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, unit(home, surroundings).encode())
    return path


def uninstall(home: Home, environment: dict[str, str] | None = None) -> Path | None:
    """Removes the unit; returns where it was, None where there was none. `BusyError` where it is somebody else's."""
    path = folder(dict(os.environ) if environment is None else environment) / unit_name(home)
    if not path.exists():
        return None
    _check_ours(path)
    path.unlink()
    return path


def _check_ours(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.read_text("utf-8", errors="replace").startswith(MARK)):
        raise BusyError("a unit of this name is there and is not ours", str(path), "move it away, or rename the home")


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _word(text: str, in_command: bool = False) -> str:
    """One word of a unit file: in quotes, with systemd's own meanings taken away."""
    quoted = _specifiers(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted.replace("$", "$$") if in_command else quoted}"'
