"""Precision lives in the ONNX file: FP16 by ModelOpt AutoCast, INT8 by ModelOpt explicit Q/DQ, FP32 where it must be.

TensorRT 11 knows only strongly typed networks, so what these passes write is what the engine computes. They take and
give flat graphs: `fuse_rca` comes after them. An RCA is never cut in two: all its nodes run in one precision.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.fuse_rca import find_rca
from talent.errors import UserError
from talent.require import require

Feeds = Mapping[str, np.ndarray]
"""One run's graph inputs by name."""

FP32_OPS = ("LayerNormalization", "Softmax")
"""What collapses in FP16 by itself (TensorRT #4723, #2709, #4373).

The casts around a softmax do not cost the attention's fusion: TensorRT-RTX 1.7 makes one kernel of it either way, as
long as both matrix products around it are FP16 and a head has 16 to 256 channels.
"""
FP16_HEADROOM = 4.0
"""A tensor whose largest calibrated magnitude times this passes FP16's largest number stays in FP32."""
MIN_INT8_CHANNELS = 16
"""Below this many input or output channels INT8 tensor cores gain nothing."""

_GEMM_FUSIONS = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def simplify(model: onnx.ModelProto, *, feeds: Feeds) -> onnx.ModelProto:
    """`model` with its shape arithmetic folded by onnxsim; the batch stays dynamic.

    `feeds` is one run's inputs, on which both graphs must agree to 1e-3 of the largest output; RuntimeError otherwise.
    A linear layer stays MatMul + Add: onnxsim's Gemm, with a Reshape on each side, hides the RCA and the attention.
    """
    onnxsim = require("onnxsim", extra="export")
    simplified, _ = onnxsim.simplify(model, skipped_optimizers=list(_GEMM_FUSIONS))
    worst = max(deviation(simplified, model, feeds=feeds).values())
    if not worst < 1e-3:
        raise RuntimeError(f"onnxsim {onnxsim.__version__} changed the result by {worst:.2e} of the largest output; "
                           "export without simplifying, or install another version of onnxsim")
    return simplified


def to_fp16(model: onnx.ModelProto, *, calibration: Iterable[Feeds] = (), fp32_ops: Sequence[str] = FP32_OPS,
            fp32_nodes: Iterable[str] = ()) -> onnx.ModelProto:
    """`model` in FP16, with FP32 islands and the same inputs and outputs as before.

    In FP32 stay the operators of `fp32_ops`, the nodes named in `fp32_nodes`, and every node that reads or writes a
    tensor that came too near FP16's largest number on a sample of `calibration`. Where one node of an RCA stays, the
    whole RCA stays. Works on FP32 graphs and on FP32 graphs with Q/DQ (whose scales become FP16).
    """
    autocast = _modelopt("modelopt.onnx.autocast")
    model = _named(model)
    keep = _known_nodes(model, fp32_nodes, argument="fp32_nodes") | _overflowing(model, calibration)
    for match in find_rca(model)[0]:
        names = {node.name for node in match.nodes}
        if names & keep:
            keep |= names
    with _scratch() as directory, _quiet():
        path = directory / "fp32.onnx"
        onnx.save(model, path)
        half = autocast.convert_to_mixed_precision(
            str(path), low_precision_type="fp16", keep_io_types=True, data_max=float("inf"),
            op_types_to_exclude=list(fp32_ops), nodes_to_exclude=_patterns(keep))
    onnx.checker.check_model(half, full_check=True)
    return half


def quantizable(model: onnx.ModelProto, *, exclude: Iterable[str] = ()) -> list[str]:
    """Names of the nodes that INT8 serves: linear layers and convolutions, in graph order.

    A linear layer is a MatMul or Gemm whose right operand is a constant matrix, so attention's two products and the
    dynamic convolution are none. Left out: the RCA, convolutions that read a graph input (the patch embedding),
    layers with fewer than MIN_INT8_CHANNELS channels, and the nodes named in `exclude`.
    """
    inputs = {value.name for value in model.graph.input}
    shape = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    unfit = _known_nodes(model, exclude, argument="exclude")
    unfit |= {node.name for match in find_rca(model)[0] for node in match.nodes}
    names = []
    for node in model.graph.node:
        weight = shape.get(node.input[1]) if len(node.input) > 1 else None
        linear = node.op_type in ("MatMul", "Gemm") and weight is not None and len(weight) == 2
        convolution = node.op_type == "Conv" and weight is not None and node.input[0] not in inputs
        if (linear or convolution) and min(weight[:2]) >= MIN_INT8_CHANNELS and node.name not in unfit:
            names.append(node.name)
    return names


