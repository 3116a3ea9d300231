"""Fake quantization: a network in training computes what its INT8 export will, and rounding passes gradients through.

Rounded is what the exported image graph holds in INT8 (docs/export.md): the input of a layer per tensor, over a range
that follows what was seen; its weight per output channel, as it is exported: with LoRA merged, and without what folds
into a constant. BatchNorm, LayerScale and the scale of attention multiply rows of a weight, which rounding by rows
does not notice: they may come behind it. B batch, N image tokens, C and O channels in and out.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from talent.model.attention import attend
from talent.model.decoder import PositionedSelfAttention
from talent.model.fast_linear import linear
from talent.model.neck import CoordConvBatchNorm
from talent.model.talent import TalentModel
from talent.model.upsampled import REACH, UpsampledConvBatchNorm
from talent.require import require

LEVELS = 127  # of INT8 to each side of zero; an input may also become -128
MIN_CHANNELS = 16  # the export leaves narrower layers in FP16
DECAY = 0.99  # of a range at every step: the largest value of some hundred steps stands for that of the calibration
SMALLEST = 1e-12  # the range of what is always zero
# What becomes an INT8 node. The decoder's cross-attention is none: its matrices go into the words' keys and values. Nor
# is the projector's second convolution, which the export spares.
LAYERS = re.compile(
    r"vision\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12]|adapter\.(fc[12]|rca\.(image|back)_proj|branches\..+))"
    r"|neck\.((projections\.\d+|aggregation)\.linear|coord_conv\.(0|1\.0))"
    r"|decoder\.layers\.\d+\.(self_attn(\.proj)?|ffn\.[04])|projector\.conv1")


class Range:
    """What one layer's input spans, and the rounding to it.

    largest: float32 scalar, the magnitude at 127. seen: the largest magnitude since the last `update` of
    FakeQuantization, which alone moves `largest`: in a step all batches, all processes, and a block that is computed
    again for gradient checkpointing, round alike.
    """

    def __init__(self, device: torch.device):
        self.largest = torch.zeros((), device=device)
        self.seen = torch.zeros((), device=device)
        self.observing, self.rounding = False, True

    def __call__(self, x: Tensor) -> Tensor:
        """x [...] as INT8 has it (`round_input`), noted while the range observes."""
        if self.observing:
            low, high = x.detach().float().aminmax()
            self.seen = torch.maximum(self.seen, torch.maximum(-low, high))
        return round_input(x, self.largest) if self.rounding else x


def round_input(x: Tensor, largest: Tensor) -> Tensor:
    """x [...] on the grid of largest / 127, from -128 to 127 of its steps, as QuantizeLinear does it.

    largest: float32 scalar. Half precision becomes float32. The gradient is that of clamp: one inside, zero outside.
    """
    scale = largest.clamp_min(SMALLEST) / LEVELS
    zero = torch.zeros((), dtype=torch.int32, device=x.device)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.fake_quantize_per_tensor_affine(wide, scale, zero, -LEVELS - 1, LEVELS)


def round_weight(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """weight on a grid of 127 steps to each side for every output channel; axes: all the others. Gradients pass."""
    values = weight.detach()
    scale = values.abs().amax(axes, keepdim=True).clamp_min(SMALLEST) / LEVELS
    return (values / scale).round() * scale + (weight - values)


class _Rounded:
    """A layer that rounds: a class before the layer's own. `channels`: the least of the INT8 node's, in or out."""

    input_range: Range


class _RoundedLinear(_Rounded):
    """A linear layer, with or without LoRA: what is rounded is the merged weight, so that merging changes nothing."""

    @property
    def channels(self) -> int:
        return min(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., O]."""
        factors = getattr(self, "active_adapters", ())
        weight = self.weight
        with torch.autocast(x.device.type, enabled=False):
            for name in factors:
                weight = weight + self.get_delta_weight(name)  # [O, C]
        y = linear(self.input_range(x), round_weight(weight, (1,)), self.bias)
        for name in factors:
            dropout = self.lora_dropout[name]
            if self.training and isinstance(dropout, nn.Dropout):  # what it takes away and adds, unrounded
                y = y + self.lora_B[name](self.lora_A[name](dropout(x) - x)) * self.scaling[name]
        return y


