"""A 3x3 convolution of a map enlarged to twice its side, at a quarter of the arithmetic.

Enlarging works on places, the kernel's nine matrices on channels, so that their order is free: the nine products are
computed on the small map, then enlarged, shifted and added. B batch, C and O channels in and out, h x w the small map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from talent.model.fast_linear import linear
from talent.model.neck import ConvBatchNorm

REACH = 3  # taps of the kernel in each direction


def enlarging_taps(size: int) -> Tensor:
    """[3, 2 size, size]: what enlarging (bilinear, align_corners false) and then one tap of a padded kernel see."""
    enlarge = F.interpolate(torch.eye(size)[None], scale_factor=2, mode="linear", align_corners=False)[0].t()
    padded = F.pad(enlarge, (0, 0, 1, 1))  # the convolution's zeros above and below
    return torch.stack([padded[tap:tap + 2 * size] for tap in range(REACH)])


def column_taps(taps: Tensor) -> Tensor:
    """`enlarging_taps` for a product with what lies as [w 3, O]: [2w, w 3]."""
    return taps.permute(1, 2, 0).flatten(1)


def kernel_row(weight: Tensor, row: int) -> Tensor:
    """One row of a kernel [O, C, 3, 3], its three matrices above each other: [3 O, C]."""
    return weight[:, :, row].permute(2, 0, 1).flatten(0, 1)


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> Tensor:
    """conv3x3(enlarged map) with zero padding: x [B, h h, C], weight [O, C, 3, 3] -> [B, 2h, 2h, O].

    taps: `enlarging_taps(h)`.
    """
    batch, channels = len(x), len(weight)
    height = width = taps.shape[2]
    tall = None
    for row in range(REACH):
        products = linear(x, kernel_row(weight, row)).view(batch, height, width * REACH * channels)
        taps = taps.to(products.dtype)
        # in place, because the tall map is the largest of all and no gradient needs its partial sums
        tall = taps[row] @ products if tall is None else tall.baddbmm_(taps[row].expand(batch, -1, -1), products)
    enlarged = column_taps(taps) @ tall.view(batch * 2 * height, width * REACH, channels)  # [B 2h, 2w, O]
    if bias is not None:
        enlarged = enlarged + bias
    return enlarged.view(batch, 2 * height, 2 * width, channels)


class UpsampledConvBatchNorm(ConvBatchNorm):
    """Enlarging (bilinear), a 3x3 convolution without bias, BatchNorm, ReLU: [B, h h, C] -> [B, 2h 2h, O]. size: h."""

    def __init__(self, channels_in: int, channels_out: int, *, size: int):
        super().__init__(channels_in, channels_out)
        self.register_buffer("taps", enlarging_taps(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(x, self[0].weight)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """forward with another weight [O, C, 3, 3] in the place of the convolution's."""
        convolution, norm, activation = self
        y = upsampled_convolution(x, weight, convolution.bias, self.taps)  # [B, 2h, 2h, O]
        return activation(norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).flatten(1, 2)
