"""The decoder: image tokens attend to each other and to the words.

B batch, N = grid x grid tokens, L words, C width, W text width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from talent.model.attention import CrossAttention, attend
from talent.model.checkpointing import run


def sine_positions(length: int, width: int) -> Tensor:
    """Fixed positions [length, width]: even channels sin, odd cos, frequencies 10000^(-2i/width)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(position * frequency), torch.cos(position * frequency)], 2).flatten(1)


def sine_positions_2d(grid: int, width: int) -> Tensor:
    """Fixed positions [grid * grid, width]: the first half of the channels says x, the second y."""
    line = sine_positions(grid, width // 2)  # [grid, width/2]
    x = line[None, :, :].expand(grid, -1, -1)
    y = line[:, None, :].expand(-1, grid, -1)
    return torch.cat([x, y], 2).flatten(0, 1)


class PositionedSelfAttention(nn.Module):
    """Self-attention whose queries and keys carry the positions and whose values do not."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        placed = x + positions
        return self.proj(attend(self.q(placed), self.k(placed), self.v(x), self.heads))


class DecoderLayer(nn.Module):
    """Pre-norm layer; each attention's output passes another LayerNorm before the residual."""

    def __init__(self, *, width: int, heads: int, text_width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attn = PositionedSelfAttention(width=width, heads=heads)
        self.self_attn_norm = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width=width, heads=heads, source_width=text_width)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(hidden),
                                 nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, *prompt: Tensor) -> Tensor:
        """prompt: what `cross_attn` made of the words."""
        x = x + self.dropout(self.self_attn_norm(self.self_attn(self.norm1(x), positions)))
        x = x + self.dropout(self.cross_attn_norm(self.cross_attn(self.norm2(x) + positions, *prompt)))
        return x + self.dropout(self.ffn(self.norm3(x)))


class Decoder(nn.Module):
    """x [B, N, C] with what the cross-attentions made of the words -> [B, N, C]."""

    def __init__(self, *, layers: int, width: int, heads: int, text_width: int, words: int, hidden: int, grid: int,
                 dropout: float):
        super().__init__()
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(
            DecoderLayer(width=width, heads=heads, text_width=text_width, hidden=hidden, dropout=dropout)
            for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("image_positions", sine_positions_2d(grid, width), persistent=False)
        self.register_buffer("word_positions", sine_positions(words, text_width), persistent=False)

    def prompt(self, words: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Keys and values of every layer's cross-attention: words [B, L, W] -> [B, L, C] each."""
        placed = words + self.word_positions[:words.shape[1]].to(words.dtype)
        return tuple(layer.cross_attn.prompt(placed, words) for layer in self.layers)

    def forward(self, x: Tensor, prompts: tuple[tuple[Tensor, ...], ...]) -> Tensor:
        positions = self.image_positions.to(x.dtype)
        for layer, prompt in zip(self.layers, prompts, strict=True):
            x = run(layer, x, positions, *prompt, checkpointed=self.gradient_checkpointing)
        return self.norm(x)
