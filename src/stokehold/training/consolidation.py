"""Merge and continue: after some files the adapters are added to the weights, and fresh ones go on from there.

The merged weights become another base of the home, found by its hash; checkpoints from then on name it, and older ones
still name theirs. A base that nothing names any more goes to the trash at the next merge. Nothing about it is
remembered but in checkpoints: a kill before the next one has the same merge done again, and it gives the same bits.
"""

from collections.abc import Set
from pathlib import Path

from stokehold.store import trash
from stokehold.store.adapters import unused_bases
from stokehold.store.bases import import_base
from stokehold.store.files import staging
from stokehold.store.home import Home
from stokehold.training.cuda import random_kept
from stokehold.training.model import open_model
from stokehold.training.optimizer import build_optimizer
from stokehold.training.state import Lineage


def consolidate(lineage: Lineage, home: Home, completed: Set[str]) -> Path | None:
    """Merges where `adapter.merge_files` of the lineage's runs were completed since the last merge.

    `completed` are names of runs that ended whole, those of other lineages included. Returns the folder of the new
    base, None where no merge was due. Call it between files. Step, schedule, random state and cursors stay; only the
    moments of the adapters that are no more go with them. An exception leaves a lineage that must be opened again.
    """
    due = sorted((completed & lineage.runs.keys()) - set(lineage.merged))
    every = lineage.config.adapter.merge_files
    if lineage.adapters is None or not every or len(due) < every:
        return None
    for base in unused_bases(home):
        trash.discard(home, base, trash.PRUNED)
    with random_kept(lineage.device):
        base = _publish(lineage, home)
        lineage.adapters = None  # the merged model goes before the same weights come from disk
        del lineage.model, lineage.optimizer
        lineage.model, lineage.adapters = open_model(base, lineage.config, lineage.step)
    lineage.optimizer = build_optimizer(lineage.model, lineage.config.training)
    lineage.optimizer_since, lineage.merged = lineage.step, (*lineage.merged, *due)
    return base


def _publish(lineage: Lineage, home: Home) -> Path:
    assert lineage.adapters is not None
    merged = lineage.adapters.merge()
    with staging(home.base / "merged") as stage:
        folder = stage / f"step_{lineage.step}"
        merged.save_pretrained(folder)
        for name, content in lineage.tokenizer_files.items():
            (folder / name).write_bytes(content)
        return home.root / import_base(home, folder).path
