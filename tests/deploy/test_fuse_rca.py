"""fuse_rca: right places, right numbers, and the same reading by ONNX Runtime and by TensorRT's parser."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.fuse_rca import DOMAIN, OP_TYPE, find_rca, fuse_rca
from deploy.onnx_run import run
from deploy.precision import simplify
from tests.deploy import toy


def calls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == OP_TYPE and node.domain == DOMAIN]


def attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def one_rca(words: int = 3, relu: bool = False, swap: bool = False, addend: str = "bias",
            perm: tuple[int, ...] = (0, 2, 1)) -> onnx.ModelProto:
    """visual [B,4,5], text [B,words,5] -> [B,4,5] in the fewest nodes; swap: the operands of Add and Mul."""
    rng = np.random.default_rng(0)

    def order(left: str, right: str) -> list[str]:
        return [right, left] if swap else [left, right]

    nodes = [
        helper.make_node("Transpose", ["text"], ["text_t"], perm=list(perm)),
        helper.make_node("MatMul", ["visual", "text_t"], ["cost"]),
        helper.make_node("MatMul", ["cost", "weight"], ["mix"], name="mix"),
        helper.make_node("Add", order("mix", addend), ["sum"]),
        *([helper.make_node("Relu", ["sum"], ["gate"])] if relu else []),
        helper.make_node("Mul", order("gate" if relu else "sum", "visual"), ["output"], name="gated"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", rows, 5])
              for name, rows in (("visual", 4), ("text", words), ("output", 4))]
    constants = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
                 for name, shape in (("weight", (words, 5)), ("bias", 5))]
    graph = helper.make_graph(nodes, "one_rca", values[:2], values[2:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("words", [1, 3])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_one_rca_becomes_one_node_with_the_same_result(words: int, relu: bool, swap: bool) -> None:
    model = one_rca(words=words, relu=relu, swap=swap)
    fused = fuse_rca(model, expected=1)
    assert [node.op_type for node in fused.graph.node] == [OP_TYPE]
    found = attributes(fused.graph.node[0])
    assert found["activation"] == (b"relu" if relu else b"none")
    assert (found["plugin_version"], found["plugin_namespace"]) == (b"1", b"talent")
    shapes = {tensor.name: list(tensor.dims) for tensor in fused.graph.initializer}
    assert [shapes.get(name) for name in fused.graph.node[0].input] == [None, None, [5, words], [5]]

    rng = np.random.default_rng(1)
    feeds = {"visual": rng.standard_normal((2, 4, 5), dtype=np.float32),
             "text": rng.standard_normal((2, words, 5), dtype=np.float32)}
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    gate = feeds["visual"] @ feeds["text"].transpose(0, 2, 1) @ weight + bias
    assert (gate < 0).any()
    expected = (np.maximum(gate, 0) if relu else gate) * feeds["visual"]
    np.testing.assert_allclose(run(fused, feeds=feeds)["output"], expected, rtol=0, atol=1e-5)


def test_export_fuses_every_rca_and_nothing_else(exported: onnx.ModelProto) -> None:
    fused = fuse_rca(exported, expected=toy.RCA_COUNT)
    onnx.checker.check_model(fused, full_check=True)
    assert [attributes(node)["activation"] for node in calls(fused)] == [b"none", b"none", b"relu"]
    before, after = (sum(node.op_type == "MatMul" for node in model.graph.node) for model in (exported, fused))
    assert after == before - 2 * toy.RCA_COUNT
    assert len(fused.functions) == 1 and len(exported.functions) == 0
    for batch in (1, 3):
        feeds = toy.feeds(batch)
        expected = run(exported, feeds=feeds)["logits"]
        assert expected.shape == (batch, 1, 14, 14)
        tolerance = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(run(fused, feeds=feeds)["logits"], expected, rtol=0, atol=tolerance)


def test_function_names_are_not_graph_names(exported: onnx.ModelProto) -> None:
    fused = fuse_rca(exported, expected=toy.RCA_COUNT)
    inside = {name for node in fused.functions[0].node for name in (*node.input, *node.output)}
    outside = {name for node in fused.graph.node for name in (*node.input, *node.output)}
    assert inside and not inside & outside


def test_a_wrong_count_names_what_was_found(exported: onnx.ModelProto) -> None:
    with pytest.raises(RuntimeError, match=r"expected 4 RCA .* found 3") as error:
        fuse_rca(exported, expected=4)
    assert str(error.value).count("\n  found ") == 3 and "activation relu" in str(error.value)


@pytest.mark.parametrize(("broken", "reason"), [
    ({"addend": "visual"}, "constant bias"),
    ({"perm": (0, 1, 2), "words": 5}, "swap the last two"),
])
def test_a_near_miss_is_reported_with_its_reason(broken: dict, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"not an RCA: mix: .*{reason}"):
        fuse_rca(one_rca(**broken), expected=1)


@pytest.mark.parametrize("relu", [False, True])
def test_a_bias_of_zeros_that_onnxsim_dropped_comes_back(relu: bool) -> None:
    model = one_rca(relu=relu)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(5, np.float32), "bias"))
    rng = np.random.default_rng(1)
    feeds = {"visual": rng.standard_normal((2, 4, 5), dtype=np.float32),
             "text": rng.standard_normal((2, 3, 5), dtype=np.float32)}
    plain = simplify(model, feeds=feeds)
    assert "Add" not in {node.op_type for node in plain.graph.node}
    fused = fuse_rca(plain, expected=1)
    assert [node.op_type for node in fused.graph.node] == [OP_TYPE]
    np.testing.assert_allclose(run(fused, feeds=feeds)["output"], run(model, feeds=feeds)["output"], rtol=0, atol=1e-6)


def test_a_cast_inside_is_a_near_miss() -> None:
    model = one_rca()
    model.graph.node[2].output[0] = "mix_before_cast"
    model.graph.node.insert(3, helper.make_node("Cast", ["mix_before_cast"], ["mix"], name="cut", to=TensorProto.FLOAT))
    matches, mismatches = find_rca(model)
    assert matches == [] and "feeds Cast 'cut'" in mismatches[0]


def test_a_product_that_others_read_stays() -> None:
    model = one_rca()
    model.graph.output.append(helper.make_tensor_value_info("text_t", TensorProto.FLOAT, ["batch", 5, 3]))
    fused = fuse_rca(model, expected=1)
    assert [node.op_type for node in fused.graph.node] == ["Transpose", OP_TYPE]


def test_tensorrt_parser_reads_the_activation_of_each_call(exported: onnx.ModelProto) -> None:
    try:
        import tensorrt_rtx as trt
    except ModuleNotFoundError:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse(fuse_rca(exported, expected=toy.RCA_COUNT).SerializeToString())
    slopes = []
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ACTIVATION and OP_TYPE in layer.metadata:
            layer.__class__ = trt.IActivationLayer
            assert layer.type == trt.ActivationType.LEAKY_RELU
            slopes.append(layer.alpha)
    assert slopes == [1.0, 1.0, 0.0]
