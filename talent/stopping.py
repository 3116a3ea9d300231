"""Ctrl-C and SIGTERM as a request that a run answers at the end of its step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType


class StopRequest:
    """While the block runs, the first SIGINT or SIGTERM sets `signal` and nothing else; a second SIGINT interrupts.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    CAUGHT = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._received) for number in self.CAUGHT}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal:
            _say(f"\n{signal.Signals(number).name}: saving at the end of this step ...\n")
        self.signal = number


def _say(text: str) -> None:
    """To stderr past Python's buffer, which a handler must not enter: the signal may have come inside a print."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be no stderr
        os.write(sys.__stderr__.fileno(), text.encode())


def leave_signals_to_the_run(worker: int) -> None:
    """For DataLoader workers: a signal to the whole process group (Ctrl-C, torchrun, Slurm) is for the run alone.

    A worker that died of it would take away the batch that the run needs to end its step. SIGTERM ends a worker only
    when it comes from the run itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_run_says_so, daemon=True).start()


def _end_when_the_run_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
