"""talent-eval: accuracy of a checkpoint (PyTorch) or of a bundle (without torch) on a data set.

mIoU, oIoU, Pr@X, and what the other instances of the target's category got (NTA), over every sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import MANIFEST
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.segmenter import BACKENDS, Segmenter
from talent import provenance
from talent.data.registry import HELP, SHAPES, check_name, open_dataset
from talent.errors import UserError, command
from talent.evaluate import PRECISIONS, Predict, evaluate, torch_predictor
from talent.files import atomic_write, check_writable
from talent.image import check_image_path, save_image
from talent.metrics import Score, SegmentationMetrics
from talent.require import require
from talent.tokenizer import Tokenizer
from talent.worst_cases import draw_worst_cases, worst

CONFIG = "config.yaml"  # what makes a directory a checkpoint; talent.checkpoint says it too, but loads torch
SHAPES_SAMPLES = 500
BATCH, BUNDLE_BATCH = 16, 1  # a bundle as a robot runs it, and an engine may take no more than one picture
PACKAGES = ("torch", "timm", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "numpy",
            "opencv-python-headless")
EXAMPLE = """\
example:
  talent-eval weights/tiny --data shapes --split test --worst worst.png
  talent-eval bundle/ --data kitchen.jsonl --json numbers.json --per-expression
"""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that can be asked. batch_size: pictures at once where nothing else is wanted. origin: what it is and
    what runs it, as JSON takes it ("kind", "name", "sha256", "precision", "backend", "device", ...).
    """

    predict: Predict
    tokenizer: Tokenizer
    image_size: int
    threshold: float
    batch_size: int
    origin: Mapping[str, Any]


