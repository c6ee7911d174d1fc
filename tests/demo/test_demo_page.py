"""The dashboard beside a trainer at work: the loss curve moves in a real browser.

The picture in the README is taken the same way, of a demo that is up:
`PYTHONPATH=tests python tests/demo/test_demo_page.py HOME PICTURE`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browsing import chromium
from stokehold.cli.places import dashboard, start_detached, stop
from stokehold.store.home import Home
from tiny_world import facts, held_out_facts, write_jsonl

pytestmark = pytest.mark.browser
PATIENCE_MS = 240_000
TRAINING = {"micro_batch_tokens": 512, "learning_rate": 0.01, "checkpoint_steps": 20, "epochs": 60, "sample_steps": 10}


def drawn(tab: Any) -> int:
    return int(tab.get_attribute("#loss-chart", "data-points"))


def test_the_loss_curve_moves_while_a_model_learns(make_home: Callable[..., Home], tmp_path: Path) -> None:
    home = make_home(training=TRAINING)
    write_jsonl(home.suites / "facts.jsonl", held_out_facts())
    for number in range(2):
        write_jsonl(home.inbox / f"facts-{number}.jsonl", facts(400, seed=number))
    start_detached(home)
    try:
        with chromium() as browser:
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            complaints: list[str] = []
            tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            tab.goto(dashboard(home))
            tab.wait_for_selector("#loss-chart:not([data-points='0'])", state="attached", timeout=PATIENCE_MS)
            first = drawn(tab)
            tab.wait_for_selector("#versions tr", state="visible", timeout=PATIENCE_MS)
            end = time.monotonic() + PATIENCE_MS / 1000
            while drawn(tab) < first + 20:
                assert time.monotonic() < end, f"the curve stands still at {drawn(tab)} points"
                tab.wait_for_timeout(200)
            picture = tmp_path / "dashboard.png"
            photograph(tab, picture)
            assert complaints == []
    finally:
        stop(home)
    assert picture.stat().st_size > 20_000


def photograph(tab: Any, picture: Path) -> None:
    """What somebody sees without scrolling, once the curves have stopped moving."""
    tab.wait_for_timeout(1000)
    tab.screenshot(path=picture)


def main(root: Path, picture: Path) -> None:
    """Photographs the dashboard of a home that is up."""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.goto(dashboard(Home.open(root)))
        tab.wait_for_selector("#loss-chart:not([data-points='0'])", state="attached", timeout=PATIENCE_MS)
        photograph(tab, picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
