"""Precision passes: what runs in which type is read off the graph, what it costs is measured in ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibration.quantize import quantizable, quantized_nodes, to_int8
from deploy.fuse_rca import find_rca, fuse_rca
from deploy.onnx_run import deviation, peaks, run
from deploy.precision import simplify, to_fp16
from talent.errors import UserError
from tests.deploy import toy

CALIBRATION = [toy.feeds(2, seed) for seed in range(3)]
FRESH = toy.feeds(3, seed=9)


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return toy.export()


@pytest.fixture(scope="module")
def plain(exported: onnx.ModelProto) -> onnx.ModelProto:
    return simplify(exported, feeds=toy.feeds(2))


@pytest.fixture(scope="module")
def half(plain: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(plain, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def int8(plain: onnx.ModelProto) -> onnx.ModelProto:
    return to_int8(plain, calibration=CALIBRATION)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    constants = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in values} | constants


def layer(model: onnx.ModelProto, name: str, op_type: str) -> onnx.NodeProto:
    """The node whose bias, or the bias of the Add behind it, is the parameter `name`."""
    for node in model.graph.node:
        if node.op_type == "Add" and name in node.input:
            source = next(other for other in node.input if other != name)
            return next(maker for maker in model.graph.node if source in maker.output and maker.op_type == op_type)
        if node.op_type == op_type and name in node.input:
            return node
    raise LookupError(name)


def interface(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in (*model.graph.input, *model.graph.output)]


def test_simplify_keeps_the_batch_dynamic_and_linear_layers_whole(exported, plain) -> None:
    assert [value.type.tensor_type.shape.dim[0].dim_param != "" for value in plain.graph.input] == [True] * 4
    assert "Gemm" not in {node.op_type for node in plain.graph.node}
    assert len(plain.graph.node) < len(exported.graph.node)
    assert len(find_rca(plain)[0]) == toy.RCA_COUNT
    for batch in (1, 3):
        assert deviation(plain, exported, feeds=toy.feeds(batch))["logits"] < 1e-6


def test_fp16_keeps_layernorm_softmax_and_the_boundary_in_fp32(plain, half) -> None:
    assert interface(half) == interface(plain)
    kind = types(half)
    inside = {op: {kind[node.input[0]] for node in half.graph.node if node.op_type == op}
              for op in ("LayerNormalization", "Softmax", "MatMul", "Conv", "Gelu")}
    assert inside == {"LayerNormalization": {TensorProto.FLOAT}, "Softmax": {TensorProto.FLOAT},
                      "MatMul": {TensorProto.FLOAT16}, "Conv": {TensorProto.FLOAT16}, "Gelu": {TensorProto.FLOAT16}}
    assert half.ByteSize() < 0.65 * plain.ByteSize()


def test_fp16_error_is_that_of_fp16(exported, half) -> None:
    for batch in (1, 3):
        error = deviation(half, exported, feeds=toy.feeds(batch, seed=9))["logits"]
        assert 1e-5 < error < 3e-3


def test_softmax_may_go_to_fp16(plain) -> None:
    lean = to_fp16(plain, fp32_ops=("LayerNormalization",))
    kind = types(lean)
    assert {kind[node.input[0]] for node in lean.graph.node if node.op_type == "Softmax"} == {TensorProto.FLOAT16}


def test_peaks_are_the_largest_magnitudes_over_the_samples(plain) -> None:
    found = peaks(plain, calibration=CALIBRATION)
    assert found["logits"] == max(np.abs(run(plain, feeds=feeds)["logits"]).max() for feeds in CALIBRATION)
    assert found["image"] == max(np.abs(feeds["image"]).max() for feeds in CALIBRATION)


def test_what_overflows_stays_in_fp32_and_its_rca_stays_whole(exported, plain) -> None:
    loud = [dict(feeds, sentence=feeds["sentence"] * 12000) for feeds in CALIBRATION]
    feeds = dict(FRESH, sentence=FRESH["sentence"] * 12000)
    assert not np.isfinite(run(to_fp16(plain), feeds=feeds)["logits"]).all()
    safe = to_fp16(plain, calibration=loud)
    assert deviation(safe, exported, feeds=feeds)["logits"] < 3e-3
    kind = types(safe)
    rcas = [{kind[name] for node in match.nodes for name in (*node.input, *node.output)} for match in find_rca(safe)[0]]
    assert rcas == [{TensorProto.FLOAT16}, {TensorProto.FLOAT16}, {TensorProto.FLOAT}]
    assert deviation(fuse_rca(safe, expected=toy.RCA_COUNT), safe, feeds=feeds)["logits"] < 1e-6


def test_one_node_of_an_rca_keeps_all_of_it_in_fp32(plain) -> None:
    name = find_rca(plain)[0][0].nodes[1].name
    kind = types(kept := to_fp16(plain, fp32_nodes=[name]))
    rcas = [{kind[node.output[0]] for node in match.nodes} for match in find_rca(kept)[0]]
    assert rcas == [{TensorProto.FLOAT}, {TensorProto.FLOAT16}, {TensorProto.FLOAT16}]


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
