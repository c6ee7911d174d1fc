"""How far the model's confidence can be believed: of each suite, and of all together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stokehold.evaluation.calibration import calibrate
from stokehold.evaluation.confidence import CALIBRATED
from stokehold.evaluation.readings.answers import Answer, confidence


def calibration(answers: Sequence[Answer]) -> dict[str, Any]:
    """`pooled` and `suites`, each as `calibrate` tells it, and the `signal` that stands for confidence."""
    suites: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        suites[answer.suite].append(answer)
    found = {name: _calibrated(suites[name]) for name in sorted(suites)}
    return {"signal": CALIBRATED, "pooled": _calibrated(answers), "suites": found}


def _calibrated(answers: Sequence[Answer]) -> dict[str, Any]:
    sure = [confidence(answer) for answer in answers]
    return asdict(calibrate(sure, [answer.exact for answer in answers], [answer.item for answer in answers]))
