"""The demo's progress: a bar on a terminal, a plain line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stokehold.cli.output import errors, share
from stokehold.core.errors import StokeholdError
from stokehold.core.records import Job, JobState
from stokehold.store.db import control, jobs, journal
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import versions

POLL_S = 1.0
LINE_S = 15.0
QUIET_S = 4.0
"""Nothing to do for this long, twice the time a file needs to be noticed, means that the loop has ended."""

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)


def watch(home: Home, limit_s: float) -> None:
    """Shows the loop until every file is through, or training took `limit_s` seconds; raises when a job failed."""
    total = home.config().training.total_steps
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with jobs.client(home) as client, Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("step", total=total)
        line_at, idle_since = time.monotonic() + LINE_S, time.monotonic()
        stopping = False
        while True:
            unfinished = client.list_jobs(UNFINISHED)
            _refuse_failures(home, client.list_jobs([JobState.FAILED]))
            if unfinished or any(home.inbox.glob("*.jsonl")):
                idle_since = time.monotonic()
            if time.monotonic() - idle_since > QUIET_S:
                return
            text, step, spent = _now(home, client)
            progress.update(bar, description=text, completed=min(step, total))
            if not errors.is_terminal and time.monotonic() >= line_at:
                errors.print(f"step {step}/{total}, {text}")
                line_at += LINE_S
            if spent > limit_s and not stopping:
                stopping = True
                _end(client, unfinished)
            time.sleep(POLL_S)


def _now(home: Home, client: jobs.JobsClient) -> tuple[str, int, float]:
    """A line on how things stand, the step, and the seconds that steps have taken."""
    steps = journal.steps(client.db)
    last = evaluations.list_evaluations(home, client.db, limit=1)
    easy = last[0].suites.get("easy") if last else None
    exact = share(easy.by_level["1"]["exact"]) if easy and "1" in easy.by_level else "-"
    loss = f"{steps[-1].loss:.3f}" if steps else "-"
    champion = versions.alias(client.db) or "none yet"
    text = f"loss {loss}, level 1 exact {exact}, champion {champion}"
    return text, steps[-1].step if steps else 0, sum(step.seconds for step in steps)


def _end(client: jobs.JobsClient, unfinished: list[Job]) -> None:
    """The time is over: what waits is cancelled, what trains stops after its step."""
    for job in unfinished:
        if job.state is JobState.QUEUED:
            client.cancel(job.id)
    control.request(client.db, "stop")


def _refuse_failures(home: Home, failed: list[Job]) -> None:
    if failed:
        raise StokeholdError(f"a job failed: {failed[0].error}", failed[0].id, f"see {home.logs}")
