"""SmoothQuant folded into the layer normalisation before: outlier channels move from activations into weights.

Works on flat FP32 graphs, before the ranges are measured (Xiao et al. 2023, arXiv 2211.10438). One INT8 scale serves a
whole activation, so a channel that is far larger than the others takes their resolution; weights have a scale per
output channel. Channel j of a normalisation's output x is divided by s_j (its scale and bias are), row j of every
matrix W that reads it is multiplied by s_j: the same function, up to the rounding of FP32.

C input channels, O output channels of all readers together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.observe import observe
from calibration.ranges import LARGEST_INTEGER
from deploy.modelopt import known_nodes, named
from deploy.onnx_run import Feeds
from talent.errors import UserError

ALPHAS = tuple(round(0.25 + 0.05 * step, 2) for step in range(14))
"""How much of the difficulty moves into the weights, 0.25 to 0.9; leaving a place alone is tried besides."""
WORTHWHILE = 0.9
"""A place is left alone unless its estimated error falls to this part of what it was: the estimate is a model of
rounding that is itself some per cent off, and what is not changed cannot go wrong."""
LARGEST_DIVISOR = 1e3
"""No s lies further from the geometric mean of its place, up or down."""
LARGEST_PARAMETER = 4096.0
"""Neither scale nor bias passes this by division, a sixteenth of FP16's largest number."""

_FLOOR = 1e-5  # part of the largest channel below which a channel counts as dead
_SMALLEST_NORMAL = 2.0**-14  # of FP16: a scale below it would lose digits


@dataclass(frozen=True)
class Smoothing:
    """A layer normalisation that could be smoothed, by node names, and the linear layers that read it.

    alpha: 0 where it was left alone. error_before, error_after: estimated error of INT8 in the products of its readers,
    in rms relative to these products. channel_ratio: the largest channel's largest magnitude over the median channel's,
    before; infinite where more than half of the channels are zero.
    """

    layer_norm: str
    readers: tuple[str, ...]
    alpha: float
    error_before: float
    error_after: float
    channel_ratio: float

    def to_dict(self) -> dict[str, str | float | list[str] | None]:
        """What JSON can hold: no infinite number, None instead."""
        ratio = self.channel_ratio if np.isfinite(self.channel_ratio) else None
        return {**vars(self), "readers": list(self.readers), "channel_ratio": ratio}


@dataclass(frozen=True)
class _Place:
    """A layer normalisation and all that reads its output: matrix products with a constant."""

    layer_norm: onnx.NodeProto
    readers: tuple[onnx.NodeProto, ...]

    @property
    def output(self) -> str:
        return self.layer_norm.output[0]


@dataclass
class ChannelStatistics:
    """Of one place, over all samples. peak [C]: largest magnitude of a channel. power [C]: its mean square over tokens.
    product: mean over tokens of the sum of squares of all O products."""

    peak: np.ndarray
    power: np.ndarray
    product: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """As JSON holds it, without loss."""
        return {"peak": self.peak.tolist(), "power": self.power.tolist(), "product": self.product}

    @classmethod
    def from_dict(cls, values: dict) -> ChannelStatistics:
        """The inverse of `to_dict`."""
        return cls(np.array(values["peak"]), np.array(values["power"]), values["product"])


def channel_statistics(model: onnx.ModelProto, names: Iterable[str], *,
                       calibration: Iterable[Feeds]) -> list[ChannelStatistics]:
    """What `smooth` wants to know of each place that it looks at, in graph order.

    `calibration` is read once, one sample in memory at a time. Raises UserError for an unknown node name, without
    samples, and where an activation is not finite.
    """
    model = named(model)
    return _measure(model, _places(model, known_nodes(model, names, argument="names")), calibration)


