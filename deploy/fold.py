"""Folding without loss: what training needs and inference does not is multiplied into its neighbours.

Every function changes the model in place and leaves its outputs as they are, up to rounding; the model must be in eval
mode with LoRA merged. Source: model.md of the design, "What folds away".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from talent.model import TalentModel
from talent.model.adapters import ConvBatchNormReLU
from talent.model.neck import ConvBatchNorm, LinearBatchNorm
from talent.model.text import ADAPTER_SCALE
from talent.model.vision import AdaptedBlock


def fold_batchnorm(model: nn.Module) -> int:
    """Every BatchNorm into the convolution or linear layer before it. Returns how many there were."""
    folded = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (ConvBatchNorm, ConvBatchNormReLU)):
                child[0] = fuse_conv_bn_eval(child[0], child[1])
                child[1] = nn.Identity()
            elif isinstance(child, LinearBatchNorm):
                weight, bias = child.folded()
                linear = nn.Linear(weight.shape[1], weight.shape[0])
                linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
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
    """LayerScale, the adapters' gates and the text adapters' 0.2, each into the linear layer before it.

    Returns how many there were.
    """
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
def fold_positions(model: TalentModel) -> None:
    """The position table, interpolated once to the grid of this image size."""
    model.vision.pos_embed = nn.Parameter(model.vision.positions(), requires_grad=False)


def fold(model: TalentModel) -> TalentModel:
    """All folds, in place; returns the model."""
    fold_batchnorm(model)
    fold_scales(model)
    fold_positions(model)
    return model
