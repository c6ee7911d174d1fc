"""The home folder: where everything is, its settings, its token, and the locks that die with their process."""

import fcntl
import os
import secrets
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import BusyError, ConfigError, NotFoundError, StokeholdError
from stokehold.core.records import Priority
from stokehold.store.disk import DISK, Disk
from stokehold.store.files import sweep, write_atomic

CONFIG_NAME = "stoke.toml"
TOKEN_BYTES = 32


class Lock:
    """An exclusive lock on a file, held until `release` or the end of the process, however it ends."""

    def __init__(self, path: Path, purpose: str) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(path, purpose)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path, purpose: str) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._handle, 4096).decode(errors="replace").strip() or "another process"
            raise BusyError(f"{path.stem} is held by {holder}", str(path), "stop it, or wait for it") from error
        with suppress(OSError):  # the note only says who holds it: nobody is refused for want of room for it
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()} ({purpose})\n".encode(), 0)

    def release(self) -> None:
        """Lets go; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class Home:
    """A home on disk. `create` and `open` check; the constructor only names the folder."""

    root: Path
    disk: Disk = field(default=DISK, compare=False, repr=False)

    @classmethod
    def create(cls, root: Path, config: Config) -> "Home":
        """A new home with every folder and a commented `stoke.toml`; an existing home is refused."""
        home = cls(root.absolute())
        if home.config_path.exists():
            raise StokeholdError("a home is here already", str(home.root), "use it as it is, or choose another folder")
        for folder in (*home.inboxes.values(), *home.folders):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(home.config_path, describe(config).encode())
        return home

    @classmethod
    def open(cls, root: Path, disk: Disk = DISK) -> "Home":
        """The home in this folder, or `NotFoundError`. Folders that somebody removed while empty come back."""
        home = cls(root.absolute(), disk)
        if not home.config_path.is_file():
            raise NotFoundError("no home here", str(home.root), "make one with `stoke init DIR`, or pass --home")
        for folder in (*home.inboxes.values(), *home.folders):
            folder.mkdir(parents=True, exist_ok=True)
        return home

    @property
    def config_path(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def inboxes(self) -> dict[Priority, Path]:
        """The folder of each priority; a file dropped into `inbox` itself is normal."""
        return {priority: self.inbox / priority.value for priority in Priority}

    @property
    def suites(self) -> Path:
        return self.root / "suites"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def blobs(self) -> Path:
        return self.root / "store" / "blobs"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def sessions(self) -> Path:
        return self.root / "sessions"

    @property
    def status(self) -> Path:
        return self.root / "status"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def database(self) -> Path:
        """The SQLite file; unused where `store.database_url` names another database."""
        return self.root / "stoke.db"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder of a home but the inboxes."""
        content = (self.suites, self.base, self.blobs, self.datasets, self.checkpoints, self.versions)
        return (*content, self.evaluations, self.sessions, self.status, self.logs, self.trash, self.backups)

    def config(self) -> Config:
        """The settings as they are in `stoke.toml` now; `ConfigError` names what does not fit."""
        return parse_config(_toml(self.config_path.read_text("utf-8"), str(self.config_path)), str(self.config_path))

    def write_config(self, text: str) -> Config:
        """Replaces `stoke.toml` by `text` when it parses; otherwise the old one stays and `ConfigError` is raised."""
        config = parse_config(_toml(text, str(self.config_path)), str(self.config_path))
        write_atomic(self.config_path, text.encode(), disk=self.disk)
        return config

    def sweep(self) -> list[Path]:
        """Removes what killed processes left half written; what a living one is writing stays. Call it at start."""
        folders = (self.root, *self.inboxes.values(), *self.folders)
        return [gone for folder in folders for gone in sweep(folder, self.disk)]

    def token(self) -> str:
        """The secret of the HTTP interfaces, made on first use, readable by the owner only."""
        path = self.status / "token"
        if not path.exists():
            fresh = self.status / f"token-{uuid4().hex}"
            write_atomic(fresh, secrets.token_urlsafe(TOKEN_BYTES).encode(), mode=0o600)
            try:
                path.hardlink_to(fresh)
            except FileExistsError:
                pass  # another process was first: its token is the token
            finally:
                fresh.unlink()
        return path.read_text("ascii").strip()

    def lock(self, name: str, purpose: str) -> Lock:
        """The lock `status/<name>.lock`, taken at once or `BusyError` naming its holder."""
        return Lock(self.status / f"{name}.lock", purpose)


def _toml(text: str, source: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", source, "correct the line") from error
