"""Runs that are not counted, until a row is as fast as it gets.

The first runs allocate, TensorRT-RTX compiles its kernels, caches fill, a clock rises. How many it takes is not known
beforehand, so it is watched: the median of the last runs no longer differs from that of the ones before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 3  # runs of which the median is taken
WITHIN = 0.05  # share by which two medians in succession may differ
MOST = 30  # runs; what is not stable by then is said to be so and measured all the same


@dataclass(frozen=True)
class WarmUp:
    """runs: how many there were. stable: whether the last of them were equally fast."""

    runs: int
    stable: bool


def until_stable(run: Callable[[], float], *, window: int = WINDOW, within: float = WITHIN, most: int = MOST) -> WarmUp:
    """Call `run`, which returns what it took, until the medians of the last `window` times and of as many before them
    differ by at most `within` of the earlier; `most` times at most. Raises ValueError for a window below 1."""
    if window < 1:
        raise ValueError(f"expected a window of at least one run, received {window}")
    times: list[float] = []
    while len(times) < most:
        times.append(run())
        if len(times) >= 2 * window:
            before = statistics.median(times[-2 * window:-window])
            if abs(statistics.median(times[-window:]) - before) <= within * before:
                return WarmUp(len(times), True)
    return WarmUp(len(times), False)