def smooth(model: onnx.ModelProto, names: Iterable[str],
           statistics: Sequence[ChannelStatistics]) -> tuple[onnx.ModelProto, tuple[Smoothing, ...]]:
    """A copy of `model`, the same function, in which INT8 loses less; what was done to each place, in graph order.

    Looks at every LayerNormalization over the last axis whose readers are all MatMul or Gemm nodes in `names` with
    constant matrices. Its divisors are those of one alpha of ALPHAS that give the smallest estimate of INT8's error.
    statistics: `channel_statistics` of the same model and names.

    Raises UserError for an unknown node name.
    """
    model = named(model)
    places = _places(model, known_nodes(model, names, argument="names"))
    done = []
    for place, found in zip(places, statistics, strict=True):
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        matrices = [_matrix(reader, constants) for reader in place.readers]
        parameters = np.stack([np.abs(numpy_helper.to_array(constants[name])) for name in _parameters(place)]).max(0)
        alpha, divisors, before, after = _best(found, np.concatenate(matrices, axis=1), parameters)
        median = float(np.median(found.peak))
        ratio = float(found.peak.max()) / median if median else np.inf
        done.append(Smoothing(place.layer_norm.name, tuple(reader.name for reader in place.readers), alpha, before,
                              after, ratio))
        if alpha:
            _apply(model, place, divisors)
    return model, tuple(done)


def estimated_error(peak: np.ndarray, power: np.ndarray, weight: np.ndarray, divisors: np.ndarray) -> float:
    """Mean over tokens of the squared error that INT8 makes in x @ weight, summed over its outputs.

    peak, power [C]: of x, as in the statistics; weight [C, O]; divisors [C]. Rounding to steps is noise of step^2 / 12
    where the step is finer than the number, and loses the number itself, its square, where it is coarser.
    """
    step = (peak / divisors).max() / LARGEST_INTEGER
    smoothed = np.square(weight * divisors[:, None], dtype=np.float32)  # [C, O]
    power = power / divisors**2
    activations = np.minimum(step**2 / 12, power) @ smoothed.sum(axis=1, dtype=np.float64)
    steps = smoothed.max(axis=0) / LARGEST_INTEGER**2  # [O], squared
    weights = power @ np.minimum(smoothed, steps / 12).sum(axis=1, dtype=np.float64)
    return float(activations + weights)


def _best(found: ChannelStatistics, weight: np.ndarray,
          parameters: np.ndarray) -> tuple[float, np.ndarray, float, float]:
    """The alpha, 0 where smoothing is not worthwhile, its divisors [C], and the relative rms error before and after.

    weight [C, O]; parameters [C]: the larger magnitude of scale and bias.
    """
    def error(divisors: np.ndarray) -> float:
        squares = estimated_error(found.peak, found.power, weight, divisors)
        return float(np.sqrt(squares / found.product)) if found.product else 0.0

    rows = np.abs(weight).max(axis=1)
    candidates = {alpha: smoothing_divisors(found.peak, rows, parameters, alpha) for alpha in ALPHAS}
    none = np.ones_like(found.peak)
    before, errors = error(none), {alpha: error(divisors) for alpha, divisors in candidates.items()}
    alpha = min(errors, key=errors.__getitem__)
    if errors[alpha] <= WORTHWHILE * before and before:
        return alpha, candidates[alpha], before, errors[alpha]
    return 0.0, none, before, before


def smoothing_divisors(peak: np.ndarray, rows: np.ndarray, parameters: np.ndarray, alpha: float) -> np.ndarray:
    """s = peak^alpha / rows^(1 - alpha) [C], one in geometric mean and bounded, so that FP16 holds all that it makes.

    peak [C]: largest magnitude of each channel; rows [C]: of each of the matrix's rows; parameters [C]: the larger
    magnitude of scale and bias. What is dead counts as _FLOOR of the largest.
    """
    peak, rows = (np.maximum(values, _FLOOR * max(values.max(), np.finfo(np.float32).tiny)) for values in (peak, rows))
    logarithm = alpha * np.log(peak) - (1 - alpha) * np.log(rows)
    divisors = np.exp(logarithm - logarithm.mean()).clip(1 / LARGEST_DIVISOR, LARGEST_DIVISOR)
    smallest = np.minimum(parameters / LARGEST_PARAMETER, 1)
    largest = np.where(parameters > 0, np.maximum(parameters / _SMALLEST_NORMAL, 1), LARGEST_DIVISOR)
    return divisors.clip(smallest, largest)


