"""How much arithmetic each node of a flat graph does: what INT8 can make faster, and how much of it that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx

from deploy.onnx_run import part_of

PRODUCTS = ("MatMul", "Gemm", "Conv")


def arithmetic(model: onnx.ModelProto) -> dict[str, int]:
    """Floating-point operations (2 per multiply-add) of every matrix product and convolution by node name.

    For one picture and one expression: every size that the graph leaves open counts as 1. Other operators move data
    more than they compute, and are left out. Raises RuntimeError where ONNX cannot infer the shape of such a node.
    """
    shapes = _shapes(model)
    result = {}
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        left, right, output = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
        if left is None or right is None or output is None:
            raise RuntimeError(f"ONNX {onnx.__version__} infers no shape for {node.name!r}; simplify the graph first")
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        terms = math.prod(right[1:]) if node.op_type == "Conv" else left[0 if transposed else -1]
        result[node.name] = 2 * math.prod(output) * terms
    return result


def share(flop: Mapping[str, int], layers: Iterable[str]) -> float:
    """Which part of all arithmetic the nodes in `layers` do, from 0 to 1."""
    return sum(flop[name] for name in layers) / max(sum(flop.values()), 1)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor whose shape ONNX infers when every open size is 1."""
    fixed = part_of(model, "node", "input", "output")
    graph = fixed.graph
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1
    for value in graph.output:  # to be inferred anew
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 or math.prod(tensor.dims) <= 8:  # shapes are made of these
            graph.initializer.append(tensor)
        else:  # its shape will do: a copy of the weights would be large
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in dims))
    return shapes
