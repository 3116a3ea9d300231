"""INT8 by explicit Q/DQ: which layers, with what scales, and weights stored as integers.

Works on flat FP32 graphs and gives INT8 + FP16 ones, before `fuse_rca`. An RCA is never quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.ranges import LARGEST_INTEGER
from deploy.fuse_rca import find_rca
from deploy.modelopt import known_nodes
from deploy.onnx_run import part_of
from deploy.precision import Precisions, to_fp16
from talent.errors import UserError

MIN_INT8_CHANNELS = 16
"""Below this many input or output channels INT8 tensor cores gain nothing."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def quantizable(model: onnx.ModelProto, *, exclude: Iterable[str] = ()) -> list[str]:
    """Names of the nodes that INT8 serves: linear layers and convolutions, in graph order.

    A linear layer is a MatMul or Gemm whose right operand is a constant matrix, so attention's two products and the
    dynamic convolution are none. Left out: the RCA, convolutions that read a graph input (the patch embedding),
    layers with fewer than MIN_INT8_CHANNELS channels, and the nodes named in `exclude`.
    """
    inputs = {value.name for value in model.graph.input}
    shape = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    unfit = known_nodes(model, exclude, argument="exclude")
    unfit |= {node.name for match in find_rca(model)[0] for node in match.nodes}
    names = []
    for node in model.graph.node:
        weight = shape.get(node.input[1]) if len(node.input) > 1 else None
        linear = node.op_type in ("MatMul", "Gemm") and weight is not None and len(weight) == 2
        convolution = node.op_type == "Conv" and weight is not None and node.input[0] not in inputs
        if (linear or convolution) and min(weight[:2]) >= MIN_INT8_CHANNELS and node.name not in unfit:
            names.append(node.name)
    return names


def activation_scale(largest: float) -> np.float32:
    """What one step of an activation is worth whose largest magnitude is `largest`; exact in FP16 where it fits."""
    return _representable(np.float32(largest / LARGEST_INTEGER))


def quantized_weight(node: onnx.NodeProto, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The weight of a MatMul, Gemm or Conv as INT8: integers int8 of its shape, scales float32 [O] and the axis of O.

    One scale per output channel, from its largest magnitude.
    """
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    scales = _representable(np.abs(weight).max(others).astype(np.float32) / LARGEST_INTEGER)
    integers = np.rint(weight / np.expand_dims(scales, others)).clip(-LARGEST_INTEGER, LARGEST_INTEGER).astype(np.int8)
    return integers, scales, axis


def _representable(scale: np.ndarray) -> np.ndarray:
    """The nearest FP16 numbers above zero, as float32; a scale beyond FP16's largest number stays as it is."""
    half = scale.astype(np.float16).astype(np.float32)
    smallest = np.float32(np.finfo(np.float16).smallest_subnormal)
    return np.where(np.isfinite(half), np.maximum(half, smallest), scale)[()]


def quantize(model: onnx.ModelProto, layers: Iterable[str], ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of a flat FP32 graph in which the nodes in `layers` compute in INT8, by explicit Q/DQ.

    ranges: the largest magnitude that INT8 shall hold, by activation tensor. Symmetric, zero point 0, weights per
    output channel and stored as INT8, biases unquantized. A tensor has one Q/DQ however many of `layers` read it, and
    nobody else reads what was rounded: neither the residual stream nor an RCA beside a quantized layer.

    Raises UserError where a node of `layers` is none that `quantizable` names, or a range is not above zero.
    """
    layers = set(layers)
    if unfit := layers - set(quantizable(model)):
        raise UserError(f"cannot quantize {', '.join(sorted(unfit))}: expected linear layers and convolutions with "
                        f"constant weights and {MIN_INT8_CHANNELS} channels or more")
    quantized = part_of(model, "input", "output", "initializer")
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dequantized: dict[str, str] = {}  # by tensor
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.name in layers:
            for index, name in enumerate(node.input[:2]):
                if name not in dequantized:
                    added = (_weight_nodes(graph, node, numpy_helper.to_array(weights[name]), name) if index
                             else _activation_nodes(graph, name, ranges))
                    graph.node.extend(added)
                    dequantized[name] = added[-1].output[0]
                node.input[index] = dequantized[name]
        graph.node.append(node)
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    alive = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(alive)
    return quantized


def _activation_nodes(graph: onnx.GraphProto, name: str, ranges: Mapping[str, float]) -> list[onnx.NodeProto]:
    if not ranges[name] > 0:
        raise UserError(f"the range of {name!r}: expected a number above zero, received {ranges[name]}; calibrate on "
                        "pictures that excite this layer")
    scale, zero = f"{name}/scale", f"{name}/zero_point"
    graph.initializer.extend((numpy_helper.from_array(np.array(activation_scale(ranges[name])), scale),
                              numpy_helper.from_array(np.array(0, np.int8), zero)))
    return [helper.make_node(_QUANTIZE, [name, scale, zero], [f"{name}/quantized"], name=f"{name}/{_QUANTIZE}"),
            helper.make_node(_DEQUANTIZE, [f"{name}/quantized", scale, zero], [f"{name}/dequantized"],
                             name=f"{name}/{_DEQUANTIZE}")]


def _weight_nodes(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray, name: str) -> list[onnx.NodeProto]:
    integers, scales, axis = quantized_weight(node, weight)
    inputs = [f"{name}/quantized", f"{name}/scale", f"{name}/zero_point"]
    for values, tensor in zip((integers, scales, np.zeros(len(scales), np.int8)), inputs, strict=True):
        graph.initializer.append(numpy_helper.from_array(values, tensor))
    return [helper.make_node(_DEQUANTIZE, inputs, [f"{name}/dequantized"], name=f"{name}/{_DEQUANTIZE}", axis=axis)]


def to_int8(model: onnx.ModelProto, layers: Iterable[str], ranges: Mapping[str, float],
            precisions: Precisions) -> onnx.ModelProto:
    """`quantize`, with FP16 between the INT8 layers and FP32 where `precisions` say so.

    precisions: decided on this very graph. Raises RuntimeError where the quantizers did not come to stand where they
    were asked for.
    """
    layers = set(layers)
    half = to_fp16(quantize(model, layers, ranges), precisions)
    if (found := quantized_nodes(half)) != layers:
        raise RuntimeError(f"AutoCast took the quantizers from {sorted(layers - found)} and gave "
                           f"{sorted(found - layers)} some; install another version of ModelOpt")
    return half


def quantized_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that read a dequantized tensor."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == _DEQUANTIZE}
    return {node.name for node in model.graph.node if dequantized.intersection(node.input)}
