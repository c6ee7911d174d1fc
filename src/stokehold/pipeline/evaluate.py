"""Weights become an Evaluation: every suite generated once, stored, judged; the same weights are never judged twice.

On one device this runs inside the trainer's process, on the live weights, between two steps.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.identity import short_id
from stokehold.core.records import Completion, Evaluation, Sample, Score, SuiteResult
from stokehold.evaluation.judge import judge_suite
from stokehold.inference.engine import Engine
from stokehold.pipeline.suites import Suite
from stokehold.store import evaluations, journal
from stokehold.store.database import Database
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, utc_now
from stokehold.store.home import Home
from stokehold.store.items import COMPLETIONS, write_items
from stokehold.training.loop import spent

ENGINE_VERSION = "greedy-1"
"""Changes when the engine may answer otherwise; evaluations across versions are not compared."""


RECENT = 10
"""Newest evaluations among which that of the last step is looked for."""


def conditions(config: Config, engine: Engine) -> dict[str, str]:
    """How answers are made, by name; readings are comparable only where all of it agrees."""
    return {
        "template": engine.tokenizer.template_hash,
        "engine": ENGINE_VERSION,
        "dtype": str(engine.model.dtype),
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
    engine: Engine,
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
    how = conditions(config, engine)
    mark = fingerprint(how, suites)
    identity = short_id(weights_hash, mark)
    if (evaluations.evaluation_folder(home, identity) / MANIFEST).is_file():
        return evaluations.load(home, identity)
    started, energy = time.perf_counter(), energy_j()
    tokens = 0
    results: dict[str, SuiteResult] = {}
    lines: list[bytes] = []
    items: list[dict[str, Any]] = []
    for suite in suites:
        completions = _generate(engine, suite.samples, config, between)
        result, scores = judge_suite(suite.name, suite.samples, completions)
        results[suite.name] = result
        tokens += sum(len(completion.token_ids) for completion in completions)
        lines += [_line(suite.name, *item) for item in zip(suite.samples, completions, scores, strict=True)]
        items += [_item(suite.name, *item) for item in zip(completions, scores, strict=True)]
    reach("evaluation.judged")
    evaluation = Evaluation(
        id=identity,
        ref=ref,
        weights_hash=weights_hash,
        fingerprint=mark,
        suites=results,
        seconds=time.perf_counter() - started,
        path=str(evaluations.evaluation_folder(home, identity)),
        created=utc_now(),
        step=step,
        conditions=how,
        suite_hashes={suite.name: suite.hash for suite in suites},
        tokens=tokens,
        joules=spent(energy, energy_j()),
    )
    return evaluations.save(home, db, evaluation, lambda folder: _write(folder, lines, items))


def _generate(
    engine: Engine, samples: Sequence[Sample], config: Config, between: Callable[[], None]
) -> list[Completion]:
    found: dict[int, Completion] = {}
    evaluation = config.evaluation
    limits = (evaluation.max_new_tokens, evaluation.batch_size, evaluation.gold_multiple)
    for part in engine.complete_batches(samples, *limits):
        found.update(part)
        between()
    return [found[number] for number in range(len(samples))]


def _line(suite: str, sample: Sample, completion: Completion, score: Score) -> bytes:
    kind = {key: sample.metadata.get(key) for key in ("family", "level")}
    facts = {"suite": suite, **kind, **asdict(completion)}
    return orjson.dumps({**facts, "score": score.value, "parts": dict(score.parts), "reason": score.reason}) + b"\n"


def _item(suite: str, completion: Completion, score: Score) -> dict[str, Any]:
    likelihood = {"gold_nll": completion.gold_nll, "gold_tokens": completion.gold_tokens}
    return {"suite": suite, "sample_id": completion.sample_id, "score": score.value, **likelihood}


def _write(folder: Path, lines: list[bytes], items: list[dict[str, Any]]) -> None:
    (folder / COMPLETIONS).write_bytes(b"".join(lines))
    write_items(folder, items)
