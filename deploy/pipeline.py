"""From a checkpoint to a bundle, step by step: what talent-export does.

checkpoint -> merge LoRA -> fold -> text and vision graph -> simplify -> FP16 / INT8 -> fuse RCA -> parity -> engines.
B batch, L tokens of a sentence, S image size.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.build import BuildOptions, build_engines
from deploy.bundle import MANIFEST, REPORT, TOKENIZER, Bundle
from deploy.cost import Cost, network_cost
from deploy.fold import fold
from deploy.layer_losses import loss_table
from deploy.onnx_files import Graph, PrecisionOptions, export_graphs, find_losses
from deploy.parity import NotFiniteError, check_drop, measure_parity
from deploy.precision import Precisions
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
MEANINGFUL_MIOU = 0.1
PACKAGES = ("torch", "onnx", "onnxsim", "onnxscript", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "tensorrt",
            "tensorrt_rtx", "polygraphy", "peft", "timm", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(PrecisionOptions):
    """How a bundle is made. data: data set of the calibration (train) and parity (val) samples, None for the one that
    the checkpoint was trained on (shapes where it was not trained here). data_root: folder of RefCOCO's files.

    image_size: None for the checkpoint's. calibration: samples, None for CALIBRATION. parity: expressions.
    max_miou_drop: mIoU that may be lost, None for the precision's own bound. batch: largest batch of the engines.
    """

    data: str | None = None
    data_root: str | Path | None = None
    image_size: int | None = None
    calibration: int | None = None
    parity: int = PARITY
    max_miou_drop: float | None = None
    allow_drop: bool = False
    engines: bool = True
    batch: int = 4

    @property
    def bound(self) -> float:
        """mIoU that may be lost."""
        return MAX_MIOU_DROP[self.precision] if self.max_miou_drop is None else self.max_miou_drop


@dataclass(frozen=True)
class Shrinking:
    """What merging LoRA and folding did to a network.

    merged: how many layers. merge_max_abs: the largest change of a logit that merging made, merge_allowed: what would
    have been refused. folds: places by fold. before, after: `deploy.cost.network_cost` of the checkpoint and of what is
    exported.
    """

    merged: int
    merge_max_abs: float
    merge_allowed: float
    folds: Mapping[str, int]
    before: Mapping[str, Cost]
    after: Mapping[str, Cost]


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
        with tempfile.TemporaryDirectory() as scratch:
            exported = _export(source, directory, Path(scratch), options)
        if options.engines:  # the networks are gone from memory by now
            build_engines(exported.bundle, BuildOptions(batch=options.batch))
    return replace(exported, bundle=Bundle.load(output))


def _export(source: Path, directory: Path, scratch: Path, options: ExportOptions) -> Exported:
    """Everything but the engines. scratch: a folder for what is needed meanwhile."""
    checkpoint = load_checkpoint(source)
    if options.image_size is not None:
        checkpoint = resized(checkpoint, options.image_size)
    if options.data is None and "data" not in checkpoint.training:
        warn(f"{source} does not say on what data it was trained: ranges and parity come from drawn shapes; give its "
             "data with --data")
    options = replace(options, data=options.data or checkpoint.training.get("data", "shapes"),
                      data_root=options.data_root or checkpoint.training.get("data_root"))
    size = checkpoint.config.image_size
    calibration = open_dataset(options.data, split="train", size=size, root=options.data_root,
                               length=options.calibration or CALIBRATION[options.precision])
    images, tokens = sample_tensors([calibration[i] for i in range(len(calibration))], checkpoint)
    set_fast_linear(checkpoint.model, True)
    model, shrinking = shrink(checkpoint, images[:1], tokens[:1])
    graphs = export_graphs(model, options, images, tokens, directory=directory, scratch=scratch)
    checkpoint.tokenizer.save(directory / TOKENIZER)
    precisions = {name: graph.precisions for name, graph in graphs.items() if graph.precisions is not None}
    save_report(shrinking, precisions, directory / REPORT)
    bundle = Bundle.write_manifest(
        directory, preset=checkpoint.config.preset, precision=options.precision, image_size=size,
        context_length=checkpoint.config.context_length, threshold=checkpoint.config.threshold,
        source={"checkpoint": source.name, "sha256": provenance.sha256(source / WEIGHTS),
                "lora_layers_merged": shrinking.merged, "merge_max_abs": shrinking.merge_max_abs,
                "merge_allowed": shrinking.merge_allowed, "calibration_samples": len(tokens)},
        versions=provenance.versions(*PACKAGES))
    bundle = bundle.with_parity(check_parity(bundle, checkpoint, graphs, model, options))
    return Exported(bundle, shrinking, precisions)


def warn(text: str) -> None:
    print(f"talent-export: warning: {text}", file=sys.stderr)


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
    model, changed, allowed = copy.deepcopy(checkpoint.model), 0.0, MERGE_TOLERANCE
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
    return model, Shrinking(merged, changed, allowed, folds, before, network_cost(model, *example))


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
            losses = find_losses(graphs, model, error.image, error.tokens)
            table = f"\n{loss_table(losses)}" if losses else ""
            raise UserError(f"{error}; no bundle was written{table}") from error

    number, sentence = parity.worst
    sample = held_out[number]
    losses = find_losses(graphs, model, preprocess(sample.image, bundle.image_size)[0],
                         checkpoint.tokenizer([sample.expressions[sentence]]))
    if any(loss.first_broken for loss in losses):  # ONNX Runtime computed it in FP32, as no GPU would
        raise UserError(f"{options.precision} is not finite where a layer's result is rounded to it, as a GPU does; no "
                        f"bundle was written; leave its node out of --fp16-nodes, or name it in --fp32-nodes\n"
                        f"{loss_table(losses)}")
    if parity.miou_reference < MEANINGFUL_MIOU:
        warn(f"PyTorch itself finds next to nothing on {options.data} (mIoU {parity.miou_reference:.3f}), so that what "
             "the bundle lost says nothing; give data of the kind that the checkpoint was trained on with --data")
    return check_drop(parity, precision=options.precision, bound=options.bound, allowed=options.allow_drop,
                      data=options.data, layers=(lambda: loss_table(losses)) if losses else None)


def save_report(shrinking: Shrinking, precisions: Mapping[str, Precisions], path: Path) -> None:
    """What was folded, what that saved, and why every node computes in what it does, as JSON."""
    cost = {name: {part: vars(one) for part, one in costs.items()}
            for name, costs in (("before", shrinking.before), ("after", shrinking.after))}
    content = {"folds": {"LoRA": shrinking.merged, **shrinking.folds}, "cost": cost,
               "precisions": {name: decided.to_dict() for name, decided in precisions.items()}}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
