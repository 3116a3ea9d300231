"""INT8 emulated in ONNX Runtime on the CPU, layer by layer at will: one session in which every run says anew which
layers compute in INT8.

A layer of the FP32 graph becomes an `If`: one branch is the layer itself, the other rounds its input and has a weight
that was rounded. The product is computed in FP32, which holds sums of INT8 products as exactly as a GPU's INT32 does up
to 2^24 / 127^2 = 1040 terms, and beyond that to 6e-8. What lies between the layers stays FP32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.quantize import activation_scale, quantized_weight
from deploy.mapped_weights import map_weights
from deploy.onnx_run import Feeds, open_session, part_of, run_session

_FLAG = "int8/"


class EmulatedInt8:
    """A flat FP32 graph whose `layers` (names of MatMul, Gemm and Conv nodes with constant weights) can be INT8.

    ranges: the largest magnitude by activation tensor, as `calibration.ranges.find_ranges` finds it. To be used in a
    `with` block, which ends with the session and its files gone.
    """

    def __init__(self, model: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, float]) -> None:
        self.layers = tuple(layers)
        self._scratch = tempfile.TemporaryDirectory()
        path = Path(self._scratch.name) / "switched.onnx"
        switched = _switched(model, frozenset(layers), ranges)
        switched.graph.initializer.extend(map_weights(model.graph.initializer, path.parent))  # all may pass 2 GB
        onnx.save(switched, path)
        self._session = open_session(path)

    def run(self, feeds: Feeds, int8: Collection[str]) -> dict[str, np.ndarray]:
        """Outputs by name, with the layers of `int8` in INT8 and the others in FP32.

        Raises KeyError for a layer that this graph was not opened with.
        """
        if unknown := set(int8) - set(self.layers):
            raise KeyError(f"not among the layers that can be INT8 here: {', '.join(sorted(unknown))}")
        flags = {_FLAG + name: np.array(name in int8) for name in self.layers}
        return run_session(self._session, {**feeds, **flags})

    def __enter__(self) -> EmulatedInt8:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        del self._session
        self._scratch.cleanup()


def _switched(model: onnx.ModelProto, layers: frozenset[str], ranges: Mapping[str, float]) -> onnx.ModelProto:
    """The graph with its switches, without the constants of `model`."""
    switched = part_of(model, "input", "output")
    graph = switched.graph
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in layers:
            graph.node.append(node)
            continue
        flag = _FLAG + node.name
        graph.input.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
        rounded = _rounding(node, numpy_helper.to_array(weights[node.input[1]]), ranges[node.input[0]])
        graph.node.append(helper.make_node("If", [flag], node.output, name=node.name,
                                           then_branch=rounded, else_branch=_branch([node], node.output)))
    return switched


def _branch(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str],
            constants: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """A branch that reads the outer graph's tensors. Its tensors are called otherwise than those of the outer graph."""
    branch = helper.make_graph(list(nodes), "branch", [], [], list(constants))
    for node in branch.node:
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = f"{name}/branch"
    branch.output.extend(onnx.ValueInfoProto(name=f"{name}/branch") for name in outputs)
    return branch


def _rounding(node: onnx.NodeProto, weight: np.ndarray, largest: float) -> onnx.GraphProto:
    """The branch in which `node` reads what INT8 makes of its input and of its weight."""
    integers, scales, axis = quantized_weight(node, weight)
    values = integers * scales.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
    constants = [numpy_helper.from_array(values, f"{node.name}/weight"),
                 numpy_helper.from_array(np.array(activation_scale(largest)), f"{node.name}/scale"),
                 numpy_helper.from_array(np.array(0, np.int8), f"{node.name}/zero")]
    parameters = [f"{node.name}/scale", f"{node.name}/zero"]
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    layer.input[0], layer.input[1] = f"{node.name}/dequantized", f"{node.name}/weight"
    nodes = [helper.make_node("QuantizeLinear", [node.input[0], *parameters], [f"{node.name}/integers"]),
             helper.make_node("DequantizeLinear", [f"{node.name}/integers", *parameters], [layer.input[0]]), layer]
    return _branch(nodes, node.output, constants)
