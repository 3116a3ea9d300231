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


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> Tensor:
    """conv3x3(enlarged x) with zero padding: x [B, C, h, h], weight [O, C, 3, 3] -> [B, O, 2h, 2h], channels last.

    taps: `enlarging_taps(h)`.
    """
    batch, _, height, width = x.shape
    channels = weight.shape[0]
    places = x.flatten(2).transpose(1, 2)  # [B, hw, C]
    tall = None
    for row in range(REACH):
        kernels = weight[:, :, row].permute(2, 0, 1).flatten(0, 1)  # [3 O, C]
        products = linear(places, kernels).view(batch, height, width * REACH * channels)
        taps = taps.to(products.dtype)
        # in place, because the tall map is the largest of all and no gradient needs its partial sums
        tall = taps[row] @ products if tall is None else tall.baddbmm_(taps[row].expand(batch, -1, -1), products)
    wide = taps.permute(1, 2, 0).flatten(1)  # [2w, w 3]
    enlarged = wide @ tall.view(batch * 2 * height, width * REACH, channels)  # [B 2h, 2w, O]
    if bias is not None:
        enlarged = enlarged + bias
    return enlarged.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class UpsampledConvBatchNorm(ConvBatchNorm):
    """Enlarging (bilinear), a 3x3 convolution without bias, BatchNorm, ReLU: [B, C, h, h] -> [B, O, 2h, 2h].

    size: h. Exported graphs have the enlarging and the convolution as such: inference engines have kernels for them.
    """

    def __init__(self, channels_in: int, channels_out: int, *, size: int):
        super().__init__(channels_in, channels_out)
        self.register_buffer("taps", enlarging_taps(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, activation = self
        if torch.compiler.is_compiling():
            enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            return activation(norm(convolution(enlarged)))
        return activation(norm(upsampled_convolution(x, convolution.weight, convolution.bias, self.taps)))
