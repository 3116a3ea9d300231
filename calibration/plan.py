"""All of INT8 before the first quantizer is put in: smoothing, ranges, and which layers the budget allows.

Each step is kept under the content that it depends on (calibration.records), so that a second plan for the same network
and samples, or one that was killed, takes up what was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from calibration.arithmetic import arithmetic
from calibration.budget import Choice, choose_layers, format_choice
from calibration.emulation import EmulatedInt8
from calibration.quantize import quantizable
from calibration.ranges import Range, find_ranges
from calibration.records import Records, digest
from calibration.sensitivity import HeldOut, Layers, Sensitivity
from calibration.smooth import ChannelStatistics, Smoothing, channel_statistics, smooth
from deploy.onnx_run import Feeds
from talent import provenance
from talent.errors import UserError

VERSION = "1"
"""Of what is kept: another one where the same content would give other numbers."""


@dataclass(frozen=True)
class Int8Plan:
    """What is to compute in INT8. ranges: of every layer that could be. choice: None where all layers were wanted,
    whatever that loses.
    """

    layers: Layers
    method: str
    ranges: tuple[Range, ...]
    smoothing: tuple[Smoothing, ...]
    choice: Choice | None

    @property
    def largest(self) -> dict[str, float]:
        """What INT8 shall hold, by activation tensor."""
        return {one.tensor: one.range for one in self.ranges}

    def smaller(self) -> Int8Plan:
        """The plan with a smaller choice (`Choice.smaller`). Only for a plan with a choice."""
        choice = self.choice.smaller()
        return replace(self, layers=choice.layers, choice=choice)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"layers": sorted(self.layers), "method": self.method,
                "choice": self.choice.to_dict() if self.choice else None,
                "smoothing": [one.to_dict() for one in self.smoothing],
                "ranges": [one.to_dict() for one in self.ranges]}


def plan_int8(model: onnx.ModelProto, *, calibration: Iterable[Feeds], identity: Sequence[str], method: str,
              exclude: Iterable[str] = (), bound: float | None = None, held_out: Iterable[HeldOut] = (),
              cache: Path | None = None) -> tuple[onnx.ModelProto, Int8Plan]:
    """A flat FP32 graph, smoothed, and the plan for it.

    calibration, held_out: can be read again and again. identity: digests of the network and of the calibration set.
    method: of `find_ranges`. bound: mIoU that may be lost; None takes every layer that `quantizable` names but
    `exclude`. cache: directory of the records, None for none. Raises UserError where nothing can be quantized, and as
    the steps do.
    """
    layers = quantizable(model, exclude=exclude)
    if not layers:
        raise UserError("INT8 was asked for, but no linear layer or convolution is left to quantize; exclude fewer")
    versions = provenance.versions("onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "numpy")
    records = Records(cache, digest((VERSION, str(sorted(versions.items())), *identity, method, *layers)))
    if "channels" not in records:
        records.put("channels", [one.to_dict() for one in channel_statistics(model, layers, calibration=calibration)])
    model, smoothing = smooth(model, layers, [ChannelStatistics.from_dict(one) for one in records["channels"]])
    if "ranges" not in records:
        records.put("ranges", [one.to_dict() for one in find_ranges(model, layers, calibration=calibration,
                                                                    method=method)])
    ranges = tuple(Range(**one) for one in records["ranges"])
    plan = Int8Plan(frozenset(layers), method, ranges, smoothing, None)
    if bound is None:
        return model, plan
    with EmulatedInt8(model, layers, plan.largest) as network:
        choice = choose_layers(model, layers, Sensitivity(network, held_out, records), bound=bound,
                               flop=arithmetic(model))
    return model, replace(plan, layers=choice.layers, choice=choice)


def format_plan(plan: Int8Plan) -> str:
    """For people: the choice, what was smoothed, what is clipped."""
    lines = [format_choice(plan.choice) if plan.choice else f"INT8: {len(plan.layers)} layers, all that can be"]
    smoothed = [one for one in plan.smoothing if one.alpha]
    if smoothed:
        best = min(smoothed, key=lambda one: one.error_after / one.error_before)
        lines.append(f"  smoothed: {len(smoothed)} of {len(plan.smoothing)} layer normalisations; most gained "
                     f"{best.layer_norm} (error of its products {best.error_before:.2%} -> {best.error_after:.2%})")
    clipped = [one for one in plan.ranges if one.largest is not None and one.range < one.largest]
    if clipped:
        worst = min(clipped, key=lambda one: one.range / one.largest)
        lines.append(f"  clipped: {len(clipped)} of {len(plan.ranges)} activations; most {worst.tensor} "
                     f"({worst.largest:.3g} -> {worst.range:.3g})")
    return "\n".join(lines)
