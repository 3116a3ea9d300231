"""Find every RCA in a flat ONNX graph and make it one `RcaCostAggregation` node again.

The exporter, onnxsim and ModelOpt all inline functions, so this is the last graph pass. The node calls a model-local
function whose body is standard operators: ONNX Runtime, and a TensorRT without the plugin, run the body; a TensorRT
with the plugin registered takes the plugin (`plugin_version` and `plugin_namespace` on the node make it prefer that).

Letters: B batch, N image tokens, K words (1 for the sentence), D channels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN, OP_TYPE, PLUGIN_VERSION = "talent", "RcaCostAggregation", "1"


@dataclass(frozen=True)
class RcaMatch:
    """One RCA in a flat graph: what goes in, what comes out, and the nodes that compute it."""

    visual: str
    """Tensor [B,N,D]."""
    text: str
    """Tensor [B,K,D]."""
    weight: np.ndarray
    """[K,D], as the graph multiplies it; the node takes its transpose."""
    bias: np.ndarray
    """[D]."""
    relu: bool
    nodes: tuple[onnx.NodeProto, ...]
    """Transpose, MatMul, MatMul, [Add], [Relu], Mul; the last one's output is the RCA's output."""

    @property
    def output(self) -> str:
        return self.nodes[-1].output[0]

    @property
    def name(self) -> str:
        return self.nodes[-1].name or self.output


class _Mismatch(Exception):
    """Why a place that starts like an RCA is not one."""


class _Graph:
    """Who makes and who reads each tensor of a flat graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.initializer = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = list(graph.node)

    def constant(self, name: str) -> np.ndarray | None:
        if name in self.initializer:
            return numpy_helper.to_array(self.initializer[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            values = {attribute.name: attribute for attribute in node.attribute}
            return numpy_helper.to_array(values["value"].t) if "value" in values else None
        return None

    def rank(self, name: str) -> int | None:
        """Rank of a constant without copying its data; None when `name` is no constant."""
        if name in self.initializer:
            return len(self.initializer[name].dims)
        value = self.constant(name)
        return None if value is None else value.ndim

    def only_consumer(self, name: str, *op_types: str) -> onnx.NodeProto:
        consumers = self.consumers[name]
        if len(consumers) != 1 or consumers[0].op_type not in op_types:
            found = ", ".join(f"{node.op_type} {node.name!r}" for node in consumers) or "nothing"
            raise _Mismatch(f"{name!r} should feed one {' or '.join(op_types)}, but feeds {found}")
        return consumers[0]

    def same(self, left: str, right: str) -> bool:
        """One tensor, or two casts of one tensor to one type (AutoCast casts once per consumer at times)."""
        if left == right:
            return True
        one, two = self.producer.get(left), self.producer.get(right)
        return (one is not None and two is not None and one.op_type == two.op_type == "Cast"
                and one.input[0] == two.input[0] and one.attribute[0].i == two.attribute[0].i)


def find_rca(model: onnx.ModelProto) -> tuple[list[RcaMatch], list[str]]:
    """Every RCA in `model`, and for each place that starts like one but is none, where and why."""
    graph = _Graph(model.graph)
    matches, mismatches = [], []
    for node in graph.nodes:
        if node.op_type != "MatMul" or graph.rank(node.input[1]) != 2:
            continue
        product = graph.producer.get(node.input[0])
        if product is None or product.op_type != "MatMul" or any(graph.rank(i) is not None for i in product.input):
            continue
        try:
            matches.append(_match(graph, product, node))
        except _Mismatch as reason:
            mismatches.append(f"{node.name or node.output[0]}: {reason}")
    return matches, mismatches


def _match(graph: _Graph, product: onnx.NodeProto, mix: onnx.NodeProto) -> RcaMatch:
    """The RCA around cost `product` and cost projection `mix`, or a _Mismatch."""
    visual = product.input[0]
    transpose = graph.producer.get(product.input[1])
    if transpose is None or transpose.op_type != "Transpose":
        raise _Mismatch(f"the cost's right operand {product.input[1]!r} should be a Transpose of the text")
    perm = list(next((a.ints for a in transpose.attribute if a.name == "perm"), ()))
    if perm != [0, 2, 1]:
        raise _Mismatch(f"Transpose {transpose.name!r} should swap the last two of three dimensions, got perm {perm}")
    graph.only_consumer(product.output[0], "MatMul")

    nodes = [transpose, product, mix]
    weight = graph.constant(mix.input[1])
    bias = np.zeros(weight.shape[1], weight.dtype)  # onnxsim drops the Add of a bias that is still all zeros
    node = graph.only_consumer(mix.output[0], "Add", "Relu", "Mul")
    if node.op_type == "Add":
        name = _other_input(node, mix.output[0])
        bias = graph.constant(name)
        if bias is None or bias.size != weight.shape[1] or bias.shape[-1:] != (bias.size,):
            raise _Mismatch(f"Add {node.name!r} should add a constant bias of {weight.shape[1]} numbers, got {name!r}")
        nodes.append(node)
        node = graph.only_consumer(node.output[0], "Relu", "Mul")
    relu = node.op_type == "Relu"
    if relu:
        nodes.append(node)
        node = graph.only_consumer(node.output[0], "Mul")
    other = _other_input(node, nodes[-1].output[0])
    if not graph.same(other, visual):
        raise _Mismatch(f"Mul {node.name!r} should multiply by {visual!r} again, but multiplies by {other!r}")
    return RcaMatch(visual=visual, text=transpose.input[0], weight=weight, bias=bias.reshape(-1), relu=relu,
                    nodes=(*nodes, node))


def _other_input(node: onnx.NodeProto, name: str) -> str:
    """What a node of two inputs takes beside `name`."""
    return node.input[1] if node.input[0] == name else node.input[0]


def fuse_rca(model: onnx.ModelProto, *, expected: int) -> onnx.ModelProto:
    """A copy of `model` in which each RCA is one node of domain "talent" that calls a model-local function.

    Works on FP32 and FP16 graphs; all of one RCA must be in one precision. Raises RuntimeError unless exactly
    `expected` are found: an RCA left in pieces would be right but slow, and nobody would notice.
    """
    matches, mismatches = find_rca(model)
    if len(matches) != expected:
        found = "".join(f"\n  found {match.name} (activation {'relu' if match.relu else 'none'})" for match in matches)
        near = "".join(f"\n  not an RCA: {line}" for line in mismatches)
        raise RuntimeError(f"expected {expected} RCA in graph {model.graph.name!r}, found {len(matches)}{found}{near}")

    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    graph = fused.graph
    replaced = {match.output: match for match in matches}
    nodes = []
    for node in graph.node:
        match = replaced.get(node.output[0]) if node.output else None
        if match is None:
            nodes.append(node)
            continue
        weight, bias = f"{match.output}.rca_weight", f"{match.output}.rca_bias"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(match.weight.T), weight))
        graph.initializer.append(numpy_helper.from_array(match.bias, bias))
        nodes.append(helper.make_node(
            OP_TYPE, [match.visual, match.text, weight, bias], [match.output], name=f"rca_{match.name}", domain=DOMAIN,
            activation="relu" if match.relu else "none", negative_slope=0.0 if match.relu else 1.0,
            plugin_version=PLUGIN_VERSION, plugin_namespace=DOMAIN))
    del graph.node[:]
    graph.node.extend(_alive(nodes, {output.name for output in graph.output}))
    _drop_unused_data(graph)
    if matches:
        opset = next(entry.version for entry in fused.opset_import if entry.domain in ("", "ai.onnx"))
        fused.functions.append(_function(opset))
        fused.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return fused


