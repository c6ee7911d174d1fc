"""Bad batches: written down and passed over, until three stand in the way of one step.

Three whose loss is no number are a run that diverges: the job ends with the reason. Three whose loss is only far above
the file's others are a file that changes, as one sorted by topic does: they are trained, and the guard counts afresh.
What such a run comes to is for the evaluation to judge; a worse model is not promoted.
"""

from stokehold.core.errors import DivergenceError
from stokehold.store.db import events, skips
from stokehold.store.db.database import Database
from stokehold.training.guards import BadBatch, level_key

IN_A_ROW = 3
"""Batches that may not spoil the same step: then it is the run that diverges, not the data."""

ROWS_TOLD = 5


def pass_over(db: Database, run: str, branch: int, bad: BadBatch) -> None:
    """Writes the batch down as one to pass over; of the third spike in a row, that the file's level has changed.

    Raises DivergenceError when it is the third in a row without a loss.
    """
    count = skips.record(db, run, bad.key, bad.step, branch, bad.examples, bad.rows, bad.what)
    rows = ", ".join(bad.rows[:ROWS_TOLD]) + (", …" if len(bad.rows) > ROWS_TOLD else "")
    events.record(db, "batch_skipped", f"{bad.what}: {bad.where}; {bad.examples} rows passed over: {rows}", run=run)
    if count < IN_A_ROW:
        return
    skips.forget(db, run, bad.step)  # so many cannot all be bad: they are trained
    if bad.spike:
        skips.record(db, run, level_key(bad.step), bad.step, branch, 0, (), "the losses rose for good")
        text = f"{count} batches in a row are far above the file's mean: its rows have changed, all are trained"
        events.record(db, "level_changed", f"{text}; {bad.where}", run=run)
    else:
        fix = "lower training.learning_rate, or look at the rows; then `stoke retry`"
        raise DivergenceError(f"{count} batches in a row spoilt the step: {bad.what}", bad.where, fix) from bad
