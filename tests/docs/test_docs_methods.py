"""The page of methods: its commands run as they are written."""

from pathlib import Path

from test_docs_run import Shell, blocks, run_block, shell  # noqa: F401 - a fixture is used by its name

from stokehold.store.home import Home
from stokehold.store.models.adapters import base_of
from stokehold.store.models.versions import list_versions

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_of_methods_runs_as_it_is_written(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    found = [block for block in blocks(PAGE.read_text()) if block.kind == "console"]
    assert len(found) == 1
    for block in found:
        run_block(shell, block)
    home = Home.open(tmp_path / "home")
    (version,) = list_versions(home)
    assert base_of(Path(version.path)) == home.root / home.config().model.base
