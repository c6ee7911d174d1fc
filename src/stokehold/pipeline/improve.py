"""What an evaluation showed becomes the next file, dropped into the inbox like anybody's."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from stokehold.core.records import Evaluation, JobState, Sample, Score
from stokehold.evaluation.promotion import Action
from stokehold.improvement.curriculum import level_history
from stokehold.improvement.generation import next_file
from stokehold.improvement.governor import refusal
from stokehold.pipeline.suites import open_suites
from stokehold.store import evaluations
from stokehold.store.database import Database
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.store.jobs import JobsClient
from stokehold.tasks.registry import row

PREFIX = "generated-"
HISTORY = 20
"""Evaluations that the curriculum looks back on; it needs two."""


@dataclass(frozen=True, slots=True)
class Written:
    """The file written into the inbox, or None with the reason."""

    file: str | None
    reason: str


def write_next_file(home: Home, jobs: JobsClient, evaluation_id: str, seed: str) -> Written:
    """Writes one generated file unless the governor refuses; `seed` names it, so a repeated call writes the same."""
    config = home.config().improvement
    target = home.inbox / f"{PREFIX}{seed.split('-', 1)[1]}.jsonl"
    everything = jobs.list_jobs()
    made = {job.file for job in everything if job.file and job.file.startswith(PREFIX)} | waiting_files(home)
    queued = [job for job in everything if job.kind in ("ingest", "train") and job.state is JobState.QUEUED]
    reason = refusal(config, len(queued) + len(waiting_files(home)), len(made), shutil.disk_usage(home.root).free)
    if reason:
        return Written(None, reason)
    if target.name in made:
        return Written(None, f"{target.name} is written already")
    evaluation = evaluations.load(home, evaluation_id)
    history = level_history([one.suites for one in past_of(home, jobs.db, evaluation)], config.levels)
    samples = next_file(judged_items(home, evaluation), history, config, int(evaluation_id[:8], 16))
    write_rows(target, samples)
    return Written(target.name, f"{len(samples)} rows in {target.name}")


def past_of(home: Home, db: Database, evaluation: Evaluation) -> list[Evaluation]:
    """The evaluations up to this one in the order of training, however late somebody asked for them: the base model
    first, then steps; what training was taken back from is left out."""
    last = evaluation.step or 0
    found = [e for e in evaluations.list_evaluations(home, db, limit=HISTORY) if (e.step or 0) <= last]
    kept = [e for e in found if e.id != evaluation.id and evaluations.decided(db, e.id)[1] != Action.ROLLBACK]
    return [*sorted(kept, key=lambda e: (e.step or 0, e.created)), evaluation]


def judged_items(home: Home, evaluation: Evaluation) -> list[tuple[Sample, Score]]:
    """The suite items of an evaluation with their scores; items that left their suite since are passed over."""
    samples = {(s.name, sample.id): sample for s in open_suites(home, list(evaluation.suites)) for sample in s.samples}
    path = evaluations.evaluation_folder(home, evaluation.id) / "completions.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    found = ((samples.get((r["suite"], r["sample_id"])), Score(r["score"], r["parts"], r["reason"])) for r in rows)
    return [(sample, score) for sample, score in found if sample is not None]


def write_rows(target: Path, samples: Sequence[Sample]) -> None:
    """Writes samples as JSONL, whole or not at all."""
    write_atomic(target, b"".join(orjson.dumps(row(sample)) + b"\n" for sample in samples))


def waiting_files(home: Home) -> set[str]:
    """Generated files that lie in an inbox and were not taken in yet."""
    places = (home.inbox, *home.inboxes.values())
    return {path.name for place in places for path in place.glob(f"{PREFIX}*.jsonl")}