def to_int8(model: onnx.ModelProto, *, calibration: Iterable[Feeds], exclude: Iterable[str] = (),
            method: str = "max", fp32_ops: Sequence[str] = FP32_OPS, fp32_nodes: Iterable[str] = (),
            ) -> onnx.ModelProto:
    """`model` with explicit INT8 Q/DQ on `quantizable` nodes, FP16 elsewhere and FP32 where `to_fp16` keeps it.

    Symmetric, zero point 0, weights per output channel and stored as INT8, biases in FP16. `method` is ModelOpt's
    ("max" or "entropy"). Raises UserError without calibration samples or without a node to quantize, RuntimeError
    when the quantizers did not come to stand where they were asked for.
    """
    quantization = _modelopt("modelopt.onnx.quantization")
    samples = [dict(feeds) for feeds in calibration]
    if not samples:
        raise UserError("INT8 needs calibration samples, received none; pass some tens of pictures with sentences")
    model = _named(model)
    names = quantizable(model, exclude=exclude)
    if not names:
        raise UserError("INT8 was asked for, but no linear layer or convolution is left to quantize; exclude fewer")
    overflowing = _overflowing(model, samples)
    with _scratch() as directory, _quiet():
        source, target = directory / "fp32.onnx", directory / "int8.onnx"
        numbers = {node.name: f"node{index:07d}" for index, node in enumerate(model.graph.node)}
        onnx.save(_renamed(model, numbers), source)
        quantization.quantize(
            str(source), quantize_mode="int8", output_path=str(target), calibration_method=method,
            calibration_data_reader=_reader(samples), calibration_eps=["cpu"], high_precision_dtype="fp32",
            op_types_to_quantize=["MatMul", "Gemm", "Conv"], nodes_to_quantize=[numbers[name] for name in names],
            disable_mha_qdq=True, enable_gemv_detection_for_trt=False, log_level="ERROR")
        quantized = _renamed(onnx.load(target), {number: name for name, number in numbers.items()})
    _leave_branches_alone(quantized, set(names))
    found = quantized_nodes(quantized)
    if found != set(names):
        raise RuntimeError(f"ModelOpt left out {sorted(set(names) - found)} and quantized {sorted(found - set(names))}"
                           " against the selection; name them in `exclude`, or install another version of ModelOpt")
    half = to_fp16(quantized, fp32_ops=fp32_ops, fp32_nodes=overflowing | set(fp32_nodes))
    _store_weights_as_int8(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def quantized_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that read a dequantized tensor."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == _DEQUANTIZE}
    return {node.name for node in model.graph.node if dequantized.intersection(node.input)}


def deviation(model: onnx.ModelProto, reference: onnx.ModelProto, *, feeds: Feeds) -> dict[str, float]:
    """Per output, the largest difference of the two graphs in ONNX Runtime over the reference's largest magnitude."""
    expected, received = run(reference, feeds=feeds), run(model, feeds=feeds)
    return {name: float(np.abs(received[name].astype(np.float64) - value).max() / max(np.abs(value).max(), 1e-12))
            for name, value in expected.items()}


def run(model: onnx.ModelProto, *, feeds: Feeds) -> dict[str, np.ndarray]:
    """One run in ONNX Runtime on the CPU: outputs by name."""
    with _session(model) as session:
        return _run(session, feeds)


def peaks(model: onnx.ModelProto, *, calibration: Iterable[Feeds]) -> dict[str, float]:
    """Largest magnitude of every float32 tensor of the graph over the samples.

    The graph reduces each tensor to one number as it goes, so this needs no more memory than running the model.
    """
    probed = onnx.shape_inference.infer_shapes(model)
    graph = probed.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    names = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    names = [name for name in names if kinds.get(name) == TensorProto.FLOAT]
    del graph.output[:]
    for index, name in enumerate(names):
        graph.node.append(helper.make_node("Abs", [name], [f"peak_abs_{index}"]))
        graph.node.append(helper.make_node("ReduceMax", [f"peak_abs_{index}"], [f"peak_{index}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"peak_{index}", TensorProto.FLOAT, []))
    found = dict.fromkeys(names, 0.0)
    with _session(probed) as session:
        for feeds in _progress(calibration, "ranges"):
            values = _run(session, feeds)
            for index, name in enumerate(names):
                found[name] = max(found[name], float(values[f"peak_{index}"]))
    return found


def _overflowing(model: onnx.ModelProto, calibration: Iterable[Feeds]) -> set[str]:
    """Nodes that read or write a tensor too large for FP16, or a constant that is."""
    samples = list(calibration)
    limit = float(np.finfo(np.float16).max) / FP16_HEADROOM
    large = {name for name, peak in peaks(model, calibration=samples).items() if peak > limit} if samples else set()
    return {node.name for node in model.graph.node if large.intersection((*node.input, *node.output))}


def _leave_branches_alone(model: onnx.ModelProto, names: set[str]) -> None:
    """Let only the nodes in `names` read dequantized tensors.

    ONNX Runtime's quantizer replaces a tensor for all its readers, so the RCA and the residual beside a quantized
    layer would see rounded values too.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in names:
            continue
        for index, name in enumerate(node.input):
            dequantize = producer.get(name)
            if dequantize is not None and dequantize.op_type == _DEQUANTIZE:
                quantize = producer.get(dequantize.input[0])
                if quantize is not None and quantize.op_type == _QUANTIZE:
                    node.input[index] = quantize.input[0]


def _store_weights_as_int8(model: onnx.ModelProto) -> None:
    """Quantize every constant that feeds a QuantizeLinear now, a quarter of the bytes; the DequantizeLinear stays.

    After the FP16 cast, so that the integers are made with the very scale that dequantizes them.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != _QUANTIZE or node.input[0] not in tensors:
            kept.append(node)
            continue
        weight, scale = (numpy_helper.to_array(tensors[name]).astype(np.float32) for name in node.input[:2])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if scale.ndim == 1:
            scale = scale.reshape([-1 if dim == axis % weight.ndim else 1 for dim in range(weight.ndim)])
        integers = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale != 0)).clip(-128, 127)
        graph.initializer.append(numpy_helper.from_array(integers.astype(np.int8), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    alive = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(alive)
    constants = {tensor.name for tensor in alive}
    shapes = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(shapes)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every node has a name of its own, as ModelOpt's selections need."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_unnamed_{index}"
        seen.add(node.name)
    return copy


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """A copy of `model` with other node names.

    ModelOpt's exclusions match from the start of a name: an attention product `MatMul_65` would take the linear layer
    `MatMul_650` out too. Numbers of one width are no beginnings of each other.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = names.get(node.name, node.name)
    return copy


def _known_nodes(model: onnx.ModelProto, names: Iterable[str], *, argument: str) -> set[str]:
    names, known = set(names), {node.name for node in model.graph.node}
    if names - known:
        raise UserError(f"{argument} names nodes that the graph {model.graph.name!r} does not have: "
                        f"{', '.join(sorted(names - known))}")
    return names


def _patterns(names: Iterable[str]) -> list[str]:
    """ModelOpt matches names as regular expressions from the start; these match exactly."""
    return [re.escape(name) + r"\Z" for name in sorted(names)]


def _reader(samples: Sequence[Feeds]):
    """ONNX Runtime's calibration reader over `samples`, with a progress bar from the first pass on."""
    calibrate = require("onnxruntime.quantization.calibrate", extra="export")

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.remaining = iter(_progress(samples, "calibrate"))

        def get_next(self) -> Feeds | None:
            return next(self.remaining, None)

        def get_first(self) -> Feeds:
            return samples[0]

    return Reader()


def _progress(samples: Iterable[Feeds], name: str) -> Iterable[Feeds]:
    """`samples` with a progress bar, on a terminal only."""
    return require("tqdm", extra="export").tqdm(samples, desc=name, unit="sample", leave=False, disable=None)


@contextlib.contextmanager
def _session(model: onnx.ModelProto) -> Iterator:
    """An ONNX Runtime session on the CPU; the file it maps its weights from is gone afterwards."""
    onnxruntime = require("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        yield onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session, feeds: Feeds) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _modelopt(module: str):
    """A ModelOpt module, imported without its log lines."""
    with _quiet():
        return require(module, extra="export")


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A directory for all that is written meanwhile, also by libraries that make temporary files of their own."""
    with tempfile.TemporaryDirectory() as directory:
        before, tempfile.tempdir = tempfile.tempdir, directory
        try:
            yield Path(directory)
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ModelOpt's and ONNX Runtime's chatter off the terminal; errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
