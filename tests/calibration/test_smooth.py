"""SmoothQuant: the same function in FP32, and what a really quantized graph then loses, in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.observe import observe
from calibration.quantize import quantizable, quantize
from calibration.smooth import (
    ALPHAS,
    LARGEST_DIVISOR,
    LARGEST_PARAMETER,
    ChannelStatistics,
    Smoothing,
    channel_statistics,
    smooth,
    smoothing_divisors,
)
from deploy.onnx_run import Feeds, deviation
from talent.errors import UserError
from tests.deploy import toy

CALIBRATION = [toy.feeds(2, seed) for seed in range(16)]
FRESH = [toy.feeds(3, seed=99)]
WIDTH, WIDER, TOKENS = 384, 128, 60


def smoothing_of(model: onnx.ModelProto, names: list[str], *, calibration: Iterable[Feeds],
                 ) -> tuple[onnx.ModelProto, tuple[Smoothing, ...]]:
    """`smooth`, its statistics by way of JSON."""
    found = json.dumps([one.to_dict() for one in channel_statistics(model, names, calibration=calibration)])
    return smooth(model, names, [ChannelStatistics.from_dict(one) for one in json.loads(found)])


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def graph_of(nodes: list[onnx.NodeProto], values: dict[str, np.ndarray], outputs: list[str]) -> onnx.ModelProto:
    """x [tokens, C] in, `outputs` [tokens, O] out."""
    channels = len(values["scale"])
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()]
    graph = helper.make_graph(
        nodes, "smooth", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", channels])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", None]) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def norm(name: str, scale: str = "scale", bias: str = "bias") -> onnx.NodeProto:
    return helper.make_node("LayerNormalization", ["x", scale, bias], [f"{name}_out"], name=name, axis=-1)


def product(name: str, source: str, matrix: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, matrix], [name], name=name)


def one_product(seed: int, **values: np.ndarray) -> onnx.ModelProto:
    """x -> LayerNormalization -> MatMul."""
    rng = np.random.default_rng(seed)
    usual = {"scale": rng.normal(1, 0.2, WIDTH), "bias": rng.normal(0, 0.2, WIDTH),
             "matrix": rng.normal(0, 0.05, (WIDTH, WIDER))}
    return graph_of([norm("norm"), product("product", "norm_out", "matrix")], usual | values, ["product"])


def tokens(seed: int, count: int = TOKENS, channels: int = WIDTH) -> Feeds:
    return {"x": np.random.default_rng(seed).standard_normal((count, channels), dtype=np.float32)}


def lost(model: onnx.ModelProto, layers: list[str], calibration: list[Feeds], feeds: list[Feeds],
         outputs: list[str]) -> float:
    """Relative rms of what INT8 makes of `outputs`: quantized for real, with ranges measured on `calibration`."""
    read = sorted({node.input[0] for node in model.graph.node if node.name in layers})
    ranges = dict.fromkeys(read, 0.0)
    for found in observe(model, read, calibration=calibration, title="ranges"):
        ranges = {name: max(largest, float(np.abs(found[name]).max())) for name, largest in ranges.items()}
    runs = [list(observe(graph, outputs, calibration=feeds, title="outputs"))
            for graph in (model, quantize(model, layers, ranges))]
    off = sum(np.square(full[name] - int8[name]).sum() for full, int8 in zip(*runs, strict=True) for name in outputs)
    return float(np.sqrt(off / sum(np.square(full[name]).sum() for full in runs[0] for name in outputs)))


@pytest.fixture(scope="module")
def outliers(plain: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """The toy network, the same function, with two channels 80 times the others behind each block's first
    normalisation: the network, the layers that read them, and what they make."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    gain = np.where(np.isin(np.arange(toy.WIDTH), (3, 17)), 80, 1).astype(np.float32)
    values = constants(plain)
    producer = {name: node for node in model.graph.node for name in node.output}
    layers, products = [], []
    for block in range(2):
        add = next(node for node in model.graph.node if f"blocks.{block}.qkv.bias" in node.input)
        reader = next(producer[name] for name in add.input if name in producer)
        layer_norm = producer[reader.input[0]]
        for node, index, factor in ((layer_norm, 1, gain), (layer_norm, 2, gain), (reader, 1, 1 / gain[:, None])):
            name = f"outliers/{node.name}/{index}"
            model.graph.initializer.append(numpy_helper.from_array(values[node.input[index]] * factor, name))
            node.input[index] = name
        layers.append(reader.name)
        products.append(reader.output[0])
    assert deviation(model, plain, feeds=FRESH[0])["logits"] < 1e-5
    return model, layers, products


