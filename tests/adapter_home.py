"""A home that trains adapters and has ended one file: where a merge begins."""

from pathlib import Path
from typing import Any

import torch

from stokehold.core.records import Checkpoint
from stokehold.data.batches import Cursor
from stokehold.store.home import Home
from stokehold.store.models import checkpoints
from stokehold.training.state import Lineage, Progress, open_lineage, take_snapshot, write_snapshot

TABLES: dict[str, Any] = {"model": {"method": "lora"}, "adapter": {"rank": 4, "merge_files": 1}}


def trained(home: Home) -> Lineage:
    """A lineage at step 4 with adapters that change answers, on the disk as it is in memory."""
    lineage = open_lineage(home.root / home.config().model.base, home.config())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lineage.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    lineage.step = lineage.optimizer_since = 4
    lineage.runs["one"] = Progress("data", Cursor.start())
    lineage.saved = publish(home, lineage)
    lineage.parent = Path(lineage.saved.path).name
    return lineage


def publish(home: Home, lineage: Lineage) -> Checkpoint:
    """A checkpoint of the lineage where it stands."""
    snapshot = take_snapshot(lineage)
    return checkpoints.publish_checkpoint(
        home, lineage.step, lambda folder: write_snapshot(snapshot, folder), {"branch": 0}
    )


def newest(home: Home) -> Lineage:
    """As a process opens it that knows nothing but the disk."""
    found = checkpoints.latest(home).checkpoint
    assert found is not None
    return open_lineage(Path(found.path), home.config())
