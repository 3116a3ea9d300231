"""Multi-head attention with separate query, key and value products, on PyTorch's fused kernel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None,
           scale: float | None = None) -> Tensor:
    """softmax(scale q k^T + mask) v over `heads` heads: [B, Nq, C], [B, Nk, C] twice -> [B, Nq, C].

    scale: None for 1 / sqrt(d).
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # [B, heads, N, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention with one product for query, key and value (`qkv`, `proj`, as timm names them)."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, 2), self.heads, mask))


class CrossAttention(nn.Module):
    """Attention whose part of the words is computed ahead (`prompt`) and kept for many calls."""

    def __init__(self, *, width: int, heads: int, source_width: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(source_width, width)
        self.v = nn.Linear(source_width, width)
        self.proj = nn.Linear(width, width)

    def prompt(self, placed: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """words [B, L, source_width], with their positions and without -> key and value [B, L, width]."""
        return self.k(placed), self.v(words)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, N, width]; key and value from `prompt`."""
        return self.proj(attend(self.q(query), key, value, self.heads))
