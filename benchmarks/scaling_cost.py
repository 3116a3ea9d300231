"""What scaling.py expects of the vision graph: its arithmetic as work grows, in closed form, and the time by that.

prompts: what comes before the first words is computed once for a picture, the rest once for each expression: a line.
size: an input of S pixels makes g x g image tokens, g = S / 14. Linear layers and convolutions take every token once
(g^2), the two products of self-attention every pair of tokens (g^4), and the folded enlarging of the projector, a
product with a matrix of 2g x g for each row, makes g^3. batch: every picture alike.

The coefficients are not written down but solved from `deploy.cost.network_cost` of the network as it is exported. Torch
is imported where that is done: the report, which only names the curves, needs none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from talent.checkpoint import Checkpoint
    from talent.model import TalentModel

PROMPTS, SIZE, BATCH = "prompts", "size", "batch"
SERIES = (PROMPTS, SIZE, BATCH)
LABELS = {PROMPTS: "prompts per picture", SIZE: "input, pixels a side", BATCH: "pictures together"}
TERMS = {PROMPTS: {"once a picture": 0, "for each expression": 1},
         SIZE: {"whatever the size": 0, "for each token": 2, "enlarging": 3, "for each pair of tokens": 4},
         BATCH: {"once": 0, "for each picture": 1}}
"""Parts of the arithmetic of each series, and their powers of `variable`."""
SUPPORT = {PROMPTS: (1, 2), SIZE: (224, 322, 420, 518), BATCH: (1, 2)}
"""Where the arithmetic is counted: at as many values as there are terms."""


def variable(series: str, value: float) -> float:
    """What a series is a polynomial in: the number of prompts or pictures, or the image tokens a side of a size.

    Between the values that there are it is a fraction, for a curve that is drawn.
    """
    if series != SIZE:
        return value
    from talent.model.vision import PATCH

    return value / PATCH


@dataclass(frozen=True)
class Curve:
    """GFLOP of the vision graph as a polynomial in `variable`. coefficients: of the series' terms, in their order."""

    series: str
    coefficients: tuple[float, ...]

    def parts(self, value: float) -> dict[str, float]:
        """GFLOP of each term at a number of prompts, of pixels or of pictures."""
        x = variable(self.series, value)
        return {name: coefficient * x ** power
                for (name, power), coefficient in zip(TERMS[self.series].items(), self.coefficients, strict=True)}

    def gflop(self, value: float) -> float:
        return sum(self.parts(value).values())


def exported_network(checkpoint: Checkpoint, image_size: int) -> TalentModel:
    """A copy of the network as `deploy.pipeline` exports it for this input size: LoRA merged, everything folded."""
    from deploy.fold import fold
    from talent.image_size import resized
    from talent.model.fast_linear import set_fast_linear
    from talent.model.lora import merge_lora

    model = copy.deepcopy(resized(checkpoint, image_size).model)
    merge_lora(model)
    set_fast_linear(model, False)
    fold(model)
    return model


def count(model: TalentModel, *, image_size: int, context_length: int, pictures: int, prompts: int) -> float:
    """GFLOP of the vision graph for one picture or as many as prompts."""
    import torch

    from deploy.cost import network_cost

    image = torch.zeros(pictures, 3, image_size, image_size)
    tokens = torch.ones(prompts, context_length, dtype=torch.int64)
    return network_cost(model, image, tokens)["vision"].flop / 1e9


def curves(checkpoint: Checkpoint, series: Sequence[str],
           progress: Callable[[], object] = lambda: None) -> dict[str, Curve]:
    """The curve of each series; prompts and pictures at the checkpoint's own size. progress: called after a count."""
    config = checkpoint.config
    networks: dict[int, TalentModel] = {}

    def at(name: str, value: int) -> float:
        size = value if name == SIZE else config.image_size
        if size not in networks:
            networks.clear()  # one in memory at a time
            networks[size] = exported_network(checkpoint, size)
        gflop = count(networks[size], image_size=size, context_length=config.context_length,
                      pictures=value if name == BATCH else 1, prompts=1 if name == SIZE else value)
        progress()
        return gflop

    return {name: solve(name, {value: at(name, value) for value in SUPPORT[name]}) for name in series}


def solve(series: str, counted: Mapping[int, float]) -> Curve:
    """The polynomial through GFLOP that were counted at as many values as it has terms."""
    powers = np.array([[float(variable(series, value)) ** power for power in TERMS[series].values()]
                       for value in counted])  # [value, term]
    return Curve(series, tuple(float(value) for value in np.linalg.solve(powers, np.array([*counted.values()]))))


def predict(curve: Curve, measured: Mapping[int, float], *, usual: int) -> tuple[int, dict[int, float]]:
    """(where the prediction is what was measured, milliseconds that the arithmetic predicts at every value).

    measured: milliseconds by value. That place is the usual value, or else the nearest that was measured.
    """
    anchor = min(measured, key=lambda value: abs(value - usual))
    scale = measured[anchor] / curve.gflop(anchor)  # milliseconds a GFLOP
    return anchor, {value: scale * curve.gflop(value) for value in measured}


def line(measured: Mapping[int, float]) -> tuple[float, float] | None:
    """(milliseconds once, milliseconds for each) of the straight line that fits best.

    None for a single value, and where the line would have it that less than nothing happens once: it is none then.
    """
    if len(measured) < 2:
        return None
    each, once = np.polyfit(list(measured), list(measured.values()), 1)
    return (float(once), float(each)) if once >= 0 else None
