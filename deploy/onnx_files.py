"""The two ONNX files of a bundle: exported, simplified, in their precision, every RCA one node.

Only one graph is in memory at a time: what later steps may want of it lies in a folder for the time being.
B batch, L tokens of a sentence, S image size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from tqdm import tqdm

from calibration.plan import Int8Plan, plan_int8
from calibration.quantize import quantized_nodes, to_int8
from calibration.samples import CalibrationSet
from calibration.sensitivity import HeldOut
from deploy.fuse_rca import fuse_rca
from deploy.graphs import export_text, export_vision, name_nodes, prompt_tensors, vision_inputs
from deploy.layer_losses import LayerLoss, layer_losses, layer_names
from deploy.onnx_run import Feeds
from deploy.precision import FP32_OPS, Precisions, decide_precisions, fitting, select_nodes, simplify, to_fp16
from deploy.runtime.interface import IMAGE, TOKENS
from talent import provenance
from talent.errors import UserError, suggest
from talent.model import TalentModel

EXTERNAL_DATA_BYTES = 1_000_000_000
FP16_SAMPLES = 8  # that set ranges of FP16 beside INT8; more move them little, and each costs a run
RANGES = "percentile"
SPARED = ("projector.conv2.*",)
"""Never quantized: the last convolution before the dynamic one, whose noise nothing evens out before the logits."""


@dataclass(frozen=True)
class PrecisionOptions:
    """precision: of the vision graph; text is FP16 beside INT8. fp32_ops, fp32_nodes, fp16_nodes: what stays in FP32
    whatever is measured, and what does not (deploy.precision); nodes named in either are not quantized. int8_ranges: of
    calibration.ranges.METHODS. cache: directory where what INT8 measured is kept, None for none.
    """

    precision: str
    int8_ranges: str = RANGES
    cache: Path | None = None
    fp32_ops: tuple[str, ...] = FP32_OPS
    fp32_nodes: tuple[str, ...] = ()
    fp16_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """What is known of one of the two graphs. plain, flat: files of it before RCA was fused: in FP32, simplified, and
    in its precision; one file where that is FP32.

    names: module by tensor, for people. places: how many RCA it has. precisions: why each node computes in what it
    does; None in FP32. int8: of the vision graph where INT8 was asked for.
    """

    plain: Path
    flat: Path
    names: Mapping[str, str]
    places: int
    precisions: Precisions | None = None
    int8: Int8Plan | None = None


@dataclass(frozen=True)
class GraphFeeds:
    """Inputs of one of the two graphs, one sample at a time, as often as they are asked for.

    samples: image [1, 3, S, S] and tokens [1, L] of each, to be read again and again.
    """

    name: str
    model: TalentModel
    samples: Iterable[tuple[np.ndarray, np.ndarray]]

    def __iter__(self) -> Iterator[Feeds]:
        for image, tokens in self.samples:
            yield {TOKENS: tokens} if self.name == "text" else vision_inputs(self.model, image, tokens)


def export_graphs(model: TalentModel, options: PrecisionOptions, calibration: CalibrationSet, *, directory: Path,
                  scratch: Path, held_out: Iterable[HeldOut] = (), bound: float | None = None) -> dict[str, Graph]:
    """Write text.onnx and vision.onnx of a folded network into `directory`, and what `Graph` names into `scratch`.

    held_out, bound: what INT8 may lose of mIoU, and on which expressions (calibration.plan); without a bound, every
    layer that can be is quantized. Raises UserError as `requested`, `plan_int8` and `decide_precisions` do.
    """
    image, tokens = next(iter(calibration))
    with tqdm(total=4, desc=f"export {options.precision}", unit="step", leave=False, disable=None) as bar:
        graphs, nodes = {}, {}
        for name, places in (("text", 0), ("vision", len(model.vision.adapted()) + len(model.neck.fusions))):
            plain, names = _export(name, model, image, tokens)
            nodes[name] = {node.name: node.op_type for node in plain.graph.node}
            path = scratch / f"{name}.plain.onnx"
            onnx.save(plain, path)
            del plain
            graphs[name] = Graph(path, path, names, places)
            bar.update()
        wanted = requested(options, nodes)
        for name, graph in graphs.items():
            if options.precision != "fp32":
                if name == "vision" and options.precision == "int8":
                    identity = [*(provenance.sha256(one.plain) for one in graphs.values()), calibration.identity]
                    chosen = select_nodes([*wanted[name]["fp32_nodes"], *wanted[name]["fp16_nodes"]], nodes[name],
                                          argument="fp32_nodes and fp16_nodes") | spared(nodes[name])
                    plain, plan = plan_int8(
                        onnx.load(graph.plain), calibration=GraphFeeds(name, model, calibration), identity=identity,
                        method=options.int8_ranges, exclude=chosen, bound=bound, held_out=held_out, cache=options.cache)
                    onnx.save(plain, graph.plain)  # smoothed: what layers are compared with
                    del plain
                    graph = replace(graph, int8=plan)
                samples = GraphFeeds(name, model, calibration.thinned(FP16_SAMPLES) if options.precision == "int8"
                                     else calibration)
                graph = replace(graph, flat=scratch / f"{name}.flat.onnx",
                                precisions=decide_precisions(onnx.load(graph.plain), calibration=samples,
                                                             **wanted[name]))
            graphs[name] = finish(name, graph, directory)
            bar.update()
    return graphs


def spared(nodes: Iterable[str]) -> set[str]:
    """The nodes that SPARED names. Raises RuntimeError where there are none."""
    found = {name for pattern in SPARED for name in fitting(pattern, list(nodes))}
    if not found:
        raise RuntimeError(f"the vision graph has no node that fits {', '.join(SPARED)}; was the projector renamed?")
    return found


def finish(name: str, graph: Graph, directory: Path) -> Graph:
    """Write `directory`/<name>.onnx, and `graph.flat`, in the precisions that `graph` says."""
    model = onnx.load(graph.plain)
    if graph.precisions is not None:
        if graph.int8 is not None and graph.int8.layers:
            model = to_int8(model, graph.int8.layers, graph.int8.largest, graph.precisions)
        else:
            model = to_fp16(model, graph.precisions)
        graph = replace(graph, precisions=replace(graph.precisions, int8=frozenset(quantized_nodes(model))))
        onnx.save(model, graph.flat)
    save_graph(fuse_rca(model, expected=graph.places), directory / f"{name}.onnx")
    return graph


def _export(name: str, model: TalentModel, image: np.ndarray, tokens: np.ndarray,
            ) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A graph in FP32, simplified, and its modules by tensor, after which its nodes are named.

    image [1, 3, S, S] and tokens [1, L] are an example.
    """
    sentences = torch.from_numpy(np.repeat(tokens, 3, 0))  # three, unlike the two pictures below: sizes that vary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecated calls
        if name == "text":
            exported = export_text(model, sentences)
            feeds = {TOKENS: tokens}
        else:
            with torch.no_grad():
                prompt = prompt_tensors(model, sentences)
            exported = export_vision(model, torch.from_numpy(np.repeat(image, 2, 0)), prompt)
            feeds = {IMAGE: image, **{key: tensor[:2].numpy() for key, tensor in prompt.items()}}
    modules = layer_names(exported)
    plain = simplify(exported, feeds=feeds)
    name_nodes(plain, modules)
    return plain, modules


