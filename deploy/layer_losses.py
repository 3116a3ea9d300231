"""Which layers of an exported graph lost most: every layer of it beside the same layer of the FP32 graph.

Each layer runs by itself, and what it gives is stored in the type that the exported graph has there. So an FP16 layer
rounds, and overflows, as it does on a GPU. In one piece the graph would not show that: ONNX Runtime has no FP16 kernels
for most operators on a CPU, computes them in FP32 and drops the rounding between one such layer and the next. Layer by
layer also takes little memory: only tensors that a later layer still reads are kept.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from deploy.onnx_run import Feeds, session
from talent.require import require

WORST = 8
LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LayerNormalization", "Softmax")
JOINTS = ("Add", "Mul")
"""Layers where they join two computed tensors (a residual, a gate); with a constant they belong to their neighbour."""
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class LayerLoss:
    """What one layer lost. An error is the root mean square of the difference from the FP32 layer's output over that
    of this output, over all samples; infinite where a difference is not finite or the FP32 output is zero.

    name: the module ("vision.blocks.3.mlp.fc1") as far as that is known. node: its name in the FP32 graph, as the
    `fp32_nodes` of deploy.precision take it. precision: "int8", "fp16" or "fp32", in which the exported graph computes
    it. own: the error where the layer reads the FP32 graph's values (in the types that it reads), so that it made all
    of it. error: the error where it reads what the exported layers before it gave. peak: the largest magnitude of the
    FP32 output. first_broken: the first layer of its graph that is not finite where the FP32 one is.
    """

    name: str
    operator: str
    node: str
    precision: str
    own: float
    error: float
    peak: float
    first_broken: bool


def layer_names(exported: onnx.ModelProto) -> dict[str, str]:
    """Module by tensor of a graph as torch.onnx wrote it: {"val_19": "vision.blocks.0.attn.qkv"}.

    To be asked before `simplify`: onnxsim keeps the names of tensors, but drops the metadata that this reads, and most
    weights are transposed by then and have lost their names.
    """
    names = {}
    for node in exported.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        modules = ast.literal_eval(scopes)[:-1]  # the last one is the function that was called
        if modules and modules[-1]:
            names |= dict.fromkeys(node.output, modules[-1].removeprefix("model."))
    return names


def layer_losses(reference: onnx.ModelProto, exported: onnx.ModelProto, *, feeds: Iterable[Feeds],
                 names: Mapping[str, str] | None = None) -> list[LayerLoss]:
    """What each layer lost, most first: the one that broke first, then by `own`.

    reference: the flat FP32 graph (simplified, before `to_fp16`, `to_int8` and `fuse_rca`). exported: what those passes
    made of it, flat too. feeds: one or two samples; both graphs take them. names: from `layer_names`; without it a
    layer is called after its weights or its node. Layers are matched by the names of their tensors, which ModelOpt
    keeps: one that is in one graph only counts to the layer after it. Costs three forward passes a sample, and two
    small sessions a layer.

    Raises RuntimeError where no layer is in both graphs and where one calls functions, ValueError without a sample.
    """
    samples = [_Sample(plain=dict(one), rounded=dict(one)) for one in feeds]
    if not samples:
        raise ValueError("expected at least one sample to compare layers on, received none")
    plain, rounded = _Graph(reference), _Graph(exported)
    nodes = plain.layers()
    same = {tensor: found for tensor in nodes if (found := rounded.before_casts(tensor)) is not None}
    if not same or reference.functions or exported.functions:
        raise RuntimeError(f"the graphs {reference.graph.name!r} and {exported.graph.name!r} "
                           + ("have no layer in common" if not same else "are not both flat")
                           + "; expected two flat graphs, one made from the other, before fuse_rca")
    original = {found: tensor for tensor, found in same.items()}
    here = {tensor: plain.segment(tensor, same.keys()) for tensor in same}
    there = {tensor: rounded.segment(found, original.keys()) for tensor, found in same.items()}
    last_read = {name: tensor for tensor in same  # later layers overwrite earlier ones
                 for name in (tensor, *here[tensor].inputs, *(original.get(n, n) for n in there[tensor].inputs))}
    done_after = defaultdict(list)
    for name, tensor in last_read.items():
        done_after[tensor].append(name)

    losses = []
    for tensor in require("tqdm", extra="export").tqdm(same, desc="layers", unit="layer", leave=False, disable=None):
        own, error = _Error(), _Error()
        with here[tensor].opened(samples[0].plain) as run:
            for sample in samples:
                sample.plain[tensor] = run(sample.plain)
        with there[tensor].opened(samples[0].rounded) as run:
            for sample in samples:
                sample.rounded[same[tensor]] = after_others = run(sample.rounded)
                error.add(after_others, sample.plain[tensor])
                own.add(run(sample.given(there[tensor].inputs, original)), sample.plain[tensor])
        if np.issubdtype(after_others.dtype, np.floating):  # shapes are computed, too
            broken = error.broken and not any(loss.first_broken for loss in losses)
            kind = "int8" if there[tensor].dequantizes else "fp16" if after_others.dtype == np.float16 else "fp32"
            losses.append(LayerLoss(plain.name(tensor, nodes[tensor], names or {}), nodes[tensor].op_type,
                                    nodes[tensor].name, kind, own.value, error.value, error.peak, broken))
        for sample in samples:
            sample.drop(done_after[tensor], same)
    return sorted(losses, key=_severity)


def loss_table(losses: Iterable[LayerLoss], *, count: int = WORST) -> str:
    """The `count` layers that lost most as lines of aligned text; takes those of two graphs together, too."""
    losses = sorted(losses, key=_severity)
    rows = [("layer", "operator", "node", "in", "own error", "error", "peak", "")]
    rows += [(loss.name, loss.operator, loss.node, loss.precision, _percent(loss.own), _percent(loss.error),
              f"{loss.peak:.3g}", "the first that is not finite" if loss.first_broken else "")
             for loss in losses[:count]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) if 4 <= index <= 6 else cell.ljust(width)
                       for index, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return "\n".join(lines)


def _severity(loss: LayerLoss) -> tuple[bool, float]:
    return not loss.first_broken, -loss.own


def _percent(error: float) -> str:
    return f"{100 * error:.3g} %" if math.isfinite(error) else "infinite"


class _Error:
    """Sums up the relative error of a layer over samples."""

    def __init__(self) -> None:
        self._wrong = self._right = self.peak = 0.0
        self.broken = False

    def add(self, received: np.ndarray, expected: np.ndarray) -> None:
        self.broken |= bool(np.isfinite(expected).all() and not np.isfinite(received).all())
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            self._wrong += float(np.square(received.astype(np.float32) - expected).sum(dtype=np.float64))
        self._right += float(np.square(expected).sum(dtype=np.float64))
        self.peak = max(self.peak, float(np.abs(expected).max()))

    @property
    def value(self) -> float:
        if self._wrong == 0:
            return 0.0
        ratio = self._wrong / self._right if self._right else math.inf
        return math.sqrt(ratio) if math.isfinite(ratio) else math.inf


@dataclass(frozen=True)
class _Sample:
    """Tensors that later layers read: of the FP32 graph, and of the exported one where every layer reads its own."""

    plain: dict[str, np.ndarray]
    rounded: dict[str, np.ndarray]

    def given(self, names: Sequence[str], original: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The FP32 graph's values of an exported layer's inputs, in the types which that layer reads."""
        with np.errstate(over="ignore"):  # a value too large for FP16 is infinite, and found so
            return {name: self.plain[original.get(name, name)].astype(self.rounded[name].dtype) for name in names}

    def drop(self, names: Iterable[str], same: Mapping[str, str]) -> None:
        for name in names:
            del self.plain[name], self.rounded[same.get(name, name)]


