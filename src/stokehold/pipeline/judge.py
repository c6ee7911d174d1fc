"""`stoke evaluate` and `stoke compare`: judge weights of a home outside the trainer.

`python -m stokehold.pipeline.judge --home H evaluate REF [--suite NAME …] [--json]`
`python -m stokehold.pipeline.judge --home H compare A B [--noise RUNS] [--html FILE] [--markdown FILE] [--json]`
`python -m stokehold.pipeline.judge --home H compare A B --until-decided [--max-items N] [--json]`
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError
from stokehold.core.records import Comparison, Evaluation, SuiteResult, Verdict
from stokehold.data.profile import profile_of
from stokehold.evaluation.noise import NoiseFloor
from stokehold.evaluation.sequential import SequentialComparison
from stokehold.inference.registry import load
from stokehold.pipeline.deciding import decide_by_drawing, decision_answer
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.foreground import Meter, told
from stokehold.pipeline.noise import measured_floor
from stokehold.pipeline.promote import compare_evaluations
from stokehold.pipeline.reporting import report_on, write_report
from stokehold.pipeline.suites import Suite, open_suite, open_suites
from stokehold.pipeline.worker import use_threads
from stokehold.store.db.database import Database, connect
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home
from stokehold.store.models import references

MAX_ITEMS = 2000
"""Problems that are drawn at most before a comparison is left undecided."""


def evaluate_ref(
    home: Home, db: Database, config: Config, ref: str, names: Sequence[str] = (), meter: Meter | None = None
) -> Evaluation:
    """The evaluation of what `ref` names on these suites, or on the configured ones."""
    folder = references.resolve(home, db, ref)
    # A name that somebody types wrongly is told at once; a suite of the settings that is not there is a broken one.
    named = [open_suite(home, name) for name in sorted(set(names))]
    suites = named or open_suites(home, config.evaluation.suites)
    if not suites:
        raise NotFoundError("this home has no suite", str(home.suites), "put a JSONL file there, or train a file first")
    served = load(folder, config.model.dtype, config.devices.trainer, profile_of(config.data))
    step = read_manifest(folder).get("step") if (folder / MANIFEST).is_file() else None
    between = _counted(meter, ref, config, suites)
    return evaluate_weights(home, db, config, served.engine, ref, served.weights_hash, step, suites, between)


def compare_refs(
    home: Home, db: Database, config: Config, arguments: argparse.Namespace, meter: Meter
) -> tuple[dict[str, Any], list[str]]:
    """B against A on the suites of the home: what scripts rely on, and the lines for people. Reports are written."""
    refs = (arguments.a, arguments.b)
    folders = [references.resolve(home, db, ref) for ref in refs]  # before an hour is spent on the first
    a, b = (evaluate_ref(home, db, config, ref, meter=meter) for ref in refs)
    suites = open_suites(home, config.evaluation.suites)
    told = f"noise of {refs[0]}"
    shown = _counted(meter, told, config, suites, sum(2**run for run in range(arguments.noise or 0)))
    floor = measured_floor(config, folders[0], suites, arguments.noise, shown) if arguments.noise else None
    comparison = compare_evaluations(home, config, a, b, floor=floor)
    if arguments.html or arguments.markdown:
        write_report(report_on(home, refs, a, b, comparison), arguments.html, arguments.markdown)
    lines = [*_deltas(comparison), *([_floor(floor)] if floor else [])]
    lines += [f"written to {path}" for path in (arguments.html, arguments.markdown) if path]
    return asdict(comparison) | {"noise": asdict(floor) if floor else None}, lines


def _counted(
    meter: Meter | None, title: str, config: Config, suites: Sequence[Suite], times: int = 1
) -> Callable[[], None]:
    """To be called after every batch of items: shows how far their evaluation is."""
    batches = times * sum(math.ceil(len(suite.samples) / config.evaluation.batch_size) for suite in suites)
    done = itertools.count(1)

    def between() -> None:
        if meter:
            names = ", ".join(suite.name for suite in suites)
            meter.show(title, min(1.0, next(done) / batches), f"evaluating on {names}")

    return between


def decide_refs(
    home: Home, db: Database, config: Config, refs: tuple[str, str], max_items: int, meter: Meter
) -> SequentialComparison:
    """B against A on fresh problems, as many as it takes; see `deciding`."""
    folders = [references.resolve(home, db, ref) for ref in refs]
    profile = profile_of(config.data)
    first, second = (load(folder, config.model.dtype, config.devices.trainer, profile) for folder in folders)

    def show(state: SequentialComparison) -> None:
        meter.show(" / ".join(refs), state.items / max_items, f"{state.items} problems: {told_of(state)}")

    return decide_by_drawing(home, config, (first, second), max_items, show)


def told_of(state: SequentialComparison) -> str:
    """The decision so far in a few words."""
    return state.decision.value if state.decision else f"undecided, about {state.more_items()} more"


def evaluation_answer(evaluation: Evaluation, ref: str) -> dict[str, Any]:
    """What scripts rely on; `ref` as it was asked for, whoever had these weights judged first."""
    return {
        "ref": ref,
        "id": evaluation.id,
        "weights_hash": evaluation.weights_hash,
        "fingerprint": evaluation.fingerprint,
        "suites": {name: asdict(result) for name, result in evaluation.suites.items()},
    }


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
    two.add_argument("--until-decided", action="store_true")
    two.add_argument("--max-items", type=int, default=MAX_ITEMS)
    two.add_argument("--noise", type=int)
    two.add_argument("--html", type=Path)
    two.add_argument("--markdown", type=Path)
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
        elif arguments.until_decided:
            state = decide_refs(home, db, config, (arguments.a, arguments.b), arguments.max_items, meter)
            answer, lines = decision_answer(state, (arguments.a, arguments.b)), _decision(state)
        else:
            answer, lines = compare_refs(home, db, config, arguments, meter)
    sys.stdout.write(orjson.dumps(answer).decode() + "\n" if arguments.json else "\n".join(lines) + "\n")


def _readings(evaluation: Evaluation) -> list[str]:
    """A line per suite, the columns under one another."""
    width = max(len(name) for name in evaluation.suites)
    return [f"{name:<{width}}  {_reading(result)}" for name, result in evaluation.suites.items()]


def _decision(state: SequentialComparison) -> list[str]:
    """The verdict on drawn problems, and what it rests on."""
    verdict = state.decision or Verdict.INCONCLUSIVE
    changed = f"{state.gained} gained, {state.lost} lost on {state.items} fresh problems"
    more = "" if state.decision else f"; about {state.more_items()} more would settle it at this rate"
    grounds = f"by right answers and the likelihood of gold ones; false with a chance of at most {state.alpha:.2g}"
    return [f"{verdict.value}: {changed}{more}", grounds]


def _reading(result: SuiteResult) -> str:
    if result.exact is None or result.exact_ci is None:
        return f"{result.state.value}: {result.reason}"
    low, high = result.exact_ci
    nll = "-" if result.nll_per_token is None else f"{result.nll_per_token:.4f}"
    share = f"exact {100 * result.exact:5.1f} %  [{100 * low:5.1f}, {100 * high:5.1f}]"
    return f"{share}  nll/token {nll:>8}  n {result.n}  {result.state.value}"


def _floor(floor: NoiseFloor) -> str:
    moved = f"{100 * floor.moved:.1f} % of the items"
    apart = f"exact {100 * floor.exact:.1f} points, nll/token {floor.nll:.1e}"
    return f"noise      {floor.runs} readings of A lie apart by at most: {apart}, {moved}"


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
    if comparison.smallest_detectable is not None:
        seen = f"these items show differences of exact match from {100 * comparison.smallest_detectable:.1f} points"
        lines.append(f"{seen} (80 % power, alpha {comparison.alpha:.2g})")
    if comparison.items_needed is not None:
        lines.append(f"about {comparison.items_needed} items in all would settle it")
    width = max(map(len, comparison.by_suite), default=0)
    lines += [f"  {name:<{width}}  {one.verdict.value}: {one.reason}" for name, one in comparison.by_suite.items()]
    return lines


if __name__ == "__main__":
    main()
