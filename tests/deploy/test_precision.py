"""Precision passes: what runs in which type is read off the graph, what it costs is measured in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deploy.fuse_rca import find_rca, fuse_rca
from deploy.onnx_run import deviation, peaks, run
from deploy.precision import to_fp16
from tests.deploy import toy

CALIBRATION = [toy.feeds(2, seed) for seed in range(3)]
FRESH = toy.feeds(3, seed=9)


@pytest.fixture(scope="module")
def half(plain: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(plain, calibration=CALIBRATION)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    constants = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in values} | constants


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
