"""Errors a user meets: what happened, to what, and what to do next.

Every error that reaches a person is a `StokeholdError`; the command line prints
`stoke: what happened · to what · what to do` and exits with `exit_code`.
"""

import errno
import re
from typing import ClassVar

FULL_WORDS = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT})\b")


class StokeholdError(Exception):
    """What happened (`what`), to what (`where`: path, line, step), and what to do (`fix`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(" · ".join(part for part in (what, where, fix) if part))


class UsageError(StokeholdError):
    """The command was called wrongly."""

    exit_code = 2


class ConfigError(UsageError):
    """A key of `stoke.toml` is unknown or its value does not fit."""


class InputError(StokeholdError):
    """A file that somebody submitted cannot be used."""


class DuplicateError(InputError):
    """The same content was accepted before."""


class IntegrityError(StokeholdError):
    """Bytes on disk are not what their manifest says."""


class DiskFullError(StokeholdError):
    """There is no room for what had to be written; nothing was changed, and it may be tried again."""


class BusyError(StokeholdError):
    """Another process holds what was asked for."""


class NotFoundError(StokeholdError):
    """A reference (version, step, job, suite, folder) names nothing."""


class DivergenceError(StokeholdError):
    """A batch gave NaN, infinity or a sudden loss; no weight was changed by it."""


def is_full(error: BaseException) -> bool:
    """Whether it says that the file system, or the quota on it, has no room left; safetensors says it in words."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DiskFullError) or FULL_WORDS.search(str(error)) is not None
