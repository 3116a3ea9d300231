"""The arithmetic of a graph against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.arithmetic import arithmetic, share
from calibration.quantize import quantizable

Shape = list[int | str]


def graph_of(nodes: list[onnx.NodeProto], inputs: dict[str, Shape], constants: dict[str, tuple[int, ...]],
             outputs: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                         for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_matrix_product_costs_two_operations_per_multiply_add() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["linear"], name="linear"),
                      helper.make_node("MatMul", ["q", "k"], ["scores"], name="scores"),
                      helper.make_node("Relu", ["scores"], ["y"], name="relu")],
                     {"x": [1, 5, 7], "q": [2, 3, 11, 13], "k": [2, 3, 13, 17]}, {"w": (7, 19)}, ["linear", "y"])
    assert arithmetic(model) == {"linear": 2 * 5 * 7 * 19, "scores": 2 * 2 * 3 * 11 * 13 * 17}


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
def test_a_gemm_costs_the_same_however_its_operands_lie(left: int, right: int) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", transA=left, transB=right)
    model = graph_of([node], {"x": [7, 5] if left else [5, 7]}, {"w": (19, 7) if right else (7, 19), "b": (19,)}, ["y"])
    assert arithmetic(model) == {"gemm": 2 * 5 * 7 * 19}


@pytest.mark.parametrize(("groups", "stride", "side"), [(1, 1, 12), (1, 2, 6), (4, 1, 12), (8, 3, 4)])
def test_a_convolution_costs_its_kernel_at_every_place(groups: int, stride: int, side: int) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=groups, strides=[stride] * 2, pads=[1] * 4)
    model = graph_of([node], {"x": [1, 8, 12, 12]}, {"w": (16, 8 // groups, 3, 3)}, ["y"])
    assert arithmetic(model) == {"conv": 2 * 16 * side * side * (8 // groups) * 9}


def test_sizes_that_are_open_count_as_one() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="open")],
                     {"x": ["pictures", 5, 7]}, {"w": (7, 19)}, ["y"])
    before = model.SerializeToString()
    assert arithmetic(model) == {"open": 2 * 5 * 7 * 19}
    assert model.SerializeToString() == before


def test_every_product_of_a_whole_network_is_counted(plain: onnx.ModelProto) -> None:
    """The toy network for one picture: 49 patches and 5 tokens before them, 32 wide, twice."""
    flop = arithmetic(plain)
    assert flop.keys() == {node.name for node in plain.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}
    counts = sorted(flop[name] for name in quantizable(plain))
    block = [54 * 32 * 96, 54 * 32 * 32, 54 * 32 * 128, 54 * 128 * 32, 17 * 24 * 32]
    assert counts == sorted(2 * count for count in [*block, *block, 49 * 32 * 32, 196 * 32 * 32 * 9, 196 * 32 * 32])


def test_a_product_without_a_shape_is_an_error() -> None:
    """An operator that ONNX does not know stands before it."""
    model = graph_of([helper.make_node("Unknown", ["x"], ["h"], name="unknown", domain="elsewhere"),
                      helper.make_node("MatMul", ["h", "w"], ["y"], name="blind")],
                     {"x": [5, 7]}, {"w": (7, 19)}, ["y"])
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(RuntimeError, match="infers no shape for 'blind'; simplify the graph first"):
        arithmetic(model)


def test_a_share_is_a_part_of_all() -> None:
    flop = {"a": 1, "b": 2, "c": 5}
    assert (share(flop, []), share(flop, "b"), share(flop, "ac"), share(flop, "abc")) == (0, 0.25, 0.75, 1)
    assert share({}, []) == 0
    with pytest.raises(KeyError, match="d"):
        share(flop, "d")
