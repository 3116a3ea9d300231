"""From one thread to the next, a few things at a time."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class HandOver(Generic[Item]):
    """At most `size` things wait to be taken, in order. One thread puts, one takes.

    latest: False: who puts waits for room. True: who puts never waits; what waited longest is dropped for the new.
    `dropped` counts what came in and was never taken.
    """

    def __init__(self, size: int, *, latest: bool = False) -> None:
        if size < 1:
            raise ValueError(f"expected room for at least 1, received {size}")
        self._size, self._latest = size, latest
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._open = True
        self.dropped = 0

    def put(self, item: Item) -> bool:
        """Give something. False where it is not wanted any more."""
        with self._changed:
            if self._latest:
                while self._open and len(self._waiting) >= self._size:
                    self._waiting.popleft()
                    self.dropped += 1
            self._changed.wait_for(lambda: not self._open or len(self._waiting) < self._size)
            if not self._open:
                return False
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Item | None:
        """Wait for the next; None where none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        """Nothing will be put any more; what waits may still be taken. Twice is fine."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nothing will be taken any more; what waits is dropped."""
        with self._changed:
            self._open = False
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
