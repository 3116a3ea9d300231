"""The projector: features at four times the resolution, and a 3x3 kernel that the sentence makes.

B batch, C decoder width, M = C/2 mask channels, E sentence width, h = w = 4 x grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.checkpointing import run
from talent.model.upsampled import UpsampledConvBatchNorm

TAPS = 9  # of a 3x3 kernel
CENTRE = 4  # the tap that never meets the padding


def tap_shifts() -> Tensor:
    """[1, 9, 3, 3]: the convolution that moves each of nine maps to where its tap of a 3x3 kernel looks, and adds."""
    return torch.eye(TAPS).view(1, TAPS, 3, 3)


def dynamic_convolution(x: Tensor, kernel: Tensor, bias: Tensor, shifts: Tensor) -> Tensor:
    """A 3x3 convolution with one kernel a sample, zero padded, to one channel.

    x [B, h w, M], kernel [B, M, 9] (taps row by row), bias [B, 1, 9]: added to what each tap sees inside the picture,
    but not to the padding; shifts: `tap_shifts()` -> [B, 1, h, w] with h = w. A matrix product over the channels (nine
    maps) and one small convolution: unlike a grouped convolution with groups = B it exports with a dynamic batch.
    """
    side = math.isqrt(x.shape[1])
    maps = (x @ kernel + bias).transpose(1, 2).unflatten(2, (side, side))  # [B, 9, h, w]
    return F.conv2d(maps, shifts.to(maps.dtype), padding=1)


class Projector(nn.Module):
    """x [B, N, C] and the sentence's kernel -> logits [B, 1, h, w]."""

    def __init__(self, *, width: int, mask_width: int, sentence_width: int, grid: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.conv1 = UpsampledConvBatchNorm(width, width, size=grid)
        self.conv2 = UpsampledConvBatchNorm(width, mask_width, size=2 * grid)
        self.conv3: nn.Conv2d | None = nn.Conv2d(mask_width, mask_width, 1)
        self.txt = nn.Linear(sentence_width, TAPS * mask_width + 1)
        self.register_buffer("shifts", tap_shifts(), persistent=False)

    def prompt(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """state [B, E] -> kernel [B, M, 9] and bias [B, 1, 9] of the dynamic convolution on conv2's maps.

        The 1x1 convolution conv3 is in the kernel: nine products a pixel in the place of M + 9.
        """
        numbers = self.txt(state)
        if self.conv3 is None:  # folded into txt
            return numbers[:, :-TAPS].unflatten(1, (-1, TAPS)), numbers[:, None, -TAPS:]
        kernel = numbers[:, :-1].unflatten(1, (-1, TAPS))  # [B, M, 9], of conv3's maps
        offset = F.pad(numbers[:, None, -1:], (CENTRE, TAPS - 1 - CENTRE))  # the bias goes in by the centre tap
        seen = (kernel * self.conv3.bias[:, None]).sum(1, keepdim=True)  # [B, 1, 9]
        return (kernel.transpose(1, 2) @ self.conv3.weight.flatten(1)).transpose(1, 2), seen + offset

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = run(convolution, x, checkpointed=self.gradient_checkpointing)  # [B, h w, M] at last
        return dynamic_convolution(x, kernel, bias, self.shifts)
