"""What a backend is, and the agreement between the two graphs of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from talent.errors import UserError

TOKENS = "tokens"
IMAGE = "image"
LOGITS = "logits"
_AGAIN = "encode the sentence again, with this segmenter"
MOST_EXPRESSIONS = 64
"""Pictures or expressions that the ONNX files take at once."""


class Backend(Protocol):
    """Runs the two graphs. Prompt tensors pass through by name: a backend does not know what they mean.

    Several threads may call it at once. most_expressions: that `vision` takes at once. takes_pictures: whether it has
    `answer` (deploy/runtime/tensorrt.py), which goes from the photo to the masks by itself.
    """

    name: str
    most_expressions: int
    takes_pictures: bool

    def text(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B, L] -> the prompt tensors, arrays that the caller may keep."""

    def vision(self, image: np.ndarray, prompt: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [B or 1, 3, S, S] and the prompt tensors of B expressions -> logits float32 [B, 1, h, w] that the
        caller may keep."""

    def notes(self) -> tuple[str, ...]:
        """What is slower here than it could be, and why."""

    def close(self) -> None:
        """Free what the backend holds; closing twice is fine."""


def check_graphs(where: str, *, text_inputs: Mapping[str, object], text_outputs: Mapping[str, object],
                 vision_inputs: Mapping[str, object], vision_outputs: Mapping[str, object]) -> None:
    """Compare the names and element types (given in any form) of two graphs; UserError when they do not fit."""
    again = "export the bundle again with talent-export"
    if set(text_inputs) != {TOKENS} or IMAGE not in vision_inputs or LOGITS not in vision_outputs:
        raise UserError(f"{where}: expected text({TOKENS}) and vision({IMAGE}, ...) -> {LOGITS}, received "
                        f"text({', '.join(text_inputs)}) and vision({', '.join(vision_inputs)}) -> "
                        f"{', '.join(vision_outputs)}; {again}")
    wanted = {name: kind for name, kind in vision_inputs.items() if name != IMAGE}
    for name, kind in wanted.items():
        if name not in text_outputs:
            raise UserError(f"{where}: vision expects the prompt tensor {name!r}, which text does not make "
                            f"(it makes {', '.join(text_outputs)}); {again}")
        if text_outputs[name] != kind:
            raise UserError(f"{where}: vision expects {name!r} as {kind}, text makes {text_outputs[name]}; {again}")
    if unused := set(text_outputs) - set(wanted):
        names = ", ".join(sorted(unused))
        raise UserError(f"{where}: text makes prompt tensors that vision does not take: {names}; {again}")


def rows(prompt: Mapping[str, np.ndarray]) -> int:
    """Expressions that prompt tensors are of. Raises UserError where they differ."""
    counts = {len(tensor) for tensor in prompt.values()}
    if len(counts) != 1:
        raise UserError(f"expected prompt tensors of as many expressions each, received {sorted(counts)}; {_AGAIN}")
    return counts.pop()


def check_prompt(prompt: Mapping[str, np.ndarray], wanted: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError unless prompt tensors have these names, and these shapes behind their first dimension."""
    received = {name: tuple(tensor.shape[1:]) for name, tensor in prompt.items()}
    if received != {name: tuple(shape) for name, shape in wanted.items()}:
        raise UserError(f"expected prompt tensors {_listed(wanted)} of each expression, received {_listed(received)}: "
                        f"the prompt was made with another bundle; {_AGAIN}")


def check_alike(prompts: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Raise UserError unless all of these have the names and shapes of the first."""
    for prompt in prompts[1:]:
        check_prompt(prompt, {name: tensor.shape[1:] for name, tensor in prompts[0].items()})


def _listed(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "none"
