"""The content store: one file per BLAKE3, shared by every folder that needs those bytes.

Large files are shared with their folders by reflink or hard link, so a version costs no space and no time. Linked
copies share one fate, which is why blobs are read-only; small files are always copied, because libraries rewrite
configuration and tokenizer files in place.
"""

from pathlib import Path

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import hash_file, staging

LINK_BYTES = 1024 * 1024
"""Files from this size on may be hard links."""


class BlobStore:
    """Blobs under `root`, each at `<first two hex>/<hash>`."""

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root, self._disk = root, disk

    def path(self, blake3_hex: str) -> Path:
        """Where this blob is or would be."""
        return self.root / blake3_hex[:2] / blake3_hex

    def add(self, path: Path) -> str:
        """Copies a file in and returns its hash; adding the same content again costs only the reading."""
        with staging(self.root / "blob", self._disk) as stage:
            content = stage / "content"
            shared = self._disk.reflink(path, content)
            digest = hash_file(content) if shared else self._disk.copy(path, content)
            self._settle(stage / "content", digest)
        return digest

    def adopt(self, path: Path, blake3_hex: str, size: int) -> None:
        """Takes in a published file as its manifest states it: shared where that works, and not read where large.

        Raises `IntegrityError` for another size in bytes, or, of a small file, other content.
        """
        if self.path(blake3_hex).exists():
            return
        with staging(self.root / "blob", self._disk) as stage:
            share(path, stage / "content", self._disk)
            small = size < LINK_BYTES
            if path.stat().st_size != size or (small and hash_file(stage / "content") != blake3_hex):
                raise IntegrityError("changed since it was published", str(path), "use another checkpoint")
            self._settle(stage / "content", blake3_hex)

    def place(self, blake3_hex: str, target: Path) -> None:
        """Puts the blob's content at `target`, which must not exist."""
        source = self.path(blake3_hex)
        if not source.is_file():
            raise NotFoundError("blob is missing", str(source), "restore it from a backup")
        share(source, target, self._disk)

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
        self._disk.protect(stage, 0o444)
        self._disk.sync(stage)
        self._disk.rename(stage, target)
        self._disk.sync(target.parent)
        self._disk.sync(self.root)


def share(source: Path, target: Path, disk: Disk = DISK) -> str:
    """Gives `target` the content of `source` at the least cost; returns "reflink", "link" or "copy"."""
    if disk.reflink(source, target):
        return "reflink"
    if source.stat().st_size >= LINK_BYTES and disk.link(source, target):
        return "link"
    disk.copy(source, target)
    return "copy"
