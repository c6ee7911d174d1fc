"""The verdict decides: an evaluated checkpoint becomes a version and the champion, or is held, or taken back.

What an evaluation led to is written down with it, so that a repeated run can see that nothing is left to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from stokehold.core.config import Config, config_json
from stokehold.core.errors import NotFoundError
from stokehold.core.identity import content_hash
from stokehold.core.records import Comparison, Evaluation, Verdict, Version
from stokehold.evaluation.judge import overall_state
from stokehold.evaluation.promotion import Action, Decision, decide
from stokehold.evaluation.verdict import ItemReading, compare
from stokehold.store import checkpoints, evaluations, events, journal, versions
from stokehold.store.database import Database
from stokehold.store.files import read_manifest
from stokehold.store.home import Home

BEST = "best"
"""Alias of the version that no later one was BETTER than."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was decided, on what grounds, and the version it made (None when held)."""

    decision: Decision
    against_champion: Comparison | None
    version: Version | None


def promote(home: Home, db: Database, config: Config, evaluation: Evaluation) -> Promotion:
    """Decides on an evaluated checkpoint and does what was decided, but for going back (see `go_back`).

    A kill between making the version and noting the decision is repaired here: the version is found again.
    """
    champion = champion_evaluation(home, db, versions.CHAMPION)
    best = champion_evaluation(home, db, BEST)
    against_champion = compare_evaluations(home, config, champion, evaluation) if champion else None
    same = champion is not None and best is not None and champion.id == best.id
    against_best = compare_evaluations(home, config, best, evaluation) if best and not same else None
    decision = decide(
        against_champion,
        against_best,
        overall_state(evaluation.suites.values()),
        worse_in_a_row(home, db, evaluation),
        config.evaluation.rollback_margin,
    )
    version = _make_version(home, db, config, evaluation, decision, against_champion)
    verdict = against_champion.verdict if against_champion else None
    evaluations.record_decision(db, evaluation.id, verdict, decision.action.value)
    text = f"step {evaluation.step}: {decision.action.value}, {decision.reason}"
    events.record(db, decision.action.value, text, evaluation=evaluation.id, version=version and version.name)
    return Promotion(decision, against_champion, version)


def go_back(home: Home, db: Database, reason: str) -> Path:
    """Makes the champion's checkpoint the newest of the lineage; the later ones go to the trash with the reason."""
    champion = versions.find_version(home, versions.alias(db) or "none")
    if champion.step is None:
        raise NotFoundError("the champion has no checkpoint to train on from", champion.name, "promote a checkpoint")
    folder = checkpoints.find_step(home, champion.step)
    branch = journal.new_branch(db, champion.step, reason)
    checkpoints.set_aside(home, champion.step, reason, branch)
    return folder


def compare_evaluations(home: Home, config: Config, a: Evaluation, b: Evaluation) -> Comparison:
    """B against A on the items both were judged on; BROKEN when they were not judged alike."""
    if not _same_engine(a, b):
        return Comparison(Verdict.BROKEN, 0, reason="the two were judged by different engines or templates")
    return compare(item_readings(home, a), item_readings(home, b), config.evaluation.equivalence_margin)


def item_readings(home: Home, evaluation: Evaluation) -> list[ItemReading]:
    """One reading per suite item of a stored evaluation."""
    path = evaluations.evaluation_folder(home, evaluation.id) / "completions.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [
        ItemReading(
            sample_id=f"{row['suite']}/{row['sample_id']}",
            exact=None if row["score"] is None else row["score"] == 1.0,
            gold_nll=row["gold_nll"],
            gold_tokens=row["gold_tokens"],
        )
        for row in rows
    ]


def champion_evaluation(home: Home, db: Database, alias: str) -> Evaluation | None:
    """The evaluation of the version that an alias names, None where there is none."""
    name = versions.alias(db, alias)
    evaluation = versions.find_version(home, name).evaluation if name else None
    return evaluations.load(home, evaluation) if evaluation else None


def worse_in_a_row(home: Home, db: Database, before: Evaluation) -> int:
    """WORSE verdicts directly before this evaluation."""
    earlier: Sequence[Evaluation] = [e for e in evaluations.list_evaluations(home, db) if e.created < before.created]
    count = 0
    for evaluation in earlier:
        if evaluations.decided(db, evaluation.id)[0] is not Verdict.WORSE:
            break
        count += 1
    return count


def _same_engine(a: Evaluation, b: Evaluation) -> bool:
    """Suites may have grown between the two; template, engine and type must be the same."""
    return a.fingerprint.split("-")[0] == b.fingerprint.split("-")[0]


def _make_version(
    home: Home,
    db: Database,
    config: Config,
    evaluation: Evaluation,
    decision: Decision,
    against_champion: Comparison | None,
) -> Version | None:
    if decision.action is not Action.PROMOTE or evaluation.step is None:
        return None
    folder = checkpoints.find_step(home, evaluation.step)
    made = next((v for v in versions.list_versions(home) if v.evaluation == evaluation.id), None)
    version = made or versions.create(
        home,
        db,
        folder,
        parent=versions.alias(db),
        datasets=read_manifest(folder).get("datasets", []),
        evaluation=evaluation.id,
        note=decision.reason,
        config_hash=content_hash(config_json(config)),
    )
    versions.set_alias(home, db, versions.CHAMPION, version.name)
    if against_champion is None or against_champion.verdict is Verdict.BETTER:
        versions.set_alias(home, db, BEST, version.name)
    return version
