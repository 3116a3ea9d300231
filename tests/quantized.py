"""INT8 of every layer that can be, for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from calibration.quantize import quantizable, to_int8
from calibration.ranges import measure_ranges
from deploy.onnx_run import Feeds
from deploy.precision import Precisions, decide_precisions


def all_int8(model: onnx.ModelProto, calibration: Sequence[Feeds], *, precisions: Precisions | None = None,
             exclude: Iterable[str] = ()) -> onnx.ModelProto:
    """A flat FP32 graph in INT8 and FP16, ranges from the largest magnitudes."""
    layers = quantizable(model, exclude=exclude)
    return to_int8(model, layers, measure_ranges(model, layers, calibration=calibration, method="percentile"),
                   precisions or decide_precisions(model, calibration=calibration))
