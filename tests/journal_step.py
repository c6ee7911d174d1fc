"""A step of the journal, for tests that need one and care about little of it."""

from dataclasses import replace
from typing import Any

from stokehold.core.records import Step

FIRST = Step(
    step=1,
    branch=0,
    job="train-a",
    dataset="d",
    loss=1.0,
    components={"cross_entropy": 1.0},
    learning_rate=1e-3,
    grad_norm=1.0,
    tokens=100,
    loss_tokens=50,
    examples=4,
    seconds=0.5,
    joules=None,
    fingerprint="f",
    created="2026-01-01T00:00:00.000Z",
)


def journal_step(number: int, **changes: Any) -> Step:
    return replace(FIRST, step=number, **changes)
