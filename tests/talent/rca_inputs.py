"""Seeded inputs of RCA for the tests of the operator and of its kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def arguments(batch: int, tokens: int, words: int, width: int, *, dtype: torch.dtype = torch.float64, seed: int = 0,
              device: str = "cpu") -> list[Tensor]:
    """visual [B, N, D], text [B, K, D], weight [D, K], bias [D], of a size that costs and gates stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (((batch, tokens, width), 1.0), ((batch, words, width), width ** -0.5),
              ((width, words), max(words, 1) ** -0.5), ((width,), 1.0))
    return [(scale * torch.randn(shape, generator=generator)).to(device, dtype) for shape, scale in shapes]
