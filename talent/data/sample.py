"""What every data set yields: one picture, one object that is meant, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One referred object.

    image: uint8 [H, W, 3] RGB. mask: bool [H, W], the object that is meant. expressions: every sentence for it (at
    least one). negatives: sentences for other objects of the same picture (may be empty). others: masks (bool [H, W])
    of the other objects of the target's category, the ones that a wrong answer lights up. name: where the sample comes
    from, for messages ("kitchen.jpg, line 7").
    """

    image: np.ndarray
    mask: np.ndarray
    expressions: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    others: tuple[np.ndarray, ...] = field(default=())
    name: str = ""


class Samples(Protocol):
    """A data set: `samples[i]` for 0 <= i < len(samples) reads or makes one Sample; the same index gives the same."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
