"""Finds efficiency collapses: RLE far below its recent peak, for seconds, under load, heating, with evidence.

A collapse is an efficiency event, not a thermal failure. Everything is in seconds, so the sampling rate does not
change what is found. Unknown never counts as a drop.
"""

from dataclasses import dataclass

HEADROOM_C = 5.0
"""Closer than this to its limit, a temperature is evidence."""


MAX_GAP_S = 5.0
"""Default of `CollapseRule.max_gap_s`, at one sample a second."""


@dataclass(frozen=True, slots=True)
class CollapseRule:
    """When throughput counts as collapsed. `decay_per_10_s` is the share the peak loses in each 10 seconds."""

    drop_share: float = 0.65
    decay_per_10_s: float = 0.02
    hold_s: float = 7.0
    warmup_s: float = 60.0
    load_utilisation_pct: float = 60.0
    load_alpha: float = 0.75
    evidence_sustain_s: float = 60.0
    evidence_alpha: float = 0.95
    max_gap_s: float = MAX_GAP_S
    """A drop seen on both sides of a longer silence was not seen to last."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the detector looks at in one sample; None where it is not known. `near_limit`: any temperature is."""

    monotonic_s: float
    smoothed_rle: float | None
    utilisation_pct: float | None
    alpha: float | None
    t_sustain_s: float | None
    heating: bool
    near_limit: bool


def decayed(peak: float, seconds: float, rule: CollapseRule) -> float:
    """The peak after a time in seconds without a higher one; decaying twice is decaying over the sum."""
    return float(peak * (1.0 - rule.decay_per_10_s) ** (seconds / 10.0))


def under_load(seen: Observation, rule: CollapseRule) -> bool:
    busy = seen.utilisation_pct is not None and seen.utilisation_pct > rule.load_utilisation_pct
    return busy or (seen.alpha is not None and seen.alpha > rule.load_alpha)


def has_evidence(seen: Observation, rule: CollapseRule) -> bool:
    """Little time to the limit, a temperature close to it, or nearly all of the rated power."""
    short = seen.t_sustain_s is not None and seen.t_sustain_s < rule.evidence_sustain_s
    return short or seen.near_limit or (seen.alpha is not None and seen.alpha > rule.evidence_alpha)


class CollapseDetector:
    """Feed it samples in time order; `collapses` counts onsets, `peak` is the decaying peak of the smoothed RLE."""

    def __init__(self, rule: CollapseRule | None = None) -> None:
        self.rule = rule or CollapseRule()
        self.collapses = 0
        self.peak: float | None = None
        self.collapsed = False
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._drop_since_s: float | None = None

    def observe(self, seen: Observation) -> bool:
        """Whether the device is in a collapse at this sample. Without an RLE nothing changes but time."""
        if self._first_s is None:
            self._first_s = seen.monotonic_s
        self._break_after_gap(seen.monotonic_s)
        if seen.smoothed_rle is None:
            return self.collapsed
        peak = self._raise_peak(seen.monotonic_s, seen.smoothed_rle)
        self._last_s = seen.monotonic_s
        low = seen.smoothed_rle < self.rule.drop_share * peak
        warm = seen.monotonic_s - self._first_s >= self.rule.warmup_s
        if not (low and warm and self._explained(seen)):
            self._drop_since_s, self.collapsed = None, False
            return False
        if self._drop_since_s is None:
            self._drop_since_s = seen.monotonic_s
        if not self.collapsed and seen.monotonic_s - self._drop_since_s >= self.rule.hold_s:
            self.collapsed = True
            self.collapses += 1
        return self.collapsed

    def _break_after_gap(self, now_s: float) -> None:
        if self._last_s is not None and now_s - self._last_s > self.rule.max_gap_s:
            self._drop_since_s, self.collapsed = None, False

    def _raise_peak(self, now_s: float, smoothed: float) -> float:
        if self.peak is None or self._last_s is None:
            self.peak = smoothed
        else:
            self.peak = max(smoothed, decayed(self.peak, now_s - self._last_s, self.rule))
        return self.peak

    def _explained(self, seen: Observation) -> bool:
        return seen.heating and under_load(seen, self.rule) and has_evidence(seen, self.rule)
