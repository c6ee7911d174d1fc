"""Where the present weights stand among the others that were judged alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stokehold.evaluation.paired import ItemReading
from stokehold.evaluation.ranking import rank


def comparison(entrants: Mapping[str, Sequence[ItemReading]], present: str) -> dict[str, Any]:
    """The ranking of `entrants`, and in `present` which of them is meant."""
    return {"present": present, **asdict(rank(entrants))}
