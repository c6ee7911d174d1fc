"""`stoke gc` as a person and as a script meet it."""

from pathlib import Path

import orjson
import pytest

from stokehold.cli.gc import size
from stokehold.cli.main import main
from stokehold.core.config import Config
from stokehold.store.home import Home
from stokehold.store.models.checkpoints import publish_checkpoint


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.create(tmp_path / "home", Config())
    for step in range(1, 6):
        publish_checkpoint(made, step, lambda stage: (stage / "model.safetensors").write_bytes(b"w" * 4096), {})
    return made


def test_a_dry_run_tells_and_keeps_and_the_run_does_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    main(["gc", "--dry-run", "--home", str(home.root)])
    told = capsys.readouterr().out
    assert "3 newer ones stay" in told
    assert "would be free" in told
    assert len(list(home.checkpoints.iterdir())) == 5
    main(["gc", "--json", "--home", str(home.root)])
    report = orjson.loads(capsys.readouterr().out)
    assert [line["name"][-1] for line in report["lines"] if not line["keep"]] == ["2", "1"]
    assert len(list(home.checkpoints.iterdir())) == 3


def test_packing_has_no_dry_run(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gc", "--dry-run", "--compact", "--home", str(home.root)])
    assert ended.value.code == 2
    assert "give one of the two" in capsys.readouterr().err
    main(["gc", "--compact", "--home", str(home.root)])
    assert "no version was packed" in capsys.readouterr().out


def test_sizes_read_well() -> None:
    assert [size(count) for count in (0, 999, 1500, 2_000_000, 3_400_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3.4 GB",
    ]
