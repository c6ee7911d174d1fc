"""Accepted files as immutable folders `datasets/<id>/`: canonical rows, rejected lines, and their record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Dataset
from stokehold.store.files import publish, read_manifest
from stokehold.store.home import Home


def dataset_folder(home: Home, dataset_id: str) -> Path:
    """Where this dataset is or would be."""
    return home.datasets / dataset_id


def save_dataset(
    home: Home, dataset: Dataset, write: Callable[[Path], None], known: Mapping[str, str] | None = None
) -> Dataset:
    """Publishes what `write(folder)` makes. Content decides the id, so one that is there is returned as it is.

    `known` are hashes of files in it that need not be read again.
    """
    folder = dataset_folder(home, dataset.id)
    if not folder.exists():
        publish(folder, write, {"kind": "dataset", "dataset": asdict(dataset)}, known, disk=home.disk)
    return load_dataset(home, dataset.id)


def load_dataset(home: Home, dataset_id: str) -> Dataset:
    """The record of a published dataset, or `NotFoundError`."""
    folder = dataset_folder(home, dataset_id)
    if not folder.is_dir():
        raise NotFoundError("no such dataset", dataset_id, "`stoke queue` lists what was accepted")
    record: dict[str, Any] = read_manifest(folder)["dataset"]
    return Dataset(**record | {"notes": tuple(record["notes"])})


def list_datasets(home: Home) -> list[Dataset]:
    """Every published dataset, oldest first; folders that do not read are left to `doctor`."""
    found = []
    for folder in home.datasets.iterdir():
        try:
            found.append(load_dataset(home, folder.name))
        except (IntegrityError, NotFoundError):
            continue  # unfinished, or not ours
    return sorted(found, key=lambda dataset: (dataset.created, dataset.id))
