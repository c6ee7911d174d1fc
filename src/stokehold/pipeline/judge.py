"""`stoke evaluate` and `stoke compare`: judge weights of a home outside the trainer.

`python -m stokehold.pipeline.judge --home H evaluate REF [--suite NAME …] [--json]`
`python -m stokehold.pipeline.judge --home H compare A B [--json]`
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError
from stokehold.core.records import Comparison, Evaluation, SuiteResult, Verdict
from stokehold.data.profile import profile_of
from stokehold.evaluation.verdict import items_needed
from stokehold.inference.registry import load
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.foreground import Meter, told
from stokehold.pipeline.promote import compare_evaluations
from stokehold.pipeline.suites import open_suites
from stokehold.pipeline.worker import use_threads
from stokehold.store import references
from stokehold.store.database import Database, connect
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home


def evaluate_ref(
    home: Home, db: Database, config: Config, ref: str, names: Sequence[str] = (), meter: Meter | None = None
) -> Evaluation:
    """The evaluation of what `ref` names on these suites, or on the configured ones."""
    folder = references.resolve(home, db, ref)
    suites = open_suites(home, names or config.evaluation.suites)
    if not suites:
        raise NotFoundError("this home has no suite", str(home.suites), "put a JSONL file there, or train a file first")
    served = load(folder, config.model.dtype, config.devices.trainer, profile_of(config.data))
    step = read_manifest(folder).get("step") if (folder / MANIFEST).is_file() else None
    batches = sum(math.ceil(len(suite.samples) / config.evaluation.batch_size) for suite in suites)
    done = itertools.count(1)

    def between() -> None:
        if meter:
            meter.show(
                ref, min(1.0, next(done) / batches), f"evaluating on {', '.join(suite.name for suite in suites)}"
            )

    return evaluate_weights(home, db, config, served.engine, ref, served.weights_hash, step, suites, between)


def evaluation_answer(evaluation: Evaluation, ref: str) -> dict[str, Any]:
    """What scripts rely on; `ref` as it was asked for, whoever had these weights judged first."""
    return {
        "ref": ref,
        "id": evaluation.id,
        "weights_hash": evaluation.weights_hash,
        "fingerprint": evaluation.fingerprint,
        "suites": {name: asdict(result) for name, result in evaluation.suites.items()},
    }


def comparison_answer(comparison: Comparison, margin: float) -> dict[str, Any]:
    """What scripts rely on; `items_needed` is about how many would settle an INCONCLUSIVE one."""
    answer = asdict(comparison)
    if comparison.verdict is Verdict.INCONCLUSIVE:
        answer["items_needed"] = items_needed(comparison, margin)
    return answer


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.judge")
    parser.add_argument("--home", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("evaluate")
    one.add_argument("ref")
    one.add_argument("--suite", action="append", default=[])
    one.add_argument("--json", action="store_true")
    two = commands.add_parser("compare")
    two.add_argument("a")
    two.add_argument("b")
    two.add_argument("--json", action="store_true")
    arguments = parser.parse_args(given)
    with told("evaluate", arguments.home), Meter() as meter:
        home = Home.open(arguments.home)
        config = home.config()
        use_threads(config)
        db = connect(home)
        if arguments.command == "evaluate":
            evaluation = evaluate_ref(home, db, config, arguments.ref, arguments.suite, meter)
            answer, lines = evaluation_answer(evaluation, arguments.ref), _readings(evaluation)
        else:
            for ref in (arguments.a, arguments.b):
                references.resolve(home, db, ref)  # before an hour is spent on the first
            pair = [evaluate_ref(home, db, config, ref, meter=meter) for ref in (arguments.a, arguments.b)]
            comparison = compare_evaluations(home, config, *pair)
            answer = comparison_answer(comparison, config.evaluation.equivalence_margin)
            lines = _deltas(comparison)
    sys.stdout.write(orjson.dumps(answer).decode() + "\n" if arguments.json else "\n".join(lines) + "\n")


def _readings(evaluation: Evaluation) -> list[str]:
    """A line per suite, the columns under one another."""
    width = max(len(name) for name in evaluation.suites)
    return [f"{name:<{width}}  {_reading(result)}" for name, result in evaluation.suites.items()]


def _reading(result: SuiteResult) -> str:
    if result.exact is None or result.exact_ci is None:
        return f"{result.state.value}: {result.reason}"
    low, high = result.exact_ci
    nll = "-" if result.nll_per_token is None else f"{result.nll_per_token:.4f}"
    share = f"exact {100 * result.exact:5.1f} %  [{100 * low:5.1f}, {100 * high:5.1f}]"
    return f"{share}  nll/token {nll:>8}  n {result.n}  {result.state.value}"


def _deltas(comparison: Comparison) -> list[str]:
    """The verdict, and the numbers it rests on; B - A."""
    lines = [f"{comparison.verdict.value}: {comparison.reason}"]
    if comparison.delta_exact is not None and comparison.delta_exact_ci is not None:
        low, high = comparison.delta_exact_ci
        p = "-" if comparison.p_value is None else f"{comparison.p_value:.3g}"
        change = f"{100 * comparison.delta_exact:+.1f} points  [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"exact      {change}  p {p}  {comparison.items} items")
    if comparison.delta_nll_per_token is not None and comparison.delta_nll_ci is not None:
        low, high = comparison.delta_nll_ci
        lines.append(f"nll/token  {comparison.delta_nll_per_token:+.4f}  [{low:+.4f}, {high:+.4f}]")
    return lines


if __name__ == "__main__":
    main()
