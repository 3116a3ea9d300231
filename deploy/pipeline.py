"""From a checkpoint to a bundle, step by step: what talent-export does.

checkpoint -> merge LoRA -> fold -> text and vision graph -> simplify -> INT8 / FP16 -> fuse RCA -> parity -> engines.
B batch, L tokens of a sentence, S image size.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.candidates import open_candidates
from calibration.chart import draw_choice
from calibration.plan import Int8Plan
from calibration.samples import COUNT, CalibrationSet, choose, far_warning, few_warning
from deploy.build import BuildOptions, build_engines
from deploy.bundle import CALIBRATION_LIST, CHART, MANIFEST, REPORT, TOKENIZER, Bundle
from deploy.cost import Cost, network_cost
from deploy.fold import fold
from deploy.held_out import HeldOutExpressions, divide
from deploy.layer_losses import loss_table
from deploy.onnx_files import FP16_SAMPLES, Graph, PrecisionOptions, export_graphs, find_losses, finish
from deploy.parity import NotFiniteError, Parity, check_drop, measure_parity
from deploy.plugin_choice import AUTO
from deploy.precision import Precisions
from deploy.runtime.segmenter import Segmenter
from talent import provenance
from talent.checkpoint import WEIGHTS, Checkpoint, load_checkpoint
from talent.data.registry import check_name, open_dataset
from talent.data.sample import Samples
from talent.errors import UserError
from talent.evaluate import torch_predictor
from talent.files import atomic_directory
from talent.image import preprocess
from talent.image_size import resized
from talent.model import TalentModel
from talent.model.fast_linear import set_fast_linear
from talent.model.lora import merge_lora

MERGE_TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is less: what rounding may make of merging
MAX_MIOU_DROP = {"fp32": 0.0005, "fp16": 0.002, "int8": 0.005}
CALIBRATION = {"fp32": 2, "fp16": FP16_SAMPLES, "int8": COUNT}  # samples: FP16 takes ranges of them, INT8 scales
POOL_PER_SAMPLE = 8  # pictures that are looked at for each sample that is chosen
HELD_OUT = 48  # expressions that the choice of INT8 layers is measured on
PARITY = 24  # expressions
MEANINGFUL_MIOU = 0.1
PACKAGES = ("torch", "onnx", "onnxsim", "onnxscript", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "tensorrt",
            "tensorrt_rtx", "polygraphy", "peft", "timm", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(PrecisionOptions):
    """How a bundle is made. data: data set of the calibration (train) and parity (val) samples, None for the one that
    the checkpoint was trained on (shapes where it was not trained here). data_root: folder of RefCOCO's files.

    image_size: None for the checkpoint's. calibration: samples, None for CALIBRATION. calibration_data: a data set,
    file or folder to choose them from, None for `data`; sentences: of a folder. calibration_list: a stored list of
    them instead. held_out: expressions that the choice of INT8 layers is measured on. parity: expressions.
    max_miou_drop: mIoU that may be lost, None for the precision's own bound. allow_drop: ship whatever is lost; every
    layer that can be is INT8 then. batch: largest batch of the engines. plugin: of
    `deploy.plugin_choice.REQUESTS`.
    """

    data: str | None = None
    data_root: str | Path | None = None
    image_size: int | None = None
    calibration: int | None = None
    calibration_data: str | Path | None = None
    sentences: str | Path | None = None
    calibration_list: Path | None = None
    held_out: int = HELD_OUT
    parity: int = PARITY
    max_miou_drop: float | None = None
    allow_drop: bool = False
    engines: bool = True
    batch: int = 4
    plugin: str = AUTO

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
    """A bundle, and what was learnt on the way to it. int8: None where INT8 was not asked for."""

    bundle: Bundle
    shrinking: Shrinking
    precisions: Mapping[str, Precisions]
    int8: Int8Plan | None


def export_bundle(source: Path, output: Path, options: ExportOptions) -> Exported:
    """Write the bundle `output` of the checkpoint directory `source`, whole or not at all.

    Raises UserError for bad input and where more mIoU is lost than allowed.
    """
    with atomic_directory(output, marker=MANIFEST) as directory:
        with tempfile.TemporaryDirectory() as scratch:
            exported = _export(source, directory, Path(scratch), options)
        if options.engines:  # the networks are gone from memory by now
            build_engines(exported.bundle, BuildOptions(batch=options.batch, plugin=options.plugin))
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
    calibration = calibration_set(checkpoint, options)
    set_fast_linear(checkpoint.model, True)
    image, tokens = next(iter(calibration))
    model, shrinking = shrink(checkpoint, image, tokens)
    budgeted, held_out = options.precision == "int8" and not options.allow_drop, ()
    if budgeted:
        chosen_on, compared_on = divide(open_split("val", checkpoint, options, options.held_out + options.parity),
                                        options.held_out, options.parity)
        held_out = HeldOutExpressions(model, checkpoint.tokenizer, chosen_on, options.held_out,
                                      checkpoint.config.image_size, checkpoint.config.threshold)
    else:
        compared_on = open_split("val", checkpoint, options, options.parity)
    graphs = export_graphs(model, options, calibration, directory=directory, scratch=scratch, held_out=held_out,
                           bound=options.bound if budgeted else None)
    checkpoint.tokenizer.save(directory / TOKENIZER)
    calibration.save(directory / CALIBRATION_LIST)
    origin = {"checkpoint": source.name, "sha256": provenance.sha256(source / WEIGHTS),
              "lora_layers_merged": shrinking.merged, "merge_max_abs": shrinking.merge_max_abs,
              "merge_allowed": shrinking.merge_allowed, "calibration_samples": len(calibration),
              "calibration_sha256": calibration.digest}
    while True:
        plan = graphs["vision"].int8
        precisions = {name: graph.precisions for name, graph in graphs.items() if graph.precisions is not None}
        save_report(shrinking, precisions, plan, directory)
        precision = "fp16" if plan is not None and not plan.layers else options.precision
        bundle = Bundle.write_manifest(
            directory, preset=checkpoint.config.preset, precision=precision, image_size=checkpoint.config.image_size,
            context_length=checkpoint.config.context_length, threshold=checkpoint.config.threshold,
            source=origin, versions=provenance.versions(*PACKAGES))
        try:
            with Segmenter(bundle, backend="onnxruntime") as segmenter:
                parity = measure_parity(segmenter, torch_predictor(checkpoint.model), compared_on,
                                        expressions=options.parity)
            if not budgeted or not plan.layers or parity.miou_drop <= options.bound:
                break
            lost = f"loses {parity.miou_drop:.4f} mIoU"
        except NotFiniteError as error:
            if not budgeted or not plan.layers:
                raise broken(error, graphs, model) from error
            lost = "gives logits that are not finite"
        warn(f"the finished bundle {lost} with {len(plan.layers)} layers in INT8, expected at most {options.bound:g} "
             "mIoU: it is made again with fewer")
        graphs["vision"] = finish("vision", replace(graphs["vision"], int8=plan.smaller()), directory)
    bundle = bundle.with_parity(gate(bundle, checkpoint, parity, compared_on, graphs, model, options))
    return Exported(bundle, shrinking, precisions, plan)


def open_split(split: str, checkpoint: Checkpoint, options: ExportOptions, length: int) -> Samples:
    """At most `length` samples of a split of the data."""
    return open_dataset(options.data, split=split, size=checkpoint.config.image_size, length=length,
                        root=options.data_root)


def calibration_set(checkpoint: Checkpoint, options: ExportOptions) -> CalibrationSet:
    """The samples that set ranges. Warns where they are few for INT8, or unlike those of the val split."""
    size = checkpoint.config.image_size
    check_name(options.data)
    candidates = open_candidates(options.calibration_data or options.data, size=size, sentences=options.sentences,
                                 root=options.data_root)
    if options.calibration_list is not None:
        chosen = CalibrationSet.load(options.calibration_list, candidates, checkpoint.tokenizer)
    else:
        count = options.calibration or CALIBRATION[options.precision]
        chosen = choose(candidates, tokenizer=checkpoint.tokenizer, count=count, pool=POOL_PER_SAMPLE * count)
    if options.precision == "int8":
        evaluation = open_candidates(options.data, size=size, split="val", root=options.data_root)
        for warning in filter(None, (few_warning(chosen), far_warning(chosen, evaluation))):
            warn(warning)
    return chosen


def warn(text: str) -> None:
    print(f"talent-export: warning: {text}", file=sys.stderr)


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


def broken(error: NotFiniteError, graphs: Mapping[str, Graph], model: TalentModel) -> UserError:
    """The error for people: with the layers that broke. model: folded, for the feeds."""
    losses = find_losses(graphs, model, error.image, error.tokens)
    table = f"\n{loss_table(losses)}" if losses else ""
    return UserError(f"{error}; no bundle was written{table}")


def gate(bundle: Bundle, checkpoint: Checkpoint, parity: Parity, samples: Samples, graphs: Mapping[str, Graph],
         model: TalentModel, options: ExportOptions) -> dict[str, Any]:
    """What the manifest records of a comparison that lets a bundle pass. samples: those it was made on.

    Raises UserError, with the layers that lost most, where the loss of mIoU passes the bound or a layer is not finite.
    """
    number, sentence = parity.worst
    sample = samples[number]
    losses = find_losses(graphs, model, preprocess(sample.image, bundle.image_size)[0],
                         checkpoint.tokenizer([sample.expressions[sentence]]))
    if any(loss.first_broken for loss in losses):  # ONNX Runtime computed it in FP32, as no GPU would
        raise UserError(f"{bundle.precision} is not finite where a layer's result is rounded to it, as a GPU does; no "
                        f"bundle was written; leave its node out of --fp16-nodes, or name it in --fp32-nodes\n"
                        f"{loss_table(losses)}")
    if parity.miou_reference < MEANINGFUL_MIOU:
        warn(f"PyTorch itself finds next to nothing on {options.data} (mIoU {parity.miou_reference:.3f}), so that what "
             "the bundle lost says nothing; give data of the kind that the checkpoint was trained on with --data")
    return check_drop(parity, precision=bundle.precision, bound=options.bound, allowed=options.allow_drop,
                      data=options.data, fallback=bundle.precision != options.precision,
                      layers=(lambda: loss_table(losses)) if losses else None)


def save_report(shrinking: Shrinking, precisions: Mapping[str, Precisions], plan: Int8Plan | None,
                directory: Path) -> None:
    """What was folded, what that saved, why every node computes in what it does, and how INT8 was planned: as JSON, and
    the choice of INT8 layers as a picture."""
    cost = {name: {part: vars(one) for part, one in costs.items()}
            for name, costs in (("before", shrinking.before), ("after", shrinking.after))}
    content = {"folds": {"LoRA": shrinking.merged, **shrinking.folds}, "cost": cost,
               "precisions": {name: decided.to_dict() for name, decided in precisions.items()}}
    if plan is not None:
        content["int8"] = plan.to_dict()
        if plan.choice is not None:
            draw_choice(plan.choice, directory / CHART, title="INT8: what each block and all together lose")
    (directory / REPORT).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