def bundle_predictor(segmenter: Segmenter) -> Predict:
    """A bundle as the function on arrays that `evaluate` takes."""
    def predict(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return segmenter.backend.vision(images, segmenter.backend.text(tokens))

    return predict


@contextlib.contextmanager
def open_network(path: str | Path, *, backend: str | None = None, precision: str | None = None,
                 threshold: float | None = None) -> Iterator[Network]:
    """The network in a checkpoint directory or a bundle.

    backend: for a bundle, as Segmenter takes it. precision: for a checkpoint, one of talent.evaluate.PRECISIONS.
    threshold: None for the network's own. Raises UserError where the directory is neither, for an option that belongs
    to the other kind, and whatever loading raises.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        if precision is not None:
            raise UserError(f"--precision {precision}: {path} is a bundle, whose precision was chosen when it was "
                            "exported; leave it out, or evaluate another bundle")
        with Segmenter(path, backend or "auto", threshold=threshold) as segmenter:
            yield _from_bundle(segmenter)
    elif (path / CONFIG).is_file():
        if backend is not None:
            raise UserError(f"--backend {backend}: {path} is a checkpoint, which PyTorch runs; leave it out, or make a "
                            f"bundle: talent-export {path} -o bundle/")
        yield _from_checkpoint(path, precision or "fp32", threshold)
    else:
        found = "a directory without either" if path.is_dir() else "a file" if path.exists() else "nothing there"
        raise UserError(f"{path}: expected a checkpoint (a directory with {CONFIG}, made by talent-train or "
                        f"talent-import) or a bundle (one with {MANIFEST}, made by talent-export), received {found}")


def _from_bundle(segmenter: Segmenter) -> Network:
    bundle, backend = segmenter.bundle, segmenter.backend.name
    origin = {"kind": "bundle", "name": bundle.directory.resolve().name, "preset": bundle.preset,
              "precision": bundle.precision, "sha256": dict(bundle.files), "source": dict(bundle.source),
              "exported_at_commit": bundle.commit, "backend": backend,
              "device": "cpu" if backend == "onnxruntime" else gpu_architecture(),
              "why_this_backend": list(segmenter.auto_report)}
    return Network(bundle_predictor(segmenter), segmenter.tokenizer, bundle.image_size, segmenter.threshold,
                   BUNDLE_BATCH, origin)


def _from_checkpoint(path: Path, precision: str, threshold: float | None) -> Network:
    torch = require("torch", extra="train")
    from talent.checkpoint import WEIGHTS, load_checkpoint

    checkpoint = load_checkpoint(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = checkpoint.config
    origin = {"kind": "checkpoint", "name": path.resolve().name, "preset": config.preset, "precision": precision,
              "sha256": {WEIGHTS: provenance.sha256(path / WEIGHTS)}, "lora": checkpoint.lora is not None,
              "backend": "pytorch", "device": torch.cuda.get_device_name() if device == "cuda" else device}
    return Network(torch_predictor(checkpoint.model.to(device), precision=precision), checkpoint.tokenizer,
                   config.image_size, config.threshold if threshold is None else threshold, BATCH, origin)


def table(result: Mapping[str, float]) -> str:
    """The numbers of SegmentationMetrics.result() as text, a line each; those of NTA where there are any."""
    lines = [("expressions", f"{result['samples']}"),
             ("with other instances", f"{result.get('NTA samples', 0)}")]
    lines += [(name, f"{value:.4f}") for name, value in result.items() if name not in ("samples", "NTA samples")]
    return "\n".join(f"{name:22}{value:>8}" for name, value in lines)


def expression_record(score: Score) -> dict[str, Any]:
    """One expression as JSON takes it."""
    sample, sentence = score.index
    return {"sample": sample, "sentence": sentence, "name": score.name, "expression": score.expression,
            "iou": score.iou, "intersection": score.intersection, "union": score.union,
            "nta_activation": score.nta_activation, "target_activation": score.target_activation,
            "covers_wrong_instance": score.covers_wrong_instance}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="talent-eval", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("network", type=Path, metavar="CHECKPOINT|BUNDLE",
                        help="directory that talent-train, talent-import or talent-export wrote")
    result.add_argument("--data", default="shapes", metavar="NAME|FILE", help=f"{HELP} (default: %(default)s)")
    result.add_argument("--data-root", "--data_root", type=Path, metavar="DIR", help="where RefCOCO's files lie")
    result.add_argument("--split", default="test", help="part of the data set (default: %(default)s)")
    result.add_argument("--samples", type=int, metavar="N", help="at most so many samples, taken evenly (default: all; "
                                                                 f"{SHAPES_SAMPLES} of shapes)")
    result.add_argument("--batch-size", type=int, metavar="N",
                        help=f"sentences at once (default: {BATCH}; of a bundle {BUNDLE_BATCH}, and with TensorRT at "
                             "most what talent-export --batch said)")
    result.add_argument("--threshold", type=float, metavar="X", help="probability above which a pixel belongs to the "
                                                                     "object (default: the network's)")
    result.add_argument("--precision", choices=PRECISIONS, help="of a checkpoint, by autocast (default: fp32)")
    result.add_argument("--backend", choices=BACKENDS, help="what runs a bundle (default: auto)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and what they were measured on")
    result.add_argument("--per-expression", action="store_true", help="also the score of every sentence, into --json")
    result.add_argument("--worst", type=Path, metavar="PNG", help="draw the sentences that were answered worst")
    return result


def _check(arguments: argparse.Namespace) -> None:
    """Everything that can be refused before a network is loaded. Raises UserError."""
    for name in ("samples", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, received {value}")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, received {arguments.threshold}")
    check_name(arguments.data)
    if arguments.per_expression and not arguments.json:
        raise UserError("--per-expression: expected a file to write to; add --json numbers.json")
    for path in filter(None, (arguments.json, arguments.worst)):
        check_writable(path)
    if arguments.worst:
        check_image_path(arguments.worst)
        if arguments.json and arguments.json.resolve() == arguments.worst.resolve():
            raise UserError(f"expected --json and --worst to be two files, received {arguments.json} for both")


@command("talent-eval")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _check(arguments)
    written = []
    with open_network(arguments.network, backend=arguments.backend, precision=arguments.precision,
                      threshold=arguments.threshold) as network:
        origin = network.origin
        reasons = f" ({'; '.join(origin['why_this_backend'])})" if origin.get("why_this_backend") else ""
        print(f"{origin['kind']} {origin['name']}: {origin['precision']}, {origin['backend']} on {origin['device']}"
              f"{reasons}")
        samples = open_dataset(arguments.data, split=arguments.split, size=network.image_size, root=arguments.data_root,
                               length=arguments.samples or (SHAPES_SAMPLES if arguments.data in SHAPES else None))
        metrics = evaluate(network.predict, network.tokenizer, samples, image_size=network.image_size,
                           batch_size=arguments.batch_size or network.batch_size, threshold=network.threshold)
        print(table(metrics.result()))
        what = f"{len(metrics)} sentences about {len(samples)} samples of {Path(arguments.data).name}"
        if arguments.json:
            record = report(metrics, network, data=Path(arguments.data).name, split=arguments.split,
                            samples=len(samples), per_expression=arguments.per_expression)
            with atomic_write(arguments.json) as temporary:
                temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            written.append(f"the numbers to {arguments.json}")
        if arguments.worst:
            chosen = worst(metrics.scores)
            picture = draw_worst_cases(network.predict, network.tokenizer, samples, chosen,
                                       image_size=network.image_size, threshold=network.threshold,
                                       title=f"{origin['name']}: the worst {len(chosen)} of {what}, {arguments.split}")
            save_image(arguments.worst, picture)
            written.append(f"the worst {len(chosen)} answers to {arguments.worst}")
    print(f"evaluated {arguments.network} on {what}, split {arguments.split}; "
          + (f"wrote {' and '.join(written)}" if written else "wrote nothing (--json and --worst do)"))
    return 0


def report(metrics: SegmentationMetrics, network: Network, *, data: str, split: str, samples: int,
           per_expression: bool) -> dict[str, Any]:
    """What --json writes. A ratio that is infinite becomes null, for JSON has no word for it."""
    numbers = {name: value if math.isfinite(value) else None for name, value in metrics.result().items()}
    content = {"metrics": numbers, "network": dict(network.origin), "data": data, "split": split, "samples": samples,
               "threshold": network.threshold, "commit": provenance.commit(),
               "versions": provenance.versions(*PACKAGES)}
    if per_expression:
        content["expressions"] = [expression_record(score) for score in metrics.scores]
    return content


if __name__ == "__main__":
    raise SystemExit(main())
