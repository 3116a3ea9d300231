"""What is trained, and LoRA (peft) on the linear layers of both towers: add, merge, count."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn

from talent.errors import UserError, refuse_unknown, suggest
from talent.model.talent import TalentModel
from talent.require import require

TUNINGS = ("full", "adapters", "lora", "lora+adapters")
TARGETS = r"(text|vision)\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
HEADS = ("neck", "decoder", "projector")


@dataclass(frozen=True)
class LoraSettings:
    """rank: of the two factors. alpha: the update is scaled by alpha / rank. dropout: on the factors' input."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    @classmethod
    def from_dict(cls, values: dict) -> LoraSettings:
        refuse_unknown(values, (field.name for field in fields(cls)), what="LoRA setting")
        return cls(**values)


def add_lora(model: TalentModel, settings: LoraSettings) -> None:
    """Put LoRA factors beside every qkv, proj, fc1 and fc2 of both towers, in place. The start changes no output."""
    peft = require("peft", extra="train")
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                        target_modules=TARGETS), model)


def merge_lora(model: nn.Module) -> int:
    """Add every LoRA update into its linear layer and drop the factors, in place. Returns how many were merged."""
    layer_type = require("peft.tuners.lora", extra="train").LoraLayer
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, layer_type)]
    for name, module in layers:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    return len(layers)


def select_trainable(model: TalentModel, *, tune: str, train_heads: bool) -> None:
    """Set `requires_grad` for one way of tuning.

    full: everything but the frozen gates. adapters: the paper's adapters. lora: the LoRA factors (add_lora first).
    train_heads: also neck, decoder and projector (always in "full").
    """
    if tune not in TUNINGS:
        raise UserError(f"unknown tuning {tune!r}{suggest(tune, TUNINGS)}")
    for name, parameter in model.named_parameters():
        if tune == "full":
            wanted = True
        elif name.startswith(HEADS):
            wanted = train_heads
        elif ".adapter." in name:
            wanted = "adapters" in tune
        else:
            wanted = ".lora_" in name and "lora" in tune
        parameter.requires_grad_(wanted and not name.endswith("ls_gate"))


def set_training_mode(model: nn.Module) -> None:
    """Training mode where something is trained; frozen modules keep their BatchNorm statistics and drop nothing."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) number of parameters."""
    counts = torch.tensor([(p.numel() * p.requires_grad, p.numel()) for p in model.parameters()]).sum(0)
    return int(counts[0]), int(counts[1])
