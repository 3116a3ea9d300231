"""talent-export: from a checkpoint to a bundle that any runtime reads, with TensorRT engines where one is installed.

checkpoint -> merge LoRA -> fold -> text and vision graph -> simplify -> FP16 / INT8 -> fuse RCA -> parity -> engines.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from tqdm import tqdm

from calibration.quantize import to_int8
from deploy.build import BuildOptions, build_engines, check_batch
from deploy.builders import choose_runtime, usable_runtimes
from deploy.bundle import MANIFEST, PRECISIONS, TEXT, TOKENIZER, VISION, Bundle
from deploy.fold import fold
from deploy.fuse_rca import fuse_rca
from deploy.graphs import export_text, export_vision, flatten_prompt
from deploy.onnx_run import Feeds
from deploy.parity import Parity, measure_parity
from deploy.precision import simplify, to_fp16
from deploy.runtime.interface import IMAGE, TOKENS
from deploy.runtime.segmenter import Segmenter
from deploy.targets import build_command
from talent import provenance
from talent.checkpoint import WEIGHTS, Checkpoint, load_checkpoint
from talent.data.registry import HELP, open_dataset
from talent.data.sample import Sample
from talent.errors import UserError, command
from talent.evaluate import torch_predictor
from talent.files import atomic_directory
from talent.image import preprocess
from talent.model import TalentModel
from talent.model.lora import merge_lora

MERGE_TOLERANCE = 1e-4
MAX_MIOU_DROP = {"fp32": 0.0005, "fp16": 0.002, "int8": 0.01}
EXTERNAL_DATA_BYTES = 1_000_000_000
PACKAGES = ("torch", "onnx", "onnxsim", "onnxscript", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "tensorrt",
            "tensorrt_rtx", "polygraphy", "peft", "timm", "numpy")


@dataclass(frozen=True)
class Merged:
    """The network with LoRA merged: how many layers, and the largest change of a logit that merging made."""

    model: TalentModel
    layers: int
    max_abs: float


def merge_checkpoint(checkpoint: Checkpoint, images: np.ndarray, tokens: np.ndarray) -> Merged:
    """Merge LoRA in a copy and compare logits on images [B,3,S,S] and tokens [B,L].

    Raises UserError where merging changed a logit by more than MERGE_TOLERANCE.
    """
    model = copy.deepcopy(checkpoint.model).eval()
    layers = merge_lora(model)
    difference = torch_predictor(model)(images, tokens) - torch_predictor(checkpoint.model)(images, tokens)
    max_abs = float(np.abs(difference).max())
    if not max_abs <= MERGE_TOLERANCE:
        raise UserError(f"merging LoRA changed a logit by {max_abs:.2e}, expected at most {MERGE_TOLERANCE:.0e}: the "
                        "factors are so large that rounding shows; tune with a lower --learning_rate or --lora.alpha")
    return Merged(model, layers, max_abs)


def sample_tensors(samples: Sequence[Sample], checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Network inputs for the first sentence of each sample: images [B,3,S,S] float32 and tokens [B,L] int64."""
    images = np.concatenate([preprocess(s.image, checkpoint.config.image_size)[0] for s in samples])
    return images, checkpoint.tokenizer([s.expressions[0] for s in samples])


def vision_feeds(model: TalentModel, images: np.ndarray, tokens: np.ndarray) -> Iterator[Feeds]:
    """Inputs of the vision graph, one sample at a time."""
    for image, ids in zip(images, tokens, strict=True):
        with torch.inference_mode():
            prompt = flatten_prompt(model.prompt(model.text(torch.from_numpy(ids)[None])))
        yield {IMAGE: image[None], **{name: tensor.numpy() for name, tensor in prompt.items()}}


@dataclass(frozen=True)
class Graphs:
    """The two ONNX files of a bundle, RCA fused."""

    text: onnx.ModelProto
    vision: onnx.ModelProto


