"""Files in, jobs looked after, the running trainer told what to do."""

import time
from pathlib import Path
from typing import Annotated

import typer

from stokehold.cli.options import HERE, HomeOption, JsonOption, check_name
from stokehold.cli.output import complain, console, emit, shown, table, when
from stokehold.core.errors import InputError, StokeholdError, UsageError
from stokehold.core.records import Job, JobState, Priority, Rejection, TokenReport
from stokehold.core.shares import hundredths
from stokehold.data.formats import parse_line
from stokehold.data.lines import read_lines
from stokehold.data.profile import profile_of
from stokehold.store.db import control, events, job_rows, jobs
from stokehold.store.db.database import connect
from stokehold.store.home import Home
from stokehold.supervisor.processes import holder

LISTED = 50
"""Finished jobs that people are shown; scripts get all."""

JobArgument = Annotated[str, typer.Argument(help="A job's name, as `stoke queue` lists it.")]
FOLLOW_S = 0.5
SHOWN_REJECTIONS = 20


def add_to(app: typer.Typer) -> None:
    for command in (submit, validate, queue, retry, cancel, pause, resume, stop, skip):
        app.command()(command)
    app.command("events")(list_events)


def submit(
    files: Annotated[list[Path], typer.Argument(help="JSONL files.")],
    priority: Annotated[Priority, typer.Option(help="Files of a higher one are trained first.")] = Priority.NORMAL,
    again: Annotated[bool, typer.Option("--again", help="Train content that was trained before.")] = False,
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Hands files in, by the same door as the inbox; their content is safe when this returns.

    A file that is refused is told, and does not keep the others out.
    """
    home = Home.open(home_path)
    taken, refused = list[Job](), list[StokeholdError]()
    with jobs.client(home) as client:
        for path in files:
            try:
                taken.append(_submit(client, path, priority, again))
            except StokeholdError as error:
                refused.append(error)
    if taken:
        show(taken, as_json)
    for refusal in refused:
        complain(refusal)
    if refused:
        raise SystemExit(refused[0].exit_code)


def _submit(client: jobs.JobsClient, path: Path, priority: Priority, again: bool) -> Job:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError("not a regular file", str(path), "give the file itself")
    if path.exists() and not path.stat().st_size:
        raise InputError("the file is empty", str(path), "give a file with at least one line")
    check_name(path, path.absolute())
    return client.submit_file(path, priority, again)


def validate(
    file: Annotated[Path, typer.Argument(help="A JSONL file.")],
    home_path: HomeOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Checks every line of a file as ingest would; in a home also tells what its tokens look like.

    Exit 1 when no line is good.
    """
    if not file.is_file():
        raise InputError("no such file", shown(file), "check the path")
    home = _home_here(home_path)
    limit = home.config().data.max_line_bytes if home else 64 * 1024**2
    good, bad, notes = 0, list[Rejection](), dict[str, int]()
    for line in read_lines(file, limit):
        outcome = line if isinstance(line, Rejection) else parse_line(line, file.name)
        if isinstance(outcome, Rejection):
            bad.append(outcome)
        else:
            good += 1
            if outcome.note:
                notes[outcome.note] = notes.get(outcome.note, 0) + 1
    tokens, warning = _tokens(file, home) if home and good else (None, None)
    facts = {"file": str(file), "accepted": good, "rejected": bad, "notes": notes}
    if not emit({**facts, "tokens": tokens, "mask_warning": warning}, as_json):
        console.print(f"{shown(file.name)}: {good} good lines, {len(bad)} bad")
        for note, count in notes.items():
            console.print(f"  {note}: {count} rows")
        if tokens is not None:
            console.print(
                f"  tokens a row: p50 {tokens.p50}, p95 {tokens.p95}, p99 {tokens.p99}, longest {tokens.max}; "
                f"{hundredths(tokens.truncated_share)}% longer than max_length {tokens.max_length}, "
                f"{hundredths(tokens.masked_share)}% of tokens carry no loss"
            )
        if warning is not None:
            console.print(f"  {warning}")
        for rejection in bad[:SHOWN_REJECTIONS]:
            console.print(f"  line {rejection.line}: {rejection.reason} · {rejection.excerpt}")
    if not good:
        raise SystemExit(1)


def _home_here(home_path: Path) -> Home | None:
    """The home that was named, or the one that we happen to be in, if any."""
    if home_path == HERE and not Home(home_path).config_path.is_file():
        return None
    return Home.open(home_path)


def _tokens(file: Path, home: Home) -> tuple[TokenReport | None, str | None]:
    """The token report of the good lines and what is suspicious in their mask; nothing without a model."""
    # Deferred: no other command here needs a tokenizer, and each would start later for it.
    from stokehold.data.report import measure
    from stokehold.data.tokenizer import load_tokenizer

    config = home.config()
    if not config.model.base:
        return None, None
    tokenizer = load_tokenizer(home.root / config.model.base, profile_of(config.data))
    lines = (line for line in read_lines(file, config.data.max_line_bytes) if not isinstance(line, Rejection))
    parsed = (parse_line(line, file.name) for line in lines)
    samples = (outcome.sample for outcome in parsed if not isinstance(outcome, Rejection))
    try:
        return measure(samples, tokenizer, config.data.max_length)
    except InputError as error:
        return None, error.what


def queue(home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Jobs, newest last: those under way and the last that ended; with --json all."""
    with jobs.client(Home.open(home_path)) as client:
        found = client.list_jobs()
    if not as_json:
        over = [job for job in found if job.state not in job_rows.UNFINISHED]
        hidden = {job.id for job in over[:-LISTED]}
        found = [job for job in found if job.id not in hidden]
    show(found, as_json)


def retry(job: JobArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Runs a job again that failed, was cancelled or was stopped, from where it was."""
    with jobs.client(Home.open(home_path)) as client:
        show([client.retry(job)], as_json)


def cancel(job: JobArgument, home_path: HomeOption = HERE, as_json: JsonOption = False) -> None:
    """Takes a job out of the queue; a training one leaves at its next step."""
    with jobs.client(Home.open(home_path)) as client:
        show([client.cancel(job)], as_json)


def pause(
    home_path: HomeOption = HERE,
    free: Annotated[bool, typer.Option("--free", help="Give the device's memory back too.")] = False,
) -> None:
    """The trainer waits after its present step, with a checkpoint."""
    _ask(home_path, "pause", free)


def resume(home_path: HomeOption = HERE) -> None:
    """The trainer goes on."""
    _ask(home_path, "resume")


def stop(home_path: HomeOption = HERE) -> None:
    """Ends the present job after this step; `stoke retry` takes it up again."""
    _refuse_if_idle(home_path)
    _ask(home_path, "stop")


def skip(home_path: HomeOption = HERE) -> None:
    """Sends the present file to the end of the queue, with its place kept."""
    _refuse_if_idle(home_path)
    _ask(home_path, "skip")


def list_events(
    home_path: HomeOption = HERE,
    limit: Annotated[int, typer.Option(help="How many.", min=0)] = 30,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What happened, newest last."""
    if follow and as_json:
        raise UsageError("one JSON document has an end", "--follow --json", "use one of the two")
    db = connect(Home.open(home_path))
    newest = events.events(db, limit=1)  # looked at first: with no event to show, following begins after it
    found = events.events(db, limit=limit)
    if emit(found, as_json):
        return
    for event in found:
        _tell(event)
    last = max((event.id for event in (*newest, *found)), default=0)
    while follow:
        time.sleep(FOLLOW_S)
        for event in events.events(db, since=last):
            _tell(event)
            last = event.id


def _tell(event: events.Event) -> None:
    console.print(f"{when(event.created)}  {event.kind:<20} {event.text}")


def show(found: list[Job], as_json: bool) -> None:
    """Jobs as a list for scripts or a table for people."""
    if emit([_entry(job) for job in found], as_json):
        return
    rows = [(j.id, j.priority.value, j.state.value, _done(j), j.attempt, j.file) for j in found]
    table(("job", "priority", "state", "done", "attempt", "file"), rows, "no job yet")
    for job in found:
        if job.error:
            console.print(f"{job.id}: {job.error}")


def _done(job: Job) -> str | None:
    """Only training counts rows; the other kinds are done or not."""
    return f"{hundredths(job.progress, 0)}%" if job.kind == "train" or job.state is JobState.COMPLETED else None


def _entry(job: Job) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": job.id,
        "file": job.file,
        "kind": job.kind,
        "priority": job.priority.value,
        "state": job.state.value,
        "progress": job.progress,
        "attempt": job.attempt,
    }
    return {**entry, "error": job.error} if job.error else entry


def _refuse_if_idle(home_path: Path) -> None:
    """Nobody would obey, and whoever trains next would stop at once."""
    if holder(home := Home.open(home_path), ("supervisor", "trainer")) is None:
        raise StokeholdError("nothing is training here", str(home.root), "`stoke up` or `stoke train` starts it")


def _ask(home_path: Path, command: control.Command, free: bool = False) -> None:
    control.request(connect(Home.open(home_path)), command, free)
    console.print(f"{command}: asked; it takes effect within one step")
