"""Precision lives in the ONNX file: FP16 by ModelOpt AutoCast, FP32 where it must be.

TensorRT 11 knows only strongly typed networks, so what these passes write is what the engine computes. They take and
give flat graphs: `fuse_rca` comes after them. An RCA is never cut in two: all its nodes run in one precision.

measure (deploy.half_precision) -> decide_precisions -> to_fp16; `format_precisions` is the table for people.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from deploy.bundle import REPORT
from deploy.fuse_rca import find_rca
from deploy.half_precision import ERROR_SAMPLES, NodeMeasurement, measure
from deploy.modelopt import modelopt, named, patterns, quiet, scratch
from deploy.onnx_run import Feeds, deviation
from talent.errors import UserError
from talent.require import require

FP32_OPS = ("LayerNormalization", "Softmax")
"""What collapses in FP16 by itself (TensorRT #4723, #2709, #4373): half kernels of some devices accumulate in half.

The casts around a softmax do not cost the attention's fusion: TensorRT-RTX 1.7 makes one kernel of it either way, as
long as both matrix products around it are FP16 and a head has 16 to 256 channels.
"""
FP16_HEADROOM = 4.0
"""A node whose largest calibrated magnitude times this passes FP16's largest number stays in FP32."""
MAX_PEAK = float(np.finfo(np.float16).max) / FP16_HEADROOM
MAX_NODE_ERROR = 1e-2
"""A node whose own relative error in FP16 passes this stays in FP32.

FP16 rounds by up to 4.9e-4. In a base model and in weights/tiny, rounding in and out makes 2e-4 to 7e-4 of any other
operator, 5e-4 to 6e-4 of a layer normalisation that does not overflow (10 of base's 44 do) and up to 5e-3 of a softmax
with sharp attention: what is worse than this limit loses more than rounding.
"""
LISTED_NODES = 20
"""How many nodes the table for people names."""

OPERATOR, RANGE, ERROR, REQUEST, RCA = "operator", "range", "error", "request", "rca"
"""Why a node is in its precision: its operator type, its peak, its error, a request, another node of its RCA."""

_UNWANTED_FUSIONS = (
    "fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched",  # a Reshape on each side of the Gemm
    "fuse_qkv")  # three products of one input into one and a Split, which copies what it splits


def simplify(model: onnx.ModelProto, *, feeds: Feeds) -> onnx.ModelProto:
    """`model` with its shape arithmetic folded by onnxsim; the batch stays dynamic.

    `feeds` is one run's inputs, on which both graphs must agree to 1e-3 of the largest output; RuntimeError otherwise.
    A linear layer stays MatMul + Add: onnxsim's Gemm, with a Reshape on each side, hides the RCA and the attention.
    """
    onnxsim = require("onnxsim", extra="export")
    simplified, _ = onnxsim.simplify(model, skipped_optimizers=list(_UNWANTED_FUSIONS))
    worst = max(deviation(simplified, model, feeds=feeds, optimize=False).values())
    if not worst < 1e-3:
        raise RuntimeError(f"onnxsim {onnxsim.__version__} changed the result by {worst:.2e} of the largest output; "
                           "export without simplifying, or install another version of onnxsim")
    return simplified


@dataclass(frozen=True)
class NodePrecision:
    """What was decided about a node. reason: one of the words above; empty where FP16 is the plain choice."""

    measured: NodeMeasurement
    fp32: bool
    reason: str = ""

    @property
    def name(self) -> str:
        return self.measured.name


@dataclass(frozen=True)
class Precisions:
    """A decision for every node that reads or writes float32, in graph order, by the names that `named` gives.

    samples, error_samples: how many samples set the ranges and the errors. int8: nodes that compute in INT8 instead.
    """

    nodes: tuple[NodePrecision, ...]
    samples: int
    error_samples: int
    int8: frozenset[str] = frozenset()

    @property
    def fp32(self) -> set[str]:
        """Names of the nodes that stay in FP32."""
        return {node.name for node in self.nodes if node.fp32}

    @property
    def requested(self) -> set[str]:
        """Names of the nodes whose precision was asked for."""
        return {node.name for node in self.nodes if node.reason == REQUEST}

    def of(self, node: NodePrecision) -> str:
        """"fp32", "fp16" or "int8"."""
        return "int8" if node.name in self.int8 else "fp32" if node.fp32 else "fp16"

    def to_dict(self) -> dict:
        """Plain data for a JSON file; an infinite number is the string "inf", one that was not measured null."""
        return {
            "samples": self.samples, "error_samples": self.error_samples,
            "limits": {"peak": MAX_PEAK, "error": MAX_NODE_ERROR},
            "nodes": [{"name": node.name, "op_type": node.measured.op_type,
                       "precision": self.of(node), "reason": node.reason,
                       "peak": _json_number(node.measured.peak), "error": _json_number(node.measured.error)}
                      for node in self.nodes]}


def decide_precisions(model: onnx.ModelProto, *, calibration: Iterable[Feeds] = (),
                      error_samples: int = ERROR_SAMPLES, fp32_ops: Sequence[str] = FP32_OPS,
                      fp32_nodes: Iterable[str] = (), fp16_nodes: Iterable[str] = ()) -> Precisions:
    """FP16 or FP32 for each node of a flat FP32 graph, from what FP16 does to it on `calibration` (read once).

    In FP32 stay the operators of `fp32_ops`, the nodes of `fp32_nodes`, every node whose peak comes within
    FP16_HEADROOM of FP16's largest number, and every node whose own error in FP16 passes MAX_NODE_ERROR. `fp16_nodes`
    go to FP16 all the same. Both take names and patterns (`node_MatMul_*`). Where one node of an RCA stays, the whole
    RCA stays. Without samples, only operators, constants and requests decide.

    Raises UserError for a name or pattern that fits no node, for a node in both lists, and for an RCA of which one node
    is forced into FP16 while another stays in FP32.
    """
    names = _names(model)
    wanted = select_nodes(fp32_nodes, names.values(), argument="fp32_nodes")
    forced = select_nodes(fp16_nodes, names.values(), argument="fp16_nodes")
    if wanted & forced:
        raise UserError(f"fp32_nodes and fp16_nodes both have {', '.join(sorted(wanted & forced))}; name each node in "
                        "one of them")
    measurements = measure(model, calibration=calibration, error_samples=error_samples)
    nodes = {node.name: _decide(node, fp32_ops=fp32_ops, fp32_nodes=wanted, fp16_nodes=forced)
             for node in measurements.nodes}
    for match in find_rca(model)[0]:
        members = [nodes[names[node.output[0]]] for node in match.nodes]
        kept = next((node for node in members if node.fp32), None)
        for node in members if kept else ():
            if node.fp32:
                continue
            if node.name in forced:
                raise UserError(f"fp16_nodes has {node.name!r} of an RCA whose node {kept.name!r} stays in FP32 "
                                f"({kept.reason}); name all its nodes: {', '.join(other.name for other in members)}")
            nodes[node.name] = replace(node, fp32=True, reason=RCA)
    return Precisions(tuple(nodes.values()), measurements.samples, measurements.error_samples)


def _decide(node: NodeMeasurement, *, fp32_ops: Sequence[str], fp32_nodes: set[str],
            fp16_nodes: set[str]) -> NodePrecision:
    if node.name in fp32_nodes or node.name in fp16_nodes:
        return NodePrecision(node, fp32=node.name in fp32_nodes, reason=REQUEST)
    if node.op_type in fp32_ops:
        return NodePrecision(node, fp32=True, reason=OPERATOR)
    if node.peak > MAX_PEAK:
        return NodePrecision(node, fp32=True, reason=RANGE)
    if node.error is not None and node.error > MAX_NODE_ERROR:
        return NodePrecision(node, fp32=True, reason=ERROR)
    return NodePrecision(node, fp32=False)


def _names(model: onnx.ModelProto) -> dict[str, str]:
    """The name that `named` gives to each node, by the node's first output."""
    nodes = onnx.ModelProto(graph=onnx.GraphProto(node=model.graph.node))  # without the weights: a small copy
    return {node.output[0]: node.name for node in named(nodes).graph.node}


def fitting(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a name or pattern stands for."""
    return [pattern] if pattern in names else fnmatch.filter(names, pattern)


def select_nodes(wanted: Iterable[str], names: Iterable[str], *, argument: str) -> set[str]:
    """The names that are in `wanted` or fit a pattern of it. Raises UserError for one that fits none."""
    names, chosen = sorted(names), set()
    for pattern in wanted:
        found = fitting(pattern, names)
        if not found:
            nearest = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise UserError(f"{argument}: the graph of {len(names)} nodes has none that {pattern!r} fits"
                            + "".join(f"; did you mean {name!r}?" for name in nearest))
        chosen.update(found)
    return chosen


def to_fp16(model: onnx.ModelProto, precisions: Precisions | None = None, *,
            calibration: Iterable[Feeds] = ()) -> onnx.ModelProto:
    """`model` in FP16, with FP32 islands and the same inputs and outputs as before.

    Takes the graph on which `precisions` was decided, also with Q/DQ put in since: a quantizer reads FP32, and a
    dequantizer gives what the layer that reads it computes in. Without `precisions` they are decided here, on
    `calibration`. Raises RuntimeError where a node that should stay in FP32 is not in the graph.
    """
    autocast = modelopt("modelopt.onnx.autocast")
    model = named(model)
    keep = (precisions or decide_precisions(model, calibration=calibration)).fp32
    missing = keep - {node.name for node in model.graph.node}
    if missing:
        raise RuntimeError(f"the graph {model.graph.name!r} lacks {len(missing)} nodes that should stay in FP32: "
                           f"{', '.join(sorted(missing)[:5])}; decide the precisions on this graph")
    with scratch() as directory, quiet():
        path, excluded = directory / "fp32.onnx", patterns(keep | _quantizers(model, keep))
        onnx.save(model, path)
        del model  # ModelOpt makes copies enough
        half = autocast.convert_to_mixed_precision(
            str(path), low_precision_type="fp16", keep_io_types=True, data_max=float("inf"), init_max=float("inf"),
            nodes_to_exclude=excluded, use_standalone_type_inference=True)  # types are all it needs, in 2/3 of the time
    _put_in_order(half)
    onnx.checker.check_model(half, full_check=True)
    return half


def _put_in_order(model: onnx.ModelProto) -> None:
    """The same graph in one order of nodes, each behind what it reads and near what reads it: AutoCast goes by sets,
    so that its order differs from run to run. Without the types of its inner tensors, which every reader infers."""
    graph = model.graph
    nodes = list(graph.node)
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    waiting = [maker[output.name] for output in reversed(graph.output) if output.name in maker]
    while waiting:
        needed = [maker[name] for name in nodes[waiting[-1]].input if name in maker and maker[name] not in order]
        if needed:
            waiting += reversed(needed)
        else:
            order.setdefault(waiting.pop())
    ordered = [nodes[number] for number in order]
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]


def _quantizers(model: onnx.ModelProto, keep: set[str]) -> set[str]:
    """Every QuantizeLinear, because ONNX Runtime 1.24 truncates on a CPU where it quantizes FP16, which makes several
    times the error; and the DequantizeLinear of what the nodes in `keep` read, which could overflow in FP16."""
    producer = {name: node for node in model.graph.node for name in node.output}
    found = {node.name for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        for name in node.input if node.name in keep else ():
            dequantize = producer.get(name)
            if dequantize is not None and dequantize.op_type == "DequantizeLinear":
                found.add(dequantize.name)
    return found


def format_precisions(precisions: Precisions, *, title: str) -> str:
    """A table for people: a row per operator type, then the nodes in FP32 by measurement or in either by request."""
    nodes = precisions.nodes
    kept, quantized = len(precisions.fp32 - precisions.int8), len(precisions.int8)
    basis = (f"ranges from {precisions.samples} samples, errors from {precisions.error_samples}" if precisions.samples
             else "not measured: no calibration samples")
    counts = [f"{quantized} nodes in INT8"] if quantized else []
    counts += [f"{len(nodes) - kept - quantized} nodes in FP16", f"{kept} in FP32"]
    lines = [f"{title}: {', '.join(counts)} ({basis})",
             f"  {'operator':22}{'nodes':>6}" + (f"{'INT8':>6}" if quantized else "")
             + f"{'FP32':>6}{'largest':>10}{'error':>9}  FP32 because of"]
    groups: dict[str, list[NodePrecision]] = defaultdict(list)
    for node in nodes:
        groups[node.measured.op_type].append(node)
    for op_type, group in sorted(groups.items(), key=lambda item: (-sum(n.fp32 for n in item[1]), -len(item[1]))):
        errors = [node.measured.error for node in group if node.measured.error is not None]
        reasons = Counter(node.reason for node in group if node.fp32)
        why = ", ".join(reason if len(reasons) == 1 else f"{reason} {n}" for reason, n in reasons.most_common())
        in_int8 = f"{sum(node.name in precisions.int8 for node in group):>6}" if quantized else ""
        lines.append(f"  {op_type:22}{len(group):>6}{in_int8}{sum(reasons.values()):>6}"
                     + _columns(max(node.measured.peak for node in group), max(errors, default=None), why))
    listed = [node for node in nodes if node.reason not in ("", OPERATOR)]
    if listed:
        lines.append("  by measurement or request:")
    width = max((len(node.name) for node in listed[:LISTED_NODES]), default=0)
    for node in listed[:LISTED_NODES]:
        lines.append(f"  {node.name:{width}}" + _columns(node.measured.peak, node.measured.error,
                                                    f"{'FP32' if node.fp32 else 'FP16'} by {node.reason}"))
    if len(listed) > LISTED_NODES:
        lines.append(f"  ... and {len(listed) - LISTED_NODES} more, all in {REPORT}")
    return "\n".join(lines)


def _columns(peak: float, error: float | None, why: str) -> str:
    return f"{peak:>10.4g}{'-' if error is None else f'{error:.1e}':>9}  {why}".rstrip()


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else "inf"
