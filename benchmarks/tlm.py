"""Target-aware learning on shapes: none, official and rectified, several seeds each, in mIoU, oIoU and NTA.

Every run starts with the towers of weights/tiny and fresh heads (the same for the three kinds of a seed), and trains
everything. Runs that are done are kept in the work folder, so that a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(ROOT)

from benchmarks.figures import finish, titled  # noqa: E402
from talent import provenance  # noqa: E402
from talent.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from talent.data.registry import open_dataset  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.evaluate import evaluate, torch_predictor  # noqa: E402
from talent.files import atomic_write, check_writable  # noqa: E402
from talent.losses import WEIGHTS  # noqa: E402
from talent.model import build_model  # noqa: E402
from talent.model.lora import HEADS  # noqa: E402

KINDS = ("none", "official", "rectified")
FIGURES = ("mIoU", "oIoU", "Pr@0.5", "NTA ratio", "NTA rate")
RECIPE = {"tune": "full", "data": "shapes", "train_samples": 110000, "batch_size": 48, "learning_rate": 1e-3,
          "weight_decay": 0.02, "warmup_steps": 30, "precision": "bf16", "cpu": "true", "val_samples": 60}


def make_start(weights: Path, seed: int, path: Path) -> None:
    """A checkpoint with the towers of `weights` and heads drawn from `seed`."""
    checkpoint = load_checkpoint(weights)
    torch.manual_seed(seed)
    fresh = build_model(checkpoint.config)
    for name in HEADS:
        getattr(checkpoint.model, name).load_state_dict(getattr(fresh, name).state_dict())
    save_checkpoint(checkpoint, path)


def train(kind: str, seed: int, start: Path, run: Path, steps: int) -> None:
    """One training run in a process of its own; one that was cut off goes on. Raises UserError where it fails."""
    settings = RECIPE | {"init": start, "steps": steps, "seed": seed, "validate_every": steps, "losses.tlm": kind}
    arguments = [f"--{name}={value}" for name, value in settings.items()] + ["-o", str(run)]
    if (run / "last").is_dir():
        arguments += ["--resume", "true"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "talent.train", *arguments], check=False,
                          env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path})
    if done.returncode:
        raise UserError(f"talent-train ended with exit code {done.returncode}; its message is above")


def measure(run: Path, samples: int) -> dict[str, float]:
    """Metrics of the last weights on shapes' test split."""
    checkpoint = load_checkpoint(run / "last")
    test = open_dataset("shapes", split="test", size=checkpoint.config.image_size, length=samples)
    return evaluate(torch_predictor(checkpoint.model), checkpoint.tokenizer, test,
                    image_size=checkpoint.config.image_size, threshold=checkpoint.config.threshold).result()


def table(results: Sequence[dict]) -> str:
    """Markdown: mean and standard deviation over the seeds, a row for each kind."""
    lines = ["| TLM | " + " | ".join(FIGURES) + " |", "|---" * (1 + len(FIGURES)) + "|"]
    for kind in KINDS:
        runs = [result["metrics"] for result in results if result["kind"] == kind]
        cells = []
        for name in FIGURES:
            values = [metrics[name] for metrics in runs]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: Sequence[dict], path: Path) -> None:
    """Every run a dot, every seed a line through its three kinds."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ("mIoU", "oIoU", "NTA ratio", "NTA rate")
    figure, panels = pyplot.subplots(1, len(shown), figsize=(12, 3.5), layout="constrained")
    for axes, name in zip(panels, shown, strict=True):
        for seed in sorted({result["seed"] for result in results}):
            own = {result["kind"]: result["metrics"][name] for result in results if result["seed"] == seed}
            axes.plot(KINDS, [own[kind] for kind in KINDS], marker="o", linewidth=1, label=f"seed {seed}")
        axes.set(title=titled(name))
        axes.margins(x=0.15, y=0.2)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    finish(figure, panels, path)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="benchmarks/tlm.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python benchmarks/tlm.py --steps 200 --seeds 3 -o benchmarks/results/tlm.json")
    result.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write; a .png goes beside it")
    result.add_argument("--weights", type=Path, default=ROOT / "weights" / "tiny", help="checkpoint with the towers")
    result.add_argument("--work", type=Path, default=Path("runs/tlm"), help="folder of the runs (default: runs/tlm)")
    result.add_argument("--steps", type=int, default=200, help="of each run (default: 200)")
    result.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    result.add_argument("--samples", type=int, default=500, help="pictures of the test split (default: 500)")
    return result


@command("benchmarks/tlm.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for name in ("steps", "seeds", "samples"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: expected at least 1, received {getattr(arguments, name)}")
    check_writable(arguments.output)
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = []
    plan = [(seed, kind) for seed in range(arguments.seeds) for kind in KINDS]
    for seed, kind in tqdm(plan, desc="runs", unit="run"):
        start, run = arguments.work / f"start-{seed}", arguments.work / f"{kind}-{seed}"
        if not start.is_dir():
            make_start(arguments.weights, seed, start)
        kept = arguments.work / f"{run.name}-{arguments.steps}-{arguments.samples}.json"
        if not kept.is_file():
            train(kind, seed, start, run, arguments.steps)
            result = {"kind": kind, "seed": seed, "weights": WEIGHTS[kind], "metrics": measure(run, arguments.samples),
                      "commit": provenance.commit()}
            with atomic_write(kept) as temporary:
                temporary.write_text(json.dumps(result))
        results.append(json.loads(kept.read_text()))
    content = {"results": results, "recipe": RECIPE, "steps": arguments.steps, "split": "test",
               "pictures": arguments.samples, "device": "cpu",
               "versions": provenance.versions("torch", "timm", "numpy", "accelerate")}
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    draw(results, arguments.output.with_suffix(".png"))
    print(table(results))
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
