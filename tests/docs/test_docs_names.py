"""What the documents name is there: tests, files, links, commands, settings."""

import ast
import re
from pathlib import Path

import pytest
import typer

from stokehold.cli.main import app
from stokehold.core.config import Config

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "CHANGELOG.md"])
USERS = [path for path in DOCUMENTS if path.parent.name != "decisions"]
"""Decisions also name what is not there, and why."""

TEST_FILES = {path.relative_to(ROOT / "tests").as_posix(): path for path in ROOT.glob("tests/**/test_*.py")}


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def quoted(path: Path) -> list[str]:
    """What stands between single backticks."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@each(DOCUMENTS)
def test_named_tests_exist(path: Path) -> None:
    everywhere = set().union(*map(functions, TEST_FILES.values()))
    file = ""
    for name in quoted(path):
        if found := re.fullmatch(r"(?:tests/)?([\w/]*test_\w+\.py)(?:::(\w+))?", name):
            file = found[1]
            assert file in TEST_FILES
            assert found[2] is None or found[2] in functions(TEST_FILES[file]), name
        elif name.startswith("::"):
            assert name[2:] in functions(TEST_FILES[file]), name
        elif re.fullmatch(r"test_\w+", name):
            assert name in everywhere


def test_the_reliability_table_names_a_test_in_every_row() -> None:
    tables = re.findall(r"^\| happens .*\n\|---.*\n((?:\|.*\n)+)", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 45
    assert [row for row in rows if "::test_" not in row] == []


@each(DOCUMENTS)
def test_links_and_files_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
    for name in quoted(path):
        if re.fullmatch(r"(core|data|store|pipeline|inference|evaluation|cli)/[\w/]+\.py", name):
            assert (ROOT / "src" / "stokehold" / name).is_file(), name
        if name.startswith("benchmarks/"):
            assert (ROOT / name).is_file(), name


@each(USERS)
def test_named_commands_exist(path: Path) -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {word for text in quoted(path) for word in re.findall(r"^stoke ([a-z]+)", text)}
    assert named <= commands


@each(DOCUMENTS)
def test_named_settings_exist(path: Path) -> None:
    for name in quoted(path):
        table, _, key = name.partition(".")
        if table in Config.model_fields and re.fullmatch(r"[a-z_0-9]+", key):
            assert key in type(getattr(Config(), table)).model_fields, name
