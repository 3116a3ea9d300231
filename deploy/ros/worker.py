"""A thread that computes, so that who brings pictures never waits; of the pictures only the newest does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from deploy.ros.pipeline import Answer, Pipeline, reason


class RateLimit:
    """Lets through so many per second at most; 0 for all."""

    def __init__(self, rate: float) -> None:
        self._period = 1 / rate if rate > 0 else 0.0
        self._due = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether what comes at `now` (seconds) goes through.

        What comes late lets the next come early: else 10 of a camera's 30 pictures per second would become 7.5.
        """
        if now < self._due:
            return False
        self._due = (self._due if now - self._due < self._period else now) + self._period
        return True


class Worker:
    """Runs a pipeline on the newest picture that was offered, between `start` and `stop`.

    publish: called with each answer, and tell: with each problem in one line, both from the worker's own thread.
    rate: pictures per second that are taken at most; 0 for no limit. clock: seconds that never run backwards.
    """

    def __init__(self, pipeline: Pipeline, *, publish: Callable[[Answer], None], tell: Callable[[str], None],
                 rate: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._publish = publish
        self._tell = tell
        self._limit = RateLimit(rate)
        self._clock = clock
        self._changed = threading.Condition()
        self._picture: Any = None  # that waits
        self._sentence: str | None = None  # that waits
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="talent", daemon=True)

    def start(self) -> None:
        self._pipeline.health.begin()
        self._thread.start()

    def stop(self) -> None:
        """Wait for the picture under way; the one that waits is dropped, a sentence that waits is still taken."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def offer(self, message: Any) -> None:
        """A picture has come: it takes the place of the one that waits. Returns at once."""
        with self._changed:
            if self._stopping or not self._limit.allows(self._clock()):
                self._pipeline.health.dropped(by_rate=not self._stopping)
                return
            if self._picture is not None:
                self._pipeline.health.dropped()
            self._picture = message
            self._changed.notify()

    def change_sentence(self, sentence: str) -> None:
        """Look for this from the next picture on; an empty one pauses. Returns at once."""
        with self._changed:
            self._sentence = sentence
            self._changed.notify()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._picture is not None or self._sentence is not None)
                stopping = self._stopping
                sentence, self._sentence = self._sentence, None
                message, self._picture = self._picture, None
            if sentence is not None:
                self._attempt("the sentence was refused", self._pipeline.change_sentence, sentence)
            if message is not None and stopping:
                self._pipeline.health.dropped()
            elif message is not None:
                self._attempt("a picture was not answered", self._answer, message)

    def _answer(self, message: Any) -> None:
        answer = self._pipeline.answer(message)
        if answer is not None:
            self._publish(answer)

    def _attempt(self, failure: str, step: Callable[[Any], None], argument: Any) -> None:
        try:
            step(argument)
        except Exception as error:  # whatever it is, a robot wants the next picture answered
            self._tell(f"{failure}: {reason(error)}")
