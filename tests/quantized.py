"""Ranges by tensor, and INT8 of every layer that can be, for tests of what comes after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from calibration.quantize import quantizable, to_int8
from calibration.ranges import find_ranges
from deploy.onnx_run import Feeds
from deploy.precision import Precisions, decide_precisions


def measure_ranges(model: onnx.ModelProto, layers: Iterable[str], *, calibration: Iterable[Feeds],
                   method: str = "percentile") -> dict[str, float]:
    """What INT8 is to hold of each tensor that `layers` read."""
    return {one.tensor: one.range for one in find_ranges(model, layers, calibration=calibration, method=method)}


def all_int8(model: onnx.ModelProto, calibration: Sequence[Feeds], *, precisions: Precisions | None = None,
             exclude: Iterable[str] = ()) -> onnx.ModelProto:
    """A flat FP32 graph in INT8 and FP16."""
    layers = quantizable(model, exclude=exclude)
    return to_int8(model, layers, measure_ranges(model, layers, calibration=calibration),
                   precisions or decide_precisions(model, calibration=calibration))
