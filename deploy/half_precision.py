"""What FP16 would do to each node of a flat FP32 graph, measured on samples in ONNX Runtime on the CPU.

FP16 is emulated: a node is computed once more beside the FP32 one, in FP32 on inputs rounded to FP16, and its output is
rounded to FP16. Tensor cores do so with matrix products and convolutions (FP32 accumulation). Layer normalisation and
softmax go step by step, every intermediate rounded, as a kernel that computes in half does; each of their sums is
rounded once, when it is done, so a kernel that also accumulates in half is worse still.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.mapped_weights import map_weights
from deploy.modelopt import named
from deploy.onnx_run import Feeds, open_session, part_of, progress, run_session

ERROR_SAMPLES = 2
"""On how many samples errors are measured by default."""

_NO_NUMBERS = frozenset(("Shape", "Size"))  # read a tensor's shape, none of its values
_MOVES = frozenset((
    "Cast", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"))  # rounding was done before them
_HALF_INPUTS = {"Resize": 1}  # how many inputs become FP16 where not all do: a Resize's scales are FP32 always


@dataclass(frozen=True)
class NodeMeasurement:
    """A node that reads or writes float32 tensors.

    peak: the largest magnitude of its float32 inputs (constants included) and outputs over all samples; inf where one
    is not finite. error: how far its outputs are off in FP16, |half - full| / |full| in Euclidean norms, the worst over
    samples and outputs; inf where FP16 overflows; None where it was not measured (no sample, or it only moves data).
    """

    name: str
    op_type: str
    peak: float
    error: float | None


@dataclass(frozen=True)
class Measurements:
    """Nodes in graph order, by the names that `deploy.modelopt.named` gives them; how many samples set the ranges, and
    how many of these the errors."""

    nodes: tuple[NodeMeasurement, ...]
    samples: int
    error_samples: int


def measure(model: onnx.ModelProto, *, calibration: Iterable[Feeds] = (),
            error_samples: int = ERROR_SAMPLES) -> Measurements:
    """Range and FP16 error of every node that reads or writes float32, over `calibration` (read once, as a stream).

    Errors are measured on the first `error_samples` samples, ranges on all. Both are reduced inside the graph and
    weights are mapped from a file, so this needs little more memory than running the model. Without a sample, peaks are
    those of the constants. The graph has opset 18 or newer.
    """
    peaks = {tensor.name: _peak(tensor) for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        mapped = _with_mapped_weights(model, Path(directory))
        kinds = _kinds(mapped)
        samples, taken = iter(progress(calibration, "FP16 ranges and errors")), 0
        first = itertools.islice(samples, error_samples)
        for found in itertools.chain(_numbers(mapped, kinds, first, Path(directory), with_errors=True),
                                     _numbers(mapped, kinds, samples, Path(directory), with_errors=False)):
            taken += 1
            for worst, numbers in zip((peaks, errors), found, strict=True):
                for name, number in numbers.items():
                    worst[name] = max(worst.get(name, 0.0), number)
    nodes = []
    for node in mapped.graph.node:
        floats = [name for name in (*node.input, *node.output) if kinds.get(name) == TensorProto.FLOAT]
        if floats and node.op_type not in _NO_NUMBERS:
            nodes.append(NodeMeasurement(node.name, node.op_type, max(peaks.get(name, 0.0) for name in floats),
                                         errors.get(node.name)))
    return Measurements(tuple(nodes), samples=taken, error_samples=min(taken, error_samples))


def _numbers(model: onnx.ModelProto, kinds: Mapping[str, int], samples: Iterator[Feeds], directory: Path, *,
             with_errors: bool) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Per sample, peaks by tensor and errors by node. The session opens at the first sample, closes after the last."""
    session = None
    for feeds in samples:
        if session is None:
            probed = _Probed(model, kinds, with_errors=with_errors)
            path = directory / "probed.onnx"
            onnx.save(probed.model, path)
            session = open_session(path, optimize=False)
        yield probed.read(run_session(session, feeds))


