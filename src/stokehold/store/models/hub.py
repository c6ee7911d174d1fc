"""A model from a hub: the files that training reads, of one commit, into the hub client's own cache.

Configuration, tokenizer, safetensors and the model's card come; code and pickles never do. Only this module talks to a
hub, and only when a person names a hub id. Whole files in the cache are not fetched again, a transfer that breaks goes
on where it broke, and without a network the cache alone will do.
"""

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stokehold.core.errors import DiskFullError, InputError, IntegrityError, NotFoundError, StokeholdError
from stokehold.store.models.adapters import ADAPTER_CONFIG
from stokehold.store.models.bases import CARD, WANTED

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
DEFAULT_REVISION = "main"

BYTES_BAR = "huggingface_hub.snapshot_download"
"""Name of the client's bar that counts bytes as they reach the disk."""

Report = Callable[[int, int], None]
"""Told (bytes that have come, bytes that had to come)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model folder in the cache, and the commit it is of."""

    folder: Path
    revision: str


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a commit holds of what is wanted: sizes in bytes, and SHA-256 of the large files."""

    revision: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]


def fetch(model: str, revision: str, report: Report) -> Fetched:
    """The model at a branch, tag or commit of its hub.

    HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are read as the hub's own tools read them. Raises InputError for
    a model without safetensors or with a licence to accept, NotFoundError for a name or revision that is not there,
    DiskFullError before the transfer, IntegrityError for a file that is not what the hub says, StokeholdError without
    a network.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # takes half a second, and only this command needs it
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its warnings are either our errors or the progress we show
    with _in_our_words(model, revision):
        listing = _listing(model, revision)
    if listing is None:
        with _in_our_words(model, revision):
            wanted = [*WANTED, CARD]
            cached = Path(snapshot_download(model, revision=revision, allow_patterns=wanted, local_files_only=True))
        return Fetched(cached, cached.name)
    missing = _missing(model, listing)
    _check_room(model, missing)
    with _in_our_words(model, revision):
        names = list(listing.sizes)
        bars = _bars(lambda done: report(done, missing))
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=names, tqdm_class=bars))
    _check_content(folder, listing)
    return Fetched(folder, folder.name)


def how_to_bring(model: str) -> str:
    """What to do where the hub is out of reach."""
    folder = model.rpartition("/")[2]
    return (
        f"where there is a network, `hf download {model} --local-dir {folder}`, "
        f"bring that folder, then `stoke init DIR --model {folder}`"
    )


def _listing(model: str, revision: str) -> _Listing | None:
    """What is to be fetched, None where there is no network to ask."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    files = [file for file in info.siblings or () if _is_wanted(file.rfilename)]
    names = {file.rfilename for file in files}
    if not any(name.endswith(".safetensors") for name in names):
        adapters = any(file.rfilename == ADAPTER_CONFIG for file in info.siblings or ())
        what = "adapters, and no model" if adapters else "no safetensors weights in this repository"
        fix = "name the model they stand on" if adapters else "take one that has them; pickles are not read"
        raise InputError(what, model, fix)
    sizes = {file.rfilename: file.size or 0 for file in files}
    hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}
    return _Listing(str(info.sha), sizes, hashes)


def _is_wanted(name: str) -> bool:
    """Files in folders are other forms of the same model: originals, exports, examples."""
    return "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in (*WANTED, CARD))


def _missing(model: str, listing: _Listing) -> int:
    """Bytes that are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    there = {name: try_to_load_from_cache(model, name, revision=listing.revision) for name in listing.sizes}
    return sum(size for name, size in listing.sizes.items() if not isinstance(there[name], str))


def _check_room(model: str, wanted: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        what = f"{model} needs {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise DiskFullError(what, str(cache), "make room, or set HF_HOME to a folder on a larger disk")


def _check_content(folder: Path, listing: _Listing) -> None:
    """Compares the large files with the hub's hashes; a damaged one is dropped from the cache, to be fetched anew."""
    for name, wanted in listing.hashes.items():
        path = folder / name
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != wanted:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise IntegrityError("not what the hub says it is", f"{folder.name}/{name}", "run the command again")


def _bars(report: Callable[[int], None]) -> Any:
    """The client's progress bars as a class that draws nothing and tells `report` the bytes so far."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, name: str | None = None, **options: Any) -> None:
            self._counts = name == BYTES_BAR
            super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                with self.get_lock():
                    self.n += int(n or 0)
                    report(self.n)

    return Bar


@contextmanager
def _in_our_words(model: str, revision: str) -> Iterator[None]:
    """The client's errors as ours."""
    import httpx2
    from huggingface_hub import constants, errors, get_token

    at = f"{model} at {revision}"
    try:
        yield
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{model}"
        fix = "with the account of your HF_TOKEN" if get_token() else "and set HF_TOKEN to a token of that account"
        raise InputError("its owners ask you to accept their licence", at, f"accept it at {page}, {fix}") from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError("no such branch, tag or commit", at, "leave --revision out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; a private one needs HF_TOKEN set to a token that may read it"
        raise NotFoundError("no such model on the hub", model, fix) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise StokeholdError("the hub is out of reach", at, how_to_bring(model)) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise StokeholdError(f"the hub answers {code}", at, "check HF_TOKEN, or try again later") from error
