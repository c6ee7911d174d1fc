"""Champion and best, judged anew where a verdict on a checkpoint needs it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from stokehold.core.config import Config
from stokehold.core.records import Evaluation
from stokehold.data.profile import profile_of
from stokehold.inference.registry import load
from stokehold.pipeline.evaluate import Answering, evaluate_weights
from stokehold.pipeline.promote import BEST, rivals
from stokehold.pipeline.suites import Suite, open_suites
from stokehold.store.db.database import Database
from stokehold.store.home import Home
from stokehold.store.models import versions

Opened = Callable[[Path, str, Sequence[Suite], Callable[[], None]], Answering]
"""Given a folder of weights, what it is called and the suites to come: what answers. It may call the last one often."""


def judge_rivals(
    home: Home,
    db: Database,
    config: Config,
    evaluation: Evaluation,
    opened: Opened,
    between: Callable[[int | None], None],
) -> None:
    """Judges champion and best anew where that was never done, or not in the way this evaluation was made.

    `between` is given the step of the version after every batch of items.
    """
    suites = open_suites(home, config.evaluation.suites)
    names = (versions.alias(db), versions.alias(db, BEST))
    for name, judged in zip(names, rivals(home, db, evaluation), strict=True):
        if name is None or not suites or (judged is not None and judged.how == evaluation.how):
            continue
        version = versions.find_version(home, name)
        step = version.step
        engine = opened(Path(version.path), version.name, suites, partial(between, step))
        evaluate_weights(
            home, db, config, engine, version.name, version.weights_hash, step, suites, partial(between, step)
        )
        del engine  # one model at a time


def opened_on(config: Config, device: str | None = None) -> Opened:
    """Opens weights on a device of this machine; None is the trainer's."""

    def opened(folder: Path, _ref: str, _suites: Sequence[Suite], _between: Callable[[], None]) -> Answering:
        return load(folder, config.model.dtype, device or config.devices.trainer, profile_of(config.data)).engine

    return opened
