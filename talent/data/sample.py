"""What every data set yields: one picture, one object that is meant, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
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


class Subset:
    """The samples of a data set with these indices, in their order."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return self.samples[self.indices[index]]


def evenly(length: int, count: int) -> list[int]:
    """`count` places at even distances in 0..length-1."""
    return [number * length // count for number in range(count)]