def export_graphs(model: TalentModel, precision: str, images: np.ndarray, tokens: np.ndarray) -> Graphs:
    """The graphs of a folded network in one precision; images and tokens are the calibration samples (two at least)."""
    rca = len(model.vision.adapted()) + len(model.neck.fusions)
    with tqdm(total=4, desc=f"export {precision}", unit="step", leave=False, disable=None) as bar:
        pair = torch.from_numpy(np.repeat(tokens[:1], 3, 0))  # a batch unlike that of the pictures
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns of its own deprecated calls
            text = export_text(model, pair)
            bar.update()
            with torch.no_grad():
                prompt = flatten_prompt(model.prompt(model.text(pair)))
            vision = export_vision(model, torch.from_numpy(images[:2]), prompt)
        bar.update()
        text = simplify(text, feeds={TOKENS: pair.numpy()})
        vision = simplify(vision, feeds={IMAGE: images[:1], **{name: t[:1].numpy() for name, t in prompt.items()}})
        bar.update()
        if precision != "fp32":
            text = to_fp16(text, calibration=[{TOKENS: ids[None]} for ids in tokens])
        if precision == "fp16":
            vision = to_fp16(vision, calibration=vision_feeds(model, images, tokens))
        elif precision == "int8":
            vision = to_int8(vision, calibration=vision_feeds(model, images, tokens))
        bar.update()
    return Graphs(text=fuse_rca(text, expected=0), vision=fuse_rca(vision, expected=rca))


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write and check an ONNX file; weights lie beside it only where they pass a gigabyte."""
    external = model.ByteSize() > EXTERNAL_DATA_BYTES
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made. data: data set of the calibration (train) and parity (val) samples, None for the one that
    the checkpoint was trained on (shapes where it was not trained here). data_root: folder of RefCOCO's files.

    max_miou_drop: mIoU that may be lost, None for the precision's own bound. batch: largest batch of the engines.
    """

    precision: str
    data: str | None = None
    data_root: str | Path | None = None
    calibration: int = 64
    parity: int = 64
    max_miou_drop: float | None = None
    allow_drop: bool = False
    engines: bool = True
    batch: int = 4


def export_bundle(source: Path, output: Path, options: ExportOptions) -> Bundle:
    """Write the bundle `output` of the checkpoint directory `source`, whole or not at all.

    Raises UserError for bad input and where more mIoU is lost than allowed.
    """
    checkpoint = load_checkpoint(source)
    options = replace(options, data=options.data or checkpoint.training.get("data", "shapes"),
                      data_root=options.data_root or checkpoint.training.get("data_root"))
    size = checkpoint.config.image_size
    calibration = open_dataset(options.data, split="train", size=size, length=options.calibration,
                               root=options.data_root)
    images, tokens = sample_tensors([calibration[i] for i in range(len(calibration))], checkpoint)
    with atomic_directory(output, marker=MANIFEST) as directory:
        merged = merge_checkpoint(checkpoint, images[:4], tokens[:4])
        folded = copy.deepcopy(merged.model)
        fold(folded)
        graphs = export_graphs(folded, options.precision, images, tokens)
        save_graph(graphs.text, directory / TEXT)
        save_graph(graphs.vision, directory / VISION)
        checkpoint.tokenizer.save(directory / TOKENIZER)
        described = dict(
            preset=checkpoint.config.preset, precision=options.precision, image_size=size,
            context_length=checkpoint.config.context_length, threshold=checkpoint.config.threshold,
            source={"checkpoint": source.name, "sha256": provenance.sha256(source / WEIGHTS),
                    "lora_layers_merged": merged.layers, "merge_max_abs": merged.max_abs},
            versions=provenance.versions(*PACKAGES))
        bundle = Bundle.write_manifest(directory, **described)
        parity = check_parity(bundle, checkpoint, options)
        bundle = Bundle.write_manifest(directory, **described, parity={**parity.to_dict(), "data": options.data})
        if options.engines:
            build_engines(bundle, BuildOptions(batch=options.batch))
    return Bundle.load(output)


