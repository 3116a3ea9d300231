"""Networks small enough to build in a fraction of a second, with numbers as after training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from talent.checkpoint import Checkpoint, save_checkpoint
from talent.config import ModelConfig, preset
from talent.model import TalentModel, build_model
from talent.model.lora import LoraSettings, add_lora
from talent.tokenizer import build_clip_tokenizer

TINY = preset("tiny")
# Everything that tiny leaves out: convolution branches, text adapters, a position table of another size.
DENSE = dataclasses.replace(
    TINY, preset="dense", image_size=112, position_grid=11, text_adapter="dense", text_adapter_blocks=(0, 2),
    text_adapter_width=32, vision_adapter="dense", vision_adapter_blocks=(1, 4))
# A training step of it takes some 30 ms; dropout, so that tests of training see whether random numbers are kept.
SMALL = dataclasses.replace(
    TINY, preset="smallest", image_size=70, position_grid=5, text_width=32, text_heads=1, text_layers=1, text_embed=32,
    vision_width=32, vision_depth=3, vision_heads=1, vision_adapter_width=16, vision_adapter_blocks=(1,),
    taps=(0, 1, 2), width=32, mask_width=16, decoder_layers=1, decoder_heads=1, decoder_hidden=32, dropout=0.1)
CONFIGS = {"tiny": TINY, "dense": DENSE}


def network(config: ModelConfig, *, seed: int = 0) -> TalentModel:
    """A network of `config` in eval mode whose norms, scales and gates are far from their first values."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.2)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        for name, parameter in model.named_parameters():
            if name.endswith((".gamma", ".ls_gate")):
                parameter.normal_(0.6, 0.2)
    return model


@torch.no_grad()
def loud(model: TalentModel, *, scale: float = 5e4) -> None:
    """Multiply all that is written into the residual stream; what reads it without normalisation divides."""
    tower = model.vision
    embedding = (tower.patch_embed.weight, tower.patch_embed.bias, tower.cls_token, tower.reg_token, tower.pos_embed)
    for parameter in embedding:
        parameter.mul_(scale)
    for block in tower.blocks:
        block.ls1.gamma.mul_(scale)
        block.ls2.gamma.mul_(scale)  # stands behind the MLP and the adapter
    for projection in model.neck.projections[:2]:  # the third reads the normalised map
        projection.linear.weight.div_(scale)


@torch.no_grad()
def massive(model: TalentModel, *, size: float = 7e4) -> None:
    """Massive activations in a few channels of a few tokens that are no patches, as DINOv2's registers have them."""
    model.vision.reg_token[:, :2, [3, 17]] = torch.tensor([size, -size])
    model.vision.cls_token[..., 5] = -size


def checkpoint(config: ModelConfig = TINY, lora: LoraSettings | None = None) -> Checkpoint:
    """A trained network; LoRA factors lie in it unmerged, far from zero."""
    model = network(config)
    if lora:
        add_lora(model, lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(0, 0.1)
    tokenizer = build_clip_tokenizer(context_length=config.context_length, vocab_size=config.vocab_size)
    return Checkpoint(model.eval(), config, tokenizer, lora, {"seed": 3, "data": "shapes"}, {"step": 7, "mIoU": 0.5})


def add_trained_lora(model: TalentModel, settings: LoraSettings, *, spread: float) -> None:
    """LoRA factors that are far from zero, unmerged. spread: standard deviation of the B factors."""
    add_lora(model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, spread)


def inputs(config: ModelConfig, batch: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """image [B, 3, S, S] and tokens [B, L]: start, 2 to L - 3 words, end, zeros."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, 3, config.image_size, config.image_size), dtype=np.float32)
    tokens = np.zeros((batch, config.context_length), np.int64)
    for row in tokens:
        words = int(rng.integers(2, config.context_length - 2))
        row[:words + 2] = [config.vocab_size - 2, *rng.integers(1, config.vocab_size - 2, words), config.vocab_size - 1]
    return torch.from_numpy(image), torch.from_numpy(tokens)


def save_tiny(path: Path, *, lora_rank: int | None) -> Path:
    """A checkpoint of a tiny network; with a rank, LoRA factors that are far from zero lie in it unmerged."""
    model = network(TINY)
    settings = LoraSettings(rank=lora_rank) if lora_rank else None
    if settings:
        add_trained_lora(model, settings, spread=0.02)
    tokenizer = build_clip_tokenizer(context_length=TINY.context_length, vocab_size=TINY.vocab_size)
    save_checkpoint(Checkpoint(model, TINY, tokenizer, settings), path)
    return path


def save_network(path: Path, config: ModelConfig) -> Path:
    """A checkpoint of `network(config)`."""
    tokenizer = build_clip_tokenizer(context_length=config.context_length, vocab_size=config.vocab_size)
    save_checkpoint(Checkpoint(network(config), config, tokenizer), path)
    return path


def relative_error(received: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected magnitude."""
    return float((received - expected).abs().max() / expected.abs().max())
