"""Precision passes: what runs in which type is read off the graph, what it costs is measured in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.fuse_rca import find_rca, fuse_rca
from deploy.onnx_run import deviation, run
from deploy.precision import Precisions, _put_in_order, decide_precisions, format_precisions, to_fp16
from talent.errors import UserError
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
    lean = to_fp16(plain, decide_precisions(plain, fp32_ops=("LayerNormalization",)))
    kind = types(lean)
    assert {kind[node.input[0]] for node in lean.graph.node if node.op_type == "Softmax"} == {TensorProto.FLOAT16}


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
    match = find_rca(plain)[0][0]
    name = match.nodes[1].name
    decided = decide_precisions(plain, fp32_nodes=[name])
    assert {node.name: node.reason for node in decided.nodes if node.fp32 and node.reason != "operator"} == {
        node.name: "request" if node.name == name else "rca" for node in match.nodes}
    kind = types(kept := to_fp16(plain, decided))
    rcas = [{kind[node.output[0]] for node in match.nodes} for match in find_rca(kept)[0]]
    assert rcas == [{TensorProto.FLOAT}, {TensorProto.FLOAT16}, {TensorProto.FLOAT16}]


def test_an_rca_is_forced_into_fp16_as_a_whole_or_not_at_all(plain) -> None:
    names = [node.name for node in find_rca(plain)[0][0].nodes]
    with pytest.raises(UserError, match=f"{re.escape(names[2])}.*{re.escape(names[0])}.*request.*name all its nodes"):
        decide_precisions(plain, fp32_nodes=names[:1], fp16_nodes=[names[2]])
    loud = [dict(feeds, words=feeds["words"] * 30000) for feeds in CALIBRATION]
    assert set(names) <= decide_precisions(plain, calibration=loud).fp32
    assert not set(names) & decide_precisions(plain, calibration=loud, fp16_nodes=names).fp32


def small(*, samples: tuple[np.ndarray, ...]) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """x -> scale -> offset -> norm -> scores: a graph whose nodes FP16 serves or not, as its samples are."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["a"], name="block/scale"),
             helper.make_node("Sub", ["a", "offset"], ["b"], name="block/offset"),
             helper.make_node("LayerNormalization", ["b", "weight"], ["c"], name="norm"),
             helper.make_node("Softmax", ["c"], ["y"], name="scores")]
    constants = {"two": np.float32([2]), "offset": np.float32([2000]), "weight": np.ones(8, np.float32)}
    graph = helper.make_graph(nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    return (helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
            [{"x": sample} for sample in samples])


NOISE = np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32)


def reasons(decided: Precisions) -> dict[str, str]:
    return {node.name: f"{'fp32' if node.fp32 else 'fp16'} {node.reason}".strip() for node in decided.nodes}


def test_each_reason_decides() -> None:
    usual = {"block/scale": "fp16", "block/offset": "fp16", "norm": "fp32 operator", "scores": "fp32 operator"}
    model, calm = small(samples=(NOISE,))
    assert reasons(decide_precisions(model, calibration=calm)) == usual
    assert reasons(decide_precisions(model)) == usual
    _, cancelling = small(samples=(NOISE, NOISE + 1000))  # 2000 and a bit less 2000: the bit is rounded away
    assert reasons(decide_precisions(model, calibration=cancelling)) == usual | {"block/offset": "fp32 error"}
    _, loud = small(samples=(NOISE, NOISE * 9000))  # some 40000, which FP16 holds without headroom only
    assert reasons(decide_precisions(model, calibration=loud)) == usual | {
        "block/scale": "fp32 range", "block/offset": "fp32 range"}
    free = decide_precisions(model, calibration=calm, fp32_ops=())
    assert reasons(free) == usual | {"norm": "fp32 error", "scores": "fp16"}  # its mean is -2000


def test_requests_go_before_measurements() -> None:
    model, cancelling = small(samples=(NOISE + 1000,))
    decided = decide_precisions(model, calibration=cancelling, fp32_nodes=["block/scale"],
                                fp16_nodes=["block/offset", "norm"])
    assert reasons(decided) == {"block/scale": "fp32 request", "block/offset": "fp16 request", "norm": "fp16 request",
                                "scores": "fp32 operator"}
    kind = types(to_fp16(model, decided))
    assert (kind["c"], kind["b"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)
    assert decide_precisions(model, fp32_nodes=["block/*"], fp16_nodes=["s*"]).fp32 == {
        "block/scale", "block/offset", "norm"}


def test_a_constant_that_fp16_cannot_hold_needs_no_samples() -> None:
    model, _ = small(samples=())
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([7e4]), "two"))
    assert reasons(decide_precisions(model))["block/scale"] == "fp32 range"


def test_bad_names_are_refused_before_measuring() -> None:
    model, _ = small(samples=())

    def samples():
        raise AssertionError("measured before the names were checked")
        yield

    for arguments, message in (
            ({"fp32_nodes": ["block/ofset"]}, "fp32_nodes: .* 'block/ofset' fits; did you mean 'block/offset'"),
            ({"fp16_nodes": ["blocks/*"]}, r"fp16_nodes: .* 'blocks/\*' fits; did you mean 'block/"),
            ({"fp32_nodes": ["zzz"]}, "did you mean"),
            ({"fp32_nodes": ["block/*"], "fp16_nodes": ["block/scale"]}, "both have block/scale; name each")):
        with pytest.raises(UserError, match=message):
            decide_precisions(model, calibration=samples(), **arguments)


