"""INT8 by explicit Q/DQ (ModelOpt): which layers, which ranges, and weights stored as integers.

Works on flat FP32 graphs and gives INT8 + FP16 ones, before `fuse_rca`. An RCA is never quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.fuse_rca import find_rca
from deploy.modelopt import known_nodes, modelopt, named, quiet, scratch
from deploy.onnx_run import Feeds, progress
from deploy.precision import Precisions, decide_precisions, to_fp16
from talent.errors import UserError
from talent.require import require

MIN_INT8_CHANNELS = 16
"""Below this many input or output channels INT8 tensor cores gain nothing."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def quantizable(model: onnx.ModelProto, *, exclude: Iterable[str] = ()) -> list[str]:
    """Names of the nodes that INT8 serves: linear layers and convolutions, in graph order.

    A linear layer is a MatMul or Gemm whose right operand is a constant matrix, so attention's two products and the
    dynamic convolution are none. Left out: the RCA, convolutions that read a graph input (the patch embedding),
    layers with fewer than MIN_INT8_CHANNELS channels, and the nodes named in `exclude`.
    """
    inputs = {value.name for value in model.graph.input}
    shape = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    unfit = known_nodes(model, exclude, argument="exclude")
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
            method: str = "max", precisions: Precisions | None = None) -> onnx.ModelProto:
    """`model` with explicit INT8 Q/DQ on `quantizable` nodes, FP16 elsewhere and FP32 where `precisions` say so.

    Symmetric, zero point 0, weights per output channel and stored as INT8, biases in FP16. `method` is ModelOpt's
    ("max" or "entropy"). `precisions` were decided on this very graph; without them they are decided on `calibration`.
    Raises UserError without calibration samples or without a node to quantize, RuntimeError when the quantizers did not
    come to stand where they were asked for.
    """
    quantization = modelopt("modelopt.onnx.quantization")
    samples = [dict(feeds) for feeds in calibration]
    if not samples:
        raise UserError("INT8 needs calibration samples, received none; pass some tens of pictures with sentences")
    model = named(model)
    names = quantizable(model, exclude=exclude)
    if not names:
        raise UserError("INT8 was asked for, but no linear layer or convolution is left to quantize; exclude fewer")
    precisions = precisions or decide_precisions(model, calibration=samples)
    with scratch() as directory, quiet():
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
    half = to_fp16(quantized, precisions)
    _store_weights_as_int8(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def quantized_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that read a dequantized tensor."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == _DEQUANTIZE}
    return {node.name for node in model.graph.node if dequantized.intersection(node.input)}


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


def _reader(samples: Sequence[Feeds]):
    """ONNX Runtime's calibration reader over `samples`, with a progress bar from the first pass on."""
    calibrate = require("onnxruntime.quantization.calibrate", extra="export")

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.remaining = iter(progress(samples, "calibrate"))

        def get_next(self) -> Feeds | None:
            return next(self.remaining, None)

        def get_first(self) -> Feeds:
            return samples[0]

    return Reader()
