"""BatchNorm over the batches of all processes, on any device: PyTorch's own runs on a GPU only."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class _MeanOverProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _mean(grad)


def _mean(x: Tensor) -> Tensor:
    total = x.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics are of all processes' batches, which must be of one size.

    x [B, C, ...]; mean and variance by one reduction each, two-pass as in BatchNorm. In evaluation it is BatchNorm.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected [B, C, ...], received {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        axes = (0, *range(2, x.dim()))
        wide = x.float()
        mean = _MeanOverProcesses.apply(wide.mean(axes))  # [C]
        centred = wide - mean.view(shape)
        variance = _MeanOverProcesses.apply(centred.square().mean(axes))  # [C]
        with torch.no_grad():
            count = x.numel() // x.shape[1] * distributed.get_world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def synchronise_batchnorm(model: nn.Module, *, gpu: bool) -> nn.Module:
    """Every BatchNorm of the model replaced by one over all processes, with the same parameters and names, in place."""
    if gpu:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            parent, _, child = name.rpartition(".")
            same = GlobalBatchNorm(module.num_features, eps=module.eps, momentum=module.momentum)
            same.weight, same.bias = module.weight, module.bias
            same.running_mean, same.running_var = module.running_mean, module.running_var
            same.num_batches_tracked = module.num_batches_tracked
            setattr(model.get_submodule(parent), child, same.train(module.training))
    return model
