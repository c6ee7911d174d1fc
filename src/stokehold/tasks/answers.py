"""Reading answers without trusting them: strict JSON that never raises, whatever a model wrote."""

import json
from typing import Any, NoReturn

from stokehold.core.records import Score

RIGHT, WRONG = Score(1.0), Score(0.0)

MAX_ANSWER_CHARS = 200_000
"""Longer answers are wrong unread: the longest gold answer of any family is below 4,000 characters."""


def compact(value: Any) -> str:
    """The one spelling of JSON in gold answers: no spaces, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def read_json(answer: object) -> Any:
    """The JSON value of an answer; None where it is not text, not JSON, NaN or infinity, or too deep to read."""
    if not isinstance(answer, str) or len(answer) > MAX_ANSWER_CHARS:
        return None
    try:
        return json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def read_object(answer: object) -> dict[str, Any] | None:
    """The JSON object of an answer, None where it is anything else."""
    value = read_json(answer)
    return value if isinstance(value, dict) else None


def read_text(answer: object) -> str:
    """The answer without the white space around it; empty where it is not text or far too long."""
    return answer.strip() if isinstance(answer, str) and len(answer) <= MAX_ANSWER_CHARS else ""


def is_int(value: object, wanted: int) -> bool:
    """Equal and an integer: True and 1.0 are equal to 1 in Python, and wrong here."""
    return type(value) is int and value == wanted


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
