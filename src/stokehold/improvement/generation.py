"""The next training file: answers to mined failures, corrections of errors that come again, and for the rest problems
where the curriculum wants them."""

import random
from collections.abc import Iterable, Mapping, Sequence

from stokehold.core.config import ImprovementConfig
from stokehold.core.errors import StokeholdError
from stokehold.core.records import Sample
from stokehold.improvement.corrections import Mistake, Pattern, corrections
from stokehold.improvement.curriculum import apportion, level_weights
from stokehold.improvement.mining import Judged, failures, siblings, unsure
from stokehold.improvement.supply import Supply


def next_file(
    results: Iterable[Judged],
    history: Mapping[int, Sequence[float]],
    config: ImprovementConfig,
    seed: int,
    patterns: Sequence[tuple[Pattern, int]] = (),
    mistakes: Sequence[Mistake] = (),
) -> list[Sample]:
    """At most `config.rows` fresh training problems, shuffled; equal arguments give the equal file.

    `results` are the judged items of the last evaluation, `history` is exact shares by level, oldest first (levels
    outside `config.levels` are ignored). `patterns` are error patterns with their counts, and `mistakes` wrong answers
    of the model's own on training problems: what `corrections` makes rows of. Raises `StokeholdError` when not one
    problem is left.
    """
    supply, judged = Supply(seed), list(results)
    supply.keep_out(mistake.sample for mistake in mistakes)
    mined_from = [*failures(judged), *unsure(judged, config.unsure_below)]
    rows = siblings(mined_from, config.levels, int(config.rows * config.failure_share), supply)
    corrected = min(int(config.rows * config.correction_share), config.rows - len(rows))
    rows += corrections(patterns, mistakes, config.levels, corrected, supply, seed)
    weights = level_weights({level: history.get(level, ()) for level in config.levels})
    for level, count in apportion(weights, config.rows - len(rows)).items():
        rows += supply.take(config.family, level, count)
    if not rows:
        raise StokeholdError(
            "no problem is left to generate", f"{config.family}, levels {config.levels}", "allow higher levels"
        )
    random.Random(f"order:{seed}").shuffle(rows)
    return rows
