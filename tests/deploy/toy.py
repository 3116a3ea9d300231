"""A network small enough to export in seconds that has every construct the deploy passes must tell apart.

Patch embedding, ViT blocks with prefix tokens, an RCA over words (K = 17) and one over the sentence (K = 1, relu),
3x3 and 1x1 convolutions, a bilinear upsampling, and a 3x3 convolution whose kernel is a graph input.

Letters: B batch, K words, N patches, T tokens (prefix + patches), D width, W word width, H heads.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE, PATCH, WIDTH, WORD_WIDTH, HEADS, PREFIX, WORDS = 28, 4, 32, 24, 4, 5, 17
RCA_COUNT = 3
"""Two blocks each have an RCA over the words, the neck has one over the sentence."""
INPUT_NAMES = ("image", "words", "sentence", "kernel")


def rca(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """visual [B,N,D], text [B,K,D], weight [D,K], bias [D] -> [B,N,D]."""
    cost = visual @ text.transpose(1, 2)  # [B,N,K]
    gate = cost @ weight.transpose(0, 1) + bias  # [B,N,D]
    return (gate.relu() if relu else gate) * visual


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.text_proj, self.cost_proj = nn.Linear(WORD_WIDTH, WIDTH), nn.Linear(WORDS, WIDTH)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = F.scaled_dot_product_attention(q, k, v)  # [B,H,T,D/H]
        x = x + self.proj(attention.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.norm2(x)
        text = self.text_proj(words)  # [B,K,D]
        cost = rca(h[:, PREFIX:], text, self.cost_proj.weight, self.cost_proj.bias, relu=False)  # [B,N,D]
        return x + self.fc2(F.gelu(self.fc1(h))) + torch.cat([h[:, :PREFIX], cost], dim=1)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid = IMAGE // PATCH
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.prefix = nn.Parameter(torch.randn(1, PREFIX, WIDTH))
        self.position = nn.Parameter(torch.randn(1, self.grid**2, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.lateral = nn.Conv2d(WIDTH, WIDTH, 1)
        self.gate_weight, self.gate_bias = nn.Parameter(torch.randn(WIDTH, 1) / 8), nn.Parameter(torch.randn(WIDTH))
        self.up1, self.up2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, image: Tensor, words: Tensor, sentence: Tensor, kernel: Tensor) -> Tensor:
        """image [B,3,28,28], words [B,17,W], sentence [B,1,D], kernel [B,9,D] -> logits [B,1,14,14]."""
        batch = image.shape[0]
        x = self.patch_embed(image).flatten(2).transpose(1, 2) + self.position  # [B,N,D]
        x = torch.cat([self.prefix.expand(batch, -1, -1), x], dim=1)  # [B,T,D]
        for block in self.blocks:
            x = block(x, words)
        x = x[:, PREFIX:].transpose(1, 2).reshape(batch, WIDTH, self.grid, self.grid)
        v = self.lateral(x).relu().flatten(2).transpose(1, 2)  # [B,N,D]
        v = rca(v, sentence, self.gate_weight, self.gate_bias, relu=True)
        x = v.transpose(1, 2).reshape(batch, WIDTH, self.grid, self.grid)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.up2(self.up1(x).relu())  # [B,D,14,14]
        return dynamic_conv3x3(x, kernel)


def dynamic_conv3x3(x: Tensor, kernel: Tensor) -> Tensor:
    """A 3x3 convolution with a kernel per sample, as a product over channels and nine shifted sums.

    x [B,D,Y,X], kernel [B,9,D] -> [B,1,Y,X].
    """
    batch, width, height, breadth = x.shape
    maps = F.pad((kernel @ x.reshape(batch, width, -1)).reshape(batch, 9, height, breadth), (1, 1, 1, 1))
    shifted = [maps[:, 3 * dy + dx, dy : dy + height, dx : dx + breadth] for dy in range(3) for dx in range(3)]
    return torch.stack(shifted, dim=1).sum(dim=1, keepdim=True)


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"image": (3, IMAGE, IMAGE), "words": (WORDS, WORD_WIDTH), "sentence": (1, WIDTH), "kernel": (9, WIDTH)}
    return {name: rng.standard_normal((batch, *shape), dtype=np.float32) for name, shape in shapes.items()}


def profiles(batch: int = 4) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """min, opt and max shapes of every input, batch 1 to `batch`."""
    return {name: ((1, *x.shape[1:]), (1, *x.shape[1:]), (batch, *x.shape[1:])) for name, x in feeds(1).items()}


def export(path: Path | None = None, opset: int = 20, optimize: bool = True) -> onnx.ModelProto:
    """The toy as an ONNX graph with a dynamic batch; also written to `path`, weights inside, when one is given."""
    torch.manual_seed(0)
    inputs = tuple(torch.from_numpy(x) for x in feeds(2).values())
    program = torch.onnx.export(
        Toy().eval(), inputs, dynamo=True, opset_version=opset, optimize=optimize, verbose=False,
        input_names=INPUT_NAMES, output_names=["logits"], external_data=False,
        dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in inputs))
    buffer = io.BytesIO()
    program.save(buffer)
    model = onnx.load_from_string(buffer.getvalue())
    if path is not None:
        onnx.save(model, path)
    return model
