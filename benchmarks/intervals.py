"""Percentiles of times that were measured in rounds, how sure their median is, and whether two medians differ.

Runs of one round share what happened meanwhile: a clock that dropped, another program. So it is the rounds that are
drawn again, not the runs. A bootstrap of a handful of rounds gives intervals that are too narrow, both because the
spread of n values is too small by sqrt((n - 1) / n) and because its tails are the normal distribution's; the share
that is cut off is therefore the one that a t interval of n rounds corresponds to (Hesterberg, "What Teachers Should
Know About the Bootstrap", 2015, section 5.3.3: the expanded percentile interval).

Even so no interval reaches beyond the rounds that there are, and n of them all lie on one side of the true median with
probability 2^(1 - n): four rounds cover it in 87.5 % of the cases at most, five in 93.75 %, six or more in 95 %. Two
medians are compared from four rounds each on: that all of one are above all of the other happens by chance in 3 % then,
but in 10 % with three and in a third of the cases with two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)
CONFIDENCE = 0.95
LEAST_ROUNDS = 4  # of each of two runs that are compared
DRAWS = 4000
SEED = 0
LEAST = 0.03
"""Share by which medians of two runs differ at least before it counts: the same program started twice is not equally
fast, because it lies elsewhere in memory and the machine is in another state, and rounds of one run do not see that."""
FASTER, SLOWER, NOISE, UNKNOWN = "faster", "slower", "within noise", "unknown"
# Student's t, 97.5 %, for 1 - 4 degrees of freedom; for more the expansion below is right to three digits.
_FEW = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}

Rounds = Sequence[Sequence[float]]
"""Milliseconds of the runs of each round."""


def summary(rounds: Rounds) -> dict[str, Any]:
    """Times of one stage as result files have them: p50_ms, p90_ms, p99_ms, mean_ms; the 95 % interval of the median,
    ci_low_ms and ci_high_ms, and of the others, p90_ci_low_ms ... (None for a single round); samples_ms. Raises
    ValueError without any run."""
    values = np.concatenate([np.asarray(samples, float) for samples in rounds])
    if values.size == 0:
        raise ValueError("expected at least one run, received none")
    times = {f"p{q}_ms": float(value) for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
    intervals = {}
    for q in PERCENTILES:
        prefix = "" if q == 50 else f"p{q}_"
        intervals[f"{prefix}ci_low_ms"], intervals[f"{prefix}ci_high_ms"] = interval(rounds, percentile=q)
    return {**times, "mean_ms": float(values.mean()), **intervals,
            "samples_ms": [[float(value) for value in samples] for samples in rounds]}


def interval(rounds: Rounds, percentile: float = 50) -> tuple[float | None, float | None]:
    """The 95 % interval of a percentile, of the median if not said otherwise; (None, None) for a single round. The same
    rounds give the same interval. Of p99 it tells no more than the slowest runs that there are."""
    if len(rounds) < 2:
        return None, None
    tail = _tail(len(rounds))
    low, high = np.quantile(_drawn(rounds, np.random.default_rng(SEED), percentile), (tail, 1 - tail))
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """The median of one run over that of another, and what to make of it.

    ratio: below 1 where the second is faster. low, high: its 95 % interval, None where a run has fewer than
    LEAST_ROUNDS. verdict: FASTER, SLOWER, NOISE, or UNKNOWN where there are too few rounds.
    """

    ratio: float
    low: float | None
    high: float | None
    verdict: str


def compare(before: Rounds, after: Rounds, *, least: float = LEAST, paired: bool = False) -> Comparison:
    """Whether `after` takes less or more time: its interval lies on one side of 1, and it is by `least` at least.

    paired: both are rows of one run, whose rounds were interleaved. The same rounds are drawn of both then, because
    what disturbed a round disturbed both. Raises ValueError for paired runs of different numbers of rounds.
    """
    if paired and len(before) != len(after):
        raise ValueError(f"expected paired runs of as many rounds, received {len(before)} and {len(after)}")
    ratio = float(np.median(np.concatenate(after)) / np.median(np.concatenate(before)))
    if min(len(before), len(after)) < LEAST_ROUNDS:
        return Comparison(ratio, None, None, UNKNOWN)
    generator = np.random.default_rng(SEED)
    tail = _tail(min(len(before), len(after)))
    drawn = _drawn(after, generator) / _drawn(before, np.random.default_rng(SEED) if paired else generator)
    low, high = (float(value) for value in np.quantile(drawn, (tail, 1 - tail)))
    verdict = NOISE
    if high < 1 and ratio <= 1 - least:
        verdict = FASTER
    elif low > 1 and ratio >= 1 + least:
        verdict = SLOWER
    return Comparison(ratio, low, high, verdict)


def _drawn(rounds: Rounds, generator: np.random.Generator, percentile: float = 50) -> np.ndarray:
    """[DRAWS]: the percentile of as many rounds, drawn with replacement."""
    if len({len(samples) for samples in rounds}) == 1:
        values = np.asarray(rounds, float)  # [round, run]
        picked = generator.integers(0, len(rounds), (DRAWS, len(rounds)))
        return np.percentile(values[picked].reshape(DRAWS, -1), percentile, axis=1)
    arrays = [np.asarray(samples, float) for samples in rounds]
    picked = generator.integers(0, len(arrays), (DRAWS, len(arrays)))
    return np.array([np.percentile(np.concatenate([arrays[index] for index in draw]), percentile) for draw in picked])


def _tail(rounds: int) -> float:
    """The share of the draws to be cut off on each side."""
    return NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * _student(rounds - 1))


def _student(degrees: int) -> float:
    """Student's t, 97.5 %, by the expansion in 1 / degrees (Abramowitz and Stegun, 26.7.5)."""
    if degrees in _FEW:
        return _FEW[degrees]
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3))
