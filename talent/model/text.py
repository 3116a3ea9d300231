"""The text tower: CLIP's text transformer (weights and sizes from open_clip), with an adapter in some blocks.

B batch, L words, W text width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talent.model.adapters import TextAdapter
from talent.model.attention import SelfAttention
from talent.model.checkpointing import run
from talent.model.recording import frozen_prefix, recorded

ADAPTER_SCALE = 0.2
MASKED = -1e4  # exp() of it is exactly zero in every floating type, and it fits in half precision


@dataclass(frozen=True)
class TextFeatures:
    """words [B, L, W], every word's feature; state [B, E], the sentence in the joint space."""

    words: Tensor
    state: Tensor


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU of the original CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    def __init__(self, *, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = QuickGELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TextBlock(nn.Module):
    """`x + attn(ln1 x)`, then `x + mlp(ln2 x) + 0.2 * adapter(x)`. Linear names as in timm, so that LoRA finds them."""

    def __init__(self, *, width: int, heads: int, adapter_width: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width=width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width=width)
        self.adapter = TextAdapter(width=width, adapter_width=adapter_width) if adapter_width else None
        self.adapter_scale = ADAPTER_SCALE

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        y = x + self.mlp(self.norm2(x))
        return y if self.adapter is None else y + self.adapter_scale * self.adapter(x)


class TextTower(nn.Module):
    """tokens [B, L] int64 (zero padded, the end token has the largest id) -> TextFeatures.

    adapter_blocks: 0-based numbers of the blocks with an adapter of width `adapter_width`.
    """

    def __init__(self, *, vocab_size: int, context_length: int, width: int, heads: int, layers: int, embed: int,
                 adapter_blocks: tuple[int, ...], adapter_width: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(
            TextBlock(width=width, heads=heads, adapter_width=adapter_width if i in adapter_blocks else None)
            for i in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed))
        mask = torch.full((context_length, context_length), MASKED).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width ** -0.5)

    def _frozen_stages(self) -> int:
        """How many of the embedding and the blocks, in this order, need no record in training."""
        if not self.training:
            return 0
        embedding = (self.token_embedding.weight, self.positional_embedding)
        return frozen_prefix([embedding, *(block.parameters() for block in self.blocks)])

    def forward(self, tokens: Tensor) -> TextFeatures:
        length = tokens.shape[1]
        mask = self.mask[:length, :length]
        frozen = self._frozen_stages()
        with recorded(frozen == 0):
            x = self.token_embedding(tokens) + self.positional_embedding[:length]  # [B, L, W]
        for number, block in enumerate(self.blocks, 1):
            with recorded(number >= frozen):
                x = run(block, x, mask, checkpointed=self.gradient_checkpointing)
        words = self.ln_final(x)
        end = tokens.argmax(1)  # [B]
        last = words.gather(1, end[:, None, None].expand(-1, 1, words.shape[2])).squeeze(1)  # [B, W]
        return TextFeatures(words=words, state=last @ self.text_projection)


def from_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename CLIP's text weights (`transformer.resblocks...`, open_clip's and OpenAI's names) to this tower's."""
    renamed = {}
    for key, value in state.items():
        for old, new in (("transformer.resblocks.", "blocks."), (".ln_1.", ".norm1."), (".ln_2.", ".norm2."),
                         (".attn.in_proj_", ".attn.qkv."), (".attn.out_proj.", ".attn.proj."),
                         (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2.")):
            key = key.replace(old, new)
        renamed[key] = value
    return renamed
