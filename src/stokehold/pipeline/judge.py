"""`stoke evaluate` and `stoke compare`: judge weights of a home outside the trainer.

`python -m stokehold.pipeline.judge --home H evaluate REF [--suite NAME …] [--json]`
`python -m stokehold.pipeline.judge --home H compare A B [--json]`
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.core.records import Comparison, Evaluation, SuiteResult, Verdict
from stokehold.data.tokenizer import load_tokenizer
from stokehold.evaluation.verdict import items_needed
from stokehold.inference.engine import Engine
from stokehold.pipeline.evaluate import evaluate_weights
from stokehold.pipeline.promote import compare_evaluations
from stokehold.pipeline.suites import open_suites
from stokehold.pipeline.worker import use_threads
from stokehold.store import checkpoints, versions
from stokehold.store.database import Database, connect
from stokehold.store.files import MANIFEST, hash_file, read_manifest
from stokehold.store.home import Home
from stokehold.training.model import load_model


def evaluate_ref(home: Home, db: Database, config: Config, ref: str, names: Sequence[str] = ()) -> Evaluation:
    """The evaluation of what `ref` names on these suites, or on the configured ones."""
    suites = open_suites(home, names or config.evaluation.suites)
    if not suites:
        raise NotFoundError("this home has no suite", str(home.suites), "put a JSONL file there, or train a file first")
    folder = versions.resolve(home, db, ref)
    model = load_model(folder, config.model.dtype, config.devices.trainer)
    engine = Engine(model, load_tokenizer(folder))
    weights, step = weights_of(folder)
    return evaluate_weights(home, db, config, engine, ref, weights, step, suites)


def weights_of(folder: Path) -> tuple[str, int | None]:
    """Hash of the weights in a folder, by its manifest where it has one, and the step they were taken at."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        return checkpoints.weights_hash(manifest["files"]), manifest.get("step")
    weights = sorted(folder.glob("*.safetensors"))
    return checkpoints.weights_hash([{"path": path.name, "blake3": hash_file(path)} for path in weights]), None


def evaluation_answer(evaluation: Evaluation) -> dict[str, Any]:
    """What scripts rely on."""
    return {
        "ref": evaluation.ref,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
    arguments = parser.parse_args()
    try:
        home = Home.open(arguments.home)
        config = home.config()
        use_threads(config)
        db = connect(home)
        if arguments.command == "evaluate":
            evaluation = evaluate_ref(home, db, config, arguments.ref, arguments.suite)
            answer, lines = evaluation_answer(evaluation), [_line(r) for r in evaluation.suites.values()]
        else:
            pair = [evaluate_ref(home, db, config, ref) for ref in (arguments.a, arguments.b)]
            comparison = compare_evaluations(home, config, *pair)
            answer = comparison_answer(comparison, config.evaluation.equivalence_margin)
            lines = [f"{comparison.verdict.value}: {comparison.reason}"]
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error
    sys.stdout.write(orjson.dumps(answer).decode() + "\n" if arguments.json else "\n".join(lines) + "\n")


def _line(result: SuiteResult) -> str:
    if result.exact is None:
        return f"{result.suite}: {result.state.value}, {result.reason}"
    low, high = result.exact_ci or (float("nan"), float("nan"))
    share = f"{100 * result.exact:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    nll = "-" if result.nll_per_token is None else f"{result.nll_per_token:.4f}"
    return f"{result.suite}: exact {share}, nll/token {nll}, n {result.n}, {result.state.value}"


if __name__ == "__main__":
    main()
