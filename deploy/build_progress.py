"""A progress bar for a build, and Ctrl-C that stops it.

A builder works in C++ and calls back from time to time. It runs in a thread of its own here, so that meanwhile this one
draws the bar, whose clock goes on through long steps, and hears Ctrl-C at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from talent.require import require

Result = TypeVar("Result")
_TICK = 0.2  # seconds


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """How far a builder is in its phases, which lie inside each other. Told by any thread.

    cancelled: set it, and the next step that is told stops the build.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """A step (counted from 0) is complete. False: stop the build."""
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
            self._furthest = max(self._furthest, self._part(None))
        return not self.cancelled.is_set()

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._open.pop(name, None)
            if phase is not None and phase.parent is None:
                self._furthest = 1.0

    @property
    def fraction(self) -> float:
        """How much of the outermost phase is done, from 0 to 1; it never falls."""
        return self._furthest

    def _part(self, parent: str | None) -> float:
        """The furthest phase inside `parent`; what is inside a phase counts as part of its next step."""
        return max((min(1.0, (phase.done + self._part(name)) / phase.steps)
                    for name, phase in self._open.items() if phase.parent == parent), default=0.0)


def run_with_bar(work: Callable[[], Result], phases: Phases, *, title: str, extra: str, measured: bool = True,
                 enabled: bool = True) -> Result:
    """Call `work`, which tells `phases`, and draw how far it is. Nothing is drawn where there is no terminal.

    measured: False where nothing tells `phases`: then the bar is a clock. extra: the pip extra that brings tqdm.
    Raises KeyboardInterrupt, once `work` is back, where Ctrl-C was pressed; a second Ctrl-C ends the process.
    """
    tqdm = require("tqdm", extra=extra).tqdm
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}" if measured else "{desc}: {elapsed}"
    with (_interruptible(phases.cancelled), ThreadPoolExecutor(max_workers=1) as pool,
          tqdm(total=1.0, desc=title, bar_format=layout, leave=False, disable=None if enabled else True) as bar):
        future = pool.submit(work)
        running = True
        while running:
            running = bool(wait([future], timeout=_TICK).not_done)
            bar.n = phases.fraction
            if phases.cancelled.is_set():
                bar.set_description_str(f"{title} (stopping)", refresh=False)
            bar.refresh()
        return future.result()


@contextlib.contextmanager
def _interruptible(cancelled: threading.Event) -> Iterator[None]:
    """Turn the first Ctrl-C into an event meanwhile, and into KeyboardInterrupt at the end; the second one kills.

    An exception must not cross the builder's C++ frames. Elsewhere than in the main thread Python allows no handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        cancelled.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if cancelled.is_set():
            raise KeyboardInterrupt