def test_precisions_of_another_graph_are_refused(plain) -> None:
    model, _ = small(samples=())
    with pytest.raises(RuntimeError, match="lacks 2 nodes that should stay in FP32: norm, scores"):
        to_fp16(plain, decide_precisions(model))


def test_the_table_groups_operators_and_names_what_was_measured() -> None:
    model, cancelling = small(samples=(NOISE + 1000,))
    decided = decide_precisions(model, calibration=cancelling, fp16_nodes=["block/scale"])
    offset = decided.nodes[1].measured
    assert offset.error > 0.05
    assert format_precisions(decided, title="vision").splitlines() == [
        "vision: 1 nodes in FP16, 3 in FP32 (ranges from 1 samples, errors from 1)",
        "  operator               nodes  FP32   largest    error  FP32 because of",
        f"  Sub                        1     1{offset.peak:10.4g}{offset.error:9.1e}  error",
        f"  LayerNormalization         1     1{decided.nodes[2].measured.peak:10.4g}"
        f"{decided.nodes[2].measured.error:9.1e}  operator",
        f"  Softmax                    1     1{decided.nodes[3].measured.peak:10.4g}"
        f"{decided.nodes[3].measured.error:9.1e}  operator",
        f"  Mul                        1     0{decided.nodes[0].measured.peak:10.4g}"
        f"{decided.nodes[0].measured.error:9.1e}",
        "  by measurement or request:",
        f"  block/scale {decided.nodes[0].measured.peak:10.4g}"
        f"{decided.nodes[0].measured.error:9.1e}  FP16 by request",
        f"  block/offset{offset.peak:10.4g}{offset.error:9.1e}  FP32 by error"]


def test_the_table_has_what_was_quantized_since() -> None:
    model, samples = small(samples=(NOISE,))
    decided = dataclasses.replace(decide_precisions(model, calibration=samples), int8=frozenset({"block/scale"}))
    lines = format_precisions(decided, title="vision").splitlines()
    assert lines[0].startswith("vision: 1 nodes in INT8, 1 nodes in FP16, 2 in FP32 (")
    assert lines[1].split()[:4] == ["operator", "nodes", "INT8", "FP32"]
    row, = (line.split() for line in lines if line.startswith("  Mul"))
    assert row[:4] == ["Mul", "1", "1", "0"]
    assert [node["precision"] for node in decided.to_dict()["nodes"]] == ["int8", "fp16", "fp32", "fp32"]


def test_a_graph_is_put_in_one_order_whatever_order_its_nodes_had() -> None:
    """With optional names left empty, an output that is an input, and a node that nobody reads."""
    nodes = [helper.make_node("Clip", ["x", "", "top"], ["clipped"]), helper.make_node("Relu", ["x"], ["unread"]),
             helper.make_node("Dropout", ["clipped"], ["dropped", ""]), helper.make_node("Neg", ["x"], ["negated"]),
             helper.make_node("Add", ["dropped", "negated"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy")
    top = helper.make_tensor("top", onnx.TensorProto.FLOAT, [], [1.0])
    orders = []
    for numbers in ((0, 1, 2, 3, 4), (3, 0, 2, 4, 1)):
        graph = helper.make_graph([nodes[number] for number in numbers], "graph", [x], [y, x], [top])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        _put_in_order(model)
        onnx.checker.check_model(model, full_check=True)
        orders.append([node.op_type for node in model.graph.node])
    assert orders == [["Clip", "Dropout", "Neg", "Add"]] * 2


def test_the_table_is_short_and_the_file_has_all(plain) -> None:
    decided = decide_precisions(plain, fp32_nodes=["*"])
    assert len(decided.nodes) > 100
    lines = format_precisions(decided, title="toy").splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 100
    assert lines[0] == f"toy: 0 nodes in FP16, {len(decided.nodes)} in FP32 (not measured: no calibration samples)"
    assert lines[-1] == f"  ... and {len(decided.nodes) - 20} more, all in export.json"
    assert len(decided.to_dict()["nodes"]) == len(decided.nodes)


def test_the_plain_data_is_valid_json() -> None:
    model, samples = small(samples=(NOISE * 1e6,))
    text = json.dumps(decide_precisions(model, calibration=samples).to_dict(), allow_nan=False)
    data = json.loads(text)
    assert (data["samples"], data["error_samples"], data["limits"]) == (1, 1, {"peak": 65504 / 4, "error": 0.01})
    assert [node["name"] for node in data["nodes"]] == ["block/scale", "block/offset", "norm", "scores"]
    assert data["nodes"][0] == {"name": "block/scale", "op_type": "Mul", "precision": "fp32", "reason": "range",
                                "peak": float(np.abs(NOISE * np.float32(1e6) * 2).max()), "error": "inf"}
    unmeasured = json.loads(json.dumps(decide_precisions(model).to_dict(), allow_nan=False))
    assert unmeasured["nodes"][0]["error"] is None
