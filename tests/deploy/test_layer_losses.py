"""Which layers lost most: one that was made to lose is found, with its name, its type and how much it lost itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.quantize import quantized_nodes
from deploy.fuse_rca import find_rca, fuse_rca
from deploy.layer_losses import layer_losses, layer_names, loss_table
from deploy.precision import to_fp16
from tests.deploy import toy
from tests.quantized import all_int8

FEEDS = [toy.feeds(1, seed) for seed in (7, 8)]
CALIBRATION = [toy.feeds(1, seed) for seed in range(3)]
EYE = np.eye(4, dtype=np.float32)


@pytest.fixture(scope="module")
def half(plain: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(plain, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def names(exported: onnx.ModelProto) -> dict[str, str]:
    return layer_names(exported)


def with_constant(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    """A copy of `model` with `change(value)` in place of a constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constant, = (tensor for tensor in copy.graph.initializer if tensor.name == name)
    constant.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(constant)), name))
    return copy


def linear_layers(*weights: np.ndarray, types: tuple[int, ...] = (), name: str = "linear") -> onnx.ModelProto:
    """x [1, 4] -> y: layers without a bias, in the given types with casts between, FP32 outside."""
    types = types or (TensorProto.FLOAT,) * len(weights)
    nodes, constants, last, kind = [], [], "x", TensorProto.FLOAT

    def cast(to: int) -> None:
        nonlocal last, kind
        if kind != to:
            nodes.append(helper.make_node("Cast", [last], [f"{last}_cast"], to=to))
            last, kind = nodes[-1].output[0], to

    for index, (weight, to) in enumerate(zip(weights, types, strict=True)):
        cast(to)
        dtype = helper.tensor_dtype_to_np_dtype(to)
        constants.append(numpy_helper.from_array(weight.astype(dtype), f"layer{index}.weight"))
        nodes.append(helper.make_node("MatMul", [last, f"layer{index}.weight"], [f"h{index}"], name=f"MatMul_{index}"))
        last = f"h{index}"
    cast(TensorProto.FLOAT)
    nodes[-1].output[0] = "y"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, name, [value("x", TensorProto.FLOAT, [1, 4])],
                              [value("y", TensorProto.FLOAT, [1, 4])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_graph_beside_itself_loses_nothing(plain, names):
    losses = layer_losses(plain, plain, feeds=FEEDS, names=names)
    assert {(loss.own, loss.error, loss.precision, loss.first_broken) for loss in losses} == {(0, 0, "fp32", False)}
    assert all(loss.peak > 0 for loss in losses)
    linear = {f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("qkv", "proj", "fc1", "fc2", "text_proj")}
    assert linear <= {loss.name for loss in losses if loss.operator == "MatMul"}


def test_own_error_and_error_so_far():
    weights = [3 * EYE, 0.5 * EYE, 2 * EYE]
    reference, exported = linear_layers(*weights), linear_layers(weights[0], 1.02 * weights[1], weights[2])
    losses = layer_losses(reference, exported, feeds=[{"x": np.array([[1, -2, 0.5, 4]], np.float32)}])
    assert [loss.name for loss in losses] == ["layer1", "layer0", "layer2"]
    assert [loss.own for loss in losses] == pytest.approx([0.02, 0, 0], abs=1e-6)
    assert [loss.error for loss in losses] == pytest.approx([0.02, 0, 0.02], abs=1e-6)
    assert [loss.peak for loss in losses] == [6, 12, 12]


def test_errors_are_over_all_samples():
    reference = linear_layers(EYE)
    exported = linear_layers(np.diag([1, 1, 1, 1.5]).astype(np.float32))
    feeds = [{"x": np.array([[3, 0, 0, 0]], np.float32)}, {"x": np.array([[0, 0, 0, 4]], np.float32)}]
    loss, = layer_losses(reference, exported, feeds=feeds)
    assert loss.own == loss.error == pytest.approx(np.sqrt(2**2 / (3**2 + 4**2))) and loss.peak == 4


@pytest.mark.parametrize("layer", ["blocks.0.proj", "blocks.1.fc2"])
def test_a_layer_with_coarse_weights_comes_first(plain, half, names, layer):
    node, = (node for node in plain.graph.node if node.op_type == "MatMul" and names.get(node.output[0]) == layer)
    step = 0.1
    coarse = with_constant(half, node.input[1], lambda weight: (np.rint(weight / step) * step).astype(weight.dtype))
    losses = layer_losses(plain, coarse, feeds=FEEDS, names=names)
    assert (losses[0].name, losses[0].node, losses[0].precision) == (layer, node.name, "fp16")
    assert losses[0].own > 0.05 and max(loss.own for loss in losses[1:]) < 2e-3
    assert losses[0].error == pytest.approx(losses[0].own, rel=0.05)
    later = next(loss for loss in losses if loss.name == "up2")
    assert later.error > 10 * later.own


def test_types_are_those_of_the_exported_graph(plain, names):
    int8 = all_int8(plain, CALIBRATION)
    graph = onnx.shape_inference.infer_shapes(int8, strict_mode=True).graph
    stored = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    words = {TensorProto.FLOAT16: "fp16", TensorProto.FLOAT: "fp32"}
    expected = {node.name: "int8" if node.name in quantized_nodes(int8) else words.get(stored[node.output[0]])
                for node in graph.node}
    losses = layer_losses(plain, int8, feeds=FEEDS, names=names)
    assert {loss.node: loss.precision for loss in losses} == {loss.node: expected[loss.node] for loss in losses}
    assert {loss.precision for loss in losses} == {"int8", "fp16", "fp32"}
    assert quantized_nodes(int8) <= {loss.node for loss in losses}
    half_own = max(loss.own for loss in losses if loss.precision != "int8")
    assert losses[0].precision == "int8" and losses[0].own > 3 * half_own
    assert 0 < half_own < 2e-3 and all(0.001 < loss.own < 0.1 for loss in losses if loss.precision == "int8")


def test_every_layer_keeps_its_error_small_in_fp16(plain, half, names):
    losses = layer_losses(plain, half, feeds=FEEDS, names=names)
    assert len(losses) == len(layer_losses(plain, plain, feeds=FEEDS[:1]))
    assert 0 < max(loss.own for loss in losses) < max(loss.error for loss in losses) < 5e-3
    assert not any(loss.first_broken for loss in losses)


def test_the_layer_that_overflows_is_the_first_that_broke(plain, names):
    naive = to_fp16(plain)
    loud = [dict(feeds, sentence=feeds["sentence"] * 12000) for feeds in FEEDS]
    losses = layer_losses(plain, naive, feeds=loud, names=names)
    cost = find_rca(plain)[0][-1].nodes[1]  # visual @ sentence^T of the neck
    assert losses[0].node == cost.name and losses[0].first_broken and losses[0].own == losses[0].error == np.inf
    assert losses[0].peak > 65504 and losses[0].precision == "fp16"
    assert [loss for loss in losses[1:] if loss.first_broken] == []
    assert not np.isfinite(next(loss for loss in losses if loss.name == "up2").error)


def test_an_overflow_between_two_fp16_layers_is_found():
    """ONNX Runtime's CPU would hand the first product on in FP32, and the whole graph's output is finite."""
    weights = [1000 * EYE, 0.001 * EYE]
    half = linear_layers(*weights, types=(TensorProto.FLOAT16, TensorProto.FLOAT16))
    losses = layer_losses(linear_layers(*weights), half, feeds=[{"x": np.full((1, 4), 100, np.float32)}])
    assert (losses[0].name, losses[0].first_broken, losses[0].peak) == ("layer0", True, 1e5)
    assert (losses[1].name, losses[1].first_broken) == ("layer1", False)


def test_the_output_is_compared_in_its_own_type(plain, half):
    """ModelOpt puts a Cast after the last layer, which gives the tensor's name to it."""
    assert {node.op_type for node in half.graph.node if "logits" in node.output} == {"Cast"}
    weights = [EYE + 1e-3]
    loss, = layer_losses(linear_layers(*weights), linear_layers(*weights, types=(TensorProto.FLOAT16,)),
                         feeds=[{"x": np.ones((1, 4), np.float32)}])
    assert loss.precision == "fp16" and 0 < loss.own < 1e-3


def test_names_without_metadata_are_those_of_weights_or_nodes(plain):
    losses = {loss.node: loss.name for loss in layer_losses(plain, plain, feeds=FEEDS[:1])}
    convolutions = {losses[node.name] for node in plain.graph.node if node.op_type == "Conv"}
    assert convolutions == {"patch_embed", "lateral", "up1", "up2"}
    assert "blocks.1.fc1" in losses.values()  # from its bias
    attention = [node.name for node in plain.graph.node if node.op_type == "Softmax"]
    assert [losses[name] for name in attention] == attention


def test_graphs_that_are_not_each_other_are_refused(plain, half):
    other = linear_layers(EYE, name="other")
    with pytest.raises(RuntimeError, match="'other' have no layer in common"):
        layer_losses(plain, other, feeds=FEEDS)
    with pytest.raises(RuntimeError, match="are not both flat; expected two flat graphs"):
        layer_losses(plain, fuse_rca(half, expected=toy.RCA_COUNT), feeds=FEEDS)


def test_without_a_sample_nothing_can_be_said(plain):
    with pytest.raises(ValueError, match="at least one sample"):
        layer_losses(plain, plain, feeds=[])


def test_the_table_is_aligned_and_short(plain, names):
    losses = layer_losses(plain, all_int8(plain, CALIBRATION), feeds=FEEDS, names=names)
    lines = loss_table(losses, count=5).split("\n")
    assert len(lines) == 6 and lines[0].split() == ["layer", "operator", "node", "in", "own", "error", "error", "peak"]
    for line, loss in zip(lines[1:], losses, strict=False):
        assert line.startswith(loss.name) and loss.node in line and line == line.rstrip()
        for column, cell in (("operator", loss.operator), ("node", loss.node), ("in ", loss.precision)):
            assert line[lines[0].index(column):].startswith(cell)
        assert len(line) == len(lines[0])
    assert len(loss_table(losses).split("\n")) == 9


def test_the_table_of_two_graphs_has_the_worst_of_both():
    x = {"x": np.full((1, 4), 100, np.float32)}
    broken = layer_losses(linear_layers(1000 * EYE), linear_layers(1000 * EYE, types=(TensorProto.FLOAT16,)), feeds=[x])
    wrong = layer_losses(linear_layers(EYE, EYE), linear_layers(EYE, 1.5 * EYE), feeds=[x])
    lines = loss_table([*wrong, *broken], count=2).split("\n")
    assert " ".join(lines[1].split()) == ("layer0 MatMul MatMul_0 fp16 infinite infinite 1e+05 "
                                          "the first that is not finite")
    assert " ".join(lines[2].split()) == "layer1 MatMul MatMul_1 fp32 50 % 50 % 100"
