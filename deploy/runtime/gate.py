"""Many may be inside at once; who closes it waits until all of them have left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ClosedError(RuntimeError):
    """Who came too late."""


class Gate:
    """Open from the start. what: names what it leads to, for the error of those who come too late."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._changed = threading.Condition()
        self._inside = 0
        self._open = True

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for the length of a block. Raises ClosedError where it is closed."""
        with self._changed:
            if not self._open:
                raise ClosedError(f"{self._what} is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more, and wait until nobody is inside. Must not be called from inside."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: self._inside == 0)
