"""Which rows of a submitted file are set aside for judging. Decided by hash, never by position or chance."""

from collections.abc import Sequence

LEAST, MOST = 20, 200
"""Rows held out of one file: fewer say nothing about a model, more cost training data and evaluation time."""

SMALLEST_FILE = 200
"""Below this many rows nothing is held out: it would be a tenth of the file."""

LARGEST_SHARE = 10
"""Whole prompts of many rows are held out up to one row in so many, or twice `LEAST`: the rest is to be trained."""


def choose_holdout(prompt_hashes: Sequence[str], share: float) -> set[int]:
    """Row numbers (from 0) to hold out: `share` of the rows, at least 20 and at most 200; none of fewer than 200 rows.

    The lowest prompt hashes are taken; rows of one prompt stay on one side. Where prompts repeat so much that no
    choice of whole prompts lies between the bounds, or only one that is too large a part of the file, fewer than 20
    are taken, down to none.
    """
    rows = len(prompt_hashes)
    if rows < SMALLEST_FILE or share <= 0:
        return set()
    wanted = min(max(round(share * rows), LEAST), MOST)
    groups: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompt_hashes):
        groups.setdefault(prompt, []).append(number)
    chosen = _fill(set(), [groups[prompt] for prompt in sorted(groups)], wanted)
    if len(chosen) >= LEAST:
        return chosen
    by_size = sorted(groups, key=lambda prompt: (len(groups[prompt]), prompt))
    left = [groups[prompt] for prompt in by_size if chosen.isdisjoint(groups[prompt])]
    most = min(max(rows // LARGEST_SHARE, 2 * LEAST), MOST)
    for group in left:
        if len(chosen) < LEAST:
            chosen = _fill(chosen, [group], most)
    return chosen


def _fill(chosen: set[int], groups: Sequence[list[int]], limit: int) -> set[int]:
    """`chosen` with every group, in order, that still fits within `limit` rows."""
    filled = set(chosen)
    for group in groups:
        if len(filled) + len(group) <= limit:
            filled.update(group)
    return filled