def check_parity(bundle: Bundle, checkpoint: Checkpoint, options: ExportOptions) -> Parity:
    """Compare with PyTorch FP32 in ONNX Runtime; UserError where the loss of mIoU passes the bound."""
    held_out = open_dataset(options.data, split="val", size=bundle.image_size, length=options.parity,
                            root=options.data_root)
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        parity = measure_parity(segmenter, torch_predictor(checkpoint.model),
                                [held_out[i] for i in range(len(held_out))])
    bound = MAX_MIOU_DROP[options.precision] if options.max_miou_drop is None else options.max_miou_drop
    if parity.miou_drop > bound and not options.allow_drop:
        raise UserError(f"{options.precision} loses {parity.miou_drop:.4f} mIoU ({parity.miou_reference:.4f} -> "
                        f"{parity.miou:.4f} on {parity.samples} expressions of {options.data}), expected at most "
                        f"{bound}; no bundle was written; try --fp16, or --allow-drop to ship it all the same")
    return parity


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="talent-export", description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  talent-export weights/tiny --int8 -o bundle/\n"
               "  talent-export runs/mine/best --fp16 --no-engine -o bundle/")
    result.add_argument("checkpoint", type=Path, help="checkpoint directory (talent-train, talent-import)")
    precision = result.add_mutually_exclusive_group()
    for name in PRECISIONS:
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name)
    result.set_defaults(precision="fp16")
    result.add_argument("-o", "--output", type=Path, required=True, help="bundle directory to write")
    result.add_argument("--data", help=f"samples for calibration and parity: {HELP} (default: what the checkpoint was "
                                       "trained on, else shapes)")
    result.add_argument("--data-root", "--data_root", type=Path, help="folder of RefCOCO's files (docs/data.md)")
    result.add_argument("--calibration", type=int, default=64, help="samples that set the ranges (default 64)")
    result.add_argument("--parity", type=int, default=64, help="samples that are compared (default 64)")
    result.add_argument("--max-miou-drop", type=float, help=f"mIoU that may be lost (default {MAX_MIOU_DROP})")
    result.add_argument("--allow-drop", action="store_true", help="write the bundle whatever is lost")
    result.add_argument("--no-engine", action="store_true", help="stop at ONNX")
    result.add_argument("--batch", type=int, default=4, help="largest batch of the engines (default 4)")
    return result


@command("talent-export")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name, least in (("calibration", 2), ("parity", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name}: expected at least {least}, received {getattr(arguments, name)}")
    check_batch(arguments.batch)
    options = ExportOptions(
        precision=arguments.precision, data=arguments.data, data_root=arguments.data_root,
        calibration=arguments.calibration, parity=arguments.parity, max_miou_drop=arguments.max_miou_drop,
        allow_drop=arguments.allow_drop, engines=not arguments.no_engine, batch=arguments.batch)
    if options.engines:
        try:
            choose_runtime()
        except UserError as error:
            raise UserError(f"{error}; or add --no-engine to stop at ONNX, and run talent-build later") from error
    bundle = export_bundle(arguments.checkpoint, arguments.output, options)
    print_summary(bundle)
    return 0


def print_summary(bundle: Bundle) -> None:
    """What was made, and what it lost."""
    source, parity = bundle.source, bundle.parity
    print(f"LoRA: {source['lora_layers_merged']} layers merged, logits changed by "
          f"{source['merge_max_abs']:.1e} at most")
    print(f"parity on {parity['samples']} expressions of {parity['data']} ({parity['backend']}, CPU): mIoU "
          f"{parity['miou_reference']:.4f} -> {parity['miou']:.4f}, masks agree {parity['mask_agreement']:.4f}, "
          f"logits differ by {parity['logits_max_abs']:.2e} at most")
    for engine in bundle.engines:
        print(f"engine {engine.graph} {engine.precision}: {engine.runtime} {engine.version} for {engine.arch}, "
              f"{engine.bytes / 1e6:.1f} MB in {engine.seconds:.1f} s")
    if not bundle.engines:
        print(f"engines: none; build them where they are to run: {build_command(bundle.directory)}")
    for runtime in usable_runtimes() if bundle.engines else ():
        if all(engine.runtime != runtime.name for engine in bundle.engines):
            print(f"{runtime.name} is installed too; for its engines, run: "
                  + build_command(bundle.directory, runtime=runtime.name))
    print(f"wrote the {bundle.precision} bundle {bundle.directory}")


if __name__ == "__main__":
    sys.exit(main())
