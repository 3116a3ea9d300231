"""How it goes with the pictures that come in: counts, times, and what a diagnostics monitor is told once a second."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

STALE_AFTER = 2.0  # seconds without a picture, or without an answer while pictures come
HANGS_AFTER = 5.0  # seconds without an answer while pictures come, after which it is an error
_REMEMBERED = 256  # times of answers, for the percentiles


class Level(IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Report:
    """What is told of the time since the report before. values: names and values to show, in their order."""

    level: Level
    message: str
    values: dict[str, str]


class Health:
    """Counts what becomes of pictures. Any thread may tell it; one thread takes the reports.

    clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._milliseconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._refusal = ""
        self._sentence_refusal = ""
        self._unanswered_since: float | None = None  # when the first picture was overtaken since one was looked at
        self._last_picture = self._last_report = clock()

    def begin(self) -> None:
        """From now on pictures are expected."""
        with self._lock:
            self._last_picture = self._last_report = self._clock()
            self._unanswered_since = None

    def answered(self, milliseconds: float) -> None:
        with self._lock:
            self._milliseconds.append(milliseconds)
            self._looked_at("answered")

    def dropped(self, *, by_rate: bool = False) -> None:
        """A newer picture came before this one was looked at; by_rate: it came sooner than the rate allows."""
        with self._lock:
            self._count("dropped")
            if not by_rate and self._unanswered_since is None:
                self._unanswered_since = self._last_picture

    def paused(self) -> None:
        """There was no sentence to look for."""
        with self._lock:
            self._looked_at("paused")

    def refused(self, reason: str) -> None:
        with self._lock:
            self._refusal = reason
            self._looked_at("refused")

    def _looked_at(self, fate: str) -> None:
        self._count(fate)
        self._unanswered_since = None

    def _count(self, fate: str) -> None:
        self._counts[fate] += 1
        self._last_picture = self._clock()

    def sentence_refused(self, reason: str) -> None:
        """Told until a sentence is taken."""
        with self._lock:
            self._sentence_refusal = reason

    def sentence_taken(self) -> None:
        with self._lock:
            self._sentence_refusal = ""

    def count(self, fate: str) -> int:
        """How many pictures were "answered", "dropped", "paused" or "refused" so far."""
        with self._lock:
            return self._counts[fate]

    @property
    def last_refusal(self) -> str:
        """Why the last picture that was refused was so; "" where none was."""
        with self._lock:
            return self._refusal

    def report(self, sentence: str) -> Report:
        """The state since the last report. sentence: what is being looked for, "" for nothing."""
        with self._lock:
            now = self._clock()
            new = self._counts - self._reported
            seconds, quiet = now - self._last_report, now - self._last_picture
            self._reported, self._last_report = self._counts.copy(), now
            median, slowest = np.percentile(self._milliseconds, [50, 99]) if self._milliseconds else (None, None)
            values = {"pictures in": str(self._counts.total()),
                      **{fate: str(self._counts[fate]) for fate in ("answered", "dropped", "paused", "refused")},
                      "last refusal": self._refusal, "refused sentence": self._sentence_refusal,
                      "milliseconds p50": _number(median), "milliseconds p99": _number(slowest),
                      "frames per second": _number(new["answered"] / seconds if seconds > 0 else None)}
            unanswered = now - self._unanswered_since if sentence and self._unanswered_since is not None else 0.0
            level, message = self._judge(new, quiet, unanswered, sentence)
            return Report(level, message, values)

    def _judge(self, new: Counter[str], quiet: float, unanswered: float, sentence: str) -> tuple[Level, str]:
        if quiet >= STALE_AFTER:
            return Level.STALE, f"no picture for {quiet:.0f} s; is the camera running, and is the topic the right one?"
        if unanswered >= STALE_AFTER:
            return (Level.ERROR if unanswered >= HANGS_AFTER else Level.WARN,
                    f"no answer for {unanswered:.0f} s while pictures come; the network hangs or is too slow here: is "
                    "the GPU, or are the cores, busy with something else? else start the node again")
        if new["refused"] and not new["answered"]:
            return Level.ERROR, f"no picture could be used: {self._refusal}"
        if new["refused"]:
            return Level.WARN, f"{new['refused']} of {new.total()} pictures could not be used: {self._refusal}"
        if self._sentence_refusal:
            return Level.WARN, f"{_state(sentence)}; the last sentence was refused: {self._sentence_refusal}"
        return Level.OK, _state(sentence)


def _state(sentence: str) -> str:
    return f"looking for {sentence!r}" if sentence else "paused: there is no sentence"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
