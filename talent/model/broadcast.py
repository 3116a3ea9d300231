"""One picture for many expressions: its features meet the words of all of them."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("talent::broadcast_batch", mutates_args=())
def _broadcast(x: Tensor, like: Tensor) -> Tensor:
    """x [B or 1, N, C] -> [B, N, C], with B of `like`.

    An operator, because an exported graph has to take both: `expand` would have torch.export decide which one it is.
    """
    return x.expand(like.shape[0], -1, -1).clone()


@_broadcast.register_fake
def _(x: Tensor, like: Tensor) -> Tensor:
    return x.new_empty(like.shape[0], x.shape[1], x.shape[2])


def broadcast_batch(x: Tensor, like: Tensor) -> Tensor:
    """x [B or 1, N, C] -> [B, N, C], with the batch B of `like`."""
    if not torch.compiler.is_compiling():
        return x if x.shape[0] == like.shape[0] else x.expand(like.shape[0], -1, -1)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes half a second

    return x if statically_known_true(x.shape[0] == like.shape[0]) else _broadcast(x, like)
