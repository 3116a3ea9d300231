"""What quantization-aware finishing recovers (talent-train --tune lora --qat) on a network that is hard to quantize.

The case is made, not found: weights/tiny loses next to nothing in INT8. In a copy of it, a few channels between two
layers are multiplied by a large factor and what reads them is divided by it. In FP32 it answers as before; in INT8 one
scale per tensor has to hold both the loud channels and the others, which keep few of their bits. Compared are, on the
same pictures and exported by the same command: that network, the same after a short run with --qat, and, to tell what
fake quantization did from what training on did, after the same run without. Everything that can be is quantized
(--allow-drop), no layer is kept back by the budget. What is done is kept in the work folder, so that a second call
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(ROOT)

from benchmarks.figures import finish, titled  # noqa: E402
from deploy.evaluate import open_network  # noqa: E402
from deploy.pipeline import ExportOptions, export_bundle  # noqa: E402
from talent import provenance  # noqa: E402
from talent.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from talent.data.registry import open_dataset  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.evaluate import evaluate, torch_predictor  # noqa: E402
from talent.files import atomic_write, check_writable  # noqa: E402
from talent.image import preprocess  # noqa: E402
from talent.model import TalentModel  # noqa: E402

FIGURES = ("mIoU", "oIoU", "Pr@0.9", "NTA rate")
RUNS = {"lora": [], "qat": ["--qat"]}
RECIPE = {"tune": "lora", "data": "shapes", "batch_size": 16, "learning_rate": 1e-4, "warmup_steps": 10,
          "val_samples": 60, "workers": 0, "cpu": "true"}
# What is measured, in the order of the table: its name for people, the network, and whether it is exported to INT8.
CASES = {
    "hard": ("hard, FP32", False), "hard-int8": ("hard, INT8", True),
    "lora": ("LoRA, FP32", False), "lora-int8": ("LoRA, INT8", True),
    "qat": ("LoRA --qat, FP32", False), "qat-int8": ("LoRA --qat, INT8", True)}
SETTINGS = ("factor", "share", "steps", "samples", "calibration", "seed")  # what the numbers depend on
TOLERANCE = 1e-3  # of the largest logit: what rounding in FP32 may make of multiplying and dividing
LARGEST_FACTOR = 1e6
CHECKED = 4  # pictures on which it is compared
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "peft", "accelerate", "timm", "numpy")


def loud(channels: int, *, share: float, factor: float, generator: torch.Generator) -> Tensor:
    """Factors of that many channels, [channels]: `factor` for a random share of them, at least one, and 1."""
    factors = torch.ones(channels)
    factors[torch.randperm(channels, generator=generator)[:max(1, round(share * channels))]] = factor
    return factors


@torch.no_grad()
def harden(model: TalentModel, *, factor: float, share: float, seed: int) -> int:
    """Make channels between two layers loud where that changes no answer, in place; returns between how many pairs.

    Values of attention, which are added up but not changed channel by channel; and what passes a ReLU, which does not
    notice a positive factor: the rca adapters' hidden layer and the first of the neck's last two convolutions (in its
    BatchNorm). None of them is a gain of a LayerNorm, which smoothing would take back.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return loud(channels, share=share, factor=factor, generator=generator)

    places = 0
    for attention in (block.attn for block in model.vision.blocks):
        factors = draw(attention.proj.in_features)
        values = slice(-len(factors), None)  # of qkv, the last third
        attention.qkv.weight[values] *= factors[:, None]
        attention.qkv.bias[values] *= factors
        attention.proj.weight /= factors
        places += 1
    for attention in (layer.self_attn for layer in model.decoder.layers):
        factors = draw(attention.proj.in_features)
        _multiply(attention.v, factors)
        attention.proj.weight /= factors
        places += 1
    for adapter in (block.adapter for block in model.vision.adapted()):  # fc2(z + back_proj(... image_proj(z)))
        factors = draw(adapter.fc1.out_features)
        _multiply(adapter.fc1, factors)
        _multiply(adapter.rca.back_proj, factors)
        adapter.rca.image_proj.weight /= factors
        adapter.fc2.weight /= factors
        places += 1
    first, second = model.neck.coord_conv
    factors = draw(first[1].num_features)
    first[1].weight *= factors
    first[1].bias *= factors
    second[0].weight /= factors[:, None, None]
    return places + 1


