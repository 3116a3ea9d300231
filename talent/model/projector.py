"""The projector: features at four times the resolution, and a 3x3 kernel that the sentence makes.

B batch, C decoder width, M = C/2 mask channels, E sentence width, h = w = 4 x grid.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.neck import ConvBatchNorm

TAPS = 9  # of a 3x3 kernel


def dynamic_convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with one kernel a sample, zero padded, to one channel.

    x [B, M, h, w], kernel [B, 9, M] (taps row by row), bias [B, 1] -> [B, 1, h, w]. A matrix product over the channels
    (nine maps) and nine shifted adds: unlike a grouped convolution with groups = B it exports with a dynamic batch.
    """
    height, width = x.shape[2:]
    maps = (kernel @ x.flatten(2)).unflatten(2, (height, width))  # [B, 9, h, w]
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
        self.grid = grid
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.conv1 = ConvBatchNorm(width, width)
        self.conv2 = ConvBatchNorm(width, mask_width)
        self.conv3 = nn.Conv2d(mask_width, mask_width, 1)
        self.txt = nn.Linear(sentence_width, TAPS * mask_width + 1)

    def prompt(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """state [B, E] -> kernel [B, 9, M] and bias [B, 1]."""
        numbers = self.txt(state)
        kernel = numbers[:, :-1].unflatten(1, (-1, TAPS)).transpose(1, 2)
        return kernel, numbers[:, -1:]

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B, C, grid, grid]
        features = self.conv3(self.conv2(self.up(self.conv1(self.up(grid)))))  # [B, M, h, w]
        return dynamic_convolution(features, kernel, bias)
