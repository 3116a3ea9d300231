"""What is trained, and LoRA (peft) on linear layers of both towers: add, merge, count."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn

from talent.config import plain
from talent.errors import UserError, refuse_unknown, suggest
from talent.model.talent import TalentModel
from talent.require import require

TUNINGS = ("full", "adapters", "lora", "lora+adapters")
TARGETS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # name -> place in a block
HEADS = ("neck", "decoder", "projector")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the linear layers of the two towers.

    Args:
        rank: of the two factors
        alpha: the update is scaled by alpha / rank
        dropout: on the factors' input, from 0 to below 1
        text: layers of every text block: qkv, proj, fc1, fc2, or [] for none
        vision: layers of every image block, likewise

    Raises UserError for values that no LoRA can have.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    text: tuple[str, ...] = tuple(TARGETS)
    vision: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank: expected at least 1, received {self.rank}; 8 is a good first choice")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha: expected a number above 0, received {self.alpha}; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: expected a number from 0 to below 1, received {self.dropout}")
        for tower in ("text", "vision"):
            _check_targets(tower, getattr(self, tower))
        if not self.text and not self.vision:
            raise UserError(f"lora.text and lora.vision: expected layers ({', '.join(TARGETS)}) in one tower at least, "
                            "received none; use --tune adapters or full to train without LoRA")

    def to_dict(self) -> dict:
        """Plain values, as YAML and JSON have them."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> LoraSettings:
        """The inverse of `to_dict`. Without text and vision (old checkpoints) all layers of both are meant."""
        refuse_unknown(values, (field.name for field in fields(cls)), what="LoRA setting")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_targets(tower: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in TARGETS:
            raise UserError(f"lora.{tower}: expected layers out of {', '.join(TARGETS)}, received {name!r}"
                            f"{suggest(name, TARGETS)}")
    if len(set(names)) < len(names):
        raise UserError(f"lora.{tower}: expected every layer once, received {', '.join(names)}; leave the second out")


def _target_pattern(settings: LoraSettings) -> str:
    """The regular expression that the full names of LoRA's layers match."""
    towers = (("text", settings.text), ("vision", settings.vision))
    return "|".join(rf"{tower}\.blocks\.\d+\.({'|'.join(re.escape(TARGETS[name]) for name in names)})"
                    for tower, names in towers if names)


def add_lora(model: TalentModel, settings: LoraSettings) -> None:
    """Put LoRA factors beside the layers that `settings` names, in place. The start changes no output."""
    peft = require("peft", extra="train")
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                        target_modules=_target_pattern(settings)), model)


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