def _multiply(layer: nn.Linear, factors: Tensor) -> None:
    layer.weight *= factors[:, None]
    layer.bias *= factors


def make_hard(weights: Path, path: Path, *, factor: float, share: float, seed: int) -> dict[str, float]:
    """Write the hard copy of a checkpoint; returns how far its logits are from the original's, and the largest logit.

    Raises UserError where the copy answers something else, or where its adapters are not of the kind "rca".
    """
    checkpoint = load_checkpoint(weights)
    if checkpoint.config.vision_adapter != "rca" or checkpoint.lora:
        raise UserError(f"{weights}: expected a network with rca adapters and LoRA merged, received "
                        f"{checkpoint.config.vision_adapter} adapters{' and LoRA' if checkpoint.lora else ''}; take "
                        "weights/tiny")
    size = checkpoint.config.image_size
    samples = open_dataset("shapes", split="test", size=size, length=CHECKED)
    images = np.concatenate([preprocess(samples[i].image, size)[0] for i in range(CHECKED)])
    tokens = checkpoint.tokenizer([samples[i].expressions[0] for i in range(CHECKED)])
    expected = torch_predictor(checkpoint.model)(images, tokens)
    places = harden(checkpoint.model, factor=factor, share=share, seed=seed)
    changed = float(np.abs(torch_predictor(checkpoint.model)(images, tokens) - expected).max())
    largest = float(np.abs(expected).max())
    if not changed <= TOLERANCE * largest:
        raise UserError(f"the hard copy of {weights} changed a logit by {changed:.2e}, expected at most "
                        f"{TOLERANCE * largest:.2e}; take a smaller --factor")
    save_checkpoint(checkpoint, path)
    return {"places": places, "largest_change": changed, "largest_logit": largest}


def train(name: str, start: Path, run: Path, *, steps: int, threads: int, seed: int) -> None:
    """One run of RUNS in a process of its own; one that was cut off goes on. Raises UserError where it fails."""
    settings = RECIPE | {"init": start, "steps": steps, "seed": seed, "validate_every": steps}
    arguments = [f"--{key}={value}" for key, value in settings.items()] + RUNS[name] + ["-o", str(run)]
    if (run / "last").is_dir():
        arguments += ["--resume", "true"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "talent.train", *arguments], check=False,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
                                            "PYTHONPATH": path})
    if done.returncode:
        raise UserError(f"talent-train ended with exit code {done.returncode}; its message is above")


def measure(network: Path, samples: int) -> dict[str, float]:
    """Metrics of a checkpoint or a bundle on shapes' test split."""
    with open_network(network) as opened:
        test = open_dataset("shapes", split="test", size=opened.image_size, length=samples)
        return evaluate(opened.predict, opened.tokenizer, test, image_size=opened.image_size,
                        batch_size=opened.batch_size, threshold=opened.threshold).result()


