"""Which items are worth answering with fresh problems of their kind: those answered wrongly, and those barely right.

The items are held out: they are counted and named here, and nothing of them but family and level reaches training.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stokehold.evaluation.confidence import CALIBRATED
from stokehold.evaluation.readings.answers import Answer, confidence, ordered

LISTED = 20
"""Items named of each kind; the counts are of all."""


def mining(answers: Sequence[Answer], threshold: float) -> dict[str, Any]:
    """Wrong items, surest first: the model would defend those; right ones, least sure first.

    `unsure` counts right answers whose confidence is below `threshold`. An item without a confidence comes last.
    """
    sure = {answer.item: confidence(answer) for answer in answers}
    wrong = [answer for answer in answers if answer.exact is False]
    right = [answer for answer in answers if answer.exact and sure[answer.item] is not None]
    unsure = [answer for answer in right if (sure[answer.item] or 0.0) < threshold]
    wrong.sort(key=lambda answer: (-_known(sure[answer.item], -1.0), answer.item))
    right.sort(key=lambda answer: (_known(sure[answer.item], 2.0), answer.item))
    kinds = Counter((answer.family, answer.level) for answer in [*wrong, *unsure])
    return {
        "signal": CALIBRATED,
        "threshold": threshold,
        "wrong": len(wrong),
        "unsure": len(unsure),
        "kinds": [
            {"family": family, "level": level, "items": count}
            for (family, level), count in sorted(kinds.items(), key=lambda kind: (str(kind[0][0]), ordered(kind[0][1])))
        ],
        "surest_wrong": [_row(answer, sure[answer.item]) for answer in wrong[:LISTED]],
        "least_sure_right": [_row(answer, sure[answer.item]) for answer in right[:LISTED]],
    }


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _row(answer: Answer, sure: float | None) -> dict[str, Any]:
    return {"item": answer.item, "family": answer.family, "level": answer.level, "confidence": sure}
