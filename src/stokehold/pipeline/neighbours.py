"""`stoke evaluations export`: a stored evaluation leaves the home in the log format of another evaluator.

`python -m stokehold.pipeline.neighbours --home H REF FOLDER --format lm-eval|inspect [--json]`. No model is loaded.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from stokehold.core.errors import NotFoundError
from stokehold.core.records import Evaluation
from stokehold.evaluation.logs.inspect import inspect_files
from stokehold.evaluation.logs.items import Logged, logged_items
from stokehold.evaluation.logs.lm_eval import lm_eval_files
from stokehold.pipeline.foreground import told
from stokehold.pipeline.readings import find, stored_rows
from stokehold.pipeline.reporting import samples_of
from stokehold.store.db.database import Database, connect
from stokehold.store.files import write_atomic
from stokehold.store.home import Home

FORMATS: Mapping[str, Callable[[Evaluation, Mapping[str, Sequence[Logged]]], Mapping[str, bytes]]] = {
    "lm-eval": lm_eval_files,
    "inspect": inspect_files,
}


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that were written, of which evaluation, and how many items they tell of."""

    evaluation: str
    format: str
    items: int
    files: tuple[str, ...]


def export(home: Home, db: Database, ref: str, folder: Path, form: str) -> Exported:
    """Writes the newest evaluation of `ref`, or the one of that id, into `folder`; files of that name are replaced.

    NotFoundError where it was not evaluated, where its words were thinned, and where a suite no longer has its items.
    """
    evaluation = find(home, db, ref)
    items = logged_items(stored_rows(home, evaluation), samples_of(home, evaluation.suites))
    if not items:
        raise NotFoundError("the evaluation has no items", evaluation.id, "evaluate it on a suite that has some")
    written = []
    for name, content in FORMATS[form](evaluation, items).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        written.append(str(path))
    return Exported(evaluation.id, form, sum(map(len, items.values())), tuple(written))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.neighbours")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("ref")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="lm-eval")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(given)
    with told("export", arguments.home):
        home = Home.open(arguments.home)
        done = export(home, connect(home), arguments.ref, arguments.folder, arguments.format)
    lines = [f"{done.items} items of evaluation {done.evaluation}, as {done.format} logs them:", *done.files]
    sys.stdout.write(orjson.dumps(done).decode() + "\n" if arguments.json else "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
