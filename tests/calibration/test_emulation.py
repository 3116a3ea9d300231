"""INT8 that is switched on layer by layer against the graph that is really quantized, both in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.emulation import EmulatedInt8
from calibration.quantize import quantizable, quantize
from calibration.ranges import largest_magnitudes
from deploy.onnx_run import Feeds, run
from tests.deploy import toy

TOLERANCE = 1e-5
"""Of the largest output: sums of FP32 in another order. INT8 itself changes the toy's logits by 3e-3 and more."""


def ranges_of(model: onnx.ModelProto, layers: Collection[str], feeds: Feeds) -> dict[str, float]:
    """Largest magnitudes, a tenth less of every other one, so that some values are clipped."""
    tensors = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in layers))
    found = largest_magnitudes(model, tensors, calibration=[feeds])
    return {tensor: found[tensor] * (1 - number % 2 / 10) for number, tensor in enumerate(tensors)}


def distance(received: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference over the largest magnitude, of the output where that is most."""
    assert received.keys() == expected.keys()
    return max(float(np.abs(received[name] - value).max() / np.abs(value).max()) for name, value in expected.items())


def mixed() -> tuple[onnx.ModelProto, Feeds]:
    """x -> a convolution in groups, with strides -> two Gemm that lie differently and read one tensor; the first one's
    result is an output and is read on; the weight of the second is read by an Add too."""
    rng = np.random.default_rng(0)
    shapes = {"filters": (32, 16, 3, 3), "filter_bias": (32,), "tall": (48, 32 * 9), "tall_bias": (48,),
              "wide": (32 * 9, 48), "last": (48, 48)}
    nodes = [helper.make_node("Relu", ["x"], ["positive"], name="relu"),
             helper.make_node("Conv", ["positive", "filters", "filter_bias"], ["maps"], name="conv", group=2,
                              strides=[2, 2], pads=[1] * 4),
             helper.make_node("Flatten", ["maps"], ["flat"], name="flatten"),
             helper.make_node("Gemm", ["flat", "tall", "tall_bias"], ["first"], name="transposed", transB=1, alpha=0.5),
             helper.make_node("Gemm", ["flat", "wide"], ["second"], name="straight"),
             helper.make_node("Mul", ["first", "second"], ["product"], name="mul"),
             helper.make_node("MatMul", ["product", "last"], ["third"], name="matmul"),
             helper.make_node("MatMul", ["first", "last"], ["fourth"], name="same weight"),
             helper.make_node("Add", ["third", "fourth"], ["sum"], name="add"),
             helper.make_node("MatMul", ["sum", "last"], ["y"], name="in fp32")]
    graph = helper.make_graph(
        nodes, "mixed", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 48]) for name in ("first", "y")],
        [numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name)
         for name, shape in shapes.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model, {"x": rng.standard_normal((2, 32, 6, 6), dtype=np.float32)}


def test_any_set_of_layers_gives_what_the_quantized_graph_gives(plain: onnx.ModelProto) -> None:
    layers, feeds = quantizable(plain), toy.feeds(2, seed=5)
    ranges = ranges_of(plain, layers, toy.feeds(2))
    sets = [layers, layers[:1], layers[3:6], layers[::3], layers[-3:]]
    with EmulatedInt8(plain, layers, ranges) as network:
        exact = network.run(feeds, ())
        assert distance(exact, run(plain, feeds=feeds)) < 1e-6
        answers = [network.run(feeds, chosen) for chosen in sets]
        assert np.array_equal(network.run(feeds, sets[1])["logits"], answers[1]["logits"])
    for chosen, answer in zip(sets, answers, strict=True):
        assert distance(answer, run(quantize(plain, chosen, ranges), feeds=feeds, optimize=False)) < TOLERANCE
        assert distance(answer, exact) > 100 * TOLERANCE


def test_convolutions_and_both_layouts_of_gemm() -> None:
    model, feeds = mixed()
    layers = ["conv", "transposed", "straight", "matmul", "same weight"]
    ranges = ranges_of(model, layers, feeds)
    with EmulatedInt8(model, layers, ranges) as network:
        exact = network.run(feeds, set())
        assert distance(exact, run(model, feeds=feeds)) < 1e-6
        for chosen in (["conv"], ["transposed"], ["straight"], ["matmul", "transposed"], {"same weight"}, layers):
            answer = network.run(feeds, chosen)
            assert distance(answer, run(quantize(model, chosen, ranges), feeds=feeds, optimize=False)) < TOLERANCE
            assert distance(answer, exact) > 100 * TOLERANCE


def test_the_graph_that_it_was_made_of_stays_as_it_was() -> None:
    model, feeds = mixed()
    before = model.SerializeToString(deterministic=True)
    with EmulatedInt8(model, ["conv"], ranges_of(model, ["conv"], feeds)) as network:
        network.run(feeds, ["conv"])
    assert model.SerializeToString(deterministic=True) == before


def test_a_layer_that_it_was_not_opened_with_is_an_error() -> None:
    model, feeds = mixed()
    with EmulatedInt8(model, ["conv"], ranges_of(model, ["conv"], feeds)) as network:
        with pytest.raises(KeyError, match="not among the layers that can be INT8 here: matmul, nowhere"):
            network.run(feeds, ["nowhere", "conv", "matmul"])


def test_its_files_are_gone_in_the_end_also_after_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, feeds = mixed()
    with pytest.raises(RuntimeError, match="in between"):
        with EmulatedInt8(model, ["conv"], ranges_of(model, ["conv"], feeds)) as network:
            assert network.run(feeds, ["conv"]) and len(list(tmp_path.iterdir())) == 1
            raise RuntimeError("in between")
    assert not list(tmp_path.iterdir())
