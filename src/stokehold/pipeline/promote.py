"""The verdict decides: an evaluated checkpoint becomes a version and the champion, or is held, or taken back.

What an evaluation led to is written down with it, so that a repeated run can see what is left to do: a promotion is
written down when it is done, a going back before it begins, for by then the grounds of it are being taken away.

Going back: training goes on from the champion's checkpoint. What was trained since is no longer in the weights, so its
jobs become `partial`: `stoke retry` trains such a file from the champion, and nothing does so by itself, for the same
rows on the same weights would end the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stokehold.core.config import Config, config_json
from stokehold.core.identity import content_hash
from stokehold.core.records import Comparison, Evaluation, Verdict, Version
from stokehold.evaluation.evolution import readings_of
from stokehold.evaluation.judge import overall_state
from stokehold.evaluation.noise import NoiseFloor
from stokehold.evaluation.promotion import Action, Decision, decide
from stokehold.evaluation.stream import counted, level
from stokehold.evaluation.verdict import ALPHA, ItemReading, compare
from stokehold.store.db import events, journal
from stokehold.store.db.database import Database
from stokehold.store.failpoints import reach
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.judged.items import read_items
from stokehold.store.models import checkpoints, going_back, versions

BEST = "best"
"""Alias of the version that no later one was BETTER than."""

TAKEN_BACK = "taken back to the champion"
"""Reason of jobs whose training is no longer in the weights."""

LOOKED_AT = 50
"""Newest evaluations that are read when earlier decisions matter."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was decided, on what grounds, and the version it made (None when held)."""

    decision: Decision
    against_champion: Comparison | None
    version: Version | None


def promote(home: Home, db: Database, config: Config, evaluation: Evaluation) -> Promotion:
    """Decides on an evaluated checkpoint and does what was decided, but for going back (see `go_back`).

    A kill between two writes is repaired by calling it again: a version that was made from this evaluation shows what
    was decided, and against whom.
    """
    made = next((v for v in versions.list_versions(home) if v.evaluation == evaluation.id), None)
    champion, best = rivals(home, db, evaluation, made)
    before = evaluations.decisions_before(db, evaluation)
    alpha = level(*counted((verdict, action) for _, verdict, action in before))
    previous = _previous(home, before, evaluation)
    against_champion, against_best, against_previous = (
        compare_evaluations(home, config, rival, evaluation, alpha) if rival else None
        for rival in (champion, None if best is champion else best, previous)
    )
    decision = decide(
        against_champion,
        against_best,
        overall_state(evaluation.suites.values()),
        worse_in_a_row(home, db, evaluation),
        config.evaluation.rollback_margin,
        against_previous,
    )
    decision = _as_far_as_possible(home, db, decision, evaluation, made)
    version = None
    if decision.action is Action.PROMOTE:
        version = made or _make_version(home, db, config, evaluation, decision)
        reach("promotion.version")
        versions.set_alias(home, db, versions.CHAMPION, version.name)
        reach("promotion.alias")
        if against_champion is None or against_champion.verdict is Verdict.BETTER:
            versions.set_alias(home, db, BEST, version.name)
    verdict = against_champion.verdict if against_champion else None
    evaluations.record_decision(db, evaluation.id, verdict, decision.action.value)
    text = f"step {evaluation.step}: {decision.action.value}, {decision.reason}"
    events.record(db, decision.action.value, text, evaluation=evaluation.id, version=version and version.name)
    return Promotion(decision, against_champion, version)


def rivals(
    home: Home, db: Database, evaluation: Evaluation, made: Version | None = None
) -> tuple[Evaluation | None, Evaluation | None]:
    """Evaluations of champion and best to compare `evaluation` with: of those before `made` took their place.

    The same object twice where one version is both.
    """
    champion, best = versions.alias(db), versions.alias(db, BEST)
    if made is not None and champion == made.name:
        champion = made.parent
    if made is not None and best == made.name:
        best = None  # it is the best, so no earlier one stood in its way
    first = _evaluation_of(home, db, champion, evaluation)
    return first, first if best == champion else _evaluation_of(home, db, best, evaluation)


def is_going_back(home: Home, db: Database, evaluation: Evaluation) -> bool:
    """Whether this evaluation took training back, and its checkpoint is still where training would go on from."""
    champion = _champion(home, db)
    if evaluations.decided(db, evaluation.id)[1] != Action.ROLLBACK or champion is None or champion.step is None:
        return False
    return (evaluation.step or 0) > champion.step and checkpoint_of(home, evaluation) is not None


def go_back(home: Home, db: Database, reason: str) -> None:
    """Makes the champion's checkpoint the newest of the lineage; the later ones go to the trash with the reason.

    Every part may be repeated, so a kill in between is repaired by calling it again.
    """
    champion = _champion(home, db)
    assert champion is not None
    assert champion.step is not None
    jobs = journal.jobs_after(db, champion.step)
    going_back.give_back_jobs(db, jobs, f"{TAKEN_BACK} {champion.name}")
    last = journal.last_step(db)
    if last is not None and last.step > champion.step:
        journal.new_branch(db, champion.step, reason)
    checkpoints.set_aside(home, champion.step, reason, journal.current_branch(db))


