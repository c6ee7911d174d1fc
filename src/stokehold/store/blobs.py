"""The content store: one file per BLAKE3, shared by every folder that needs those bytes.

Large files are shared with their folders by reflink or hard link, so a version costs no space and no time. Linked
copies share one fate, which is why blobs are read-only; small files are always copied, because libraries rewrite
configuration and tokenizer files in place.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import HASH, REPEAT, hash_file, refusals, staging

LINK_BYTES = 1024 * 1024
"""Files from this size on may be hard links."""


class BlobStore:
    """Blobs under `root`, each at `<first two hex>/<hash>`."""

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root, self._disk = root, disk

    def path(self, blake3_hex: str) -> Path:
        """Where this blob is or would be; IntegrityError for what is no hash, which could name any file."""
        if not HASH.fullmatch(blake3_hex):
            raise IntegrityError(f"no hash of a blob: {blake3_hex!r}", str(self.root), "do not trust what names it")
        return self.root / blake3_hex[:2] / blake3_hex

    def add(self, path: Path) -> str:
        """Copies a file in and returns its hash; adding the same content again costs only the reading."""
        with self._staged(path) as content:
            shared = self._disk.reflink(path, content)
            digest = hash_file(content) if shared else self._disk.copy(path, content)
            self._settle(content, digest)
        return digest

    def adopt(self, path: Path, blake3_hex: str, size: int) -> None:
        """Takes in a published file as its manifest states it: shared where that works, and not read where large.

        Raises `IntegrityError` for another size in bytes, or, of a small file, other content.
        """
        if self.path(blake3_hex).exists():
            return
        if refused := not_a_file(path):
            raise IntegrityError(f"{refused}, not the file that was published", str(path), "use another checkpoint")
        with self._staged(path) as content:
            share(path, content, self._disk)
            small = size < LINK_BYTES
            if path.stat().st_size != size or (small and hash_file(content) != blake3_hex):
                raise IntegrityError("changed since it was published", str(path), "use another checkpoint")
            self._settle(content, blake3_hex)

    def take(self, path: Path, blake3_hex: str) -> None:
        """Moves a file of the same file system in as this blob, damaged or missing until now.

        The caller has verified it to be that.
        """
        self._settle(path, blake3_hex, replace=True)

    def mend(self, path: Path, blake3_hex: str) -> None:
        """Puts the content of `path` in the place of a damaged or missing blob; IntegrityError where it is not that.

        What shares the damaged one keeps it.
        """
        with self._staged(path) as content:
            share(path, content, self._disk)
            if hash_file(content) != blake3_hex:
                raise IntegrityError("changed since it was published", str(path), "restore it from a backup")
            self._settle(content, blake3_hex, replace=True)

    def place(self, blake3_hex: str, target: Path) -> None:
        """Puts the blob's content at `target`, which must not exist.

        NotFoundError where there is no such blob, IntegrityError where something else stands in its place.
        """
        source = self.path(blake3_hex)
        if not (refused := not_a_file(source, missing="missing")):
            with refusals(target, REPEAT):
                share(source, target, self._disk)
        elif refused == "missing":
            raise NotFoundError("blob is missing", str(source), "restore it from a backup")
        else:
            raise IntegrityError(f"blob is {refused}", str(source), "remove it, and restore it from a backup")

    def verify(self, blake3_hex: str) -> str | None:
        """Why the blob is not what its name says, or None."""
        path = self.path(blake3_hex)
        if refused := not_a_file(path, missing="missing"):
            return refused
        try:
            return None if hash_file(path) == blake3_hex else "content changed"
        except OSError as error:
            return f"unreadable: {error.strerror}"

    def hashes(self) -> list[str]:
        """Every blob there is."""
        return sorted(path.name for path in self.root.glob("??/*") if not path.name.startswith("."))

    @contextmanager
    def _staged(self, source: Path) -> Iterator[Path]:
        """Where a new blob is made; what the disk refuses on the way is an error that names its source."""
        with refusals(source, REPEAT), staging(self.root / "blob", self._disk) as stage:
            yield stage / "content"

    def _settle(self, stage: Path, blake3_hex: str, replace: bool = False) -> None:
        target = self.path(blake3_hex)
        if target.exists() and not replace:
            return
        target.parent.mkdir(exist_ok=True)
        self._disk.protect(stage, 0o444)
        self._disk.sync(stage)
        self._disk.rename(stage, target)
        self._disk.sync(target.parent)
        self._disk.sync(self.root)


def not_a_file(path: Path, missing: str | None = None) -> str | None:
    """What stands in the place of a file, or None where it is one, or `missing` where nothing is."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    if stat.S_ISREG(mode):
        return None
    return "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a special file"


def share(source: Path, target: Path, disk: Disk = DISK) -> str:
    """Gives `target` the content of `source` at the least cost; returns "reflink", "link" or "copy"."""
    if disk.reflink(source, target):
        return "reflink"
    if source.stat().st_size >= LINK_BYTES and disk.link(source, target):
        return "link"
    disk.copy(source, target)
    return "copy"
