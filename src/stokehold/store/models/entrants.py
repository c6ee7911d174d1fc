"""Who is ranked: the base and every version, each with the evaluation of its weights that is most like the others'."""

from collections import defaultdict

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation
from stokehold.store.db.database import Database
from stokehold.store.files import read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, references, versions

BASE = "base"


def entrants(
    home: Home, db: Database, how: str | None = None, suite: str | None = None
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluations by name that were judged alike, and why the others are left out.

    Alike is `how`; without one it is what most of them agree in, and of those what was judged last. With `suite` only
    evaluations that have it count. Of several evaluations of one version the one of most items is taken.
    """
    found = {
        name: [one for one in judged if suite is None or suite in one.suites]
        for name, judged in _judged(home, db).items()
    }
    how = how or _most_common(found)
    chosen, left_out = {}, {}
    for name, judged in found.items():
        alike = [one for one in judged if one.how == how]
        if alike:
            chosen[name] = max(alike, key=lambda one: (sum(result.n for result in one.suites.values()), one.created))
        else:
            left_out[name] = "judged in other ways" if judged else f"not judged{f' on {suite}' if suite else ''}"
    return chosen, left_out


def _judged(home: Home, db: Database) -> dict[str, list[Evaluation]]:
    """Every evaluation of the base and of each version."""
    weights = {version.name: version.weights_hash for version in versions.list_versions(home)}
    try:
        manifest = read_manifest(references.resolve(home, db, BASE, read=False))
        weights = {BASE: checkpoints.weights_hash(manifest["files"]), **weights}
    except (NotFoundError, IntegrityError):
        pass  # a home without a base, or with a damaged one, has versions all the same
    of: dict[str, list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations.list_evaluations(home, db):
        of[evaluation.weights_hash].append(evaluation)
    return {name: of[weight] for name, weight in weights.items()}


def _most_common(found: dict[str, list[Evaluation]]) -> str | None:
    names: dict[str, set[str]] = defaultdict(set)
    newest: dict[str, str] = defaultdict(str)
    for name, judged in found.items():
        for one in judged:
            names[one.how].add(name)
            newest[one.how] = max(newest[one.how], one.created)
    return max(names, key=lambda how: (len(names[how]), newest[how]), default=None)