def finish_going_back(home: Home, db: Database) -> None:
    """Goes back where a kill, or a full disk, kept an earlier decision from being carried out."""
    for evaluation in evaluations.list_evaluations(home, db, limit=LOOKED_AT):
        if is_going_back(home, db, evaluation):
            go_back(home, db, f"step {evaluation.step} was worse than the champion")


def checkpoint_of(home: Home, evaluation: Evaluation) -> Path | None:
    """The checkpoint that was judged; None when it was pruned, or when its step was trained anew since."""
    if evaluation.step is None:
        return None
    folder = checkpoints.checkpoint_folder(home, evaluation.step)
    if not (folder / MANIFEST).is_file():
        return None
    return folder if checkpoints.load_checkpoint(folder).weights_hash == evaluation.weights_hash else None


def compare_evaluations(
    home: Home, config: Config, a: Evaluation, b: Evaluation, alpha: float = ALPHA, floor: NoiseFloor | None = None
) -> Comparison:
    """B against A on the items both were judged on; BROKEN when they were not judged alike."""
    if a.how != b.how:
        return Comparison(Verdict.BROKEN, 0, reason=f"not judged alike: {', '.join(different_conditions(a, b))}")
    margin = config.evaluation.equivalence_margin
    return compare(item_readings(home, a), item_readings(home, b), margin, alpha=alpha, floor=floor)


def item_readings(home: Home, evaluation: Evaluation) -> list[ItemReading]:
    """One reading per suite item of a stored evaluation."""
    return readings_of(read_items(home, evaluation.id))


def worse_in_a_row(home: Home, db: Database, before: Evaluation) -> int:
    """WORSE verdicts directly before this evaluation; going back begins the count anew.

    Evaluations that nothing was decided on, such as those a person asked for, do not count either way.
    """
    count = 0
    for evaluation in evaluations.list_evaluations(home, db, limit=LOOKED_AT):
        verdict, action = evaluations.decided(db, evaluation.id)
        if action is None or evaluation.id == before.id or evaluation.created > before.created:
            continue
        if verdict is not Verdict.WORSE or action == Action.ROLLBACK:
            break
        count += 1
    return count


def different_conditions(a: Evaluation, b: Evaluation) -> list[str]:
    """What was not the same when the two were judged, each as `name: a, b`."""
    if not a.conditions or not b.conditions:
        return ["the conditions of one were not kept"]
    names = sorted(a.conditions.keys() | b.conditions.keys())
    pairs = [(name, a.conditions.get(name, "-"), b.conditions.get(name, "-")) for name in names]
    return [f"{name}: {first}, {second}" for name, first, second in pairs if first != second]


def _champion(home: Home, db: Database) -> Version | None:
    name = versions.alias(db)
    return versions.find_version(home, name) if name else None


def _previous(home: Home, before: Sequence[tuple[str, Verdict | None, str]], like: Evaluation) -> Evaluation | None:
    """The evaluation decided last whose checkpoint is still part of the weights, where it was judged alike."""
    for name, _, action in before[:LOOKED_AT]:
        found = evaluations.find(home, name) if action != Action.ROLLBACK else None
        if found is not None and found.step is not None:
            return found if found.how == like.how else None
    return None


def _evaluation_of(home: Home, db: Database, name: str | None, like: Evaluation) -> Evaluation | None:
    """Of the evaluations of a version's weights the one most like `like`: by engine, then by suites, then the newest.

    They may have been judged again since the version was made, by other settings or on a suite that somebody named.
    """
    if name is None:
        return None
    found = evaluations.list_evaluations(home, db, versions.find_version(home, name).weights_hash)
    return max(found, key=lambda e: (e.how == like.how, len(e.suites.keys() & like.suites.keys())), default=None)


def _as_far_as_possible(
    home: Home, db: Database, decision: Decision, evaluation: Evaluation, made: Version | None
) -> Decision:
    """The decision, or what is done instead where its object is gone."""
    champion = _champion(home, db)
    if decision.action is Action.PROMOTE and made is None:
        if champion is not None and champion.weights_hash == evaluation.weights_hash:
            return Decision(Action.HOLD, f"{champion.name} has these very weights")
        if checkpoint_of(home, evaluation) is None:
            return Decision(Action.HOLD, f"its checkpoint is gone; {decision.reason}")
    if decision.action is Action.ROLLBACK:
        assert champion is not None
        if not _has_checkpoint(home, champion):
            return Decision(Action.ALERT, f"{champion.name} has no checkpoint to go back to; {decision.reason}")
    return decision


def _has_checkpoint(home: Home, version: Version) -> bool:
    """Whether the checkpoint of its step has its weights: after going back further, the step may be another's."""
    there = (c for c in checkpoints.list_checkpoints(home) if c.step == version.step)
    return any(checkpoint.weights_hash == version.weights_hash for checkpoint in there)


def _make_version(home: Home, db: Database, config: Config, evaluation: Evaluation, decision: Decision) -> Version:
    folder = checkpoint_of(home, evaluation)
    assert folder is not None
    return versions.create(
        home,
        db,
        folder,
        parent=versions.alias(db),
        datasets=read_manifest(folder).get("datasets", []),
        evaluation=evaluation.id,
        note=decision.reason,
        config_hash=content_hash(config_json(config)),
    )
