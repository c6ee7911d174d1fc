"""Where the model stands by family and level, and in which shares the levels should be trained next."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from stokehold.evaluation.readings.answers import Answer, ordered, summary


def curriculum(answers: Sequence[Answer], mix: Mapping[int, float], family: str) -> dict[str, Any]:
    """`kinds`: loss (nats per gold token) and accuracy of each family and level, easiest first; `mix`: share of each
    level in what is trained next, as the generator of the next file weighs them; `mix_of`: the family it makes."""
    cells: dict[tuple[str | None, int | str | None], list[Answer]] = defaultdict(list)
    for answer in answers:
        cells[answer.family, answer.level].append(answer)
    order = sorted(cells, key=lambda kind: (kind[0] is None, kind[0] or "", ordered(kind[1])))
    kinds = [{"family": kind[0], "level": kind[1], **summary(cells[kind])} for kind in order]
    return {"kinds": kinds, "mix": {str(level): share for level, share in mix.items()}, "mix_of": family}
