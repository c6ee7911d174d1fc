"""Rows into bins of bounded size: best-fit decreasing, deterministic, in O(n log capacity).

Taking whole bins away changes no other bin: an item goes to the fullest bin that has room, whichever bins are absent.
Resuming rests on this law: packing what is left gives exactly the bins that were left.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins whose sum is at most `capacity`; a longer item is a bin of its own.

    Bins come in the order they were opened, their items longest first; equal lengths keep their order.
    """
    bins: list[list[int]] = []
    space = _Space(capacity)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        place = space.take(length)
        if place is None:
            bins.append([])
            place = (len(bins) - 1, capacity)
        number, free = place
        bins[number].append(item)
        if free > length:
            space.put(number, free - length)
    return bins


class _Space:
    """Open bins by their free space: a tree of counts over 0..capacity finds the tightest fit."""

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << capacity.bit_length()
        self._counts = [0] * (2 * self._leaves)
        self._bins: dict[int, list[int]] = {}

    def put(self, number: int, free: int) -> None:
        self._bins.setdefault(free, []).append(number)
        self._count(free, 1)

    def take(self, length: int) -> tuple[int, int] | None:
        """Removes and returns (bin, free space) of the least free space that holds `length`; None without one."""
        if length >= self._leaves:
            return None
        node = length + self._leaves
        while not self._counts[node]:
            while node & 1:
                node >>= 1
            if node == 0:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if self._counts[2 * node] else 2 * node + 1
        free = node - self._leaves
        self._count(free, -1)
        return self._bins[free].pop(), free

    def _count(self, free: int, change: int) -> None:
        node = free + self._leaves
        while node:
            self._counts[node] += change
            node >>= 1
