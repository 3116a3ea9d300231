"""INT8: which ranges activations need, the largest magnitude that is to be held of every tensor.

Works on flat FP32 graphs. A tensor's scale is its range / 127: symmetric, zero point 0, one for the whole tensor.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.observe import observe
from deploy.modelopt import known_nodes, modelopt, named, quiet, scratch
from deploy.onnx_run import Feeds, progress
from talent.errors import UserError, suggest
from talent.require import require

METHODS = ("max", "entropy", "percentile")
LARGEST_INTEGER = 127
PERCENTILES = (100.0, 99.999, 99.99, 99.9)
"""What part of a tensor's values INT8 may hold; the rest is clipped. 100 clips nothing."""
WORTHWHILE = 0.95
"""Nothing is clipped unless the squared error falls to this part: samples never seen reach further than those seen."""
BINS = 8192
"""Of a histogram: some 64 to a step of INT8 where nothing is clipped."""

_PART = 1 << 18  # values that are binned at a time


@dataclass(frozen=True)
class Range:
    """What INT8 is to hold of a tensor.

    range: the largest magnitude that is not clipped, above zero: LARGEST_INTEGER, a scale of one, where the tensor was
    zero on all samples. largest: the largest magnitude that was seen (of such a tensor ModelOpt says LARGEST_INTEGER
    too). percentile: which of PERCENTILES was taken. Both are None where the method does not tell.
    """

    tensor: str
    range: float
    largest: float | None
    percentile: float | None

    def to_dict(self) -> dict[str, str | float | None]:
        return dict(vars(self))


def find_ranges(model: onnx.ModelProto, names: Iterable[str], *, calibration: Iterable[Feeds],
                method: str) -> tuple[Range, ...]:
    """Range of every activation (input 0) that the nodes in `names` read, in graph order.

    method: "max" and "entropy" are ModelOpt's; "percentile" takes for each tensor that one of PERCENTILES which gives
    the smallest squared error of clipping and rounding, the largest magnitude where clipping gains little.
    calibration: samples that can be read again and again, one in memory at a time.

    Raises UserError for an unknown method or node name, without samples, where they can be read only once, and where
    an activation is not finite; RuntimeError where ModelOpt left out a node.
    """
    if method not in METHODS:
        raise UserError(f"unknown calibration method {method!r}{suggest(method, METHODS)}")
    model = named(model)
    names = known_nodes(model, names, argument="names")
    if iter(calibration) is calibration:
        raise UserError("INT8 ranges need calibration samples that can be read again and again, received an iterator; "
                        "pass a list, or an object whose __iter__ begins anew")
    if next(iter(calibration), None) is None:
        raise UserError("INT8 ranges need calibration samples, received none; pass some tens of pictures with "
                        "sentences")
    if not names:
        return ()
    if method == "percentile":
        return _by_percentile(model, names, calibration)
    ranges = _by_modelopt(model, names, calibration, method)
    return tuple(Range(tensor, found, largest=found if method == "max" else None,
                       percentile=100.0 if method == "max" else None) for tensor, found in ranges.items())


def largest_magnitudes(model: onnx.ModelProto, tensors: Sequence[str], *,
                       calibration: Iterable[Feeds]) -> dict[str, float]:
    """The largest magnitude of each tensor over all samples, reduced inside the graph.

    Raises UserError where one is not finite.
    """
    probes = [node for tensor in tensors for node in (
        helper.make_node("Abs", [tensor], [f"{tensor}/magnitudes"], name=f"{tensor}/magnitudes"),
        helper.make_node("ReduceMax", [f"{tensor}/magnitudes"], [f"{tensor}/largest"], name=f"{tensor}/largest",
                         keepdims=0))]
    largest = dict.fromkeys(tensors, 0.0)
    for found in observe(model, [f"{tensor}/largest" for tensor in tensors], probes=probes, calibration=calibration,
                         title="INT8 ranges"):
        for tensor in tensors:
            number = float(found[f"{tensor}/largest"])
            if not math.isfinite(number):
                raise UserError(f"the activation {tensor!r} is not finite in FP32 on a calibration sample, expected "
                                "numbers; look for infinite or missing values in the weights and the pictures")
            largest[tensor] = max(largest[tensor], number)
    return largest


def _by_percentile(model: onnx.ModelProto, names: set[str], calibration: Iterable[Feeds]) -> tuple[Range, ...]:
    tensors = _activations(model, names)
    largest = largest_magnitudes(model, tensors, calibration=calibration)
    histograms = {tensor: np.zeros(BINS, np.int64) for tensor in tensors if _scalable(largest[tensor])}
    sizes = dict.fromkeys(histograms, 0)
    if histograms:
        for found in observe(model, list(histograms), calibration=calibration, title="INT8 histograms"):
            for tensor, counts in histograms.items():
                counts += histogram(found[tensor], largest[tensor])
                sizes[tensor] += found[tensor].size
    ranges = []
    for tensor in tensors:
        chosen, percentile = float(LARGEST_INTEGER), PERCENTILES[0]
        if tensor in histograms:
            chosen, percentile = best_range(histograms[tensor], size=sizes[tensor], largest=largest[tensor])
        ranges.append(Range(tensor, chosen, largest[tensor], percentile))
    return tuple(ranges)