@pytest.fixture(scope="module")
def smoothed(outliers) -> tuple[onnx.ModelProto, tuple[Smoothing, ...]]:
    return smoothing_of(outliers[0], quantizable(outliers[0]), calibration=CALIBRATION)


def test_the_same_function_in_fp32(outliers, smoothed) -> None:
    assert deviation(smoothed[0], outliers[0], feeds=FRESH[0])["logits"] < 1e-5
    onnx.checker.check_model(smoothed[0], full_check=True)


def test_a_normalisation_that_others_read_too_is_left_alone(outliers, smoothed) -> None:
    """norm2 feeds fc1, which is quantized, and the RCA and the prefix tokens, which are not."""
    assert [entry.readers for entry in smoothed[1]] == [(name,) for name in outliers[1]]
    before, after = constants(outliers[0]), constants(smoothed[0])
    touched = {name for name in before if not np.array_equal(before[name], after[name])}
    assert touched == {name for name in before if name.startswith("outliers/") and before[name].any()}
    assert set(after) == set(before)


def test_outlier_channels_ruin_int8_and_smoothing_mends_it(plain, outliers, smoothed) -> None:
    model, layers, products = outliers
    ruined, mended, calm = (lost(graph, layers, CALIBRATION, FRESH, products) for graph in (model, smoothed[0], plain))
    assert ruined > 0.5
    assert mended < 0.013 and mended < 1.1 * calm
    ruined, mended = (lost(graph, layers, CALIBRATION, FRESH, ["logits"]) for graph in (model, smoothed[0]))
    assert ruined > 40 * mended


def test_the_report_tells_what_was_really_lost(outliers, smoothed) -> None:
    model, layers, products = outliers
    for entry, layer, name in zip(smoothed[1], layers, products, strict=True):
        assert entry.alpha > 0 and 40 < entry.channel_ratio < 200
        after = lost(smoothed[0], [layer], CALIBRATION, CALIBRATION, [name])
        before = lost(model, [layer], CALIBRATION, CALIBRATION, [name])
        assert entry.error_after == pytest.approx(after, rel=0.1)
        assert entry.error_before == pytest.approx(before, rel=0.25)  # most of x is below one step there
        assert json.loads(json.dumps(entry.to_dict(), allow_nan=False))["readers"] == [layer]


def test_outlier_tokens_are_smoothed_too() -> None:
    """Two tokens in which one channel is a thousand times the others, as registers have them: the normalisation makes
    sqrt(C) = 20 of it, five times what other tokens hold."""
    samples = [tokens(seed) for seed in range(4)]
    for feeds in samples:
        feeds["x"][:2, 5] = 3000
    model = one_product(seed=1)
    mended, (entry,) = smoothing_of(model, ["product"], calibration=samples[:3])
    before, after = (lost(graph, ["product"], samples[:3], samples[3:], ["product"]) for graph in (model, mended))
    assert 4 < entry.channel_ratio < 10
    assert before > 0.04 and after < before / 2.5


def test_readers_are_taken_together_and_shared_constants_stay() -> None:
    """norm0 has two readers, one through a transposed matrix; norm1 shares its scale, `other` the first's matrix."""
    rng = np.random.default_rng(0)
    values = {"scale": rng.normal(1, 0.2, 32), "bias": rng.normal(0, 0.2, 32), "bias1": rng.normal(0, 0.2, 32),
              "matrix": rng.normal(0, 0.1, (32, 48)), "rows": rng.normal(0, 0.1, (16, 32)),
              "offset": rng.normal(size=16)}
    values["scale"][4] = 60
    nodes = [norm("norm0"), norm("norm1", bias="bias1"),
             product("first", "norm0_out", "matrix"), product("third", "norm1_out", "matrix"),
             helper.make_node("Gemm", ["norm0_out", "rows", "offset"], ["second"], name="second", transB=1),
             product("other", "x", "matrix")]
    model = graph_of(nodes, values, ["first", "second", "third", "other"])
    samples = [tokens(seed, channels=32) for seed in range(2)]
    both, done = smoothing_of(model, ["first", "second", "third"], calibration=samples)
    assert [(entry.layer_norm, entry.readers) for entry in done] == [("norm0", ("first", "second")),
                                                                     ("norm1", ("third",))]
    assert all(entry.alpha > 0 for entry in done)
    assert max(deviation(both, model, feeds=samples[0]).values()) < 1e-5
    np.testing.assert_array_equal(constants(both)["matrix"], values["matrix"].astype(np.float32))
    part, done = smoothing_of(model, ["first", "third"], calibration=samples)  # not all of norm0's readers
    assert [entry.layer_norm for entry in done] == ["norm1"]
    shown = graph_of(nodes, values, ["third", "norm1_out"])  # a graph output is read by whoever runs the graph
    _, done = smoothing_of(shown, ["first", "second", "third"], calibration=samples)
    assert [entry.layer_norm for entry in done] == ["norm0"]
    assert max(deviation(part, model, feeds=samples[0]).values()) < 1e-5


