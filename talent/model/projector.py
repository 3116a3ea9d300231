"""The projector: features at four times the resolution, and a 3x3 kernel that the sentence makes.

B batch, C decoder width, M = C/2 mask channels, E sentence width, h = w = 4 x grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.checkpointing import run
from talent.model.upsampled import UpsampledConvBatchNorm

TAPS = 9  # of a 3x3 kernel


def dynamic_convolution(x: Tensor, kernel: Tensor, bias: Tensor, tap_bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution with one kernel a sample, zero padded, to one channel.

    x [B, M, h, w], kernel [B, 9, M] (taps row by row), bias [B, 1] -> [B, 1, h, w]. tap_bias [B, 9]: added to what each
    tap sees inside the picture, but not to the padding. A matrix product over the channels (nine maps) and nine shifted
    adds: unlike a grouped convolution with groups = B it exports with a dynamic batch.
    """
    height, width = x.shape[2:]
    maps = (kernel @ x.flatten(2)).unflatten(2, (height, width))  # [B, 9, h, w]
    if tap_bias is not None:
        maps = maps + tap_bias[:, :, None, None]
    maps = F.pad(maps, (1, 1, 1, 1))
    total = bias[:, :, None]
    for tap in range(TAPS):
        dy, dx = divmod(tap, 3)
        total = total + maps[:, tap, dy:dy + height, dx:dx + width]  # [B, h, w]
    return total.unsqueeze(1)


class Projector(nn.Module):
    """x [B, N, C] and the sentence's kernel -> logits [B, 1, h, w]."""

    def __init__(self, *, width: int, mask_width: int, sentence_width: int, grid: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.grid = grid
        self.conv1 = UpsampledConvBatchNorm(width, width, size=grid)
        self.conv2 = UpsampledConvBatchNorm(width, mask_width, size=2 * grid)
        self.conv3 = nn.Conv2d(mask_width, mask_width, 1)
        self.txt = nn.Linear(sentence_width, TAPS * mask_width + 1)

    def prompt(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """state [B, E] -> kernel [B, 9, M] and bias [B, 1]."""
        numbers = self.txt(state)
        kernel = numbers[:, :-1].unflatten(1, (-1, TAPS)).transpose(1, 2)
        return kernel, numbers[:, -1:]

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        features = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B, C, grid, grid]
        for convolution in (self.conv1, self.conv2):
            features = run(convolution, features, checkpointed=self.gradient_checkpointing)  # [B, M, h, w] at last
        if torch.compiler.is_compiling():
            return dynamic_convolution(self.conv3(features), kernel, bias)
        # The 1x1 convolution goes into the sentence's kernel: 9 products per pixel in the place of M.
        joined = kernel @ self.conv3.weight.flatten(1)  # [B, 9, M]
        return dynamic_convolution(features, joined, bias, (kernel * self.conv3.bias).sum(2))
