"""Three threads over one source: one reads frames, one answers, one draws and writes.

They hand over a few things at a time: the slowest of them sets the pace, where one after the other would take the sum.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from deploy.video.frames import Frame, Source
from deploy.video.handover import HandOver

T = TypeVar("T")  # an answer
ROOM = 2  # how many frames wait between two threads
KEPT = 10_000  # how many of the latest times are kept, so that a run of days needs no more memory
_TICK = 0.2  # seconds


def _times() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class Progress:
    """How far a run is. read = answered + dropped, once it is over without a failure. seconds: from the first frame to
    the last written. failure: what ended the reading or answering before its time. The rest in seconds: how long the
    network waited for each frame, took for it, and how long drawing and writing it took.
    """

    read: int = 0
    answered: int = 0
    dropped: int = 0
    written: int = 0
    seconds: float = 0.0
    failure: BaseException | None = None
    waits: deque[float] = field(default_factory=_times)
    answering: deque[float] = field(default_factory=_times)
    delivering: deque[float] = field(default_factory=_times)

    @property
    def fps(self) -> float:
        return self.written / self.seconds if self.seconds else 0.0

    def summary(self) -> list[str]:
        """Lines to print at the end."""
        parts = {"capture wait": self.waits, "inference": self.answering, "drawing and writing": self.delivering}
        milliseconds = [f"{name} " + " / ".join(f"{1000 * value:.1f}" for value in np.percentile(times, [50, 90]))
                        for name, times in parts.items() if times]
        return [f"frames: {self.read} read, {self.answered} answered, {self.dropped} dropped",
                f"end to end: {self.fps:.1f} FPS ({self.written} frames in {self.seconds:.2f} s)",
                f"milliseconds (p50 / p90): {'  '.join(milliseconds)}"]


class FramePipeline:
    """Every frame of `source` through `answer` and `deliver`, each in a thread of its own, in order.

    Of a live source the latest frame is answered, and those that came before it are dropped; others lose none.
    most: stop after so many answers. stop: the source looks at it; once it is set no more frames are read, and what was
    read is answered and delivered.
    """

    def __init__(self, source: Source, answer: Callable[[Frame], T], deliver: Callable[[T], None], *,
                 stop: threading.Event, most: int | None = None) -> None:
        self.progress = Progress()
        self._source, self._answer, self._deliver = source, answer, deliver
        self._stop, self._most = stop, most
        self._frames: HandOver[Frame] = HandOver(1 if source.live else ROOM, latest=source.live)
        self._answers: HandOver[T] = HandOver(ROOM)
        self._undelivered: BaseException | None = None  # why
        self._start: float | None = None

    def run(self, show: Callable[[Progress], None] = lambda progress: None, *,
            stopped: Callable[[], bool] = lambda: False) -> Progress:
        """Run until the source ends. Raises what `deliver` raised.

        Where the source or `answer` raises, what was answered before is delivered: see `Progress.failure`.
        show: called from time to time, and once at the end. stopped: asked from time to time whether to stop.
        """
        steps = ((self._capture, self._read_failed), (self._infer, self._answer_failed),
                 (self._draw, self._draw_failed))
        threads = [threading.Thread(target=self._guarded, args=step, name=step[0].__name__.strip("_"), daemon=True)
                   for step in steps]
        for thread in threads:
            thread.start()
        try:
            while threads[-1].is_alive():
                threads[-1].join(_TICK)
                if stopped():
                    self._stop.set()
                if self._stop.is_set():
                    self._frames.finish()  # here too: the source may be waiting for a frame that does not come
                self.progress.dropped = self._frames.dropped
                show(self.progress)
        except BaseException:
            self._abandon()
            raise
        finally:
            for thread in threads:
                thread.join()
        self.progress.dropped = self._frames.dropped
        if self._undelivered is not None:
            raise self._undelivered
        show(self.progress)
        return self.progress

    def _guarded(self, work: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        try:
            work()
        except BaseException as error:  # told by `run`
            self._stop.set()
            failed(error)

    def _read_failed(self, error: BaseException) -> None:
        self.progress.failure = self.progress.failure or error
        self._frames.finish()  # what was read is answered

    def _answer_failed(self, error: BaseException) -> None:
        self.progress.failure = self.progress.failure or error
        self._frames.abandon()
        self._answers.finish()  # what was answered is delivered

    def _draw_failed(self, error: BaseException) -> None:
        self._undelivered = error
        self._abandon()

    def _abandon(self) -> None:
        self._stop.set()
        self._frames.abandon()
        self._answers.abandon()

    def _capture(self) -> None:
        frames = self._source.frames(self._stop)
        # Of a live source dropped frames do not count; the others are not read beyond what is asked for.
        for frame in frames if self._source.live else itertools.islice(frames, self._most):
            self._start = self._start or time.perf_counter()
            if not self._frames.put(frame):
                break
            self.progress.read += 1
        self._frames.finish()

    def _infer(self) -> None:
        progress = self.progress
        before = time.perf_counter()
        while (frame := self._frames.get()) is not None:
            begin = time.perf_counter()
            answer = self._answer(frame)
            end = time.perf_counter()
            progress.waits.append(begin - before)
            progress.answering.append(end - begin)
            progress.answered += 1
            if progress.answered == self._most:
                self._frames.abandon()
            if not self._answers.put(answer):
                break
            before = time.perf_counter()
        self._answers.finish()

    def _draw(self) -> None:
        progress = self.progress
        while (answer := self._answers.get()) is not None:
            begin = time.perf_counter()
            self._deliver(answer)
            end = time.perf_counter()
            progress.delivering.append(end - begin)
            progress.written += 1
            progress.seconds = end - self._start