@dataclass(frozen=True)
class _Segment:
    """One layer and what stands between it and the layers before: the nodes of `model` that make `output` of `inputs`.
    """

    output: str
    inputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    model: onnx.ModelProto

    @property
    def dequantizes(self) -> bool:
        return any(node.op_type == "DequantizeLinear" for node in self.nodes)

    @contextlib.contextmanager
    def opened(self, example: Mapping[str, np.ndarray]) -> Iterator[Callable[[Feeds], np.ndarray]]:
        """The segment as a function of values by name (more than it reads may be there); `example` gives the types."""
        inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(example[name].dtype), None)
                  for name in self.inputs]
        graph = helper.make_graph(self.nodes, "layer", inputs, [onnx.ValueInfoProto(name=self.output)], self.constants)
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        with session(model, optimize=False) as runner:
            yield lambda values: runner.run([self.output], {name: values[name] for name in self.inputs})[0]


class _Graph:
    """A flat ONNX graph that can be taken apart."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {output.name for output in model.graph.output}

    def layers(self) -> dict[str, onnx.NodeProto]:
        """The node of each layer by the tensor that it gives, after its bias, in the order of the graph."""
        found = {}
        for node in self.nodes:
            if node.op_type in LAYERS:
                found[self._after_bias(node.output[0])] = node
            elif node.op_type in JOINTS and not any(name in self.constants for name in node.input):
                found[node.output[0]] = node
        return dict(sorted(found.items(), key=lambda item: self.maker[item[0]]))

    def _after_bias(self, tensor: str) -> str:
        """Where a constant is added to `tensor` and nothing else reads it, the sum."""
        readers = self.readers[tensor]
        if tensor not in self.outputs and len(readers) == 1 and readers[0].op_type == "Add":
            if any(name in self.constants for name in readers[0].input):
                return readers[0].output[0]
        return tensor

    def before_casts(self, tensor: str) -> str | None:
        """The tensor that `tensor` is a cast of, itself where it is none; None where no node makes it."""
        while tensor in self.maker and self.nodes[self.maker[tensor]].op_type == "Cast":
            tensor = self.nodes[self.maker[tensor]].input[0]
        return tensor if tensor in self.maker else None

    def segment(self, output: str, given: Container[str]) -> _Segment:
        """What makes `output`, back to the tensors in `given` and the inputs of the graph."""
        numbers, constants, inputs, open_ends = set(), set(), set(), [output]
        while open_ends:
            name = open_ends.pop()
            if name in self.constants:
                constants.add(name)
            elif name not in self.maker or (name in given and name != output):
                inputs.add(name)
            elif self.maker[name] not in numbers:
                numbers.add(self.maker[name])
                open_ends += [name for name in self.nodes[self.maker[name]].input if name]
        return _Segment(output, tuple(sorted(inputs)), tuple(self.nodes[number] for number in sorted(numbers)),
                        tuple(self.constants[name] for name in sorted(constants)), self.model)

    def name(self, tensor: str, layer: onnx.NodeProto, names: Mapping[str, str]) -> str:
        """The most readable name there is: of the module, else of weights that only this layer reads, else the node's.

        Equal weights are stored once, under the name of the first; what several layers read names none of them.
        """
        bias = self.nodes[self.maker[tensor]].input if tensor != layer.output[0] else ()
        weights = [name.removeprefix("model.") for name in (*layer.input[1:], *bias)
                   if name in self.constants and len(self.readers[name]) == 1 and name.endswith((".weight", ".bias"))]
        known = [names.get(layer.output[0], ""), names.get(tensor, ""), *(name.rpartition(".")[0] for name in weights)]
        return next(filter(None, known), layer.name or tensor)
