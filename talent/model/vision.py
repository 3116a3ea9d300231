"""The image tower: a DINOv2 ViT with registers (timm), with text-conditioned adapters in some blocks.

B batch, N = grid x grid image tokens, P = 5 prefix tokens (class + 4 registers), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.adapters import DenseImageAdapter, RcaImageAdapter
from talent.model.checkpointing import run
from talent.model.recording import frozen_prefix, recorded

PATCH = 14
PREFIX = 5
GATE = 0.2  # initial value of ls_gate, frozen in the published training


class AdaptedBlock(nn.Module):
    """A timm block, an adapter beside its MLP: `x + ls2 * (mlp(h) + gate * adapter(h, text))` with `h = norm2 x`."""

    def __init__(self, block: nn.Module, adapter: nn.Module, width: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        self.adapter = adapter
        self.ls_gate = nn.Parameter(torch.full((width,), GATE), requires_grad=False)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        h = self.norm2(x)
        adapted = self.adapter(h, text)
        if self.ls_gate is not None:  # None once it is folded into the adapter
            adapted = self.ls_gate * adapted
        return x + self.ls2(self.mlp(h) + adapted)


class VisionTower(nn.Module):
    """image [B or 1, 3, S, S] and the adapters' texts -> three maps [B, N, D] (taps, one picture for what no text met).

    backbone: a timm VisionTransformer with 4 registers and no class position. adapter: "dense", "rca" or "none".
    """

    def __init__(self, backbone: nn.Module, *, image_size: int, adapter: str, adapter_blocks: tuple[int, ...],
                 adapter_width: int, text_width: int, words: int, taps: tuple[int, ...]):
        super().__init__()
        width = backbone.embed_dim
        self.gradient_checkpointing = False
        self.grid = image_size // PATCH
        self.taps = taps
        self.patch_embed = backbone.patch_embed.proj
        self.cls_token = backbone.cls_token
        self.reg_token = backbone.reg_token
        self.pos_embed = backbone.pos_embed  # [1, pretraining grid^2, D]
        self.norm = backbone.norm
        self.blocks = nn.ModuleList()
        for i, block in enumerate(backbone.blocks):
            if adapter == "none" or i not in adapter_blocks:
                self.blocks.append(block)
                continue
            sizes = dict(width=width, adapter_width=adapter_width, text_width=text_width, words=words)
            built = (DenseImageAdapter(**sizes, prefix=PREFIX, grid=self.grid) if adapter == "dense"
                     else RcaImageAdapter(**sizes))
            self.blocks.append(AdaptedBlock(block, built, width))

    def adapted(self) -> list[nn.Module]:
        """The blocks with an adapter, which take the words, from the image on."""
        return [block for block in self.blocks if hasattr(block, "adapter")]

    def prompt(self, words: Tensor) -> tuple[Tensor, ...]:
        """T of every adapter: words [B, L, W] -> one [B, L, A] each."""
        return tuple(block.adapter.rca.prompt(words) for block in self.adapted())

    def positions(self) -> Tensor:
        """Position embeddings of this image size, [1, N, D].

        Bicubic with DINOv2's scale factor `(grid + 0.1) / pretraining grid`: giving the size instead differs by up
        to 0.019 on the published weights (model.md).
        """
        side = round(self.pos_embed.shape[1] ** 0.5)
        if side == self.grid:
            return self.pos_embed
        table = self.pos_embed.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, scale_factor=(self.grid + 0.1) / side, mode="bicubic", antialias=False)
        return table.flatten(2).transpose(1, 2)

    def embed(self, image: Tensor) -> Tensor:
        """image [B, 3, S, S] -> the tokens before the first block: class, registers, patches [B, P+N, D]."""
        patches = self.patch_embed(image).flatten(2).transpose(1, 2) + self.positions()  # [B, N, D]
        batch = image.shape[0]
        return torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), patches], 1)

    def _frozen_stages(self, image: Tensor, arguments: list[tuple[Tensor, ...]]) -> int:
        """How many of the embedding and the blocks, in this order, need no record in training."""
        if not self.training:
            return 0
        embedding = (image, *self.patch_embed.parameters(), self.cls_token, self.reg_token, self.pos_embed)
        return frozen_prefix([embedding, *((*block.parameters(), *texts)
                                           for block, texts in zip(self.blocks, arguments, strict=True))])

    def forward(self, image: Tensor, texts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        remaining = iter(texts)
        arguments = [(next(remaining),) if hasattr(block, "adapter") else () for block in self.blocks]
        frozen = self._frozen_stages(image, arguments)
        with recorded(frozen == 0):
            x = self.embed(image)  # [B, P+N, D]
        maps = []
        for i, block in enumerate(self.blocks):
            with recorded(i + 1 >= frozen):
                x = run(block, x, *arguments[i], checkpointed=self.gradient_checkpointing)
            if i in self.taps[:2]:
                maps.append(x[:, PREFIX:])
        maps.append(self.norm(x[:, PREFIX:]))
        return tuple(maps)
