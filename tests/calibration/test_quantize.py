"""INT8: where the quantizers stand is read off the graph, what they cost is measured in ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.quantize import quantizable, quantized_nodes, to_int8
from deploy.fuse_rca import fuse_rca
from deploy.onnx_run import deviation
from deploy.precision import decide_precisions
from talent.errors import UserError
from tests.deploy import toy

CALIBRATION = [toy.feeds(2, seed) for seed in range(3)]
FRESH = toy.feeds(3, seed=9)


@pytest.fixture(scope="module")
def int8(plain: onnx.ModelProto) -> onnx.ModelProto:
    return to_int8(plain, calibration=CALIBRATION)


def layer(model: onnx.ModelProto, name: str, op_type: str) -> onnx.NodeProto:
    """The node whose bias, or the bias of the Add behind it, is the parameter `name`."""
    for node in model.graph.node:
        if node.op_type == "Add" and name in node.input:
            source = next(other for other in node.input if other != name)
            return next(maker for maker in model.graph.node if source in maker.output and maker.op_type == op_type)
        if node.op_type == op_type and name in node.input:
            return node
    raise LookupError(name)


def test_int8_stands_on_linear_layers_and_convolutions_only(plain, int8) -> None:
    linear = [layer(plain, f"blocks.{block}.{name}.bias", "MatMul").name
              for block in range(2) for name in ("qkv", "proj", "text_proj", "fc1", "fc2")]
    convolutions = [layer(plain, f"{name}.bias", "Conv").name for name in ("lateral", "up1", "up2")]
    assert quantized_nodes(int8) == set(linear + convolutions) == set(quantizable(plain))
    for op, total, quantized in (("Conv", 4, 3), ("MatMul", 21, 10)):
        nodes = [node.name for node in int8.graph.node if node.op_type == op]
        assert (len(nodes), len(quantized_nodes(int8) & set(nodes))) == (total, quantized)


def test_int8_is_symmetric_per_output_channel_and_stored_as_int8(int8) -> None:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    reader = {name: node for node in int8.graph.node for name in node.input}
    stored = 0
    for node in int8.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        assert not tensors[node.input[2]].any() and tensors[node.input[2]].dtype == np.int8
        weight = tensors.get(node.input[0])
        if weight is None:
            assert tensors[node.input[1]].shape == ()
            continue
        assert node.op_type == "DequantizeLinear" and weight.dtype == np.int8 and np.abs(weight).max() == 127
        channels = weight.shape[0 if reader[node.output[0]].op_type == "Conv" else 1]
        assert tensors[node.input[1]].shape == (channels,)
        stored += 1
    assert stored == 13


def test_int8_error_is_moderate_and_rca_still_fuses(exported, int8) -> None:
    fused = fuse_rca(int8, expected=toy.RCA_COUNT)
    for batch in (1, 3):
        feeds = toy.feeds(batch, seed=9)
        error = deviation(fused, exported, feeds=feeds)["logits"]
        assert 3e-3 < error < 0.2
        assert deviation(fused, int8, feeds=feeds)["logits"] < 1e-6


def test_readers_beside_a_quantized_layer_see_unrounded_values(int8) -> None:
    """norm2's output feeds fc1, which is quantized, and the RCA and the prefix tokens, which are not."""
    dequantized = {node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.op_type for node in int8.graph.node if dequantized & set(node.input)}
    assert readers == {"MatMul", "Conv"}


def test_int8_excludes_by_name_and_takes_entropy(plain) -> None:
    kept = layer(plain, "blocks.0.fc1.bias", "MatMul").name
    model = to_int8(plain, calibration=CALIBRATION, exclude=[kept], method="entropy")
    assert quantized_nodes(model) == set(quantizable(plain)) - {kept}


def test_a_quantized_layer_kept_in_fp32_keeps_its_quantizers_there_too(plain) -> None:
    """In FP16 they would clip at 65504 what the layer was kept in FP32 for."""
    kept, other = (layer(plain, f"blocks.0.{name}.bias", "MatMul").name for name in ("fc1", "fc2"))
    model = to_int8(plain, calibration=CALIBRATION, precisions=decide_precisions(plain, fp32_nodes=[kept]))
    assert {kept, other} <= quantized_nodes(model)
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    scales = {node.name: {tensors[producer[name].input[1]] for name in node.input}
              for node in model.graph.node if node.name in (kept, other)}
    assert scales == {kept: {TensorProto.FLOAT}, other: {TensorProto.FLOAT16}}


def test_a_name_that_begins_like_an_attention_product_is_quantized_all_the_same(plain) -> None:
    """ModelOpt 0.47 leaves out what begins like a node that it leaves out."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    scores = next(node.input[0] for node in model.graph.node if node.op_type == "Softmax")
    name = next(node.name for node in model.graph.node if scores in node.output) + "0"
    layer(model, "blocks.1.fc2.bias", "MatMul").name = name
    assert name in quantized_nodes(to_int8(model, calibration=CALIBRATION[:1]))


def test_bad_requests_are_refused(plain) -> None:
    with pytest.raises(UserError, match="calibration samples, received none"):
        to_int8(plain, calibration=[])
    with pytest.raises(UserError, match="exclude names nodes .* no_such_node"):
        to_int8(plain, calibration=CALIBRATION, exclude=["no_such_node"])
    with pytest.raises(UserError, match="no linear layer or convolution is left"):
        to_int8(plain, calibration=CALIBRATION, exclude=quantizable(plain))


def test_nothing_is_printed_or_left_behind(plain, capfd, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    to_int8(plain, calibration=CALIBRATION[:1])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_onnx_runtime_agrees_with_itself_unoptimised_on_int8(tmp_path: Path) -> None:
    """Two quantized convolutions with small FP16 scales: ONNX Runtime 1.24 by itself loses their biases."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(0, 0.02, (32, 32, 3, 3)).astype(np.float32), f"w{i}") for i in (0, 1)]
    biases = [numpy_helper.from_array(rng.normal(0, 0.5, 32).astype(np.float32), f"b{i}") for i in (0, 1)]
    nodes = [helper.make_node("Abs", ["x"], ["a"], name="abs"),
             helper.make_node("Conv", ["a", "w0", "b0"], ["c"], name="conv0", pads=[1] * 4),
             helper.make_node("Relu", ["c"], ["r"], name="relu"),
             helper.make_node("Conv", ["r", "w1", "b1"], ["y"], name="conv1", pads=[1] * 4)]
    shape = ["batch", 32, 12, 12]
    graph = helper.make_graph(nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [*weights, *biases])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    feeds = {"x": rng.normal(0, 0.3, (2, 32, 12, 12)).astype(np.float32)}
    quantized = to_int8(model, calibration=[feeds])
    assert quantized_nodes(quantized) == {"conv0", "conv1"}
    assert deviation(quantized, model, feeds=feeds)["y"] < 0.05
