"""What autograd records of the towers: nothing of the frozen part before the first block that is trained."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor


def frozen_prefix(stages: Iterable[Iterable[Tensor]]) -> int:
    """How many leading stages hold no tensor that requires grad. A stage: the parameters and inputs of a module.

    The inputs count because a gradient may be asked for through them: the texts of an image adapter carry the
    gradient of the text tower even where the adapter itself is frozen.
    """
    return sum(1 for _ in itertools.takewhile(lambda stage: not any(tensor.requires_grad for tensor in stage), stages))


def recorded(wanted: bool) -> contextlib.AbstractContextManager:
    """A context in which autograd records (as it would anyway) or does not. Only the second changes anything."""
    return contextlib.nullcontext() if wanted else torch.no_grad()
