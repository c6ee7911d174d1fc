"""How far the readings of the very same weights lie apart on this machine: under that floor nothing is a difference."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stokehold.core.config import Config
from stokehold.evaluation.evolution import readings_of
from stokehold.evaluation.noise import NoiseFloor, noise_floor
from stokehold.evaluation.paired import ItemReading
from stokehold.pipeline.evaluate import Answering, completions_of
from stokehold.pipeline.judge_model import opinions_about
from stokehold.pipeline.judged import Judged
from stokehold.pipeline.rivals import opened_on
from stokehold.pipeline.suites import Suite


def measured_floor(
    config: Config, folder: Path, suites: Sequence[Suite], runs: int, between: Callable[[], None]
) -> NoiseFloor | None:
    """From `runs` readings of the weights in `folder`, each in batches half as large as those before and the other way
    round; None where no item can be read.

    `between` is called after every batch.
    """
    sound = [suite for suite in suites if suite.fault is None]
    engine = opened_on(config)(folder, folder.name, sound, between)
    return noise_floor([_readings(config, engine, sound, run, between) for run in range(runs)])


def _readings(
    config: Config, engine: Answering, suites: Sequence[Suite], run: int, between: Callable[[], None]
) -> list[ItemReading]:
    settings = config.evaluation.model_copy(update={"batch_size": max(1, config.evaluation.batch_size >> run)})
    changed = config.model_copy(update={"evaluation": settings})
    judged = Judged()
    for suite in suites:
        turned = replace(suite, samples=suite.samples[:: -1 if run % 2 else 1])
        completions = completions_of(engine, turned.samples, changed, between)
        judged.add(turned, completions, opinions_about(config.judge, turned.samples, completions, between))
    return readings_of(judged.rows)
