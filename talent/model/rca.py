"""Rectified cost aggregation: the one operator that carries words into the image features.

B batch, N image tokens, K words (1 in the neck), D channels. Source: paper arXiv 2604.00609, the RCA equations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from talent.model.broadcast import broadcast_batch
from talent.model.rca_kernels import ACTIVATIONS, are_computable, installed_library


def rca_reference(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """`act((visual @ text^T) @ weight^T + bias) * visual` in standard operators.

    visual [B, N, D], text [B, K, D], weight [D, K], bias [D], one floating dtype; returns [B, N, D].
    """
    cost = visual @ text.transpose(1, 2)  # [B, N, K]
    gate = cost @ weight.t() + bias  # [B, N, D]
    if activation == "relu":
        gate = F.relu(gate)
    return gate * visual


def _check(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {tuple(ACTIVATIONS)}, received {activation!r}")
    fits = visual.dim() == 3 and text.dim() == 3 and weight.dim() == 2 and bias.dim() == 1
    if fits:  # spelt out, because broadcasting would hide a wrong size and give gradients of another shape
        batch, _, width = visual.shape
        fits = (text.shape[0] == batch and text.shape[2] == width and weight.shape[0] == width
                and weight.shape[1] == text.shape[1] and bias.shape[0] == width)
    if not fits:
        raise ValueError("expected visual [B,N,D], text [B,K,D], weight [D,K], bias [D]; received "
                         f"{tuple(visual.shape)}, {tuple(text.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}")


@torch.library.custom_op("talent::rca_cost_aggregation", mutates_args=())
def rca_cost_aggregation(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor,
                         activation: str = "none") -> Tensor:
    """The operator `talent::rca_cost_aggregation`; shapes and formula as in `rca_reference`. The result is contiguous.

    On a GPU it is one kernel where libtalent_kernels.so is (`talent.model.rca_kernels`), else the reference.
    """
    _check(visual, text, weight, bias, activation)
    return rca_reference(visual, text, weight, bias, activation).contiguous()


@rca_cost_aggregation.register_kernel("cuda")
def rca_on_gpu(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """The operator on a GPU, queued on the stream that is current there; float64 is left to the reference."""
    _check(visual, text, weight, bias, activation)
    kernels = installed_library()
    if kernels is None or not are_computable(visual, text, weight, bias):
        return rca_reference(visual, text, weight, bias, activation).contiguous()
    with torch.cuda.device(visual.device):
        stream = torch.cuda.current_stream(visual.device).cuda_stream
        return kernels(visual, text, weight, bias, activation, stream=stream)


@rca_cost_aggregation.register_fake
def _(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    _check(visual, text, weight, bias, activation)
    return visual.new_empty(visual.shape)  # contiguous, as the kernels write it: empty_like would keep the strides


def _setup_context(ctx, inputs, output) -> None:
    visual, text, weight, bias, activation = inputs
    ctx.save_for_backward(visual, text, weight, bias)
    ctx.activation = activation


def _backward(ctx, grad: Tensor):
    visual, text, weight, bias = ctx.saved_tensors
    cost = visual @ text.transpose(1, 2)  # [B, N, K]
    gate = cost @ weight.t() + bias  # [B, N, D]
    grad_gate = grad * visual
    if ctx.activation == "relu":
        grad_gate = grad_gate * (gate > 0)
        gate = F.relu(gate)
    grad_cost = grad_gate @ weight  # [B, N, K]
    grad_visual = grad * gate + grad_cost @ text
    grad_text = grad_cost.transpose(1, 2) @ visual
    grad_weight = grad_gate.flatten(0, 1).t() @ cost.flatten(0, 1)
    return grad_visual, grad_text, grad_weight, grad_gate.sum((0, 1)), None


rca_cost_aggregation.register_autograd(_backward, setup_context=_setup_context)

_library = torch.library.Library("talent", "FRAGMENT")  # registrations last as long as it


def _register_autocast(device_type: str, key: str) -> None:
    """Under autocast the operator is opaque: bring its inputs to the type of autocast, as a matrix product would do.

    `torch.library.register_autocast` takes one type for good, whichever autocast is asked for.
    """

    def under_autocast(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return rca_cost_aggregation(*(tensor.to(dtype) if tensor.dtype != torch.float64 else tensor
                                          for tensor in (visual, text, weight, bias)), activation)

    _library.impl("rca_cost_aggregation", under_autocast, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")


def aggregate_costs(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """`rca_cost_aggregation` of as many texts [B, K, D] as pictures, or of many on one: visual [B or 1, N, D]."""
    return rca_cost_aggregation(broadcast_batch(visual, text), text, weight, bias, activation)


class RectifiedCostAggregator(nn.Module):
    """RCA of a block adapter: `back_proj(cost_proj(P T^t) * P)` with P of the image and T of the words.

    text_width: width of the words. words: their number K, fixed by `cost_proj`. width: D.
    """

    def __init__(self, *, text_width: int, words: int, width: int):
        super().__init__()
        self.image_proj = nn.Linear(width, width)
        self.text_proj = nn.Linear(text_width, width)
        self.cost_proj = nn.Linear(words, width)
        self.back_proj = nn.Linear(width, width)

    def prompt(self, words: Tensor) -> Tensor:
        """What depends on the words alone: [B, K, text_width] -> T [B, K, D]."""
        return self.text_proj(words)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image [B or 1, N, D], text = T [B, K, D] -> [B, N, D]."""
        aggregated = aggregate_costs(self.image_proj(image), text, self.cost_proj.weight, self.cost_proj.bias)
        return self.back_proj(aggregated)
