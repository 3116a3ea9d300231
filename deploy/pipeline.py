"""From a checkpoint to a bundle, step by step: what talent-export does.

checkpoint -> merge LoRA -> fold -> text and vision graph -> simplify -> FP16 / INT8 -> fuse RCA -> parity -> engines.
B batch, L tokens of a sentence, S image size.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tqdm import tqdm

from calibration.quantize import to_int8
from deploy.build import BuildOptions, build_engines
from deploy.bundle import GRAPHS, MANIFEST, REPORT, TOKENIZER, Bundle
from deploy.cost import Cost, network_cost
from deploy.fold import fold
from deploy.fuse_rca import fuse_rca
from deploy.graphs import export_text, export_vision, flatten_prompt, name_nodes
from deploy.layer_losses import LayerLoss, layer_losses, layer_names, loss_table
from deploy.onnx_run import Feeds
from deploy.parity import NotFiniteError, check_drop, measure_parity
from deploy.precision import FP32_OPS, Precisions, decide_precisions, simplify, to_fp16
from deploy.runtime.interface import IMAGE, TOKENS
from deploy.runtime.segmenter import Segmenter
from talent import provenance
from talent.checkpoint import WEIGHTS, Checkpoint, load_checkpoint
from talent.data.registry import open_dataset
from talent.data.sample import Sample
from talent.errors import UserError
from talent.evaluate import torch_predictor
from talent.files import atomic_directory
from talent.image import preprocess
from talent.image_size import resized
from talent.model import TalentModel
from talent.model.fast_linear import set_fast_linear
from talent.model.lora import merge_lora

MERGE_TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is less: what rounding may make of merging
MAX_MIOU_DROP = {"fp32": 0.0005, "fp16": 0.002, "int8": 0.01}
CALIBRATION = {"fp32": 2, "fp16": 8, "int8": 64}  # samples: FP16 takes ranges of them, INT8 scales
PARITY = 24  # expressions
EXTERNAL_DATA_BYTES = 1_000_000_000
PACKAGES = ("torch", "onnx", "onnxsim", "onnxscript", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "tensorrt",
            "tensorrt_rtx", "polygraphy", "peft", "timm", "numpy")


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made. data: data set of the calibration (train) and parity (val) samples, None for the one that
    the checkpoint was trained on (shapes where it was not trained here). data_root: folder of RefCOCO's files.

    image_size: None for the checkpoint's. calibration: samples, None for CALIBRATION. parity: expressions.
    max_miou_drop: mIoU that may be lost, None for the precision's own bound. fp32_ops, fp32_nodes, fp16_nodes: what
    stays in FP32 whatever was measured, and what does not (deploy.precision). batch: largest batch of the engines.
    """

    precision: str
    data: str | None = None
    data_root: str | Path | None = None
    image_size: int | None = None
    calibration: int | None = None
    parity: int = PARITY
    max_miou_drop: float | None = None
    allow_drop: bool = False
    fp32_ops: tuple[str, ...] = FP32_OPS
    fp32_nodes: tuple[str, ...] = ()
    fp16_nodes: tuple[str, ...] = ()
    engines: bool = True
    batch: int = 4

    @property
    def bound(self) -> float:
        """mIoU that may be lost."""
        return MAX_MIOU_DROP[self.precision] if self.max_miou_drop is None else self.max_miou_drop


@dataclass(frozen=True)
class Shrinking:
    """What merging LoRA and folding did to a network.

    merged: how many layers. merge_max_abs: the largest change of a logit that merging made. folds: places by fold.
    before, after: `deploy.cost.network_cost` of the checkpoint and of what is exported.
    """

    merged: int
    merge_max_abs: float
    folds: Mapping[str, int]
    before: Mapping[str, Cost]
    after: Mapping[str, Cost]


@dataclass(frozen=True)
class Graph:
    """One of the two graphs. plain: FP32, simplified. flat: in its precision. fused: that with every RCA one node.

    names: module by tensor, for people. precisions: why each node computes in what it does; None in FP32.
    """

    plain: onnx.ModelProto
    flat: onnx.ModelProto
    fused: onnx.ModelProto
    names: Mapping[str, str]
    precisions: Precisions | None


@dataclass(frozen=True)
class Exported:
    """A bundle, and what was learnt on the way to it."""

    bundle: Bundle
    shrinking: Shrinking
    precisions: Mapping[str, Precisions]


def export_bundle(source: Path, output: Path, options: ExportOptions) -> Exported:
    """Write the bundle `output` of the checkpoint directory `source`, whole or not at all.

    Raises UserError for bad input and where more mIoU is lost than allowed.
    """
    with atomic_directory(output, marker=MANIFEST) as directory:
        exported = _export(source, directory, options)
        if options.engines:  # the graphs and the networks are gone from memory by now
            build_engines(exported.bundle, BuildOptions(batch=options.batch))
    return replace(exported, bundle=Bundle.load(output))


