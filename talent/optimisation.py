"""How weights move: the optimiser, the learning rate of each step, the moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from talent.settings import TrainSettings

STATISTICS = ("running_mean", "running_var")  # of BatchNorm


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over what is trainable; weight decay on matrices only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
              {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(step: int, settings: TrainSettings, steps: int) -> float:
    """Of one step (0-based) of a run of `steps`: linear warm-up, then the schedule."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        passed = sum(step >= round(share * steps) for share in settings.milestones)
        return settings.learning_rate * settings.gamma ** passed
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class MovingAverage:
    """An exponential moving average of what training changes: trainable parameters and BatchNorm statistics.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that the first weights fade.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.average = {name: tensor.detach().clone() for name, tensor in self._followed(model).items()}

    @staticmethod
    def _followed(model: nn.Module) -> dict[str, Tensor]:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return trained | {name: b for name, b in model.named_buffers() if name.endswith(STATISTICS)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, tensor in self._followed(model).items():
            self.average[name].lerp_(tensor.detach(), 1 - decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the average's numbers, for as long as the block runs."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, tensor in self._followed(model).items():
            own = tensor.detach().clone()
            tensor.copy_(self.average[name])
            self.average[name].copy_(own)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
