"""Whether all is well: `doctor` for the accounting, `logs` for what was said."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from stokehold.cli.backup import tell_rebuilt
from stokehold.cli.options import HERE, HomeOption, JsonOption
from stokehold.cli.output import console, emit, table
from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.core.records import Dataset, JobState
from stokehold.store import datasets
from stokehold.store.db import job_rows, journal, skips
from stokehold.store.db.database import Database, connect
from stokehold.store.db.rebuild import rebuild as remake
from stokehold.store.home import Home
from stokehold.store.models import checkpoints

TAIL_BYTES = 1024**2


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)
    app.command("logs")(show_logs)


def doctor(
    home_path: HomeOption = HERE,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Show that account: what became of each file's rows.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Remake a lost or damaged database from the folders.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The newest checkpoint that verifies; exit 1 where the account of the accepted rows does not add up."""
    home = Home.open(home_path)
    if rebuild:
        tell_rebuilt(remake(home), as_json)
        return
    db = connect(home)
    found = checkpoints.latest(home, db)
    rows = account(home, db, Path(found.checkpoint.path) if found.checkpoint else None)
    balanced = all(row.balanced for row in rows)
    latest = found.checkpoint.path if found.checkpoint else None
    report = {"latest": latest, "passed_over": found.passed_over, "ledger": rows, "balanced": balanced}
    if not emit(report, as_json):
        console.print(f"latest checkpoint that verifies: {latest or 'none yet'}")
        for passed in found.passed_over:
            console.print(f"passed over: {passed.path}: {passed.reason}")
        if ledger:
            names = [field.name for field in fields(Account)]
            table(names, [[getattr(row, name) for name in names] for row in rows], "no file was accepted yet")
    if not balanced:
        wrong = ", ".join(row.file for row in rows if not row.balanced)
        raise StokeholdError("the ledger does not add up", wrong, "compare `stoke doctor --ledger` with `stoke events`")


@dataclass(frozen=True)
class Account:
    """One file's rows in the newest checkpoint's weights: accepted = held out + trained + unusable + skipped + pending.

    `trained` rows have had every epoch; `unusable` ones were refused when they were tokenised; `skipped` ones were in
    batches that spoilt a step; `rejected` lines were never accepted. `balanced` is false where the journal and the
    checkpoint do not tell the same.
    """

    file: str
    dataset: str
    accepted: int
    held_out: int
    trained: int
    unusable: int
    skipped: int
    pending: int
    rejected: int
    balanced: bool


def account(home: Home, db: Database, checkpoint: Path | None) -> list[Account]:
    """The ledger: what the newest checkpoint says of its runs, checked against the journal up to its step."""
    fresh: dict[str, Any] = {"step": 0, "runs": {}}
    state = json.loads((checkpoint / "trainer.json").read_text()) if checkpoint else fresh
    journalled = journal.examples_by_dataset(db, state["step"])
    over = {job.dataset for job in job_rows.list_jobs(db, [JobState.COMPLETED]) if job.kind == "train"}
    epochs = home.config().training.epochs
    found = []
    for dataset in datasets.list_datasets(home):
        runs = [run for run in state["runs"].values() if run["dataset"] == dataset.id]
        passed = skips.rows(db, [name for name, run in state["runs"].items() if run["dataset"] == dataset.id])
        found.append(_account(dataset, epochs, runs, journalled.get(dataset.id, 0), dataset.id in over, len(passed)))
    return found


def _account(
    dataset: Dataset, epochs: int, runs: list[dict[str, Any]], journalled: int, over: bool, skipped: int
) -> Account:
    unusable = max((len(run["unusable"]) for run in runs), default=0)
    usable = dataset.accepted - dataset.held_out - unusable
    consumed = [run["examples"] + run.get("skipped", 0) for run in runs]
    trained = max((_finished(examples, usable, epochs, over) for examples in consumed), default=0)
    trained = max(0, trained - skipped)
    return Account(
        file=dataset.file,
        dataset=dataset.id,
        accepted=dataset.accepted,
        held_out=dataset.held_out,
        trained=trained,
        unusable=unusable,
        skipped=skipped,
        pending=usable - trained - skipped,
        rejected=dataset.rejected,
        balanced=0 <= trained <= usable - skipped and journalled == sum(run["examples"] for run in runs),
    )


def _finished(examples: int, usable: int, epochs: int, over: bool) -> int:
    """Rows with no epoch to come; a finished job keeps its own number of epochs, whatever the settings say now."""
    if over and usable and examples and examples % usable == 0:
        return usable
    return min(usable, max(0, examples - (epochs - 1) * usable))  # fewer epochs may be wanted now than were begun


def show_logs(
    role: Annotated[
        str | None, typer.Argument(help="trainer, evaluator, web or supervisor; default: all there are.")
    ] = None,
    lines: Annotated[int, typer.Option(help="How many of each, the newest.", min=1)] = 40,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """What the processes of a home wrote last."""
    home = Home.open(home_path)
    there = {path.stem: path for path in sorted(home.logs.glob("*.log"))}
    if role is not None and role not in there:
        raise NotFoundError("no log of this role", role, f"there are: {', '.join(there) or 'none yet'}")
    last = {name: _tail(path, lines) for name, path in there.items() if role in (None, name)}
    if emit(last, as_json):
        return
    for name, said in last.items():
        if role is None:
            console.print(f"== {name}", style="bold")
        for line in said:
            console.print(line)


def _tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log, from no more than its last `TAIL_BYTES`."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()[-lines:]
