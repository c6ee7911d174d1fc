"""Merge and continue: after some files the adapters are added to the weights, and fresh ones go on from there.

The merged weights become another base of the home, found by its hash, and a version of their own; checkpoints from
then on name the base, and older ones still name theirs. Before anything is changed a snapshot of the home is taken. The
merged weights are asked what the adapters were asked, in memory and again as they lie on the disk; where they answer
otherwise the merge is taken back, and the adapters go on as they were.

Nothing about a merge is remembered but in checkpoints: a kill before the next one has the same merge done again, and it
gives the same bits. A base that nothing names any more goes to the trash at the next merge.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stokehold.core.config import config_json
from stokehold.core.errors import IntegrityError
from stokehold.core.identity import content_hash
from stokehold.store.backup.backups import snapshot
from stokehold.store.db.database import Database
from stokehold.store.failpoints import reach
from stokehold.store.files import read_manifest, refusals, staging
from stokehold.store.home import Home
from stokehold.store.housekeeping import trash
from stokehold.store.models import versions
from stokehold.store.models.adapters import unused_bases
from stokehold.store.models.bases import import_base
from stokehold.store.models.checkpoints import weights_hash
from stokehold.store.models.weights import GOLDEN
from stokehold.training.cuda import random_kept
from stokehold.training.golden import Golden, agreement, golden
from stokehold.training.model import open_model
from stokehold.training.optimizer import build_optimizer
from stokehold.training.shards import write_weights
from stokehold.training.state import Lineage

MERGE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of a log-probability, in nats, between adapters beside weights and the sum of both, by the type of
the weights: the sum is rounded to it."""


class MergeError(IntegrityError):
    """The merged weights do not answer as the adapters did. Nothing on the disk stands on them."""


def consolidate(lineage: Lineage, home: Home, db: Database, completed: Set[str]) -> Path | None:
    """Merges where `adapter.merge_files` of the lineage's runs were completed since the last merge.

    `completed` are names of runs that ended whole, those of other lineages included. Returns the folder of the new
    base, None where no merge was due. Call it between files. Step, schedule, random state and cursors stay; only the
    moments of the adapters that are no more go with them. An exception leaves a lineage that must be opened again, from
    the checkpoint it was saved to; MergeError says that merging would have changed what the model answers.
    """
    due = sorted((completed & lineage.runs.keys()) - set(lineage.merged))
    every = lineage.config.adapter.merge_files
    if lineage.adapters is None or not every or len(due) < every:
        return None
    for base in unused_bases(home):
        trash.discard(home, base, trash.PRUNED)
    snapshot(home, db, "before the adapters are merged")
    facts = _facts(lineage, due)
    with random_kept(lineage.device):
        before = golden(lineage.model)
        base = _publish(lineage, home, before, facts)
        lineage.adapters = None  # the merged model goes before the same weights come from disk
        del lineage.model, lineage.optimizer
        lineage.model, lineage.adapters = open_model(base, lineage.config, lineage.step)
    try:
        check_merge(before, lineage.model)
    except MergeError:
        if base in unused_bases(home):  # the same weights may have been there before
            trash.discard(home, base, "the merged weights did not answer as the adapters did")
        raise
    reach("consolidation.opened")
    lineage.optimizer = build_optimizer(lineage.model, lineage.config.training)
    lineage.optimizer_since, lineage.merged = lineage.step, (*lineage.merged, *due)
    _version(lineage, home, db, base, facts)
    reach("consolidation.versioned")
    return base


def check_merge(before: Golden, model: PreTrainedModel) -> Golden:
    """What `model` answers now; MergeError where that is not what was answered before, within `MERGE_TOLERANCE`."""
    now = golden(model, before)
    worst, most = agreement(before, now).worst, MERGE_TOLERANCE[before.facts["dtype"]]
    if not worst <= most:
        what = f"merging would change a log-probability by {worst:.3g} nats, and at most {most:g} is rounding"
        raise MergeError(what, "the adapters", "training goes on with them; set adapter.merge_files = 0 to keep them")
    return now


def _facts(lineage: Lineage, due: Sequence[str]) -> dict[str, Any]:
    """Where the merged weights come from."""
    assert lineage.adapters is not None
    datasets = sorted({progress.dataset for progress in lineage.runs.values()})
    parent = f"base/{lineage.adapters.base.name}"
    return {"step": lineage.step, "parent": parent, "datasets": datasets, "merged": [*lineage.merged, *due]}


def _publish(lineage: Lineage, home: Home, before: Golden, facts: Mapping[str, Any]) -> Path:
    assert lineage.adapters is not None
    merged = lineage.adapters.merge()
    answers = check_merge(before, merged)
    reach("consolidation.merged")
    with refusals(home.base), staging(home.base / "merged", home.disk) as stage:
        folder = stage / f"step_{lineage.step}"
        folder.mkdir()
        write_weights(merged, merged.state_dict(), folder, lineage.config.store.shard_bytes)
        for name, content in lineage.tokenizer_files.items():
            (folder / name).write_bytes(content)
        (folder / GOLDEN).write_bytes(answers.to_bytes())
        base = home.root / import_base(home, folder, lineage=facts).path
    reach("consolidation.published")
    return base


def _version(lineage: Lineage, home: Home, db: Database, base: Path, facts: Mapping[str, Any]) -> None:
    """A version of the merged weights, once: a merge that is repeated after a kill finds the one it made."""
    weights = weights_hash(read_manifest(base)["files"])
    if any(version.weights_hash == weights for version in versions.list_versions(home)):
        return
    versions.create(
        home,
        db,
        base,
        parent=versions.alias(db),
        datasets=facts["datasets"],
        note=f"the adapters of {len(facts['merged'])} files merged into {facts['parent']}",
        config_hash=content_hash(config_json(lineage.config)),
    )
