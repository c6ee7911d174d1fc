"""Exact tests of "A and B are alike" for paired readings, and Holm's correction for asking more than once.

All rest on one idea: if A and B are alike, exchanging the two within a cluster changes nothing, so every sign of a
cluster's difference is a fair coin, whatever hangs together inside the cluster. The p-values are those of that
distribution itself, not of resamples drawn from it: they need no seed and do not end at one in the number of draws.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ENUMERATED = 16
"""Up to so many differences all sign patterns are tried (65,536); beyond, the saddlepoint is close."""

NEWTON_STEPS = 80
"""Enough where the sum is all but the largest possible: there each step adds a constant. Elsewhere 6 do."""


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p that `lost` and `gained` discordant items come from a fair coin; 1 when there are none."""
    n, fewer = lost + gained, min(lost, gained)
    tail = ways = 1
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    # Whole numbers until the end: exact at any n.
    return min(1.0, 2 * tail / (1 << n))


def mcnemar_clustered(net: NDArray[np.int64]) -> float:
    """Two-sided p of the sum of `net`, gained - lost items of each cluster, when every cluster's sign is a fair coin.

    The whole distribution is convolved, cluster sizes being few. Where every cluster has one item it is McNemar's exact
    test; Durkalski's (2003) and Obuchowski's (1998) statistics are its normal approximations.
    """
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    total, found = int(np.abs(net).sum()), abs(int(net.sum()))
    if sizes.tolist() in ([], [1]):
        return mcnemar_exact((total - found) // 2, (total + found) // 2)
    if found == 0:
        return 1.0
    mass = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        # Only the lower tail is asked for: what lies above it is never needed.
        spread = np.zeros(size * count + 1)
        spread[::size] = _fair_coins(count)
        mass = np.convolve(mass, spread)[: (total - found) // 2 + 1]
    return min(1.0, 2 * math.fsum(mass))


def sign_flip(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the sum of `differences`, [clusters], when every sign is a fair coin; 1 of nothing but zeros."""
    moved = differences[differences != 0]
    if len(moved) > ENUMERATED:
        return float(sign_flip_saddlepoint(moved[None])[0])
    if not len(moved):
        return 1.0
    sums = np.zeros(1)
    for one in moved:
        sums = np.concatenate([sums + one, sums - one])
    rounding = 1e-12 * float(np.abs(moved).sum())
    return float(np.mean(np.abs(sums) >= abs(moved.sum()) - rounding))


def sign_flip_saddlepoint(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """`sign_flip` of each row of [rows, clusters], by the saddlepoint approximation (Barndorff-Nielsen's r*).

    Relative error is a few percent in the far tails too. Differences are taken to be continuous: where most have the
    same size, half the probability of the very sum that was found is missing.
    """
    size = np.abs(differences)
    scale = size.max(axis=1, keepdims=True)
    size = size / np.where(scale > 0, scale, 1.0)
    total, energy = size.sum(axis=1), (size**2).sum(axis=1)
    found = np.abs(differences.sum(axis=1)) / np.where(scale[:, 0] > 0, scale[:, 0], 1.0)
    extreme = found >= total * (1 - 1e-12)
    aim = np.where(extreme, 0.0, found)
    tilt = aim / np.where(energy > 0, energy, 1.0)
    for _ in range(NEWTON_STEPS):
        bent = np.tanh(tilt[:, None] * size)
        # Concave and begun below the root: every step stays below it.
        step = (aim - (size * bent).sum(axis=1)) / np.maximum((size**2 * (1 - bent**2)).sum(axis=1), 1e-300)
        tilt = tilt + step
        if np.all(np.abs(step) <= 1e-10 * (1 + tilt)):
            break
    certain = np.minimum(1.0, np.exp2(1.0 - (size > 0).sum(axis=1)))
    p: NDArray[np.float64] = np.where(extreme, certain, _tail(tilt, aim, size))
    return p


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Holm's adjusted p-values: rejecting those <= alpha makes a false rejection with chance <= alpha, come what may.

    `weights` > 0, equal by default, are each hypothesis' share in alpha before any is rejected (Holm 1979, section 3).
    """
    shares = list(weights or [1.0] * len(p_values))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i])
    adjusted, largest, left = [1.0] * len(p_values), 0.0, math.fsum(shares)
    for i in order:
        largest = max(largest, min(1.0, p_values[i] * left / shares[i]))
        adjusted[i] = largest
        left -= shares[i]
    return adjusted


def _fair_coins(n: int) -> NDArray[np.float64]:
    """[n + 1]: the chance of each number of heads."""
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    return np.array([math.exp(one - n * math.log(2)) for one in ways])


def _tail(tilt: NDArray[np.float64], aim: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """[rows]: twice the chance of a sum of at least `aim` > 0, 1 where it is 0."""
    bend = tilt[:, None] * size
    logs = (bend + np.log1p(np.exp(-2 * bend)) - math.log(2)).sum(axis=1)
    curve = (size**2 * (1 - np.tanh(bend) ** 2)).sum(axis=1)
    w = np.sqrt(np.maximum(2 * (tilt * aim - logs), 0.0))
    u = tilt * np.sqrt(curve)
    near = (w < 1e-4) | (u <= 0)  # the sum is 0 but for rounding
    safe_w, safe_u = np.where(near, 1.0, w), np.where(near, 1.0, u)
    r = safe_w + np.log(safe_u / safe_w) / safe_w
    twice = np.array([math.erfc(value / math.sqrt(2)) for value in r])
    return np.where(near, 1.0, np.minimum(1.0, twice))