class _RoundedConvolution(_Rounded):
    """A convolution of a map."""

    @property
    def channels(self) -> int:
        return min(self.weight.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, O, h, w]."""
        return self._conv_forward(self.input_range(x), round_weight(self.weight, (1, 2, 3)), self.bias)


class _RoundedCoordConv(_Rounded):
    """What the neck's convolution makes of the coordinates is a constant of the export, and not rounded."""

    @property
    def channels(self) -> int:
        return min(self[0].out_channels, self[0].in_channels - self.coordinates.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, grid, grid] -> [B, O, grid, grid]."""
        convolution, norm, activation = self
        of_map, of_place = convolution.weight.split((x.shape[1], self.coordinates.shape[1]), 1)
        located = F.conv2d(self.coordinates, of_place, padding=1)  # [1, O, grid, grid]
        return activation(norm(F.conv2d(self.input_range(x), round_weight(of_map, (1, 2, 3)), padding=1) + located))


class _RoundedUpsampled(_Rounded):
    """An enlarging convolution: products of the small map, with an output channel for each tap of a row."""

    @property
    def channels(self) -> int:
        return min(REACH * self[0].out_channels, self[0].in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h h, C] -> [B, 2h 2h, O]."""
        return self.convolved(self.input_range(x), round_weight(self[0].weight, (1,)))


class _RoundedSelfAttention(_Rounded):
    """The decoder's queries, keys and values: one product of the map; the positions' share is a constant, unrounded."""

    @property
    def channels(self) -> int:
        return self.q.in_features

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, N, C], positions [N, C] -> [B, N, C]."""
        x = self.input_range(x)
        query, key = (linear(x, round_weight(layer.weight, (1,))) + layer(positions) for layer in (self.q, self.k))
        value = linear(x, round_weight(self.v.weight, (1,)), self.v.bias)
        return self.proj(attend(query, key, value, self.heads))


@functools.cache
def _rounded_class(kind: type[_Rounded], own: type[nn.Module]) -> type[nn.Module]:
    return type(f"FakeQuantized{own.__name__}", (kind, own), {})


def _kind(module: nn.Module) -> type[_Rounded] | None:
    lora = require("peft.tuners.lora", extra="train").Linear
    kinds = (((nn.Linear, lora), _RoundedLinear), (nn.Conv2d, _RoundedConvolution),
             (CoordConvBatchNorm, _RoundedCoordConv), (UpsampledConvBatchNorm, _RoundedUpsampled),
             (PositionedSelfAttention, _RoundedSelfAttention))
    return next((kind for types, kind in kinds if isinstance(module, types)), None)


class FakeQuantization:
    """The rounding layers of a network and their ranges. Made by `add_fake_quantization`.

    layers: the layers by name, in the order of the network. Ranges are no part of the network's state_dict, so that
    its checkpoints are those of any network.
    """

    def __init__(self, layers: dict[str, nn.Module]):
        self.layers = layers

    @property
    def ranges(self) -> dict[str, Tensor]:
        """The largest magnitude of each layer's input that INT8 holds, by layer: float32 scalars, 0 before any."""
        return {name: layer.input_range.largest for name, layer in self.layers.items()}

    @property
    def calibrated(self) -> bool:
        """Whether there are ranges; without, everything would be cut off at zero."""
        return any(bool(largest) for largest in self.ranges.values())

    @contextlib.contextmanager
    def observing(self, *, rounding: bool = True) -> Iterator[None]:
        """While the block runs, what passes the layers is noted for the next `update`.

        rounding: False to compute as if there were no INT8, which is how first ranges are found.
        """
        for layer in self.layers.values():
            layer.input_range.observing, layer.input_range.rounding = True, rounding
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.input_range.observing, layer.input_range.rounding = False, True

    @torch.no_grad()
    def update(self) -> None:
        """Move every range to what was seen, of all processes; one that is too wide shrinks by DECAY."""
        ranges = [layer.input_range for layer in self.layers.values()]
        seen = torch.stack([one.seen for one in ranges])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        for one, largest in zip(ranges, seen, strict=True):
            one.largest = torch.maximum(largest, DECAY * one.largest)
            one.seen = torch.zeros_like(one.seen)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: largest.clone() for name, largest in self.ranges.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            layer.input_range.largest = state[name].to(layer.input_range.largest.device)


def add_fake_quantization(model: TalentModel) -> FakeQuantization:
    """Let every layer that the export computes in INT8 round its input and its weight, in place.

    LoRA first (add_lora). Parameters, buffers and their names stay. The layers need ranges before they are of any use:
    run samples in `observing(rounding=False)`, then `update`.
    """
    device = next(model.parameters()).device
    layers = {}
    for name, module in list(model.named_modules()):
        kind = _kind(module) if LAYERS.fullmatch(name) else None
        if kind is None:
            continue
        own = type(module)
        module.__class__ = _rounded_class(kind, own)
        if module.channels < MIN_CHANNELS:
            module.__class__ = own
            continue
        module.input_range = Range(device)
        layers[name] = module
    return FakeQuantization(layers)


def remove_fake_quantization(model: nn.Module) -> int:
    """Give every layer its own class back, in place. Returns how many rounded."""
    rounded = [module for module in model.modules() if isinstance(module, _Rounded)]
    for module in rounded:
        module.__class__ = type(module).__bases__[1]
        del module.input_range
    return len(rounded)
