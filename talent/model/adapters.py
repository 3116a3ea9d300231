"""The paper's adapters: small trainable paths beside frozen blocks. They cannot be merged into the backbone.

B batch, L words, N image tokens (grid x grid), P prefix tokens (class + registers), A adapter width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.broadcast import broadcast_batch
from talent.model.rca import RectifiedCostAggregator

BATCHNORM_EPS = 1e-3


class ConvBatchNormReLU(nn.Sequential):
    """Convolution ("same" padding, with bias), BatchNorm and ReLU, in one or two dimensions."""

    def __init__(self, conv: type[nn.Module], channels_in: int, channels_out: int, kernel: int):
        norm = nn.BatchNorm1d if conv is nn.Conv1d else nn.BatchNorm2d
        super().__init__(conv(channels_in, channels_out, kernel, padding=kernel // 2),
                         norm(channels_out, eps=BATCHNORM_EPS), nn.ReLU())


class DenseBranches(nn.Module):
    """Three densely connected branches whose outputs, side by side, are as wide as the input.

    Each branch sees the input and the outputs of the branches before it. squeeze: channels between the 1x1 and the
    k x k convolution of branches two and three.
    """

    def __init__(self, *, conv: type[nn.Module], width: int, squeeze: int):
        super().__init__()
        half, quarter = width // 2, width // 4
        self.branch1 = ConvBatchNormReLU(conv, width, half, 1)
        self.branch2 = nn.Sequential(ConvBatchNormReLU(conv, width + half, squeeze, 1),
                                     ConvBatchNormReLU(conv, squeeze, quarter, 3))
        self.branch3 = nn.Sequential(ConvBatchNormReLU(conv, width + half + quarter, squeeze, 1),
                                     ConvBatchNormReLU(conv, squeeze, quarter, 5))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, A, ...] -> [B, A, ...]."""
        b1 = self.branch1(x)
        b2 = self.branch2(torch.cat([x, b1], 1))
        b3 = self.branch3(torch.cat([x, b1, b2], 1))
        return torch.cat([b1, b2, b3], 1)


class TextAdapter(nn.Module):
    """`fc2(concat(z[0], branches(z[1:])) + z)` with `z = relu(fc1 x)`: [B, L, width] -> [B, L, width]."""

    def __init__(self, *, width: int, adapter_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, adapter_width)
        self.branches = DenseBranches(conv=nn.Conv1d, width=adapter_width, squeeze=adapter_width // 16)
        self.fc2 = nn.Linear(adapter_width, width)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.fc1(x))  # [B, L, A]
        dense = self.branches(z[:, 1:].transpose(1, 2)).transpose(1, 2)  # [B, L-1, A]
        return self.fc2(torch.cat([z[:, :1], dense], 1) + z)


class DenseImageAdapter(nn.Module):
    """The official image adapter: convolution branches, then RCA with the words, on the patch tokens."""

    def __init__(self, *, width: int, adapter_width: int, text_width: int, words: int, prefix: int, grid: int):
        super().__init__()
        self.prefix, self.grid = prefix, grid
        self.fc1 = nn.Linear(width, adapter_width)
        self.branches = DenseBranches(conv=nn.Conv2d, width=adapter_width, squeeze=adapter_width // 16)
        self.rca = RectifiedCostAggregator(text_width=text_width, words=words, width=adapter_width)
        self.fc2 = nn.Linear(adapter_width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B or 1, P+N, width], text [B, L, A] -> [B, P+N, width]."""
        return self.adapt(F.relu(self.fc1(x)), text)

    def adapt(self, z: Tensor, text: Tensor) -> Tensor:
        """What follows fc1: z [B or 1, P+N, A] -> [B, P+N, width]."""
        body = z[:, self.prefix:]
        grid = body.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B or 1, A, grid, grid]
        dense = self.branches(grid).flatten(2).transpose(1, 2)  # [B or 1, N, A]
        aggregated = self.rca(dense + body, text)  # [B, N, A]
        z = broadcast_batch(z, text)
        return self.fc2(torch.cat([2 * z[:, :self.prefix], aggregated + z[:, self.prefix:]], 1))


class RcaImageAdapter(nn.Module):
    """The light image adapter: `fc2(z + RCA(z))` with `z = relu(fc1 x)` on all tokens, no convolutions."""

    def __init__(self, *, width: int, adapter_width: int, text_width: int, words: int):
        super().__init__()
        self.fc1 = nn.Linear(width, adapter_width)
        self.rca = RectifiedCostAggregator(text_width=text_width, words=words, width=adapter_width)
        self.fc2 = nn.Linear(adapter_width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B or 1, P+N, width], text [B, L, A] -> [B, P+N, width]."""
        return self.adapt(F.relu(self.fc1(x)), text)

    def adapt(self, z: Tensor, text: Tensor) -> Tensor:
        """What follows fc1: z [B or 1, P+N, A] -> [B, P+N, width]."""
        return self.fc2(broadcast_batch(z, text) + self.rca(z, text))
