"""The two ONNX files of a bundle: exported, simplified, in their precision, every RCA one node.

Only one graph is in memory at a time: what later steps may want of it lies in a folder for the time being.
B batch, L tokens of a sentence, S image size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from tqdm import tqdm

from calibration.quantize import quantized_nodes, to_int8
from deploy.bundle import GRAPHS
from deploy.fuse_rca import fuse_rca
from deploy.graphs import export_text, export_vision, name_nodes, prompt_tensors
from deploy.layer_losses import LayerLoss, layer_losses, layer_names
from deploy.onnx_run import Feeds
from deploy.precision import FP32_OPS, Precisions, decide_precisions, fitting, simplify, to_fp16
from deploy.runtime.interface import IMAGE, TOKENS
from talent.errors import UserError, suggest
from talent.model import TalentModel

EXTERNAL_DATA_BYTES = 1_000_000_000


@dataclass(frozen=True)
class PrecisionOptions:
    """precision: of the vision graph; text is FP16 beside INT8. fp32_ops, fp32_nodes, fp16_nodes: what stays in FP32
    whatever is measured, and what does not (deploy.precision); nodes named in either are not quantized.
    """

    precision: str
    fp32_ops: tuple[str, ...] = FP32_OPS
    fp32_nodes: tuple[str, ...] = ()
    fp16_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """What is known of one of the two graphs. plain, flat: files of it before RCA was fused: in FP32, simplified, and
    in its precision; one file where that is FP32.

    names: module by tensor, for people. precisions: why each node computes in what it does; None in FP32.
    """

    plain: Path
    flat: Path
    names: Mapping[str, str]
    precisions: Precisions | None


def vision_feeds(model: TalentModel, images: np.ndarray, tokens: np.ndarray) -> Iterator[Feeds]:
    """Inputs of the vision graph, one sample at a time."""
    for image, ids in zip(images, tokens, strict=True):
        with torch.inference_mode():
            prompt = prompt_tensors(model, torch.from_numpy(ids)[None])
        yield {IMAGE: image[None], **{name: tensor.numpy() for name, tensor in prompt.items()}}


def text_feeds(tokens: np.ndarray) -> Iterator[Feeds]:
    """Inputs of the text graph, one sample at a time."""
    return ({TOKENS: ids[None]} for ids in tokens)


def export_graphs(model: TalentModel, options: PrecisionOptions, images: np.ndarray, tokens: np.ndarray, *,
                  directory: Path, scratch: Path) -> dict[str, Graph]:
    """Write text.onnx and vision.onnx of a folded network into `directory`, and what `Graph` names into `scratch`.

    images and tokens are the calibration samples. Raises UserError as `requested` and `decide_precisions` do.
    """
    with tqdm(total=4, desc=f"export {options.precision}", unit="step", leave=False, disable=None) as bar:
        names, nodes = {}, {}
        for name in GRAPHS:
            plain, names[name] = _export(name, model, images, tokens)
            nodes[name] = {node.name: node.op_type for node in plain.graph.node}
            onnx.save(plain, scratch / f"{name}.plain.onnx")
            del plain
            bar.update()
        wanted = requested(options, nodes)
        places = {"text": 0, "vision": len(model.vision.adapted()) + len(model.neck.fusions)}
        graphs = {}
        for name in GRAPHS:
            plain, flat, precisions = scratch / f"{name}.plain.onnx", scratch / f"{name}.flat.onnx", None
            graph = onnx.load(plain)
            if options.precision == "fp32":
                flat = plain
            else:
                samples = text_feeds(tokens) if name == "text" else vision_feeds(model, images, tokens)
                precisions = decide_precisions(graph, calibration=samples, **wanted[name])
                if name == "text" or options.precision == "fp16":
                    graph = to_fp16(graph, precisions)
                else:
                    graph = to_int8(graph, precisions=precisions, exclude=precisions.requested,
                                    calibration=vision_feeds(model, images, tokens))
                    precisions = replace(precisions, int8=frozenset(quantized_nodes(graph)))
                onnx.save(graph, flat)
            save_graph(fuse_rca(graph, expected=places[name]), directory / f"{name}.onnx")
            del graph
            graphs[name] = Graph(plain, flat, names[name], precisions)
            bar.update()
    return graphs


def _export(name: str, model: TalentModel, images: np.ndarray, tokens: np.ndarray,
            ) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A graph in FP32, simplified, and its modules by tensor, after which its nodes are named."""
    sentences = torch.from_numpy(np.repeat(tokens[:1], 3, 0))  # three, unlike the two pictures below: sizes that vary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecated calls
        if name == "text":
            exported = export_text(model, sentences)
            feeds = {TOKENS: tokens[:1]}
        else:
            with torch.no_grad():
                prompt = prompt_tensors(model, sentences)
            exported = export_vision(model, torch.from_numpy(np.repeat(images[:1], 2, 0)), prompt)
            feeds = {IMAGE: images[:1], **{key: tensor[:2].numpy() for key, tensor in prompt.items()}}
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
    external = model.ByteSize() > EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def find_losses(graphs: Mapping[str, Graph], model: TalentModel, image: np.ndarray,
                tokens: np.ndarray) -> list[LayerLoss]:
    """What each layer lost on image [1,3,S,S] and tokens [1,L], graph by graph; none in FP32, where none can."""
    feeds = {"text": text_feeds(tokens), "vision": vision_feeds(model, image, tokens)}
    return [loss for name, graph in graphs.items() if graph.precisions is not None
            for loss in layer_losses(onnx.load(graph.plain), onnx.load(graph.flat), feeds=feeds[name],
                                     names=graph.names)]
