"""The floors: who may import whom, where heavy libraries may be named, and how long functions and files may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stokehold

ROOT = Path(stokehold.__file__).parent
LOW = {
    "core",
    "data",
    "tasks",
    "codec",
    "telemetry",
    "store",
    "training",
    "inference",
    "evaluation",
    "improvement",
}
MODEL_ROOM = {"core", "data", "codec", "store", "telemetry"}
JUDGING_ROOM = {"core", "data", "tasks", "codec"}
FACE = {"core", "store", "telemetry", "supervisor"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "data": {"core"},
    "tasks": {"core"},
    "codec": {"core"},
    "telemetry": {"core"},
    "store": {"core"},
    "training": MODEL_ROOM,
    "inference": MODEL_ROOM,
    "evaluation": JUDGING_ROOM,
    "improvement": JUDGING_ROOM,
    "pipeline": LOW,
    "supervisor": {"core", "store", "telemetry"},
    "web": FACE,
    "tui": FACE,
    "cli": (LOW - {"training", "inference"}) | {"supervisor", "web", "tui"},
}
MODEL_LIBRARIES = {"training", "inference", "pipeline"}
HEAVY = {
    "torch": MODEL_LIBRARIES,
    "peft": MODEL_LIBRARIES,
    "accelerate": MODEL_LIBRARIES,
    "bitsandbytes": MODEL_LIBRARIES,
    "transformers": MODEL_LIBRARIES | {"data"},
    "dbos": {"store", "pipeline"},
}
TORCH_FREE = sorted(set(MAY_IMPORT) - MODEL_LIBRARIES - {"tui"})
MAX_FILE_LINES = 400
MAX_FUNCTION_P95 = 45
MAX_FUNCTION_LINES = 150


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield relative.parts[0].removesuffix(".py"), relative, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every import in the file, those inside functions too, as (line, dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_rooms_import_downwards_only() -> None:
    faults = []
    for room, path, tree in modules():
        for line, name in imported(tree):
            parts = name.split(".")
            other = parts[1] if parts[0] == "stokehold" and len(parts) > 1 else room
            if other != room and other in MAY_IMPORT and room in MAY_IMPORT and other not in MAY_IMPORT[room]:
                faults.append(f"{path}:{line} {room} imports {other}")
            if room not in HEAVY.get(parts[0], {room}):
                faults.append(f"{path}:{line} {room} imports {parts[0]}")
    assert faults == []


def test_every_room_is_on_the_plan() -> None:
    assert {room for room, _, _ in modules()} <= set(MAY_IMPORT) | {"__init__", "__main__"}


def test_files_and_functions_stay_small() -> None:
    lengths = []
    for _, path, tree in modules():
        assert len((ROOT / path).read_text().splitlines()) <= MAX_FILE_LINES, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= MAX_FUNCTION_LINES, f"{path}:{node.name}"
    assert sorted(lengths)[int(len(lengths) * 0.95)] <= MAX_FUNCTION_P95


@pytest.mark.parametrize("room", TORCH_FREE)
def test_torch_free_rooms_leave_torch_out(room: str) -> None:
    names = [
        ".".join(("stokehold", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]
    program = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
