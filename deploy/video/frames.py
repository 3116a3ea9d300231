"""What a source of pictures is, and what it gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

DEFAULT_FPS = 30.0  # of what does not say its own


@dataclass(frozen=True)
class Frame:
    """index: its number in the source, from 0. seconds: since the first frame. image: uint8 [H, W, 3] RGB, upright.
    name: of its file in a folder, else "".
    """

    index: int
    seconds: float
    image: np.ndarray
    name: str = ""


class Source(Protocol):
    """name: to be shown. live: frames come by themselves and cannot wait. fps: of its frames, as far as it is known.
    length: how many frames there are, None where nobody knows. notes: what went wrong so far, a line each. complete:
    False once frames are lost for good.
    """

    name: str
    live: bool
    fps: float
    length: int | None
    notes: list[str]
    complete: bool

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """All frames, or those until `stop` is set."""
        ...

    def close(self) -> None: ...
