"""What an evaluation showed becomes the next file, dropped into the inbox like anybody's."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from stokehold.core.records import Evaluation, JobState, Sample
from stokehold.data.formats import from_row
from stokehold.evaluation.readings.answers import Answer, answer_of, confidence
from stokehold.evaluation.readings.errors import patterns
from stokehold.improvement.corrections import MADE_AS, Mistake
from stokehold.improvement.curriculum import level_history
from stokehold.improvement.generation import next_file
from stokehold.improvement.governor import refusal
from stokehold.improvement.mining import Judged
from stokehold.pipeline.readings import past_of, stored_rows
from stokehold.pipeline.sampling import SAMPLE_ROWS
from stokehold.pipeline.suites import judged_suites, open_suites, suites_of_family
from stokehold.store.datasets import dataset_folder, list_datasets
from stokehold.store.db.database import Database
from stokehold.store.db.jobs import JobsClient
from stokehold.store.db.journal import latest_samples
from stokehold.store.files import write_atomic
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.tasks.registry import identity_of, row

PREFIX = "generated-"

SAMPLES_READ = 500
"""Newest in-training samples among which the model's own mistakes are looked for."""

DATASETS_READ = 5
"""Newest datasets whose rows those samples may be about."""


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
    told_by = suites_of_family(home, evaluation, config.family)
    history = level_history([one.suites for one in past_of(home, jobs.db, evaluation)], config.levels, told_by)
    items = judged_items(home, evaluation)
    judged = [Judged(sample, answer.exact, confidence(answer)) for sample, answer in items]
    seen = list(patterns(answer for _, answer in items).items()) if config.correction_share else []
    mistakes = own_mistakes(home, jobs.db) if seen else []
    samples = next_file(judged, history, config, int(evaluation_id[:8], 16), seen, mistakes)
    write_rows(target, samples)
    return Written(target.name, f"{len(samples)} rows in {target.name}")


def judged_items(home: Home, evaluation: Evaluation) -> list[tuple[Sample, Answer]]:
    """The suite items of an evaluation with what was answered; items that left their suite since are passed over."""
    samples = {(s.name, sample.id): sample for s in judged_suites(home, evaluation) for sample in s.samples}
    found = ((samples.get((row["suite"], row["sample_id"])), row) for row in stored_rows(home, evaluation))
    return [(sample, answer_of(row)) for sample, row in found if sample is not None]


def own_mistakes(home: Home, db: Database) -> list[Mistake]:
    """What the model lately answered wrongly of the problems that it was trained on, newest first.

    Their rows are looked for in the newest datasets. Corrections themselves, and what a suite holds out by now, are
    left out.
    """
    answers = {one.prompt: one.answer for one in reversed(latest_samples(db, SAMPLES_READ)) if not one.match}
    if not answers:
        return []
    held = {identity_of(sample) for suite in open_suites(home) for sample in suite.samples}
    found: dict[str, Mistake] = {}
    for dataset in list_datasets(home)[-DATASETS_READ:]:
        with (dataset_folder(home, dataset.id) / "rows.jsonl").open("rb") as file:
            for sample in (from_row(orjson.loads(line)) for line in islice(file, SAMPLE_ROWS)):
                prompt = "\n".join(message.content for message in sample.question)
                asked = prompt in answers and MADE_AS not in sample.metadata
                if asked and identity_of(sample) not in held:
                    found[prompt] = Mistake(sample, answers[prompt])
    return list(found.values())


def write_rows(target: Path, samples: Sequence[Sample]) -> None:
    """Writes samples as JSONL, whole or not at all."""
    write_atomic(target, b"".join(orjson.dumps(row(sample)) + b"\n" for sample in samples))


def waiting_files(home: Home) -> set[str]:
    """Generated files that lie in an inbox and were not taken in yet."""
    places = (home.inbox, *home.inboxes.values())
    return {path.name for place in places for path in place.glob(f"{PREFIX}*.jsonl")}
