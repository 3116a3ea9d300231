"""The neck: three maps meet the sentence, then each other.

B batch, N = grid x grid tokens, D image width, C neck width, E sentence width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.rca import aggregate_costs


class LinearBatchNorm(nn.Module):
    """A 1x1 convolution without bias and its BatchNorm, on tokens: [B, N, in] -> [B, N, out]."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.BatchNorm1d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).view_as(y)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The one linear layer that both are with the running statistics: weight [out, in], bias [out]."""
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.linear.weight * scale[:, None], self.norm.bias - self.norm.running_mean * scale


class ConvBatchNorm(nn.Sequential):
    """A 3x3 convolution without bias, BatchNorm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                         nn.BatchNorm2d(channels_out), nn.ReLU())


class CoordConvBatchNorm(ConvBatchNorm):
    """`ConvBatchNorm` of the map and, behind its channels, the place of every pixel: x, then y, each from -1 to 1."""

    def __init__(self, channels_in: int, channels_out: int, *, grid: int):
        super().__init__(channels_in + 2, channels_out)
        line = torch.linspace(-1, 1, grid)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("coordinates", torch.stack([x, y])[None], persistent=False)  # [1, 2, grid, grid]

    def forward(self, x: Tensor) -> Tensor:
        coordinates = self.coordinates.expand(x.shape[0], -1, -1, -1).to(x.dtype)
        return super().forward(torch.cat([x, coordinates], 1))


class SentenceFusion(nn.Module):
    """RCA with one word, the sentence: `relu(bn(w <v, t>)) * v`."""

    def __init__(self, *, width: int):
        super().__init__()
        self.text = nn.Linear(width, width, bias=False)
        self.gate: LinearBatchNorm | nn.Linear = LinearBatchNorm(1, width)

    def prompt(self, sentence: Tensor) -> Tensor:
        """sentence [B, C] -> t [B, 1, C]."""
        return F.relu(self.text(sentence)).unsqueeze(1)

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """visual [B or 1, N, C], text [B, 1, C] -> [B, N, C]."""
        if self.training:  # BatchNorm needs the statistics of this batch, so that it cannot be folded
            cost = visual @ text.transpose(1, 2)  # [B, N, 1]
            return F.relu(self.gate(cost)) * visual
        gate = self.gate
        weight, bias = (gate.weight, gate.bias) if isinstance(gate, nn.Linear) else gate.folded()
        return aggregate_costs(visual, text, weight, bias, "relu")


@dataclass(frozen=True)
class NeckOutput:
    """scales: three maps [B, N, C] after the fusion with the sentence. aggregated: their 1x1 aggregation [B, N, C].
    features: the neck's result [B, N, C]."""

    scales: tuple[Tensor, ...]
    aggregated: Tensor
    features: Tensor


class Neck(nn.Module):
    """taps (three [B, N, D]) and the sentence's vectors -> NeckOutput. grid: tokens per side."""

    def __init__(self, *, image_width: int, sentence_width: int, width: int, grid: int):
        super().__init__()
        self.txt_proj = nn.Linear(sentence_width, width)
        self.projections = nn.ModuleList(LinearBatchNorm(image_width, width) for _ in range(3))
        self.fusions = nn.ModuleList(SentenceFusion(width=width) for _ in range(3))
        self.aggregation = LinearBatchNorm(3 * width, width)
        self.grid = grid
        self.coord_conv = nn.Sequential(CoordConvBatchNorm(width, width, grid=grid), ConvBatchNorm(width, width))

    def prompt(self, state: Tensor) -> tuple[Tensor, ...]:
        """state [B, E] -> three t [B, 1, C]."""
        sentence = self.txt_proj(state)
        return tuple(fusion.prompt(sentence) for fusion in self.fusions)

    def forward(self, taps: tuple[Tensor, ...], texts: tuple[Tensor, ...]) -> NeckOutput:
        scales = tuple(fusion(F.relu(project(tap)), text) for tap, project, fusion, text
                       in zip(taps, self.projections, self.fusions, texts, strict=True))
        aggregated = F.relu(self.aggregation(torch.cat(scales, 2)))  # [B, N, C]
        grid = aggregated.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [B, C, grid, grid]
        located = self.coord_conv(grid).flatten(2).transpose(1, 2)  # [B, N, C]
        return NeckOutput(scales=scales, aggregated=aggregated, features=aggregated + located)
