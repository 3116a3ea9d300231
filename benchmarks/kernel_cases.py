"""What benchmarks/kernels.py measures: the RCAs of the published networks, and how fast a card could be at best.

B batch, N image tokens, K words, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
GRAPH, CALLS = "graph", "calls"


@dataclass(frozen=True)
class Shape:
    """One RCA of a network. pixels: side of the picture, of which N is the number of patches of 14 pixels."""

    place: str
    pixels: int
    words: int
    width: int
    activation: str

    @property
    def tokens(self) -> int:
        return (self.pixels // 14) ** 2

    @property
    def label(self) -> str:
        return f"{self.place}, {self.pixels} px"


# `base` and `large` have the same widths here, so that these are both: 17 words in RefCOCO and RefCOCO+, 22 in
# RefCOCOg; the neck has one "word", the sentence.
SHAPES = tuple(Shape(place, pixels, words, width, activation) for pixels in (448, 518)
               for place, words, width, activation in (("block, 17 words", 17, 128, "none"),
                                                       ("block, 22 words", 22, 128, "none"), ("neck", 1, 512, "relu")))


@dataclass(frozen=True)
class Case:
    """A shape in a type (a key of BYTES) for so many pictures, each with its own words."""

    shape: Shape
    type: str
    batch: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, N, K, D)."""
        return self.batch, self.shape.tokens, self.shape.words, self.shape.width

    @property
    def bytes(self) -> int:
        """Of visual, text, weight, bias and output, each moved once."""
        batch, tokens, words, width = self.sizes
        return BYTES[self.type] * (2 * batch * tokens * width + batch * words * width + width * words + width)

    def floor_seconds(self, bandwidth: float, launch: float) -> float:
        """A kernel that moves everything once at the bandwidth of a copy [bytes/s], after an empty launch [s].

        A yardstick, not a bound: launches of a graph overlap in part, and nothing else than the launch is overhead.
        """
        return self.bytes / bandwidth + launch

    def sets(self, cache: int) -> int:
        """How many sets of inputs and outputs take twice a cache of so many bytes, so that none is found in it."""
        return max(2, math.ceil(2 * cache / self.bytes))


@dataclass(frozen=True)
class Row:
    """A way to compute RCA. how: GRAPH, replays of a CUDA graph of many calls; CALLS, called from Python each time."""

    name: str
    how: str

    @property
    def label(self) -> str:
        return self.name + ("*" if self.how == CALLS else "")


AUTO, SIMT, TENSOR_CORE = Row("auto", GRAPH), Row("SIMT", GRAPH), Row("tensor core", GRAPH)
CUBLAS, COMPILED = Row("cuBLAS", GRAPH), Row("compiled", GRAPH)
OPERATOR, COMPILED_CALLS, EAGER = Row("operator", CALLS), Row("compiled", CALLS), Row("eager", CALLS)
ROWS = {
    AUTO: "our kernel, the method that the library chooses",
    SIMT: "our kernel on the ordinary FP32 units",
    TENSOR_CORE: "our kernel on the matrix units",
    CUBLAS: "matmul, linear, relu and multiplication of PyTorch, which are cuBLAS and elementwise kernels",
    COMPILED: "the reference through torch.compile",
    OPERATOR: "our kernel as talent::rca_cost_aggregation, as the network calls it",
    COMPILED_CALLS: "the reference through torch.compile",
    EAGER: "the reference",
}

Timer = Callable[[], float]
"""Runs many calls and returns seconds per call."""


@dataclass(frozen=True)
class Contender:
    """timer: of many calls. error: relative norm of the difference from the reference in float64."""

    timer: Timer
    error: float


@dataclass
class Opened:
    """What computes a case on a machine, checked, and why the other rows cannot."""

    contenders: dict[Row, Contender]
    not_run: dict[Row, str]


class Machine(Protocol):
    """What is measured on."""

    copied_bytes: int
    """Bytes that one call of `copy` reads and writes."""

    def copy(self) -> float: ...

    def launch(self) -> float: ...

    def open(self, case: Case) -> Opened: ...

    def describe(self) -> dict[str, Any]: ...
