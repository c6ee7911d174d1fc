"""Champion and best, judged anew where a verdict on a checkpoint needs it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from stokehold.core.config import Config
from stokehold.core.records import Evaluation
from stokehold.data.profile import profile_of
from stokehold.inference.registry import load
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.promote import BEST, rivals
from stokehold.pipeline.suites import open_suites
from stokehold.store import versions
from stokehold.store.database import Database
from stokehold.store.home import Home


def judge_rivals(
    home: Home,
    db: Database,
    config: Config,
    evaluation: Evaluation,
    device: str,
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
        engine = load(Path(version.path), config.model.dtype, device, profile_of(config.data)).engine
        evaluate_weights(
            home, db, config, engine, version.name, version.weights_hash, step, suites, partial(between, step)
        )