def case(name: str, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case of CASES, made and measured. Those in INT8 take the checkpoint that the case in FP32 has made."""
    network = name.removesuffix("-int8")
    path = work / "hard" if network == "hard" else work / network / "last"
    if CASES[name][1]:
        bundle = work / f"{network}-bundle"
        if not bundle.is_dir():
            export_bundle(path, bundle, ExportOptions(precision="int8", allow_drop=True, engines=False, data="shapes",
                                                      calibration=arguments.calibration))
        path = bundle
    elif network in RUNS:
        train(network, work / "hard", work / network, steps=arguments.steps, threads=arguments.threads,
              seed=arguments.seed)
    return {"case": name, "metrics": measure(path, arguments.samples), "commit": provenance.commit()}


def points(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What INT8 took, and how much of it each run brought back, in points: hundredths of mIoU."""
    miou = {name: 100 * result["metrics"]["mIoU"] for name, result in results.items()}
    recovered = {f"recovered by {name}": miou[f"{name}-int8"] - miou["hard-int8"] for name in RUNS}
    return {"lost": miou["hard"] - miou["hard-int8"], **recovered}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for each case."""
    lines = ["| network | " + " | ".join(FIGURES) + " |", "|---" * (1 + len(FIGURES)) + "|"]
    for name, result in results.items():
        cells = [f"{result['metrics'][figure]:.4f}" for figure in FIGURES]
        lines.append(f"| {CASES[name][0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel for each figure: the networks in INT8 as bars, what the first one has in FP32 as a line."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {"hard-int8": ("as it is", "#b0b7bf"), "lora-int8": ("after LoRA", "#7aa6c2"),
            "qat-int8": ("after LoRA\nwith --qat", "#1b6ca8")}
    figure, panels = pyplot.subplots(1, len(FIGURES), figsize=(13, 3.8), layout="constrained")
    for axes, name in zip(panels, FIGURES, strict=True):
        heights = [results[case]["metrics"][name] for case in bars]
        drawn = axes.bar([label for label, _ in bars.values()], heights, width=0.65,
                         color=[colour for _, colour in bars.values()])
        axes.bar_label(drawn, fmt="%.3f", label_type="center",
                       bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2})
        exact = results["hard"]["metrics"][name]
        axes.axhline(exact, color="#c0392b", linewidth=1.2, linestyle="--", label="FP32, before any run")
        axes.set(title=titled(name),
                 ylim=(0, 1.1 * max(*heights, exact)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("A network made hard to quantize, exported to INT8")
    finish(figure, panels, path)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="benchmarks/qat.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python benchmarks/qat.py -o benchmarks/results/qat.json")
    result.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write; a .png goes beside it")
    result.add_argument("--weights", type=Path, default=ROOT / "weights" / "tiny", help="checkpoint with rca adapters")
    result.add_argument("--work", type=Path, default=Path("runs/qat"), help="folder of the runs (default: runs/qat)")
    result.add_argument("--factor", type=float, default=80.0, help="of the loud channels (default: %(default)s)")
    result.add_argument("--share", type=float, default=0.05, help="of the channels, loud (default: %(default)s)")
    result.add_argument("--steps", type=int, default=250, help="of each run (default: %(default)s)")
    result.add_argument("--samples", type=int, default=300, help="pictures of the test split (default: %(default)s)")
    result.add_argument("--calibration", type=int, default=64, help="samples that set ranges (default: %(default)s)")
    result.add_argument("--threads", type=int, default=1, help="of each process (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of the channels and the runs (default: %(default)s)")
    return result


def _check(arguments: argparse.Namespace) -> None:
    for name in ("steps", "samples", "calibration", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: expected at least 1, received {getattr(arguments, name)}")
    if not 0 < arguments.share < 1:
        raise UserError(f"--share: expected a part of the channels between 0 and 1, received {arguments.share}")
    if not 1 < arguments.factor <= LARGEST_FACTOR:
        raise UserError(f"--factor: expected a number above 1 and at most {LARGEST_FACTOR:g}, received "
                        f"{arguments.factor:g}")
    check_writable(arguments.output)


@command("benchmarks/qat.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _check(arguments)
    torch.set_num_threads(arguments.threads)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    work = arguments.work / "-".join(f"{value:g}" for value in settings.values())
    work.mkdir(parents=True, exist_ok=True)
    made = work / "made.json"
    if not made.is_file():
        content = make_hard(arguments.weights, work / "hard", factor=arguments.factor, share=arguments.share,
                            seed=arguments.seed)
        with atomic_write(made) as temporary:
            temporary.write_text(json.dumps(content))
    results = {}
    for name in CASES:
        kept = work / f"{name}.json"
        if not kept.is_file():
            result = case(name, work, arguments)
            with atomic_write(kept) as temporary:
                temporary.write_text(json.dumps(result))
        results[name] = json.loads(kept.read_text())
        print(f"{CASES[name][0]}: mIoU {results[name]['metrics']['mIoU']:.4f}", flush=True)
    content = {"results": list(results.values()), "points": points(results), "hard": json.loads(made.read_text()),
               "settings": settings, "recipe": RECIPE, "split": "test", "device": "cpu",
               "versions": provenance.versions(*PACKAGES)}
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    draw(results, arguments.output.with_suffix(".png"))
    print(table(results))
    print(", ".join(f"{name} {value:.1f} points" for name, value in points(results).items()))
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
