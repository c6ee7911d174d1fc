"""Rows that the model is asked while it is trained on them: what people see of a training before it is judged."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import orjson

from stokehold.core.config import Config
from stokehold.core.records import Sample
from stokehold.data.formats import from_row
from stokehold.evaluation.scorers import score
from stokehold.inference.engine import Engine
from stokehold.store.db import journal
from stokehold.store.db.database import Database
from stokehold.training.state import Lineage

SAMPLE_ROWS = 64
"""Rows of a file that samples are taken from."""


def first_rows(path: Path) -> list[Sample]:
    """The conversations among the first rows of a dataset."""
    with path.open("rb") as file:
        rows = [from_row(orjson.loads(line)) for line in islice(file, SAMPLE_ROWS)]
    return [row for row in rows if row.messages]


def ask_one(db: Database, config: Config, lineage: Lineage, step: int, samples: Sequence[Sample]) -> str | None:
    """Asks the model one of the rows, another at every call, and keeps what it said; returns the row's system turn."""
    sample = samples[step // max(1, config.training.sample_steps) % len(samples)]
    limits = config.evaluation
    engine = Engine(lineage.model, lineage.tokenizer)
    completion = engine.complete([sample], limits.max_new_tokens, 1, limits.gold_multiple)[0]
    question = "\n".join(message.content for message in sample.question)
    journal.add_sample(db, step, question, sample.gold, completion.text, score(sample, completion).exact)
    return next((message.content for message in sample.question if message.role == "system"), None)
