"""Commands in this process: what they print, and how they end."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from stokehold.cli.main import main
from stokehold.pipeline import foreground, judge
from stokehold.store.home import Home


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return orjson.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr, with nothing on stdout."""
        assert self.out == ""
        assert self.err.startswith("stoke: ")
        assert self.err.count("\n") == 1, self.err
        return self.err


Stoke = Callable[..., Ended]


@pytest.fixture
def stoke(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stoke]:
    """`stoke ARGUMENTS`; a command that becomes a worker runs the worker's `main` here instead."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    workers = {"stokehold.pipeline.foreground": foreground.main, "stokehold.pipeline.judge": judge.main}

    def become(home: Home, module: str, arguments: Sequence[str]) -> None:
        workers[module](["--home", str(home.root), *arguments])

    monkeypatch.setattr("stokehold.cli.work.become", become)

    def run(*arguments: object, home: Home | None = None) -> Ended:
        capfd.readouterr()
        code = 0
        try:
            main([*map(str, arguments), *(["--home", str(home.root)] if home else [])])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ended(code, *capfd.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
