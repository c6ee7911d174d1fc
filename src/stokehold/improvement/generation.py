"""The next training file: answers to mined failures, and for the rest problems where the curriculum wants them."""

import random
from collections.abc import Iterable, Mapping, Sequence

from stokehold.core.config import ImprovementConfig
from stokehold.core.errors import StokeholdError
from stokehold.core.records import Sample, Score
from stokehold.improvement.curriculum import apportion, level_weights
from stokehold.improvement.mining import failures, siblings
from stokehold.improvement.supply import Supply


def next_file(
    results: Iterable[tuple[Sample, Score]],
    history: Mapping[int, Sequence[float]],
    config: ImprovementConfig,
    seed: int,
) -> list[Sample]:
    """At most `config.rows` fresh training problems, shuffled; equal arguments give the equal file.

    `results` are the judged items of the last evaluation, `history` is exact shares by level, oldest first (levels
    outside `config.levels` are ignored). Raises `StokeholdError` when not one problem is left.
    """
    supply = Supply(seed)
    mined = siblings(failures(results), config.levels, int(config.rows * config.failure_share), supply)
    weights = level_weights({level: history.get(level, ()) for level in config.levels})
    rows = list(mined)
    for level, count in apportion(weights, config.rows - len(mined)).items():
        rows += supply.take(config.family, level, count)
    if not rows:
        raise StokeholdError(
            "no problem is left to generate", f"{config.family}, levels {config.levels}", "allow higher levels"
        )
    random.Random(f"order:{seed}").shuffle(rows)
    return rows
