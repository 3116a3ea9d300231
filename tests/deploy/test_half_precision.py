"""What FP16 does to a node, against NumPy's float16."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.half_precision import Measurements, NodeMeasurement, measure
from deploy.onnx_run import run
from tests.deploy import toy

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 48), dtype=np.float32)
WEIGHT = RNG.standard_normal((48, 32), dtype=np.float32)  # 6 kB: lies in the file that ONNX Runtime maps
KERNEL = RNG.standard_normal((4, 5, 3), dtype=np.float32)
SCALE, BIAS = RNG.uniform(0.5, 2, 48).astype(np.float32), RNG.standard_normal(48, dtype=np.float32)


def half(x: np.ndarray) -> np.ndarray:
    """`x` rounded to float16, as float32."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def relative(received: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm((received - expected).astype(np.float64)) / np.linalg.norm(expected.astype(np.float64)))


def graph(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, x: np.ndarray = X,
          outputs: tuple[str, ...] = ("y",), kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph of `nodes` that reads the float32 tensor x, [batch, ...]."""
    graph = helper.make_graph(
        list(nodes), "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def measured(model: onnx.ModelProto, *samples: np.ndarray, error_samples: int = 4) -> dict[str, NodeMeasurement]:
    found = measure(model, calibration=({"x": x} for x in samples), error_samples=error_samples)
    return {node.name: node for node in found.nodes}


def only(model: onnx.ModelProto, *samples: np.ndarray) -> NodeMeasurement:
    node, = measured(model, *samples).values()
    return node


def convolution(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2], axis=2)  # [batch, in, positions, 3]
    return np.einsum("bipk,oik->bop", windows, w)


@pytest.mark.parametrize("op_type, constants, function", [
    ("Add", {"c": BIAS}, lambda x, c: x + c),
    ("Sub", {"c": BIAS}, lambda x, c: x - c),
    ("Mul", {"c": SCALE}, lambda x, c: x * c),
    ("Exp", {}, np.exp),
    ("Relu", {}, lambda x: np.maximum(x, 0)),
    ("Tanh", {}, np.tanh),
    ("MatMul", {"c": WEIGHT}, lambda x, c: x @ c),
    ("Conv", {"c": KERNEL}, convolution)])
def test_error_is_that_of_rounding_in_and_out(op_type, constants, function) -> None:
    model = graph(helper.make_node(op_type, ["x", *constants], ["y"], name="node"), constants=constants)
    full = function(X, *constants.values())
    expected = half(function(half(X), *map(half, constants.values())))
    found = only(model, X)
    assert found.error == pytest.approx(relative(expected, full), rel=2e-3)
    assert 1e-5 < found.error < 1e-3
    assert found.peak == pytest.approx(max(np.abs(t).max() for t in (X, full, *constants.values())), rel=1e-6)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_softmax_rounds_every_step(axis: int) -> None:
    x = 6 * X
    model = graph(helper.make_node("Softmax", ["x"], ["y"], name="node", axis=axis))
    h = x.astype(np.float16)
    e = np.exp(h - h.max(axis, keepdims=True))  # NumPy rounds each step to float16
    y = e / e.sum(axis, keepdims=True, dtype=np.float32).astype(np.float16)
    full = np.exp(x - x.max(axis, keepdims=True))
    assert only(model, x).error == pytest.approx(relative(y.astype(np.float32), full / full.sum(axis, keepdims=True)),
                                                 rel=0.02)


def half_layer_norm(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    """Layer normalisation where NumPy rounds each step to float16."""
    h, count = x.astype(np.float16), np.float16(math.prod(x.shape[axis] for axis in axes))

    def total(values: np.ndarray) -> np.ndarray:
        return values.sum(axes, keepdims=True, dtype=np.float32).astype(np.float16)

    with np.errstate(over="ignore", invalid="ignore"):
        centred = h - total(h) / count
        deviation = np.sqrt(total(centred * centred) / count + np.float16(epsilon))
        return (centred / deviation * SCALE.astype(np.float16) + BIAS.astype(np.float16)).astype(np.float32)


@pytest.mark.parametrize("axis, axes", [(-1, (2,)), (2, (2,)), (1, (1, 2)), (-2, (1, 2))])
def test_layer_normalisation_rounds_every_step(axis: int, axes: tuple[int, ...]) -> None:
    x = 5 * X + 7
    shape = [X.shape[a] for a in axes]
    constants = {"scale": np.broadcast_to(SCALE, shape), "bias": np.broadcast_to(BIAS, shape)}
    node = helper.make_node("LayerNormalization", ["x", *constants], ["y"], name="node", axis=axis, epsilon=1e-3)
    model = graph(node, constants=constants)
    full = run(model, feeds={"x": x})["y"]
    assert only(model, x).error == pytest.approx(relative(half_layer_norm(x, axes, 1e-3), full), rel=0.02)


def test_layer_normalisation_overflows_where_one_square_passes_65504() -> None:
    model = graph(helper.make_node("LayerNormalization", ["x", "scale"], ["y"], name="node"),
                  constants={"scale": SCALE})
    tame, loud = X.copy(), X.copy()
    tame[0, 0, 3], loud[0, 0, 3] = 200, 300  # 300 less the mean is 294, and 294^2 = 86436
    quiet, burst = only(model, tame), only(model, loud)
    assert quiet.error < 2e-3 and quiet.peak == 200
    assert burst.error == math.inf and burst.peak == 300


def test_overflow_and_underflow() -> None:
    model = graph(helper.make_node("Mul", ["x", "c"], ["y"], name="node"), constants={"c": np.float32(1)[None]})
    assert only(model, X * 0).error == 0
    assert only(model, X * 1e5).error == math.inf
    assert only(model, X * 1e-10).error == 1
    assert only(model, X * 1e-25).error == 1  # its square is 0 in float32 too
    assert only(model, X * 1e30).error == math.inf  # and the square of this is infinite
    endless = only(model, np.where(X > 2, np.float32(np.inf), X))
    assert (endless.peak, endless.error) == (math.inf, math.inf)


def test_what_only_moves_data_has_a_range_and_no_error() -> None:
    nodes = [helper.make_node("Gather", ["table", "index"], ["rows"], name="gather"),
             helper.make_node("Split", ["x"], ["a", "b"], name="split", num_outputs=2, axis=2),
             helper.make_node("Shape", ["x"], ["shape"], name="shape"),
             helper.make_node("Add", ["shape", "index"], ["integers"], name="integers"),
             helper.make_node("ArgMax", ["x"], ["best"], name="argmax"),
             helper.make_node("Add", ["a", "b"], ["y"], name="add")]
    model = graph(*nodes, constants={"table": 100 * WEIGHT, "index": np.array([1, 0, 2])},
                  outputs=("y", "rows"))
    found = measured(model, X)
    assert list(found) == ["gather", "split", "argmax", "add"]  # the others touch no float32 numbers
    assert [node.error is None for node in found.values()] == [True, True, True, False]
    assert found["gather"].peak == np.abs(100 * WEIGHT).max()
    assert found["split"].peak == np.abs(X).max()


def test_several_outputs_count_the_worst_and_integers_not_at_all() -> None:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"], name="topk"),
             helper.make_node("Resize", ["x", "", "scales"], ["z"], name="resize", mode="linear")]
    scales = np.array([1, 1, 1 + 2**-13], np.float32)  # no float16: rounded, it would be another resize
    found = measured(graph(*nodes, constants={"k": np.array([3]), "scales": scales}, outputs=("y", "z")), X)
    top = np.sort(X, axis=2)[..., -3:]
    assert found["topk"].error == pytest.approx(relative(half(top), top), rel=2e-3)
    assert 1e-5 < found["resize"].error < 5e-4


def test_samples_are_streamed_once_and_errors_come_from_the_first_of_them() -> None:
    model = graph(helper.make_node("Sub", ["x", "c"], ["y"], name="node"), constants={"c": np.float32(1000)[None]})
    alive: list[weakref.ref] = []

    def samples() -> Iterator[dict[str, np.ndarray]]:
        for number in range(6):
            assert sum(ref() is not None for ref in alive) <= 1  # the one before, which its reader still holds
            x = X + np.float32([0, 0, 1000, 1000, 4000, 1000][number])  # near 1000, the difference is rounded away
            alive.append(weakref.ref(x))
            yield {"x": x}

    stream = samples()
    found = measure(model, calibration=stream, error_samples=2)
    assert len(alive) == 6 and next(stream, None) is None
    assert (found.samples, found.error_samples) == (6, 2)
    node, = found.nodes
    assert node.error < 1e-3 and 4000 < node.peak < 4010
    assert measured(model, X + 1000, error_samples=1)["node"].error > 0.05
    assert measured(model, X + 1000, error_samples=0)["node"].error is None


def test_the_worst_sample_counts() -> None:
    model = graph(helper.make_node("Sub", ["x", "c"], ["y"], name="node"), constants={"c": np.float32(1000)[None]})
    calm, cancelling = only(model, X).error, only(model, X + 1000).error
    assert cancelling > 100 * calm
    for order in ((X, X + 1000), (X + 1000, X)):
        assert only(model, *order).error == cancelling


def test_without_samples_constants_have_peaks() -> None:
    model = graph(helper.make_node("Mul", ["x", "c"], ["y"], name="node"), constants={"c": np.float32(-7e4)[None]})
    assert measure(model) == Measurements((NodeMeasurement("node", "Mul", 7e4, None),), samples=0, error_samples=0)


def test_nodes_without_names_get_the_names_that_modelopt_sees() -> None:
    model = graph(helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="twice"),
                  helper.make_node("Relu", ["b"], ["y"], name="twice"))
    assert list(measured(model, X)) == ["Relu_unnamed_0", "twice", "twice_unnamed_2"]


def test_the_toy_network_rounds_and_nothing_more(plain, capfd, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = plain.SerializeToString()
    found = measure(plain, calibration=(toy.feeds(batch, seed=batch) for batch in (1, 2, 3)))
    errors = {node.name: node.error for node in found.nodes if node.error is not None}
    assert {node.op_type for node in found.nodes if node.error is not None} == {
        "Add", "Conv", "Gelu", "LayerNormalization", "MatMul", "Mul", "ReduceSum", "Relu", "Resize", "Softmax"}
    assert 1e-4 < min(errors.values()) and max(errors.values()) < 2e-3
    assert plain.SerializeToString() == before
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")