def requested(options: PrecisionOptions,
              graphs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Sequence[str]]]:
    """The user's wishes as arguments of `decide_precisions`, by graph. graphs: operator by name of the nodes of each.

    A pattern goes to the graphs that have a node which it fits; one that fits none goes to vision, to be refused there.
    Raises UserError for an operator that neither graph has.
    """
    known = {operator for nodes in graphs.values() for operator in nodes.values()}
    for operator in options.fp32_ops:
        if operator not in known | set(FP32_OPS):
            raise UserError(f"--fp32-ops: neither graph has an operator {operator!r}{suggest(operator, known)}")
    wanted: dict[str, dict[str, Sequence[str]]] = {graph: {"fp32_ops": options.fp32_ops} for graph in graphs}
    for argument in ("fp32_nodes", "fp16_nodes"):
        chosen: dict[str, list[str]] = {graph: [] for graph in graphs}
        for pattern in getattr(options, argument):
            found = [graph for graph, nodes in graphs.items() if fitting(pattern, list(nodes))]
            for graph in found or ["vision"]:
                chosen[graph].append(pattern)
        for graph in graphs:
            wanted[graph][argument] = chosen[graph]
    return wanted


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write and check an ONNX file; weights lie beside it, and leave `model`, only where they pass a gigabyte."""
    (path.parent / f"{path.name}.data").unlink(missing_ok=True)  # onnx would write behind what lies there
    external = model.ByteSize() > EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def find_losses(graphs: Mapping[str, Graph], model: TalentModel, image: np.ndarray,
                tokens: np.ndarray) -> list[LayerLoss]:
    """What each layer lost on image [1,3,S,S] and tokens [1,L], graph by graph; none in FP32, where none can."""
    return [loss for name, graph in graphs.items() if graph.precisions is not None
            for loss in layer_losses(onnx.load(graph.plain), onnx.load(graph.flat), names=graph.names,
                                     feeds=GraphFeeds(name, model, [(image, tokens)]))]
