"""Precision lives in the ONNX file: FP16 by ModelOpt AutoCast, FP32 where it must be.

TensorRT 11 knows only strongly typed networks, so what these passes write is what the engine computes. They take and
give flat graphs: `fuse_rca` comes after them. An RCA is never cut in two: all its nodes run in one precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from deploy.fuse_rca import find_rca
from deploy.modelopt import known_nodes, modelopt, named, patterns, quiet, scratch
from deploy.onnx_run import Feeds, deviation, peaks
from talent.require import require

FP32_OPS = ("LayerNormalization", "Softmax")
"""What collapses in FP16 by itself (TensorRT #4723, #2709, #4373).

The casts around a softmax do not cost the attention's fusion: TensorRT-RTX 1.7 makes one kernel of it either way, as
long as both matrix products around it are FP16 and a head has 16 to 256 channels.
"""
FP16_HEADROOM = 4.0
"""A tensor whose largest calibrated magnitude times this passes FP16's largest number stays in FP32."""

_GEMM_FUSIONS = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")


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
    autocast = modelopt("modelopt.onnx.autocast")
    model = named(model)
    keep = known_nodes(model, fp32_nodes, argument="fp32_nodes") | overflowing(model, calibration)
    for match in find_rca(model)[0]:
        names = {node.name for node in match.nodes}
        if names & keep:
            keep |= names
    with scratch() as directory, quiet():
        path = directory / "fp32.onnx"
        onnx.save(model, path)
        half = autocast.convert_to_mixed_precision(
            str(path), low_precision_type="fp16", keep_io_types=True, data_max=float("inf"),
            op_types_to_exclude=list(fp32_ops), nodes_to_exclude=patterns(keep))
    onnx.checker.check_model(half, full_check=True)
    return half


def overflowing(model: onnx.ModelProto, calibration: Iterable[Feeds]) -> set[str]:
    """Nodes that read or write a tensor too large for FP16, or a constant that is."""
    samples = list(calibration)
    limit = float(np.finfo(np.float16).max) / FP16_HEADROOM
    large = {name for name, peak in peaks(model, calibration=samples).items() if peak > limit} if samples else set()
    return {node.name for node in model.graph.node if large.intersection((*node.input, *node.output))}
