"""Gradient checkpointing: a block keeps its inputs only and is computed again in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PARTS = ("text", "vision", "decoder", "projector")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def set_gradient_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Checkpoint every block of both towers, every decoder layer and both convolutions of the projector, or stop it.

    Losses, gradients and BatchNorm statistics stay what they are; a training step takes about a third longer (each
    block is computed twice) and keeps one tensor per block. Without effect where no gradient is recorded.
    """
    for name in PARTS:
        getattr(model, name).gradient_checkpointing = enabled


def run(block: nn.Module, *inputs: Tensor, checkpointed: bool) -> Tensor:
    """`block(*inputs)`, checkpointed where that is asked for and a gradient is wanted of a parameter or an input."""
    if not checkpointed or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return block(*inputs)
    if not any(tensor.requires_grad for tensor in (*inputs, *block.parameters())):
        return block(*inputs)
    # The second computation draws the same dropout: `checkpoint` keeps the state of the random generators.
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=functools.partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _unchanged_statistics(block)


@contextlib.contextmanager
def _unchanged_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm has seen this batch already: the second computation updates copies, which are thrown away.

    Copies rather than no statistics at all, so that both computations hand autograd the same tensors to keep.
    """
    tracking = [module for module in block.modules()
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    kept = [{name: getattr(module, name) for name in STATISTICS} for module in tracking]
    try:
        for module, statistics in zip(tracking, kept, strict=True):
            for name, value in statistics.items():
                setattr(module, name, value.clone())
        yield
    finally:
        for module, statistics in zip(tracking, kept, strict=True):
            for name, value in statistics.items():
                setattr(module, name, value)