class _Probed:
    """A copy of a graph whose outputs are numbers about its tensors, and what each of these outputs tells."""

    def __init__(self, model: onnx.ModelProto, kinds: Mapping[str, int], *, with_errors: bool) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._kinds = kinds
        self._count = 0
        self._halves: dict[str, str] = {}
        self._peaks: dict[str, str] = {}
        self._errors: list[tuple[str, str, str, str]] = []
        graph = self.model.graph
        nodes = list(graph.node)
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constants]
        del graph.output[:]
        del graph.node[:]
        for name in self._float(inputs):
            self._add_peak(name)
        for node in nodes:  # what measures a node stands right behind it, so that its tensors can go soon
            graph.node.append(node)
            for name in self._float(node.output):
                self._add_peak(name)
            if with_errors and _computes(node) and any(self._float(node.input)):
                self._add_errors(node)

    def read(self, outputs: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, float]]:
        """Peaks by tensor and errors by node, from one run's outputs."""
        peaks = {name: _finite(outputs[probe]) for name, probe in self._peaks.items()}
        errors: dict[str, float] = {}
        for node, output, difference, full in self._errors:
            error = _relative(float(outputs[difference]), float(outputs[full]), peaks[output])
            errors[node] = max(errors.get(node, 0.0), error)
        return peaks, errors

    def _float(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._kinds.get(name) == TensorProto.FLOAT]

    def _add(self, op_type: str, *inputs: str, **attributes) -> str:
        """A new node's only output."""
        self._count += 1
        name = f"half_precision/{self._count}"
        self.model.graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def _result(self, name: str) -> str:
        self.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
        return name

    def _add_peak(self, name: str) -> None:
        self._peaks[name] = self._result(self._add("ReduceMax", self._add("Abs", name), keepdims=0))

    def _add_errors(self, node: onnx.NodeProto) -> None:
        """Per float output, the sums of squares of the difference and of the full output."""
        for full, half in self._in_half(node).items():
            difference = self._add("Sub", half, full)
            sums = [self._result(self._add("ReduceSumSquare", name, keepdims=0)) for name in (difference, full)]
            self._errors.append((node.name, full, *sums))

    def _rounded(self, name: str) -> str:
        return self._add("Cast", self._add("Cast", name, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)

    def _half(self, name: str) -> str:
        """`name` rounded to FP16, once for all its readers; as it is where it is no float32 tensor."""
        if self._kinds.get(name) != TensorProto.FLOAT:
            return name
        if name not in self._halves:
            self._halves[name] = self._rounded(name)
        return self._halves[name]

    def _step(self, op_type: str, *inputs: str, **attributes) -> str:
        """One rounded step of a half kernel."""
        return self._rounded(self._add(op_type, *inputs, **attributes))

    def _in_half(self, node: onnx.NodeProto) -> dict[str, str]:
        """Each float output of `node`, and the same computed in FP16."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "LayerNormalization":
            return {node.output[0]: self._layer_norm(node, attributes.get("axis", -1), attributes.get("epsilon", 1e-5))}
        if node.op_type == "Softmax":
            return {node.output[0]: self._softmax(node, attributes.get("axis", -1))}
        count = _HALF_INPUTS.get(node.op_type, len(node.input))
        copy = self.model.graph.node.add()
        copy.CopyFrom(node)
        self._count += 1
        copy.name = f"half_precision/{self._count}"
        copy.input[:] = [*(self._half(name) for name in node.input[:count]), *node.input[count:]]
        copy.output[:] = [name and f"{copy.name}/{name}" for name in node.output]
        return {full: self._rounded(half) for full, half in zip(node.output, copy.output, strict=True)
                if self._float([full])}

    def _layer_norm(self, node: onnx.NodeProto, axis: int, epsilon: float) -> str:
        """(x - mean) / sqrt(mean of squares + epsilon) * scale + bias over the axes from `axis` on."""
        x, scale, *bias = (self._half(name) for name in node.input if name)
        rank = self._add("Size", self._add("Shape", x)) if axis >= 0 else self._integer(0)
        axes = self._add("Range", self._integer(axis), rank, self._integer(1))
        count = self._add("ReduceProd", self._add("Shape", x, start=axis), keepdims=0)
        count = self._add("Cast", count, to=TensorProto.FLOAT)
        mean = self._step("Div", self._step("ReduceSum", x, axes), count)
        centred = self._step("Sub", x, mean)
        squares = self._step("ReduceSum", self._step("Mul", centred, centred), axes)  # 256^2 overflows already
        variance = self._step("Div", squares, count)
        small = self._rounded(self._add("Constant", value_float=epsilon))
        deviation = self._step("Sqrt", self._step("Add", variance, small))
        y = self._step("Mul", self._step("Div", centred, deviation), scale)
        y = self._step("Add", y, *bias) if bias else y
        # An infinite variance makes zeros of its row, which would pass for a finite error
        return self._add("Add", y, self._add("Mul", variance, self._add("Constant", value_float=0.0)))

    def _softmax(self, node: onnx.NodeProto, axis: int) -> str:
        """exp(x - max) over its sum along `axis`."""
        x, axes = self._half(node.input[0]), self._add("Constant", value_ints=[axis])
        exponentials = self._step("Exp", self._step("Sub", x, self._add("ReduceMax", x, axes)))
        return self._step("Div", exponentials, self._step("ReduceSum", exponentials, axes))

    def _integer(self, value: int) -> str:
        return self._add("Constant", value_int=value)


def _computes(node: onnx.NodeProto) -> bool:
    """Whether FP16 can round anew in this node. One with a subgraph is not measured."""
    return node.op_type not in _MOVES | _NO_NUMBERS and not any(a.type == a.GRAPH for a in node.attribute)


def _relative(difference: float, full: float, peak: float) -> float:
    """The root of `difference` over `full` (sums of squares); inf where a number is not finite.

    Where the squares of a tiny output vanish even in FP32, all of it vanishes in FP16: an error of 1.
    """
    if not (math.isfinite(difference) and math.isfinite(full)):
        return math.inf
    if full == 0:
        return (1.0 if peak else 0.0) if difference == 0 else math.inf
    return math.sqrt(difference / full)


def _finite(value: np.ndarray | float) -> float:
    return float(value) if math.isfinite(value) else math.inf


def _peak(tensor: onnx.TensorProto) -> float:
    values = numpy_helper.to_array(tensor)
    return _finite(max(values.max(), -values.min())) if values.size else 0.0


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor whose type ONNX infers."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    return kinds | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _with_mapped_weights(model: onnx.ModelProto, directory: Path) -> onnx.ModelProto:
    """`model` with names of its own for all nodes, and its large constants in a file of `directory`.

    ONNX Runtime maps that file, and the copies of the graph that measuring makes are small.
    """
    mapped = part_of(model, "node", "input", "output", "value_info")
    graph = mapped.graph
    graph.initializer.extend(map_weights(model.graph.initializer, directory))
    return named(mapped)
