"""Bad batches: written down and passed over; three that stand in the way of one step end the job with the reason."""

from stokehold.core.errors import DivergenceError
from stokehold.store import events, skips
from stokehold.store.database import Database
from stokehold.training.guards import BadBatch

IN_A_ROW = 3
"""Batches that may not spoil the same step: then it is the run that diverges, not the data."""

ROWS_TOLD = 5


def pass_over(db: Database, run: str, branch: int, bad: BadBatch) -> None:
    """Writes the batch down as one to pass over. Raises DivergenceError when it is the third in a row."""
    count = skips.record(db, run, bad.key, bad.step, branch, bad.examples, bad.rows, bad.what)
    rows = ", ".join(bad.rows[:ROWS_TOLD]) + (", …" if len(bad.rows) > ROWS_TOLD else "")
    events.record(db, "batch_skipped", f"{bad.what}: {bad.where}; {bad.examples} rows passed over: {rows}", run=run)
    if count >= IN_A_ROW:
        skips.forget(db, run, bad.step)  # so many cannot all be bad: a retry trains them
        fix = "lower training.learning_rate, or look at the rows; then `stoke retry`"
        raise DivergenceError(f"{count} batches in a row spoilt the step: {bad.what}", bad.where, fix) from bad
