"""What became of the last drill: a version restored, loaded and asked what it answered when it was made."""

from dataclasses import asdict, dataclass
from datetime import datetime

import orjson

from stokehold.store.db import events
from stokehold.store.db.database import Database
from stokehold.store.files import write_atomic
from stokehold.store.home import Home

KIND = "drill"
FILE = "drill.json"


@dataclass(frozen=True, slots=True)
class Drill:
    """`ok` is True where the restored version answered as it did, False where it did not or could not be restored, and
    None where there is nothing recorded to compare with; `reason` says which.

    `worst` is the largest difference of a log-probability in nats, None where none was measured or it is not finite;
    `exact` whether the same bits were asked for, and not `tolerance`; `bytes` were read and hashed.
    """

    version: str
    ok: bool | None
    reason: str
    worst: float | None = None
    tolerance: float | None = None
    exact: bool | None = None
    differences: tuple[str, ...] = ()
    """What is not as it was when the version was made: `threads 1 -> 2`."""
    bytes: int = 0
    seconds: float = 0.0
    created: str = ""


def save(home: Home, db: Database, drill: Drill) -> None:
    """Keeps the result as the home's last, and as an event."""
    write_atomic(home.status / FILE, orjson.dumps(asdict(drill)), disk=home.disk)
    events.record(db, KIND, f"{drill.version}: {drill.reason}", **asdict(drill))


def latest(home: Home) -> Drill | None:
    """The last result; None before there was a drill, and for a file that was damaged."""
    try:
        found = orjson.loads((home.status / FILE).read_bytes())
        return Drill(**{**found, "differences": tuple(found["differences"])})
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError, KeyError):
        return None


def age_s(drill: Drill, now: str) -> float:
    """Seconds from the drill to `now`, in ISO 8601."""
    return (datetime.fromisoformat(now) - datetime.fromisoformat(drill.created)).total_seconds()
