"""The energy of something that ran from one moment to another, from meters that a thread reads all the while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.meters import Meter

INTERVAL = 0.05
"""Seconds between two readings: a sensor behind I2C takes a millisecond of a core each time."""
LEAST_RESPONSES = 5
"""A span has to be so many response times of a meter long, else what came before and after it is in its energy."""

Span = tuple[float, float]
"""From when to when, by time.perf_counter."""


class PowerLog:
    """Reads the meters from the beginning of a block to its end. An error of a meter ends the log of all of them.

    Raises ValueError where two meters have the same name.
    """

    def __init__(self, meters: Sequence[Meter], *, interval: float = INTERVAL,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        if len({meter.name for meter in meters}) < len(meters):
            raise ValueError(f"expected meters of different names, received {[meter.name for meter in meters]}")
        self._meters, self._interval, self._clock = list(meters), interval, clock
        self._times: list[float] = []
        self._joules: dict[str, list[float]] = {meter.name: [] for meter in meters}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: str | None = None

    def __enter__(self) -> PowerLog:
        if self._meters:
            self.read()
            self._thread = threading.Thread(target=self._work, name="power", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for meter in self._meters:
            meter.close()

    def _work(self) -> None:
        while not self._stop.wait(self._interval):
            if not self.read():
                return
        self.read()

    def read(self) -> bool:
        """Read every meter once; whether they answered."""
        try:
            joules = [meter.joules() for meter in self._meters]
        except (OSError, ValueError, LookupError) as error:
            self.failure = f"a meter stopped to answer ({error})"
            return False
        self._times.append(self._clock())
        for meter, value in zip(self._meters, joules, strict=True):
            self._joules[meter.name].append(value)
        return True

    def per_frame(self, spans: Sequence[Span], frames: int) -> dict[str, Any]:
        """Facts of a row whose passes took these spans of time and computed so many frames in all of them.

        energy_mj_per_frame: of all meters together, millijoules, with what the machine takes when idle;
        energy_mj_per_frame_by_meter; watts: the mean power. None where nothing measures it, where it failed, or where
        a pass is too short for a meter; energy_reason then says why. To be called when the block has ended.
        """
        reason = self._why_not(spans)
        if reason:
            return {"energy_mj_per_frame": None, "energy_mj_per_frame_by_meter": {}, "watts": None,
                    "energy_reason": reason}
        seconds = sum(end - start for start, end in spans)
        joules = {meter.name: sum(self._between(meter.name, *span) for span in spans) for meter in self._meters}
        total = sum(joules.values())
        return {"energy_mj_per_frame": 1000 * total / frames,
                "energy_mj_per_frame_by_meter": {name: 1000 * value / frames for name, value in joules.items()},
                "watts": total / seconds, "energy_reason": None}

    def _why_not(self, spans: Sequence[Span]) -> str | None:
        if not self._meters:
            return "no meter was found"
        if self.failure:
            return self.failure
        shortest = min(end - start for start, end in spans)
        slowest = max(self._meters, key=lambda meter: meter.response_seconds)
        least = LEAST_RESPONSES * max(slowest.response_seconds, self._interval)
        if shortest < least:
            return (f"a pass of {shortest:.2f} s is too short for the meter {slowest.name}, which needs {least:.2f} s; "
                    "measure more samples in a pass: --samples")
        return None

    def _between(self, name: str, start: float, end: float) -> float:
        """Joules of a span; between two readings the power is taken to be constant."""
        low, high = np.interp((start, end), self._times, self._joules[name])
        return float(high - low)
