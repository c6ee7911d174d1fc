"""The six readings that judge, over answers that are stored: no model is loaded, and old evaluations can be read anew.

`python -m stokehold.pipeline.readings --home H [REF] [--only NAME …]` prints them as one JSON document.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import NotFoundError, StokeholdError, UsageError
from stokehold.core.records import Evaluation, SuiteState
from stokehold.evaluation.promotion import Action
from stokehold.evaluation.readings.answers import Answer, answer_of, item_reading
from stokehold.evaluation.readings.calibration import calibration
from stokehold.evaluation.readings.comparison import comparison
from stokehold.evaluation.readings.correction import correction
from stokehold.evaluation.readings.curriculum import curriculum
from stokehold.evaluation.readings.mining import mining
from stokehold.evaluation.readings.regression import Rival, regression
from stokehold.improvement.curriculum import level_history, level_weights
from stokehold.pipeline.promote import rivals
from stokehold.pipeline.suites import open_suite, suites_of_family
from stokehold.store.db.database import Database, connect
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations, suites
from stokehold.store.judged.items import COMPLETIONS, read_items
from stokehold.store.models import checkpoints, references, versions
from stokehold.store.models.entrants import entrants

HISTORY = 20
"""Earlier evaluations that a reading looks back on."""

MOST_VERSIONS = 12
"""Newest versions among which the present weights are ranked; pairs, and with them time, grow with the square."""

NAMES = ("curriculum", "mining", "regression", "comparison", "calibration", "correction")


def readings(
    home: Home,
    db: Database,
    evaluation: Evaluation,
    rows: Sequence[Mapping[str, Any]] | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Every reading by name, or `only` those, each with its state: ok, no_data or broken, and then the reason.

    `rows` are the evaluation's answers while they are not stored yet. One reading that fails harms no other; what is
    given holds neither NaN nor infinity.
    """
    if unknown := [name for name in only if name not in NAMES]:
        raise UsageError("no such reading", ", ".join(unknown), f"there are: {', '.join(NAMES)}")
    case = _Case(home, db, evaluation, rows)
    found = {name: _attempt(READINGS[name], case) for name in NAMES if not only or name in only}
    facts = {name: getattr(evaluation, name) for name in ("ref", "step", "weights_hash", "fingerprint", "created")}
    return {"evaluation": evaluation.id, **facts, "readings": found}


def find(home: Home, db: Database, ref: str | None) -> Evaluation:
    """The newest evaluation of what `ref` names, the one of that id, or without any the newest of all."""
    if ref is None:
        newest = evaluations.list_evaluations(home, db, limit=1)
        if not newest:
            raise NotFoundError("nothing was evaluated yet", str(home.root), "`stoke evaluate` makes an evaluation")
        return newest[0]
    if "/" not in ref and evaluations.evaluation_folder(home, ref).is_dir():
        return evaluations.load(home, ref)
    folder = references.resolve(home, db, ref, read=False)
    found = evaluations.latest_for(home, db, checkpoints.weights_hash(read_manifest(folder)["files"]))
    if found is None:
        raise NotFoundError("it was not evaluated yet", ref, f"`stoke evaluate {ref}` does that")
    return found


def past_of(home: Home, db: Database, evaluation: Evaluation) -> list[Evaluation]:
    """The evaluations up to this one in the order of training, however late somebody asked for them: the base model
    first, then steps; what training was taken back from is left out."""
    last = evaluation.step or 0
    found = evaluations.list_evaluations(home, db, limit=HISTORY, until=last)
    kept = [e for e in found if e.id != evaluation.id and evaluations.decided(db, e.id)[1] != Action.ROLLBACK]
    return [*sorted(kept, key=lambda e: (e.step or 0, e.created)), evaluation]


