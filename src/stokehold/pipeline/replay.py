"""A step that is repeated after a kill must be the one that was journalled."""

from collections.abc import Sequence

from stokehold.core.records import Step
from stokehold.store.db import journal
from stokehold.store.db.database import Database

NOT_DETERMINISTIC = "this hardware or kernel is not deterministic"


def difference(db: Database, step: Step, known: Sequence[str]) -> str | None:
    """How a repeated step differs from the journalled one; None where it does not, or where it was never journalled.

    `known` is what of this process differs from the one before.
    """
    before = journal.find_step(db, step.branch, step.step)
    if before is None or _bits(before) == _bits(step):
        return None
    why = f"not bit-comparable: {', '.join(known)}" if known else NOT_DETERMINISTIC
    return f"step {step.step}: loss {step.loss!r} instead of {before.loss!r}: {why}"


def _bits(step: Step) -> tuple[str, float, float]:
    return step.fingerprint, step.loss, step.grad_norm