def _export(source: Path, directory: Path, options: ExportOptions) -> Exported:
    """Everything but the engines."""
    checkpoint = load_checkpoint(source)
    checkpoint = resized(checkpoint, options.image_size or checkpoint.config.image_size)
    options = replace(options, data=options.data or checkpoint.training.get("data", "shapes"),
                      data_root=options.data_root or checkpoint.training.get("data_root"))
    size = checkpoint.config.image_size
    calibration = open_dataset(options.data, split="train", size=size, root=options.data_root,
                               length=options.calibration or CALIBRATION[options.precision])
    images, tokens = sample_tensors([calibration[i] for i in range(len(calibration))], checkpoint)
    set_fast_linear(checkpoint.model, True)
    model, shrinking = shrink(checkpoint, images[:1], tokens[:1])
    graphs = export_graphs(model, options, images, tokens)
    for name, graph in graphs.items():
        save_graph(graph.fused, directory / f"{name}.onnx")
    checkpoint.tokenizer.save(directory / TOKENIZER)
    precisions = {name: graph.precisions for name, graph in graphs.items() if graph.precisions is not None}
    save_report(shrinking, precisions, directory / REPORT)
    bundle = Bundle.write_manifest(
        directory, preset=checkpoint.config.preset, precision=options.precision, image_size=size,
        context_length=checkpoint.config.context_length, threshold=checkpoint.config.threshold,
        source={"checkpoint": source.name, "sha256": provenance.sha256(source / WEIGHTS),
                "lora_layers_merged": shrinking.merged, "merge_max_abs": shrinking.merge_max_abs,
                "calibration_samples": len(tokens)},
        versions=provenance.versions(*PACKAGES))
    bundle = bundle.with_parity(check_parity(bundle, checkpoint, graphs, model, options))
    return Exported(bundle, shrinking, precisions)