def test_dead_channels_and_zero_rows_stay_within_fp16() -> None:
    rng = np.random.default_rng(2)
    scale, bias, matrix = rng.normal(1, 0.2, WIDTH), rng.normal(0, 0.2, WIDTH), rng.normal(0, 0.05, (WIDTH, WIDER))
    scale[:3], bias[:3] = (0, 1e-6, 300), (0, 0, 300)
    matrix[2:5] = 0
    matrix[:2] *= 1000
    model = one_product(2, scale=scale, bias=bias, matrix=matrix)
    mended, (entry,) = smoothing_of(model, ["product"], calibration=[tokens(0)])
    assert entry.alpha > 0 and entry.error_after < entry.error_before
    after = constants(mended)
    assert all(np.isfinite(values).all() for values in after.values())
    assert max(np.abs(after[name]).max() for name in ("scale", "bias")) <= LARGEST_PARAMETER
    kept = np.abs(scale) > 2.0**-14  # what FP16 held with all its digits, it still does
    assert np.abs(after["scale"][kept]).min() >= 0.99 * 2.0**-14
    assert deviation(mended, model, feeds=tokens(1))["product"] < 1e-5


@pytest.mark.parametrize("alpha", [ALPHAS[0], 0.5, ALPHAS[-1]])
def test_divisors_keep_scales_and_biases_within_fp16(alpha: float) -> None:
    """Channels, rows and parameters over twelve decades, none related to another."""
    rng = np.random.default_rng(4)
    peak, rows, parameters = 10 ** rng.uniform([[-8], [-8], [-6]], [[4], [4], [6]], (3, 2000))
    divisors = smoothing_divisors(peak, rows, parameters, alpha)
    after = parameters / divisors
    assert after[parameters <= LARGEST_PARAMETER].max() <= LARGEST_PARAMETER * 1.001
    assert after[parameters >= 2.0**-14].min() >= 2.0**-14 * 0.999
    assert (divisors[parameters > LARGEST_PARAMETER] >= 1).all() and (divisors[parameters < 2.0**-14] <= 1).all()
    calm = smoothing_divisors(peak[:100] * 0 + 3, 10 ** rng.uniform(-1, 1, 100), np.ones(100), alpha)
    assert np.exp(np.log(calm).mean()) == pytest.approx(1)
    assert divisors.min() >= 1 / LARGEST_DIVISOR and divisors.max() <= LARGEST_DIVISOR


def test_a_place_that_gains_nothing_is_left_alone() -> None:
    """All channels and all rows are alike: no divisor is better than one."""
    rng = np.random.default_rng(3)
    model = one_product(3, scale=np.ones(WIDTH), bias=np.zeros(WIDTH), matrix=rng.choice([-0.05, 0.05], (WIDTH, WIDER)))
    signs = np.repeat(np.float32([[1, -1]]), WIDTH // 2, 0).reshape(1, WIDTH)
    feeds = {"x": np.stack([rng.permutation(signs[0]) for _ in range(TOKENS)])}
    left, (entry,) = smoothing_of(model, ["product"], calibration=[feeds])
    assert entry.alpha == 0 and entry.error_after == entry.error_before
    assert left == model


def test_the_same_bytes_again_and_the_model_is_not_touched(outliers, smoothed) -> None:
    model = outliers[0]
    before = model.SerializeToString(deterministic=True)
    again, _ = smoothing_of(model, quantizable(model), calibration=iter(CALIBRATION))  # read once: an iterator will do
    assert again.SerializeToString(deterministic=True) == smoothed[0].SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


def test_bad_input_is_refused() -> None:
    model = one_product(0)
    with pytest.raises(UserError, match="names names nodes .* no_such_node"):
        smoothing_of(model, ["no_such_node"], calibration=[tokens(0)])
    with pytest.raises(UserError, match="needs calibration samples, received none"):
        smoothing_of(model, ["product"], calibration=[])
    with pytest.raises(UserError, match="'norm' .* not finite in FP32 on calibration sample 2"):
        smoothing_of(model, ["product"], calibration=[tokens(0), {"x": np.full((4, WIDTH), np.nan, np.float32)}])
    assert smoothing_of(model, [], calibration=[tokens(0)])[1] == ()
