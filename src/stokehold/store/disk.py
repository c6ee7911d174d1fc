"""Every change the store makes to a file system, one method each, and a disk that fails on purpose.

The store takes a `Disk` as an argument (`Home.disk`). `FaultyDisk` counts the changes in the order they are asked for
and misbehaves at one of them, so that a test can try every place of a protocol with every fault there is.
"""

import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from blake3 import blake3

CHUNK_BYTES = 4 * 1024 * 1024
FICLONE = 0x40049409
"""Linux ioctl: the target shares the source's extents, copied on write."""

RENAME_EXCHANGE = 2
"""Flag of Linux's renameat2: two names change places in one step."""
AT_FDCWD = -100

CANNOT_SHARE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EMLINK, errno.ENOSYS)
"""What file systems say that cannot do what was asked; anything else is a fault."""


class Disk:
    """The file system as it is. Every method raises OSError as the system does."""

    def make_folder(self, path: Path) -> None:
        """A new, empty folder; its parent must be there."""
        path.mkdir()

    def write(self, path: Path, content: bytes, mode: int = 0o644) -> None:
        """A new file with this content, on the disk when it returns; FileExistsError where there is one."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def append(self, path: Path, content: bytes | bytearray) -> None:
        """Adds to the end of a file, which is made where there is none; on the disk only after `sync`."""
        with path.open("ab") as stream:
            stream.write(content)

    def copy(self, source: Path, target: Path) -> str:
        """A new file with the source's content, on the disk when it returns; its BLAKE3, of the bytes written."""
        hasher = blake3()
        with source.open("rb", buffering=0) as stream, target.open("xb", buffering=0) as copy:
            while chunk := stream.read(CHUNK_BYTES):
                hasher.update(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[copy.write(rest) :]
            os.fsync(copy.fileno())
        return hasher.hexdigest()

    def reflink(self, source: Path, target: Path) -> bool:
        """Whether the file system could make `target` share the source's extents; nothing is left where not."""
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

    def link(self, source: Path, target: Path) -> bool:
        """Whether the file system could give the source a second name."""
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in CANNOT_SHARE:
                raise
            return False
        return True

    def sync(self, path: Path) -> None:
        """fsync of a file's content or a folder's entries."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def protect(self, path: Path, mode: int) -> None:
        """Sets the permissions."""
        path.chmod(mode)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file or folder in one step, over a file of that name."""
        source.rename(target)

    def exchange(self, one: Path, other: Path) -> bool:
        """Whether the file system could swap two names in one step."""
        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            return False
        if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS):
            return False
        raise OSError(code, os.strerror(code), str(other))

    def remove(self, path: Path) -> None:
        """Removes a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """Removes a folder with all it holds, files first; may be called again where it was cut short."""
        for root, folders, files in os.walk(path, topdown=False):
            for name in files:
                self.remove(Path(root) / name)
            for name in folders:
                inner = Path(root) / name
                if inner.is_symlink():
                    self.remove(inner)
                else:
                    self.remove_folder(inner)
        self.remove_folder(path)


class Tally(Disk):
    """Counts the bytes that are copied, which a reflink or a link spares."""

    def __init__(self) -> None:
        self.bytes = 0

    def copy(self, source: Path, target: Path) -> str:
        digest = super().copy(source, target)
        self.bytes += target.stat().st_size
        return digest


T = TypeVar("T")

DISK = Disk()
"""The one that everything uses which is not told otherwise."""

FaultKind = Literal["kill", "full", "io", "torn", "flip"]
ERRORS = {"full": errno.ENOSPC, "io": errno.EIO}


@dataclass(frozen=True, slots=True)
class Fault:
    """At the change of this number (from 0), instead of it: die, say that there is no room, or that the device failed.

    `torn` leaves half of the file it was about and dies, `flip` turns one bit of that file over and goes on. A file of
    several names was whole before, and is not torn.
    """

    kind: FaultKind
    at: int


class FaultyDisk(Disk):
    """Fails once. `changes` names what it was asked for, in order; without a fault it only counts.

    `written` are the numbers of those that left a file with something in it: what can come out torn or with a bit over.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.changes: list[str] = []
        self.written: list[int] = []

    def make_folder(self, path: Path) -> None:
        return self._do("make_folder", path, super().make_folder, path)

    def write(self, path: Path, content: bytes, mode: int = 0o644) -> None:
        return self._do("write", path, super().write, path, content, mode)

    def append(self, path: Path, content: bytes | bytearray) -> None:
        return self._do("append", path, super().append, path, content)

    def copy(self, source: Path, target: Path) -> str:
        return self._do("copy", target, super().copy, source, target)

    def reflink(self, source: Path, target: Path) -> bool:
        return self._do("reflink", target, super().reflink, source, target)

    def link(self, source: Path, target: Path) -> bool:
        return self._do("link", None, super().link, source, target)

    def sync(self, path: Path) -> None:
        return self._do("sync", path, super().sync, path)

    def protect(self, path: Path, mode: int) -> None:
        return self._do("protect", None, super().protect, path, mode)

    def rename(self, source: Path, target: Path) -> None:
        return self._do("rename", None, super().rename, source, target)

    def exchange(self, one: Path, other: Path) -> bool:
        return self._do("exchange", None, super().exchange, one, other)

    def remove(self, path: Path) -> None:
        return self._do("remove", None, super().remove, path)

    def remove_folder(self, path: Path) -> None:
        return self._do("remove_folder", None, super().remove_folder, path)

    def _do(self, name: str, file: Path | None, change: Callable[..., T], *given: Any) -> T:
        """`file` is what the change writes, where that may come out wrong."""
        number = len(self.changes)
        self.changes.append(f"{name} {given[-1] if name in ('rename', 'exchange', 'link') else file or given[0]}")
        if self.fault is None or self.fault.at != number:
            return self._note(number, file, change(*given))
        if self.fault.kind in ERRORS:
            code = ERRORS[self.fault.kind]
            raise OSError(code, os.strerror(code), str(given[0]))
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        done = self._note(number, file, change(*given))
        if file is not None and number in self.written:
            _damage(file, self.fault.kind)
        if self.fault.kind == "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def _note(self, number: int, file: Path | None, done: T) -> T:
        if file is not None and file.is_file() and file.stat().st_size:
            self.written.append(number)
        return done


def _damage(path: Path, kind: FaultKind) -> None:
    """Cuts the file in half, or turns over a bit in its middle."""
    found = path.stat()
    if kind == "torn" and found.st_nlink > 1:
        return
    middle = found.st_size // 2
    path.chmod(found.st_mode | 0o200)
    with path.open("r+b") as stream:
        if kind == "torn":
            stream.truncate(middle)
        else:
            stream.seek(middle)
            (byte,) = stream.read(1)
            stream.seek(middle)
            stream.write(bytes([byte ^ 1]))
    path.chmod(found.st_mode)
