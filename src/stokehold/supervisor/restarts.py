"""When a role that died is started again, and when it is given up: pure arithmetic on its exits.

Back-off from `FIRST_DELAY_S` doubling to `LONGEST_DELAY_S`, forgotten after `HEALTHY_S` of life. `LOOP_EXITS` equal
exits within `LOOP_WINDOW_S` are a crash loop: only that role stops, and a person is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0
HEALTHY_S = 60.0
LOOP_EXITS = 10
LOOP_WINDOW_S = 120.0
SIGKILL = -9


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of a child: `code` as subprocess gives it (negative: the signal), when (monotonic s), after how long.

    `for_memory`: the kernel killed it because memory ran out.
    """

    code: int
    at_s: float
    lived_s: float
    for_memory: bool = False

    @property
    def counts(self) -> bool:
        """Whether it may be part of a crash loop. Somebody's `kill -9` says nothing about our code."""
        return self.code != SIGKILL or self.for_memory


@dataclass(frozen=True, slots=True)
class Restarts:
    """What is remembered of a role: the delay before its next start, and its recent exits."""

    delay_s: float = FIRST_DELAY_S
    exits: tuple[Exit, ...] = ()

    def after(self, exit_: Exit) -> "Restarts":
        """What is remembered once it has ended again; `delay_s` is then how long to wait before the next start."""
        healthy = not self.exits or exit_.lived_s >= HEALTHY_S
        delay = FIRST_DELAY_S if healthy else min(self.delay_s * 2, LONGEST_DELAY_S)
        kept = tuple(e for e in (*self.exits, exit_) if exit_.at_s - e.at_s <= LOOP_WINDOW_S)
        return replace(self, delay_s=delay, exits=kept)

    @property
    def looping(self) -> bool:
        """Whether the newest exit completes a crash loop."""
        return is_loop([e for e in self.exits if e.counts])


def is_loop(exits: Sequence[Exit]) -> bool:
    """Whether the last `LOOP_EXITS` are equal and lie within `LOOP_WINDOW_S`."""
    last = exits[-LOOP_EXITS:]
    if len(last) < LOOP_EXITS:
        return False
    return last[-1].at_s - last[0].at_s <= LOOP_WINDOW_S and len({e.code for e in last}) == 1
