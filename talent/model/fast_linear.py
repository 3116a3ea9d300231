"""Linear layers in float32 on a CPU by oneDNN, which PyTorch itself uses for convolutions and half precision only.

For matrix products in float32 PyTorch calls MKL, which leaves half of an AMD processor's speed unused (measured on one
core of an EPYC 9005: 96 against 206 GFLOP/s); on an Intel processor both are alike. Results differ by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias of float32 tensors on the CPU; either may be transposed in memory."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] or None -> [..., out]. What no gradient needs is not kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2).contiguous()  # [M, out]
        grad_x = _product(rows, weight.t()).unflatten(0, grad.shape[:-1]) if ctx.needs_input_grad[0] else None
        grad_weight = _product(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN for float32 tensors on the CPU."""
    fits = (x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.dim() > 1
            and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling())
    return _OneDnnLinear.apply(x, weight, bias) if fits else F.linear(x, weight, bias)


class FastLinear(nn.Linear):
    """An `nn.Linear` that computes through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def set_fast_linear(model: nn.Module, enabled: bool) -> None:
    """Let every `nn.Linear` of the model, LoRA's included, compute through `linear`, or as it came.

    Names and weights stay. Only the exact class is taken: subclasses compute something of their own. Call it after
    add_lora, for training on a CPU.
    """
    old, new = (nn.Linear, FastLinear) if enabled else (FastLinear, nn.Linear)
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
