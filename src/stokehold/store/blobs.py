"""The content store: one file per BLAKE3, shared by every folder that needs those bytes.

Large files are shared with their folders by reflink or hard link, so a version costs no space and no time. Linked
copies share one fate, which is why blobs are read-only; small files are always copied, because libraries rewrite
configuration and tokenizer files in place.
"""

import errno
import fcntl
import os
from pathlib import Path

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.files import copy_file, hash_file, staging, sync

LINK_BYTES = 1024 * 1024
"""Files from this size on may be hard links."""

FICLONE = 0x40049409
"""Linux ioctl: the target shares the source's extents, copied on write."""

CANNOT_SHARE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EMLINK, errno.ENOSYS)


class BlobStore:
    """Blobs under `root`, each at `<first two hex>/<hash>`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, blake3_hex: str) -> Path:
        """Where this blob is or would be."""
        return self.root / blake3_hex[:2] / blake3_hex

    def add(self, path: Path) -> str:
        """Copies a file in and returns its hash; adding the same content again costs only the reading."""
        with staging(self.root / "blob") as stage:
            content = stage / "content"
            digest = hash_file(content) if _reflink(path, content) else copy_file(path, content)
            self._settle(stage / "content", digest)
        return digest

    def adopt(self, path: Path, blake3_hex: str, size: int) -> None:
        """Takes in a published file as its manifest states it: shared where that works, and not read where large.

        Raises `IntegrityError` for another size in bytes, or, of a small file, other content.
        """
        if self.path(blake3_hex).exists():
            return
        with staging(self.root / "blob") as stage:
            share(path, stage / "content")
            small = size < LINK_BYTES
            if path.stat().st_size != size or (small and hash_file(stage / "content") != blake3_hex):
                raise IntegrityError("changed since it was published", str(path), "use another checkpoint")
            self._settle(stage / "content", blake3_hex)

    def place(self, blake3_hex: str, target: Path) -> None:
        """Puts the blob's content at `target`, which must not exist."""
        source = self.path(blake3_hex)
        if not source.is_file():
            raise NotFoundError("blob is missing", str(source), "restore it from a backup")
        share(source, target)

    def verify(self, blake3_hex: str) -> str | None:
        """Why the blob is not what its name says, or None."""
        path = self.path(blake3_hex)
        if not path.is_file():
            return "missing"
        return None if hash_file(path) == blake3_hex else "content changed"

    def hashes(self) -> list[str]:
        """Every blob there is."""
        return sorted(path.name for path in self.root.glob("??/*") if not path.name.startswith("."))

    def _settle(self, stage: Path, blake3_hex: str) -> None:
        target = self.path(blake3_hex)
        if target.exists():
            return
        target.parent.mkdir(exist_ok=True)
        stage.chmod(0o444)
        sync(stage)
        stage.rename(target)
        sync(target.parent)
        sync(self.root)


def share(source: Path, target: Path) -> str:
    """Gives `target` the content of `source` at the least cost; returns "reflink", "link" or "copy"."""
    if _reflink(source, target):
        return "reflink"
    if source.stat().st_size >= LINK_BYTES:
        try:
            target.hardlink_to(source)
            return "link"
        except OSError as error:
            if error.errno not in CANNOT_SHARE:
                raise
    copy_file(source, target)
    return "copy"


def _reflink(source: Path, target: Path) -> bool:
    with source.open("rb") as giver, target.open("xb") as taker:
        try:
            fcntl.ioctl(taker.fileno(), FICLONE, giver.fileno())
            os.fsync(taker.fileno())
            return True
        except OSError as error:
            target.unlink()
            if error.errno not in CANNOT_SHARE:
                raise
            return False
