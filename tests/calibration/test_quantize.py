"""INT8: where the quantizers stand is read off the graph, what they cost is measured in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.quantize import quantizable, quantize, quantized_nodes, to_int8
from deploy.fuse_rca import fuse_rca
from deploy.onnx_run import deviation, run
from deploy.precision import decide_precisions
from talent.errors import UserError
from tests.deploy import toy
from tests.quantized import all_int8, measure_ranges

CALIBRATION = [toy.feeds(2, seed) for seed in range(3)]
FRESH = toy.feeds(3, seed=9)


@pytest.fixture(scope="module")
def int8(plain: onnx.ModelProto) -> onnx.ModelProto:
    return all_int8(plain, CALIBRATION)


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


def test_int8_excludes_by_name(plain) -> None:
    kept = layer(plain, "blocks.0.fc1.bias", "MatMul").name
    assert quantized_nodes(all_int8(plain, CALIBRATION, exclude=[kept])) == set(quantizable(plain)) - {kept}


def test_only_the_layers_that_are_named_are_quantized(plain) -> None:
    names = quantizable(plain)[3:5]
    ranges = measure_ranges(plain, names, calibration=CALIBRATION)
    assert quantized_nodes(to_int8(plain, names, ranges, decide_precisions(plain))) == set(names)


def test_every_quantizer_reads_fp32(int8) -> None:
    """ONNX Runtime 1.24 truncates where it quantizes FP16 on a CPU: 0.6 of a step becomes none."""
    graph = onnx.shape_inference.infer_shapes(int8, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    quantizers = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len({node.input[0] for node in quantizers}) > 5
    assert {kinds[node.input[0]] for node in quantizers} == {TensorProto.FLOAT}


def test_no_quantizer_stands_between_a_layer_and_its_residual(int8) -> None:
    """What a quantized layer gives goes through bias and activation to the sum as it is: TensorRT fuses that into the
    layer. A residual that was rounded, or a quantizer that is read by something else, would cost a reformat."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in int8.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    producer = {name: node for node in int8.graph.node for name in node.output}
    quantized, sums = quantized_nodes(int8), 0
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            dequantizer, = readers[node.output[0]]
            assert {reader.name for reader in readers[dequantizer.output[0]]} <= quantized
        if node.op_type == "Add" and all(name in producer for name in node.input):
            sums += 1
            assert not {producer[name].op_type for name in node.input} & {"QuantizeLinear", "DequantizeLinear"}
    assert sums == 6  # two residuals and the RCA beside the MLP, in each of two blocks


def test_quantized_layers_compute_what_integers_give(plain) -> None:
    """One linear layer against INT8 arithmetic by hand: sums of products of integers, times both scales."""
    node = layer(plain, "blocks.0.fc2.bias", "MatMul")
    largest = measure_ranges(plain, [node.name], calibration=CALIBRATION)[node.input[0]]
    model = quantize(plain, [node.name], {node.input[0]: largest})
    for name in (node.input[0], node.output[0]):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found = run(model, feeds=FRESH, optimize=False)
    weight = next(numpy_helper.to_array(tensor) for tensor in plain.graph.initializer if tensor.name == node.input[1])
    step = np.float32(np.float16(largest / 127))
    steps = (np.abs(weight).max(0) / 127).astype(np.float16).astype(np.float32)
    left = np.rint(found[node.input[0]] / step).clip(-128, 127).astype(np.int32)
    right = np.rint(weight / steps).clip(-127, 127).astype(np.int32)
    np.testing.assert_allclose(found[node.output[0]], (left @ right) * step * steps, rtol=1e-5, atol=1e-5)


def test_a_quantized_layer_kept_in_fp32_keeps_its_quantizers_there_too(plain) -> None:
    """In FP16 they would clip at 65504 what the layer was kept in FP32 for."""
    kept, other = (layer(plain, f"blocks.0.{name}.bias", "MatMul").name for name in ("fc1", "fc2"))
    model = all_int8(plain, CALIBRATION, precisions=decide_precisions(plain, fp32_nodes=[kept]))
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
    assert name in quantized_nodes(all_int8(model, CALIBRATION[:1]))


def test_bad_requests_are_refused(plain) -> None:
    with pytest.raises(UserError, match="exclude names nodes .* no_such_node"):
        quantizable(plain, exclude=["no_such_node"])
    first = quantizable(plain)[0]
    with pytest.raises(UserError, match="cannot quantize .*Softmax"):
        quantize(plain, [first, next(node.name for node in plain.graph.node if node.op_type == "Softmax")], {})
    tensor = next(node.input[0] for node in plain.graph.node if node.name == first)
    with pytest.raises(UserError, match="expected a number above zero, received 0.0"):
        quantize(plain, [first], {tensor: 0.0})


def test_onnx_runtime_agrees_with_itself_unoptimised_on_int8() -> None:
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
    quantized = all_int8(model, [feeds])
    assert quantized_nodes(quantized) == {"conv0", "conv1"}
    assert deviation(quantized, model, feeds=feeds)["y"] < 0.05
