"""Weights become an Evaluation: every suite generated once, stored, judged; the same weights are never judged twice.

On one device this runs inside the trainer's process, on the live weights, between two steps.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from stokehold.core.config import Config
from stokehold.core.identity import short_id
from stokehold.core.records import Completion, Evaluation, Sample
from stokehold.evaluation.scorers import SCORERS_VERSION
from stokehold.pipeline.judge_model import has_failed, judge_conditions, opinions_about
from stokehold.pipeline.judged import Judged
from stokehold.pipeline.readings import readings
from stokehold.pipeline.suites import Suite, keep_suites
from stokehold.store.db import journal
from stokehold.store.db.database import Database
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, utc_now
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.training.loop import spent

ENGINE_VERSION = "draft-1"
"""Changes when the engine may answer otherwise; evaluations across versions are not compared."""

SEED = 0
"""Of drawn answers: every evaluation draws with the same random numbers, so that weights alone make a difference."""

RECENT = 10
"""Newest evaluations among which that of the last step is looked for."""


class Answering(Protocol):
    """What gives the answers: an `Engine`, or what another machine's engine gave; see there."""

    @property
    def template_hash(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device_type(self) -> str: ...

    @property
    def spent_before_s(self) -> float: ...

    def complete_batches(
        self, samples: Sequence[Sample], max_new_tokens: int, batch_size: int, gold_multiple: float = 0.0
    ) -> Iterator[dict[int, Completion]]: ...

    def sample_batches(
        self,
        samples: Sequence[Sample],
        k: int,
        temperature: float,
        seed: int,
        max_new_tokens: int,
        batch_size: int,
        top_p: float = 1.0,
        gold_multiple: float = 0.0,
    ) -> Iterator[dict[tuple[int, int], Completion]]: ...


def conditions(config: Config, engine: Answering) -> dict[str, str]:
    """How answers are made, by name; readings are comparable only where all of it agrees."""
    return {
        "template": engine.template_hash,
        "engine": ENGINE_VERSION,
        "scorers": SCORERS_VERSION,
        "dtype": engine.dtype,
        "device": engine.device_type,
        "max_new_tokens": str(config.evaluation.max_new_tokens),
        "gold_multiple": str(config.evaluation.gold_multiple),
    }


def fingerprint(how: Mapping[str, str], suites: Sequence[Suite]) -> str:
    """`<how>-<on what>`: the conditions, then the suites. Only equal `how` is comparable."""
    return f"{short_id(*how.values())}-{short_id(*(f'{suite.name}:{suite.hash}' for suite in suites))}"


def affordable(home: Home, db: Database, config: Config, step: int) -> bool:
    """Whether the last evaluation's seconds are within the share of what was trained from it to `step`.

    Nothing is known before the first one, and it is affordable.
    """
    found = evaluations.list_evaluations(home, db, limit=RECENT)
    last = max((e for e in found if e.step is not None and e.step < step), key=lambda e: e.step or 0, default=None)
    if last is None or not config.evaluation.overhead:
        return True
    trained_s = sum(one.seconds for one in journal.steps(db, since=last.step))
    return last.seconds <= config.evaluation.overhead * trained_s


def evaluate_weights(
    home: Home,
    db: Database,
    config: Config,
    engine: Answering,
    ref: str,
    weights_hash: str,
    step: int | None,
    suites: Sequence[Suite],
    between: Callable[[], None] = lambda: None,
    energy_j: Callable[[], float | None] = lambda: None,
) -> Evaluation:
    """Judges the engine's weights on `suites`; the stored evaluation where these weights were judged on them before.

    `between` is called after every batch of items, so that a long run can report its progress. `energy_j` reads a
    running count of joules, None without a sensor.
    """
    how = {**conditions(config, engine), **judge_conditions(config.judge, suites)}
    mark = fingerprint(how, suites)
    drawn = [f"{config.evaluation.draws} at {config.evaluation.temperature}"] if config.evaluation.draws else []
    identity = short_id(weights_hash, mark, *drawn)  # greedy answers compare, whatever was drawn beside them
    if (evaluations.evaluation_folder(home, identity) / MANIFEST).is_file():
        return evaluations.load(home, identity)
    started, energy = time.perf_counter(), energy_j()
    judged = Judged()
    for suite in suites:
        if suite.fault is not None:
            judged.results[suite.name] = suite.broken
            continue
        completions = completions_of(engine, suite.samples, config, between)
        draws = _draws(engine, suite.samples, config, between)
        judged.add(suite, completions, opinions_about(config.judge, suite.samples, completions, between), draws)
    reach("evaluation.judged")
    if has_failed(judged.opinions.values()):
        identity = short_id(identity, utc_now())  # a judge that was away may be there the next time
    evaluation = Evaluation(
        id=identity,
        ref=ref,
        weights_hash=weights_hash,
        fingerprint=mark,
        suites=judged.results,
        seconds=time.perf_counter() - started + engine.spent_before_s,
        path=str(evaluations.evaluation_folder(home, identity)),
        created=utc_now(),
        step=step,
        conditions=how,
        suite_hashes={suite.name: suite.hash for suite in suites},
        tokens=judged.tokens,
        joules=spent(energy, energy_j()),
    )
    return keep(home, db, evaluation, suites, judged)


def keep(home: Home, db: Database, evaluation: Evaluation, suites: Sequence[Suite], judged: Judged) -> Evaluation:
    """Publishes an evaluation with its answers, its readings and the items it was made on."""
    keep_suites(home, suites)
    found = readings(home, db, evaluation, judged.rows)
    return evaluations.save(home, db, evaluation, lambda folder: judged.write(folder, found))


def completions_of(
    engine: Answering, samples: Sequence[Sample], config: Config, between: Callable[[], None]
) -> list[Completion]:
    """The greedy answers in the order of the samples."""
    found: dict[int, Completion] = {}
    settings = config.evaluation
    limits = (settings.max_new_tokens, settings.batch_size, settings.gold_multiple)
    for part in engine.complete_batches(samples, *limits):
        found.update(part)
        between()
    return [found[number] for number in range(len(samples))]


def _draws(
    engine: Answering, samples: Sequence[Sample], config: Config, between: Callable[[], None]
) -> list[list[Completion]]:
    """The drawn answers to each item; an empty list where none are asked for."""
    settings = config.evaluation
    if not settings.draws:
        return []
    found: dict[tuple[int, int], Completion] = {}
    for part in engine.sample_batches(
        samples,
        settings.draws,
        settings.temperature,
        SEED,
        settings.max_new_tokens,
        settings.batch_size,
        gold_multiple=settings.gold_multiple,
    ):
        found.update(part)
        between()
    return [[found[number, draw] for draw in range(settings.draws)] for number in range(len(samples))]