def sample_tensors(samples: Sequence[Sample], checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Network inputs for the first sentence of each sample: images [B,3,S,S] float32 and tokens [B,L] int64."""
    images = np.concatenate([preprocess(s.image, checkpoint.config.image_size)[0] for s in samples])
    return images, checkpoint.tokenizer([s.expressions[0] for s in samples])


def shrink(checkpoint: Checkpoint, images: np.ndarray, tokens: np.ndarray) -> tuple[TalentModel, Shrinking]:
    """The network as it is exported, a copy: LoRA merged, everything folded.

    Logits are compared on images [B,3,S,S] and tokens [B,L] where LoRA was merged.

    Raises UserError where merging changed a logit by more than MERGE_TOLERANCE.
    """
    example = torch.from_numpy(images[:1]), torch.from_numpy(tokens[:1])
    before = network_cost(checkpoint.model.eval(), *example)
    model, changed = copy.deepcopy(checkpoint.model), 0.0
    merged = merge_lora(model)
    if merged:
        expected = torch_predictor(checkpoint.model)(images, tokens)
        changed = float(np.abs(torch_predictor(model)(images, tokens) - expected).max())
        allowed = MERGE_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not changed <= allowed:
            raise UserError(f"merging LoRA changed a logit by {changed:.2e}, expected at most {allowed:.0e}: the "
                            "factors are so large that rounding shows; tune with a lower --learning_rate or "
                            "--lora.alpha")
    set_fast_linear(model, False)
    folds = fold(model)
    return model, Shrinking(merged, changed, folds, before, network_cost(model, *example))


def vision_feeds(model: TalentModel, images: np.ndarray, tokens: np.ndarray) -> Iterator[Feeds]:
    """Inputs of the vision graph, one sample at a time."""
    for image, ids in zip(images, tokens, strict=True):
        with torch.inference_mode():
            prompt = flatten_prompt(model.prompt(model.text(torch.from_numpy(ids)[None])))
        yield {IMAGE: image[None], **{name: tensor.numpy() for name, tensor in prompt.items()}}


def export_graphs(model: TalentModel, options: ExportOptions, images: np.ndarray, tokens: np.ndarray,
                  ) -> dict[str, Graph]:
    """The two graphs of a folded network by name; images and tokens are the calibration samples (two at least)."""
    def text_feeds() -> Iterator[Feeds]:
        return ({TOKENS: ids[None]} for ids in tokens)

    with tqdm(total=6, desc=f"export {options.precision}", unit="step", leave=False, disable=None) as bar:
        few = torch.from_numpy(np.repeat(tokens[:1], 3, 0))  # a batch unlike that of the pictures
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns of its own deprecated calls
            text = export_text(model, few)
            bar.update()
            with torch.no_grad():
                prompt = flatten_prompt(model.prompt(model.text(few)))
            vision = export_vision(model, torch.from_numpy(images[:2]), prompt)
        bar.update()
        names = {"text": layer_names(text), "vision": layer_names(vision)}
        plain = {"text": simplify(text, feeds=next(text_feeds()))}
        bar.update()
        plain["vision"] = simplify(vision, feeds=next(vision_feeds(model, images, tokens)))
        bar.update()
        del text, vision
        for name, graph in plain.items():
            name_nodes(graph, names[name])
        precisions: dict[str, Precisions | None] = dict.fromkeys(GRAPHS)
        flat = dict(plain)
        if options.precision != "fp32":
            wanted = requested(options, plain)
            precisions["text"] = decide_precisions(plain["text"], calibration=text_feeds(), **wanted["text"])
            flat["text"] = to_fp16(plain["text"], precisions["text"])
            bar.update()
            precisions["vision"] = decide_precisions(
                plain["vision"], calibration=vision_feeds(model, images, tokens), **wanted["vision"])
            if options.precision == "fp16":
                flat["vision"] = to_fp16(plain["vision"], precisions["vision"])
            else:
                flat["vision"] = to_int8(plain["vision"], precisions=precisions["vision"],
                                         calibration=vision_feeds(model, images, tokens))
    places = {"text": 0, "vision": len(model.vision.adapted()) + len(model.neck.fusions)}
    return {name: Graph(plain[name], flat[name], fuse_rca(flat[name], expected=places[name]), names[name],
                        precisions[name]) for name in GRAPHS}


def requested(options: ExportOptions, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, dict[str, Sequence[str]]]:
    """The user's wishes as arguments of `decide_precisions`, by graph.

    A pattern goes to the graphs that have a node which it fits; one that fits none goes to vision, to be refused there.
    """
    names = {graph: [node.name for node in model.graph.node] for graph, model in graphs.items()}
    wanted = {graph: {"fp32_ops": options.fp32_ops} for graph in graphs}
    for argument in ("fp32_nodes", "fp16_nodes"):
        chosen: dict[str, list[str]] = {graph: [] for graph in graphs}
        for pattern in getattr(options, argument):
            found = [graph for graph in graphs if pattern in names[graph] or fnmatch.filter(names[graph], pattern)]
            for graph in found or ["vision"]:
                chosen[graph].append(pattern)
        for graph in graphs:
            wanted[graph][argument] = chosen[graph]
    return wanted


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write and check an ONNX file; weights lie beside it only where they pass a gigabyte."""
    external = model.ByteSize() > EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def check_parity(bundle: Bundle, checkpoint: Checkpoint, graphs: Mapping[str, Graph], model: TalentModel,
                 options: ExportOptions) -> dict[str, Any]:
    """Compare with PyTorch FP32 in ONNX Runtime: what the manifest records. model: folded, for the feeds.

    Raises UserError, with the layers that lost most, where the loss of mIoU passes the bound or logits are not finite.
    """
    held_out = open_dataset(options.data, split="val", size=bundle.image_size, length=options.parity,
                            root=options.data_root)
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        try:
            parity = measure_parity(segmenter, torch_predictor(checkpoint.model), held_out, expressions=options.parity)
        except NotFiniteError as error:
            raise UserError(f"{error}; no bundle was written\n"
                            f"{loss_table(find_losses(graphs, model, error.image, error.tokens))}") from error

    number, sentence = parity.worst
    sample = held_out[number]
    losses = find_losses(graphs, model, preprocess(sample.image, bundle.image_size)[0],
                         checkpoint.tokenizer([sample.expressions[sentence]]))
    if any(loss.first_broken for loss in losses):  # ONNX Runtime computed it in FP32, as no GPU would
        raise UserError(f"{options.precision} is not finite where a layer's result is rounded to it, as a GPU does; no "
                        f"bundle was written; leave its node out of --fp16-nodes, or name it in --fp32-nodes\n"
                        f"{loss_table(losses)}")
    return check_drop(parity, precision=options.precision, bound=options.bound, allowed=options.allow_drop,
                      data=options.data, layers=(lambda: loss_table(losses)) if losses else None)


def find_losses(graphs: Mapping[str, Graph], model: TalentModel, image: np.ndarray,
                tokens: np.ndarray) -> list[LayerLoss]:
    """What each layer lost on image [1,3,S,S] and tokens [1,L], most first; none in FP32, where none can."""
    feeds = {"text": [{TOKENS: tokens}], "vision": vision_feeds(model, image, tokens)}
    return [loss for name, graph in graphs.items() if graph.precisions is not None
            for loss in layer_losses(graph.plain, graph.flat, feeds=feeds[name], names=graph.names)]


def save_report(shrinking: Shrinking, precisions: Mapping[str, Precisions], path: Path) -> None:
    """What was folded, what that saved, and why every node computes in what it does, as JSON."""
    cost = {name: {part: vars(one) for part, one in costs.items()}
            for name, costs in (("before", shrinking.before), ("after", shrinking.after))}
    content = {"folds": {"LoRA": shrinking.merged, **shrinking.folds}, "cost": cost,
               "precisions": {name: decided.to_dict() for name, decided in precisions.items()}}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