def histogram(values: np.ndarray, largest: float) -> np.ndarray:
    """How many of `values` have a magnitude in each of BINS equal parts of [0, largest], zeros not counted: int64."""
    values = values.reshape(-1)
    counts = np.zeros(BINS, np.int64)
    for start in range(0, values.size, _PART):
        part = np.abs(values[start:start + _PART])
        counts[0] += np.count_nonzero(part) - part.size
        part /= largest
        part *= BINS
        counts += np.bincount(np.minimum(part.astype(np.intp), BINS - 1), minlength=BINS)
    return counts


def best_range(counts: np.ndarray, *, size: int, largest: float) -> tuple[float, float]:
    """The range that gives the smallest squared error, and which of PERCENTILES it is; the largest unless WORTHWHILE.

    counts [BINS]: of `histogram`. size: how many values there were, zeros too.
    """
    edges = np.linspace(0.0, largest, BINS + 1)
    held = np.cumsum(counts) + (size - counts.sum())
    thresholds = {percentile: float(edges[np.searchsorted(held, size * percentile / 100) + 1])
                  for percentile in PERCENTILES[1:]} | {PERCENTILES[0]: largest}
    errors = {percentile: squared_error(counts, edges, threshold) for percentile, threshold in thresholds.items()}
    best = min(errors, key=errors.__getitem__)
    if errors[best] > WORTHWHILE * errors[PERCENTILES[0]]:
        best = PERCENTILES[0]
    return thresholds[best], best


def squared_error(counts: np.ndarray, edges: np.ndarray, threshold: float) -> float:
    """Sum of the squared errors of clipping at `threshold` and rounding to INT8, of values spread evenly in each bin.

    A value x becomes k * step with k = round(x / step), 127 at most. The integral of (x - k * step)^2 from zero to x is
    k * step^3 / 12 + (x - k * step)^3 / 3.
    """
    step = threshold / LARGEST_INTEGER
    units = edges / step
    k = np.minimum(np.rint(units), LARGEST_INTEGER)
    integral = k / 12 + (units - k) ** 3 / 3
    return float(step**2 * np.sum(counts * np.diff(integral) / np.diff(units)))


def _by_modelopt(model: onnx.ModelProto, names: set[str], calibration: Iterable[Feeds], method: str,
                 ) -> dict[str, float]:
    """ModelOpt's ranges by tensor, read off the quantizers of the graph that it makes."""
    quantization = modelopt("modelopt.onnx.quantization")
    numbers = {node.name: f"node{index:07d}" for index, node in enumerate(model.graph.node)}
    reader = _reader(calibration, "INT8 ranges")
    with scratch() as directory, quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar for every sample
        source, target = directory / "fp32.onnx", directory / "int8.onnx"
        onnx.save(_renamed(model, numbers), source)
        quantization.quantize(
            str(source), quantize_mode="int8", output_path=str(target), calibration_method=method,
            calibration_data_reader=reader, calibration_eps=["cpu"], high_precision_dtype="fp32",
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            nodes_to_quantize=[number for name, number in numbers.items() if name in names],
            disable_mha_qdq=True, enable_gemv_detection_for_trt=False, log_level="ERROR")
        quantized = onnx.load(target)
    nodes = {node.name: node for node in quantized.graph.node}
    producer = {name: node for node in quantized.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    ranges: dict[str, float] = {}
    for node in model.graph.node:
        if node.name not in names:
            continue
        dequantize = producer.get(nodes[numbers[node.name]].input[0]) if numbers[node.name] in nodes else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise RuntimeError(f"ModelOpt left out {node.name!r}, which was to be quantized; take the calibration "
                               "method 'percentile', or install another version of ModelOpt")
        scale = float(numpy_helper.to_array(constants[dequantize.input[1]]))
        ranges[node.input[0]] = max(ranges.get(node.input[0], 0.0), scale * LARGEST_INTEGER)
    return ranges


def _activations(model: onnx.ModelProto, names: set[str]) -> list[str]:
    """What the nodes in `names` read as input 0, each once, in graph order."""
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in names))


def _scalable(largest: float) -> bool:
    """Whether a scale can be made of it: a smaller one would vanish in float32."""
    return largest / LARGEST_INTEGER > np.finfo(np.float32).tiny


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """A copy of `model` with other node names.

    ModelOpt's exclusions match from the start of a name: an attention product `MatMul_65` would take the linear layer
    `MatMul_650` out too. Numbers of one width are no beginnings of each other.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = names.get(node.name, node.name)
    return copy


def _reader(samples: Iterable[Feeds], title: str):
    """ONNX Runtime's calibration reader over `samples`, one at a time, with a progress bar of its own."""
    calibrate = require("onnxruntime.quantization.calibrate", extra="export")

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self.bar = progress(samples, title)
            self.rewind()

        def rewind(self) -> None:
            self.remaining = iter(self.bar)

        def get_next(self) -> Feeds | None:
            return next(self.remaining, None)

        def get_first(self) -> Feeds:
            return next(iter(samples))

    return Reader()
