"""Everything worth checking before a long run, in order: the machine, the home, the model, the work.

Each check looks at one thing and says what it found. Where one of them fails the others still look, but for those that
need what failed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from stokehold.core.config import Config
from stokehold.core.errors import StokeholdError
from stokehold.core.memory import ModelShape
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.store.models.weights import read_shape
from stokehold.supervisor import checks_home, checks_machine, checks_work
from stokehold.supervisor.checks import Check, Mark, bad
from stokehold.supervisor.devices import cards, evaluator_room, room
from stokehold.supervisor.processes import holder


@dataclass(frozen=True, slots=True)
class Part:
    """Checks that belong together."""

    name: str
    checks: tuple[Check, ...]


def run(home: Home) -> list[Part]:
    """Every check of a home; reads the base model and the newest checkpoint once, and changes nothing.

    Raises ConfigError where the settings do not read: nothing else can be judged then.
    """
    config = home.config()
    shape, unreadable = _shape(home, config)
    return [
        Part("machine", tuple(_machine(home, config))),
        Part("home", tuple(_home(home, config, shape))),
        Part("model", tuple(_model(home, config, shape, unreadable))),
        Part("work", tuple(_work(home, config))),
    ]


def _machine(home: Home, config: Config) -> Iterator[Check]:
    shown = cards(config)
    yield checks_machine.code()
    yield checks_machine.packages(config)
    yield checks_machine.threads(config)
    yield checks_machine.load(home)
    if (gpu := checks_machine.gpu_load(config, shown)) is not None:
        yield gpu
    yield checks_machine.swap()
    yield checks_machine.open_files()
    yield checks_machine.clock(home)
    yield checks_machine.temperature(config, shown)
    yield checks_machine.power()
    yield checks_machine.port(config, holder(home, ("supervisor",)) is not None)


def _home(home: Home, config: Config, shape: ModelShape | None) -> Iterator[Check]:
    yield checks_home.folders(home)
    yield checks_home.file_system(home)
    yield checks_home.disk(home, config, shape)
    yield checks_home.database(home)
    yield checks_home.processes(home)


def _model(home: Home, config: Config, shape: ModelShape | None, unreadable: Check | None) -> Iterator[Check]:
    shown = cards(config)
    free = room(config.devices.trainer, shown)
    yield checks_work.base(home, config)
    if unreadable is not None:
        yield unreadable
    yield checks_work.settings(home, config, shape)
    yield checks_work.device(config, shown, free)
    yield checks_work.evaluator(config, shown)
    if shape is not None and free is not None:
        yield from checks_work.memory(home, config, shape, free, evaluator_room(config, shown))


def _work(home: Home, config: Config) -> Iterator[Check]:
    yield checks_work.data(home)
    yield checks_work.judged_on(home, config)
    if checks_home.database(home).mark is Mark.BAD:
        return
    db = connect(home)
    yield checks_work.baseline(home, db, config)
    yield checks_work.newest_checkpoint(home, db)
    yield checks_work.champion(home, db)
    db.close()


def _shape(home: Home, config: Config) -> tuple[ModelShape | None, Check | None]:
    """The base model's shape; None with the reason where its files do not read, None alone where it is missing."""
    folder = home.root / config.model.base
    if not config.model.base or not folder.is_dir():
        return None, None
    try:
        return read_shape(folder), None
    except (StokeholdError, OSError, ValueError) as error:
        return None, bad("weights", str(error).partition("\n")[0], "restore base/ from a backup")