def _places(model: onnx.ModelProto, names: set[str]) -> list[_Place]:
    graph = model.graph
    inputs = {value.name for value in graph.input}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer
              if tensor.data_type == TensorProto.FLOAT and tensor.name not in inputs}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def multiplies(node: onnx.NodeProto, name: str, channels: int) -> bool:
        shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return (node.name in names and node.op_type in ("MatMul", "Gemm") and list(node.input).count(name) == 1
                and node.input[0] == name and len(shape) == 2 and shape[_row_axis(node)] == channels and not transposed)

    places = []
    for node in graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        found = [shapes.get(name, ()) for name in node.input[1:] if name]
        if len(found[0]) != 1 or any(shape != found[0] for shape in found):  # not over the last axis, or no constants
            continue
        read = readers.get(node.output[0], [])
        if read and all(multiplies(reader, node.output[0], found[0][0]) for reader in read):
            places.append(_Place(node, tuple(read)))
    return places


def _row_axis(node: onnx.NodeProto) -> int:
    """Which axis of a reader's matrix runs over the input channels: 0, or 1 where a Gemm transposes it."""
    return int(any(attribute.name == "transB" and attribute.i for attribute in node.attribute))


def _matrix(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> np.ndarray:
    """A reader's matrix [C, O] float32."""
    values = numpy_helper.to_array(constants[node.input[1]])
    return values.T if _row_axis(node) else values


def _parameters(place: _Place) -> list[str]:
    """Names of scale and, where there is one, bias."""
    return [name for name in place.layer_norm.input[1:] if name]


def _measure(model: onnx.ModelProto, places: list[_Place], calibration: Iterable[Feeds]) -> list[ChannelStatistics]:
    """Statistics of each place, reduced inside the graph."""
    if not places:
        return []
    first = helper.make_tensor("smooth/first", TensorProto.INT64, [1], [0])
    probes, outputs = [], []

    def add(op_type: str, *inputs: str, **attributes: int) -> str:
        name = f"smooth/{len(probes)}"
        probes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def mean_square(tokens: str) -> str:
        return add("ReduceMean", add("Mul", tokens, tokens), first.name, keepdims=0)

    for place in places:
        tokens = add("Flatten", place.output, axis=-1)  # [tokens, C]
        products = [add("ReduceSum", mean_square(add("Flatten", reader.output[0], axis=-1)), keepdims=0)
                    for reader in place.readers]
        outputs.append((add("ReduceMax", add("Abs", tokens), first.name, keepdims=0), mean_square(tokens), products))
    names = [name for peak, power, products in outputs for name in (peak, power, *products)]
    samples, statistics = 0, [ChannelStatistics(np.zeros(1), np.zeros(1), 0.0) for _ in places]
    for found in observe(model, names, probes=probes, constants=[first], calibration=calibration,
                         title="INT8 channels"):
        samples += 1
        for place, (peak, power, products), total in zip(places, outputs, statistics, strict=True):
            total.peak = np.maximum(total.peak, found[peak].astype(np.float64))
            total.power = total.power + found[power]
            total.product += float(sum(found[name] for name in products))
            if not (np.isfinite(total.power).all() and np.isfinite(total.product)):
                raise UserError(f"what {place.layer_norm.name!r} or a layer behind it makes is not finite in FP32 on "
                                f"calibration sample {samples}, expected numbers; look for infinite or missing values "
                                "in the weights and the pictures")
    if not samples:
        raise UserError("smoothing needs calibration samples, received none; pass some tens of pictures with sentences")
    return [ChannelStatistics(total.peak, total.power / samples, total.product / samples) for total in statistics]


def _apply(model: onnx.ModelProto, place: _Place, divisors: np.ndarray) -> None:
    """Divide scale and bias, multiply rows; constants that others read too stay as they are, beside a new one."""
    factors = {(place.layer_norm.name, index): 1 / divisors for index in range(1, len(place.layer_norm.input))
               if place.layer_norm.input[index]}
    factors |= {(reader.name, 1): divisors[:, None] if _row_axis(reader) == 0 else divisors for reader in place.readers}
    reads = Counter(name for node in model.graph.node for name in node.input)
    reads.update(value.name for value in model.graph.output)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in (place.layer_norm, *place.readers):
        for index, name in enumerate(node.input):
            if (node.name, index) not in factors:
                continue
            values = (numpy_helper.to_array(constants[name]) * factors[node.name, index]).astype(np.float32)
            if reads[name] > 1:
                reads[name] -= 1
                name = node.input[index] = f"{name}/{node.name}/{index}"
                constants[name] = model.graph.initializer.add()
            constants[name].CopyFrom(numpy_helper.from_array(values, name))