def stored_rows(home: Home, evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per item, with the words where they are kept; NotFoundError where even the items are gone."""
    path = evaluations.evaluation_folder(home, evaluation.id) / COMPLETIONS
    if path.is_file():
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]
    kinds = _kinds(home, evaluation)
    return [{**row, **kinds.get((row["suite"], row["sample_id"]), {})} for row in read_items(home, evaluation.id)]


class _Case:
    """An evaluation and what it is read beside, loaded when first asked for."""

    def __init__(
        self, home: Home, db: Database, evaluation: Evaluation, rows: Sequence[Mapping[str, Any]] | None
    ) -> None:
        self.home, self.db, self.evaluation = home, db, evaluation
        self.config = home.config()
        self._known: dict[str, list[Answer]] = {}
        if rows is not None:
            self._known[evaluation.id] = _trusted(evaluation, rows)

    @property
    def margin(self) -> float:
        return self.config.evaluation.equivalence_margin

    def answers(self, evaluation: Evaluation) -> list[Answer]:
        """Of the suites that are ok; NotFoundError where there are none."""
        if evaluation.id not in self._known:
            self._known[evaluation.id] = _trusted(evaluation, stored_rows(self.home, evaluation))
        if not self._known[evaluation.id]:
            states = ", ".join(f"{name} is {result.state.value}" for name, result in evaluation.suites.items())
            raise NotFoundError("no suite could be read", states or "there is none", "see the reasons of its suites")
        return self._known[evaluation.id]

    def words(self) -> list[Answer]:
        """The present answers with what was said; NotFoundError where that was thinned."""
        found = self.answers(self.evaluation)
        if all(answer.completion is None for answer in found):
            raise NotFoundError("the words of the answers were thinned", self.evaluation.id, "evaluate it again")
        return found

    @cached_property
    def past(self) -> list[Evaluation]:
        """Earlier ones that were judged alike and on these suites, the newest of each weights, oldest first."""
        names = self.evaluation.suites.keys()
        alike = {
            one.weights_hash: one
            for one in past_of(self.home, self.db, self.evaluation)[:-1]
            if one.how == self.evaluation.how and names <= one.suites.keys()
        }
        alike.pop(self.evaluation.weights_hash, None)
        return list(alike.values())

    def read(self, wanted: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, list[Answer]]]:
        """Those of them whose items are still there."""
        for one in wanted:
            try:
                yield one, self.answers(one)
            except NotFoundError:
                continue  # a reading over several goes on with the rest, and says how many there were


def _curriculum(case: _Case) -> dict[str, Any]:
    answers, improvement = case.answers(case.evaluation), case.config.improvement
    family = improvement.family
    measured = {answer.level for answer in answers if answer.family == family and isinstance(answer.level, int)}
    levels = sorted({*improvement.levels} if improvement.enabled else measured)
    told_by = suites_of_family(case.home, case.evaluation, family)
    history = level_history([one.suites for one in (*case.past, case.evaluation)], levels, told_by)
    return curriculum(answers, level_weights(history), family)


def _mining(case: _Case) -> dict[str, Any]:
    return mining(case.words(), case.config.improvement.unsure_below)


def _regression(case: _Case) -> dict[str, Any]:
    now = case.answers(case.evaluation)
    parts: dict[str, Evaluation | None] = {"previous": case.past[-1] if case.past else None}
    made = next((v for v in versions.list_versions(case.home) if v.evaluation == case.evaluation.id), None)
    parts["champion"], parts["best"] = rivals(case.home, case.db, case.evaluation, made)
    wanted: dict[str, tuple[Evaluation, list[str]]] = {}
    for part, one in parts.items():
        if one and one.how == case.evaluation.how and one.weights_hash != case.evaluation.weights_hash:
            wanted.setdefault(one.id, (one, []))[1].append(part)
    read = case.read([one for one, _ in wanted.values()])
    found = [Rival(wanted[one.id][1], one.id, one.ref, answers) for one, answers in read]
    past = [answers for _, answers in case.read(case.past)]
    if not found and not past:
        raise NotFoundError("nothing earlier was judged alike", case.evaluation.id, "evaluate other weights too")
    return regression(now, found, past, case.margin)


def _comparison(case: _Case) -> dict[str, Any]:
    judged, _ = entrants(case.home, case.db, case.evaluation.how)
    numbered = sorted(name for name in judged if versions.NAME.fullmatch(name))
    judged = {name: one for name, one in judged.items() if name not in numbered[:-MOST_VERSIONS]}
    mine = case.evaluation
    here = next((name for name, one in judged.items() if one.weights_hash == mine.weights_hash), None)
    here = here or (f"step:{mine.step}" if mine.step is not None else mine.ref)
    judged[here] = mine
    found = {one.id: answers for one, answers in case.read(list(judged.values()))}
    entered = {name: [item_reading(a) for a in found[one.id]] for name, one in judged.items() if one.id in found}
    if len(entered) < 2:
        raise NotFoundError("no other weights were judged alike", mine.id, "evaluate a version, or `base`")
    return comparison(entered, here)


def _calibration(case: _Case) -> dict[str, Any]:
    return calibration(case.words())


def _correction(case: _Case) -> dict[str, Any]:
    return correction(case.words(), [(one.id, answers) for one, answers in case.read(case.past)], case.margin)


READINGS: Mapping[str, Callable[[_Case], dict[str, Any]]] = dict(
    zip(NAMES, (_curriculum, _mining, _regression, _comparison, _calibration, _correction), strict=True)
)


def _attempt(reading: Callable[[_Case], dict[str, Any]], case: _Case) -> dict[str, Any]:
    try:
        found = reading(case)
    except NotFoundError as missing:
        return {"state": "no_data", "reason": str(missing)}
    except Exception as error:  # noqa: BLE001 - told as its state, and the other readings go on
        return {"state": "broken", "reason": f"{type(error).__name__}: {error}"}
    if not _is_finite(found):
        return {"state": "broken", "reason": "a number is not finite"}
    return {"state": "ok", "reason": None, **found}


def _trusted(evaluation: Evaluation, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    sound = {name for name, result in evaluation.suites.items() if result.state is SuiteState.OK}
    return [answer_of(row) for row in rows if row["suite"] in sound]


def _kinds(home: Home, evaluation: Evaluation) -> dict[tuple[str, str], dict[str, Any]]:
    """Family and level of the items that are still in the suites of this evaluation."""
    there = [open_suite(home, name) for name in evaluation.suites if name in suites.suite_names(home)]
    return {
        (suite.name, sample.id): {key: sample.metadata.get(key) for key in ("family", "level")}
        for suite in there
        for sample in suite.samples
    }


def _is_finite(tree: Any) -> bool:
    if isinstance(tree, Mapping):
        return all(map(_is_finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(_is_finite, tree))
    return not isinstance(tree, float) or math.isfinite(tree)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.readings")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("ref", nargs="?")
    parser.add_argument("--only", action="append", default=[])
    arguments = parser.parse_args(given)
    try:
        home = Home.open(arguments.home)
        db = connect(home)
        found = readings(home, db, find(home, db, arguments.ref), only=arguments.only)
    except StokeholdError as error:
        sys.stderr.write(f"stoke: {error}\n")
        raise SystemExit(error.exit_code) from error
    sys.stdout.write(orjson.dumps(found).decode() + "\n")


if __name__ == "__main__":
    main()
