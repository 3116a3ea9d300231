"""Folding without loss: what training needs and inference does not is multiplied into its neighbours.

Every function changes the model in place, leaves its outputs as they are, up to rounding, and returns how many places
it folded; the model must be in eval mode with LoRA merged (talent.model.lora.merge_lora, the first fold of all). Some
need others first: `fold` has the order. Source: model.md of the design, "What folds away".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deploy.folded import (
    FoldedAttention,
    FoldedBlock,
    FoldedCoordConv,
    FoldedCrossAttention,
    FoldedSelfAttention,
    FoldedUpsampled,
    constant,
)
from talent.model import TalentModel
from talent.model.adapters import ConvBatchNormReLU
from talent.model.attention import SelfAttention
from talent.model.neck import ConvBatchNorm, LinearBatchNorm
from talent.model.projector import CENTRE, TAPS
from talent.model.text import ADAPTER_SCALE
from talent.model.vision import AdaptedBlock


@torch.no_grad()
def fold_batchnorm(model: nn.Module) -> int:
    """Every BatchNorm into the convolution or linear layer before it."""
    folded = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (ConvBatchNorm, ConvBatchNormReLU)):
                child[0] = fuse_conv_bn_eval(child[0], child[1])
                child[1] = nn.Identity()
            elif isinstance(child, LinearBatchNorm):
                weight, bias = child.folded()
                linear = nn.Linear(weight.shape[1], weight.shape[0])
                linear.weight, linear.bias = constant(weight), constant(bias)
                setattr(parent, name, linear)
            else:
                continue
            folded += 1
    return folded


def _scale_output(linear: nn.Linear, scale: Tensor | float) -> None:
    """`scale * linear(x)` as one linear layer."""
    column = scale[:, None] if isinstance(scale, Tensor) else scale
    linear.weight.mul_(column)
    linear.bias.mul_(scale)


@torch.no_grad()
def fold_scales(model: TalentModel) -> int:
    """LayerScale, the adapters' gates and the text adapters' 0.2, each into the linear layer before it."""
    folded = 0
    for block in model.vision.blocks:
        _scale_output(block.attn.proj, block.ls1.gamma)
        _scale_output(block.mlp.fc2, block.ls2.gamma)
        folded += 2
        if isinstance(block, AdaptedBlock):
            _scale_output(block.adapter.fc2, block.ls_gate * block.ls2.gamma)
            block.ls_gate = None
            folded += 1
        block.ls1, block.ls2 = nn.Identity(), nn.Identity()
    for block in model.text.blocks:
        if block.adapter is not None:
            _scale_output(block.adapter.fc2, ADAPTER_SCALE)
            block.adapter_scale = 1.0
            folded += 1
    return folded


@torch.no_grad()
def fold_attention_scale(model: TalentModel) -> int:
    """The 1 / sqrt(d) of both towers' attention into the queries' rows of `qkv`."""
    blocks = (*model.text.blocks, *model.vision.blocks)
    for block in blocks:
        attention = block.attn
        heads = attention.heads if isinstance(attention, SelfAttention) else attention.num_heads  # ours, or timm's
        block.attn = FoldedAttention(qkv=attention.qkv, proj=attention.proj, heads=heads)
    return len(blocks)


@torch.no_grad()
def fold_positions(model: TalentModel) -> int:
    """The position table, interpolated once to the grid of this image size."""
    model.vision.pos_embed = constant(model.vision.positions())
    return 1


@torch.no_grad()
def fold_coordinates(model: TalentModel) -> int:
    """What the neck's convolution makes of the coordinates, as a constant map. After `fold_batchnorm`."""
    model.neck.coord_conv[0] = FoldedCoordConv(model.neck.coord_conv[0])
    return 1


@torch.no_grad()
def fold_self_attention(model: TalentModel) -> int:
    """Queries, keys and values of the decoder in one product, their positions and their scale in constants."""
    for layer in model.decoder.layers:
        layer.self_attn = FoldedSelfAttention(layer.self_attn, model.decoder.image_positions)
    return len(model.decoder.layers)


@torch.no_grad()
def fold_cross_attention(model: TalentModel) -> int:
    """The decoder's products of queries and of results into the words' keys and values, which the text graph makes."""
    for layer in model.decoder.layers:
        layer.cross_attn = FoldedCrossAttention(layer.cross_attn)
    return len(model.decoder.layers)


@torch.no_grad()
def fold_shared_inputs(model: TalentModel) -> int:
    """fc1 of an adapter and of the MLP beside it in one product. After `fold_scales`."""
    for number, block in enumerate(model.vision.blocks):
        if isinstance(block, AdaptedBlock):
            model.vision.blocks[number] = FoldedBlock(block)
    return len(model.vision.adapted())


@torch.no_grad()
def fold_kernel(model: TalentModel) -> int:
    """The projector's 1x1 convolution into the layer that makes the dynamic kernel."""
    projector = model.projector
    inner, txt = projector.conv3, projector.txt
    matrix = inner.weight.flatten(1)  # [conv3's maps, M]
    kernels = txt.weight[:-1].unflatten(0, (-1, TAPS))  # [conv3's maps, 9, E]
    offsets = txt.bias[:-1].unflatten(0, (-1, TAPS))
    weight = torch.cat([torch.einsum("om,ote->mte", matrix, kernels).flatten(0, 1),
                        torch.einsum("o,ote->te", inner.bias, kernels)])
    bias = torch.cat([(matrix.t() @ offsets).flatten(), inner.bias @ offsets])
    centre = TAPS * matrix.shape[1] + CENTRE
    weight[centre] += txt.weight[-1]
    bias[centre] += txt.bias[-1]
    projector.txt = nn.Linear(weight.shape[1], weight.shape[0])
    projector.txt.weight, projector.txt.bias = constant(weight), constant(bias)
    projector.conv3 = None
    return 1


@torch.no_grad()
def fold_enlarging(model: TalentModel) -> int:
    """The matrices of the projector's enlarging convolutions, laid out for inference. After `fold_batchnorm`."""
    projector = model.projector
    projector.conv1, projector.conv2 = FoldedUpsampled(projector.conv1), FoldedUpsampled(projector.conv2)
    return 2


FOLDS = {
    "BatchNorm": fold_batchnorm, "LayerScale and gates": fold_scales, "attention scale": fold_attention_scale,
    "position table": fold_positions, "coordinates": fold_coordinates, "decoder self-attention": fold_self_attention,
    "decoder cross-attention": fold_cross_attention, "shared inputs": fold_shared_inputs,
    "dynamic kernel": fold_kernel, "enlarging convolution": fold_enlarging}
"""Every fold by its name, in an order that serves each of them."""


def fold(model: TalentModel) -> dict[str, int]:
    """All folds, in place. Returns the number of places by fold."""
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise RuntimeError("merge LoRA first (talent.model.lora.merge_lora): folding would lose its factors")
    return {name: folding(model) for name, folding in FOLDS.items()}
