"""What `fold` puts in the place of modules whose parts were multiplied into each other.

Each takes what the original takes and gives what it gives, up to rounding; only inference needs them. B batch, L words,
N image tokens, C width, h heads of d channels, O channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.attention import CrossAttention, attend
from talent.model.broadcast import broadcast_batch
from talent.model.decoder import PositionedSelfAttention
from talent.model.neck import ConvBatchNorm, CoordConvBatchNorm
from talent.model.upsampled import REACH, UpsampledConvBatchNorm, column_taps, kernel_row
from talent.model.vision import AdaptedBlock


def constant(value: Tensor) -> nn.Parameter:
    """A parameter that nobody trains, so that an exported graph has it under its name."""
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def without_norm(block: ConvBatchNorm) -> tuple[nn.Conv2d, nn.Module]:
    """The convolution, which has its BatchNorm in it already, and the activation."""
    convolution, norm, activation = block
    if not isinstance(norm, nn.Identity):
        raise RuntimeError("fold the BatchNorm first")
    return convolution, activation


class FoldedAttention(nn.Module):
    """Self-attention of either tower with its 1 / sqrt(d) in the queries' rows of `qkv`. Called as timm's blocks do."""

    def __init__(self, *, qkv: nn.Linear, proj: nn.Linear, heads: int):
        super().__init__()
        self.qkv, self.proj, self.heads = qkv, proj, heads
        for parameter in (qkv.weight, qkv.bias):
            parameter[:qkv.in_features].mul_((qkv.in_features // heads) ** -0.5)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [B, N, C] -> [B, N, C]."""
        assert not is_causal
        return self.proj(attend(*self.qkv(x).chunk(3, 2), self.heads, attn_mask, scale=1.0))


class FoldedBlock(nn.Module):
    """An image block with an adapter: both start with one product, because both read norm2's output.

    `inner`: fc1 of the MLP and of the adapter side by side. The biases of both last layers are one.
    """

    def __init__(self, block: AdaptedBlock):
        super().__init__()
        if block.ls_gate is not None:
            raise RuntimeError("fold the scales first")
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.activation, self.outer, self.adapter = block.mlp.act, block.mlp.fc2, block.adapter
        fc1s = (block.mlp.fc1, self.adapter.fc1)
        self.widths = [fc1.out_features for fc1 in fc1s]
        self.inner = nn.Linear(self.norm2.weight.shape[0], sum(self.widths))
        self.inner.weight = constant(torch.cat([fc1.weight for fc1 in fc1s]))
        self.inner.bias = constant(torch.cat([fc1.bias for fc1 in fc1s]))
        self.outer.bias = constant(self.outer.bias + self.adapter.fc2.bias)
        self.adapter.fc1 = self.adapter.fc2.bias = None

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B or 1, P+N, D], text [B, L, A] -> [B, P+N, D]."""
        x = x + self.attn(self.norm1(x))
        hidden, squeezed = self.inner(self.norm2(x)).split(self.widths, 2)
        x = x + self.outer(self.activation(hidden))
        return broadcast_batch(x, text) + self.adapter.adapt(F.relu(squeezed), text)


class FoldedSelfAttention(nn.Module):
    """Self-attention of a decoder layer with one product: the positions' share of queries and keys is a constant."""

    def __init__(self, attention: PositionedSelfAttention, positions: Tensor):
        super().__init__()
        self.heads, self.proj = attention.heads, attention.proj
        scale = (attention.q.out_features // attention.heads) ** -0.5
        weights = (attention.q.weight * scale, attention.k.weight, attention.v.weight)
        self.qkv = nn.Linear(attention.q.in_features, 3 * attention.q.out_features, bias=False)
        self.qkv.weight = constant(torch.cat(weights))
        placed = (attention.q(positions) * scale, attention.k(positions),
                  attention.v.bias.expand(len(positions), -1))
        self.placed = constant(torch.cat(placed, 1))  # [N, 3 C]

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, N, C] -> [B, N, C]. positions: those it was folded with."""
        return self.proj(attend(*(self.qkv(x) + self.placed).chunk(3, 2), self.heads, scale=1.0))


class FoldedCrossAttention(nn.Module):
    """Attention to the words with the queries' product in the keys, and the last product in the values.

    Both depend on the words alone, so that h L products a pixel take the place of C, twice.
    """

    def __init__(self, attention: CrossAttention):
        super().__init__()
        self.heads, self.k, self.v = attention.heads, attention.k, attention.v
        heads = (self.heads, -1)
        scale = (attention.q.out_features // self.heads) ** -0.5
        self.query = constant(attention.q.weight.unflatten(0, heads) * scale)  # [h, d, C]
        self.query_bias = constant(attention.q.bias.unflatten(0, heads)[:, :, None] * scale)  # [h, d, 1]
        self.out = constant(attention.proj.weight.t().unflatten(0, heads))  # [h, d, C]
        self.bias = constant(attention.proj.bias)

    def prompt(self, placed: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """words [B, L, W], with their positions and without -> keys [B, C, h L], their bias [B, 1, h L] and values
        [B, h L, C]."""
        key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.k(placed), self.v(words)))
        keys = (key @ self.query).flatten(1, 2).transpose(1, 2)  # [B, h, L, C] -> [B, C, h L]
        bias = (key @ self.query_bias).flatten(1).unsqueeze(1)  # [B, h, L, 1] -> [B, 1, h L]
        return keys, bias, (value @ self.out).flatten(1, 2)

    def forward(self, query: Tensor, keys: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        """query [B, N, C] and what `prompt` made -> [B, N, C]."""
        scores = (query @ keys + bias).unflatten(2, (self.heads, -1))  # [B, N, h, L]
        return scores.softmax(3).flatten(2) @ values + self.bias


class FoldedCoordConv(nn.Module):
    """The convolution of a map and its coordinates: what it makes of the coordinates is a constant."""

    def __init__(self, coord_conv: CoordConvBatchNorm):
        super().__init__()
        convolution, self.activation = without_norm(coord_conv)
        channels = convolution.in_channels - 2
        self.convolution = nn.Conv2d(channels, convolution.out_channels, 3, padding=1, bias=False)
        self.convolution.weight = constant(convolution.weight[:, :channels])
        self.located = constant(F.conv2d(coord_conv.coordinates, convolution.weight[:, channels:], convolution.bias,
                                         padding=1))  # [1, O, grid, grid]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, grid, grid] -> [B, O, grid, grid]."""
        return self.activation(self.convolution(x) + self.located)


class FoldedUpsampled(nn.Module):
    """`UpsampledConvBatchNorm` with its matrices laid out: one linear layer a kernel row, two products that enlarge."""

    def __init__(self, block: UpsampledConvBatchNorm):
        super().__init__()
        convolution, self.activation = without_norm(block)
        self.channels, self.size = convolution.out_channels, block.taps.shape[2]
        self.rows = nn.ModuleList()
        for row in range(REACH):
            matrix = kernel_row(convolution.weight, row)
            self.rows.append(nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
            self.rows[row].weight = constant(matrix)
        self.taller = constant(torch.cat(tuple(block.taps), 1))  # [2h, 3 h]
        self.wider = constant(column_taps(block.taps))  # [2h, h 3]
        self.bias = constant(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h h, C] -> [B, 2h 2h, O]."""
        products = torch.cat([row(x).unflatten(1, (self.size, self.size)).flatten(2) for row in self.rows], 1)
        tall = (self.taller @ products).unflatten(2, (-1, self.channels))  # [B, 2h, h 3, O]
        return self.activation(self.wider @ tall + self.bias).flatten(1, 2)