def _function(opset: int) -> onnx.FunctionProto:
    """The operator in standard operators: act((visual @ text^T) @ weight^T + bias) * visual.

    The activation is a LeakyRelu whose slope is an attribute of the call (0 is relu, 1 is none), because TensorRT
    knows a function by its bare name: two functions, or two overloads, of one name are one to it. The slope has no
    default here, because TensorRT 10 does not read defaults of nested attributes.
    Every name has a prefix: TensorRT's importer confuses a function's names with the graph's.
    """
    slope = onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="negative_slope")
    gate = helper.make_node("LeakyRelu", ["rca_sum"], ["rca_gate"])
    gate.attribute.append(slope)
    body = [
        helper.make_node("Transpose", ["rca_text"], ["rca_text_t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rca_visual", "rca_text_t"], ["rca_cost"]),  # [B,N,K]
        helper.make_node("Transpose", ["rca_weight"], ["rca_weight_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["rca_cost", "rca_weight_t"], ["rca_mix"]),  # [B,N,D]
        helper.make_node("Add", ["rca_mix", "rca_bias"], ["rca_sum"]),
        gate,
        helper.make_node("Mul", ["rca_gate", "rca_visual"], ["rca_output"]),
    ]
    return helper.make_function(
        DOMAIN, OP_TYPE, ["rca_visual", "rca_text", "rca_weight", "rca_bias"], ["rca_output"], body,
        [helper.make_opsetid("", opset)], ["activation", "negative_slope", "plugin_version", "plugin_namespace"])


def _alive(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes, in their order, that the outputs need."""
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(node.input)
    return alive[::-1]


def _drop_unused_data(graph: onnx.GraphProto) -> None:
    """Remove initializers and shape records whose tensors are gone."""
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    known = read | {name for node in graph.node for name in node.output}
    for records, keep in ((graph.initializer, read), (graph.value_info, known)):
        kept = [record for record in records if record.name in keep]
        del records[:]
        records.extend(kept)
