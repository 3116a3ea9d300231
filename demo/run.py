"""The whole way on a CPU: evaluate, LoRA-tune, merge, export, build engines, compare. `make demo` runs it.

Leaves demo/report.html, demo/report.json and, in demo/out, the tuned checkpoint and the three bundles. Fails where a
required figure is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as benchmarks/latency.py, before PyTorch is loaded

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks and demo are scripts, not installed

from benchmarks import latency  # noqa: E402
from demo.report import ANSWERS, Scene, score, write_page  # noqa: E402
from deploy import Bundle, Segmenter, export  # noqa: E402
from deploy.bundle import GRAPHS  # noqa: E402
from deploy.evaluate import bundle_predictor  # noqa: E402
from deploy.pipeline import PACKAGES  # noqa: E402
from talent import provenance, train  # noqa: E402
from talent.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from talent.data.registry import open_dataset  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.evaluate import Predict, evaluate, torch_predictor  # noqa: E402
from talent.files import atomic_write  # noqa: E402
from talent.image import binarise, preprocess, probability_on_photo  # noqa: E402
from talent.model.lora import parameter_counts, select_trainable  # noqa: E402

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))  # short paths in what is printed and kept
DEMO = ROOT / "demo"
DATA = "shapes-shifted"
OUT, REPORT, PAGE = DEMO / "out", DEMO / "report.json", DEMO / "report.html"
TUNED = OUT / "tuning" / train.BEST
PRECISIONS = {"fp32": ["--no-engine", "--allow-drop"], "fp16": ["--allow-drop"], "int8": []}
SCENES, SCENE_SIZE = 8, 448  # pictures on the page, and their side in pixels
MIOU_GAIN, FP16_LOSS, INT8_LOSS = 0.10, 0.002, 0.01
STEPS = 7
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


class Steps:
    """Numbered headings, and how long it all took."""

    def __init__(self) -> None:
        self.started, self.number = time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def __call__(self, title: str) -> None:
        self.number += 1
        print(f"\n=== {self.number}/{STEPS}  {title}  [{self.seconds:.0f} s]", flush=True)


class Answers:
    """Asks networks the same questions: mIoU on the test split, and masks of the scenes on the page."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.scenes = [open_dataset(DATA, split="test", size=SCENE_SIZE, length=SCENES)[i] for i in range(SCENES)]
        self.masks: dict[str, list[np.ndarray]] = {}
        self.miou: dict[str, float] = {}

    def ask(self, key: str, predict: Predict, checkpoint: Checkpoint) -> None:
        """Of every sentence for the number; of the first sentence of each scene for the page."""
        size, tokenizer = checkpoint.config.image_size, checkpoint.tokenizer
        test = open_dataset(DATA, split="test", size=size, length=self.samples)
        metrics = evaluate(predict, tokenizer, test, image_size=size, batch_size=4,
                           threshold=checkpoint.config.threshold, label=ANSWERS[key])
        self.miou[key] = metrics.result()["mIoU"]
        self.masks[key] = []
        for sample in self.scenes:
            image, box = preprocess(sample.image, size)
            logits = predict(image, tokenizer([sample.expressions[0]]))
            self.masks[key].append(binarise(probability_on_photo(logits[0, 0], box),
                                                  checkpoint.config.threshold))
        print(f"{ANSWERS[key]}: mIoU {self.miou[key]:.4f} on {len(metrics)} sentences about {self.samples} pictures")

    def for_page(self) -> list[Scene]:
        return [Scene(sample, {key: masks[i] for key, masks in self.masks.items()})
                for i, sample in enumerate(self.scenes)]


def run_command(name: str, main: Callable[[Sequence[str]], int], *arguments: str | Path) -> None:
    """One of the project's commands in this process. Raises UserError when it fails."""
    arguments = tuple(map(str, arguments))
    print("$", name, *arguments, flush=True)
    if code := main(arguments):
        raise UserError(f"{name} failed with exit code {code}; its message is above")


def checks(report: Mapping[str, Any], bundles: Mapping[str, Bundle]) -> list[dict[str, Any]]:
    """The required figures: what was measured, what is required, whether it holds."""
    miou, merge, allowed = report["miou"], report["merge_max_abs"], report["merge_allowed"]
    gain = miou["after"] - miou["before"]
    found = [("mIoU gained by LoRA tuning", f"{gain:+.4f}", f"at least {MIOU_GAIN:+.2f}", gain >= MIOU_GAIN),
             ("largest change of a logit by merging LoRA", f"{merge:.1e}", f"at most {allowed:.0e}", merge <= allowed)]
    for precision, bound in (("fp16", FP16_LOSS), ("int8", INT8_LOSS)):
        lost = miou["after"] - miou[precision]
        found.append((f"mIoU lost by {precision.upper()}", f"{lost:+.4f}", f"at most {bound}", lost <= bound))
    for precision in ("fp16", "int8"):
        built = {engine.graph for engine in bundles[precision].engines if engine.bytes > 0 and engine.seconds > 0}
        found.append((f"engines of the {precision.upper()} bundle", " + ".join(sorted(built)) or "none",
                      " + ".join(GRAPHS), built == set(GRAPHS)))
    return [dict(zip(("name", "received", "expected", "passed"), check, strict=True)) for check in found]


def trainable_share(checkpoint: Checkpoint) -> tuple[int, int]:
    """(trainable, total) parameters of the run that wrote this checkpoint."""
    settings = checkpoint.training
    select_trainable(checkpoint.model, tune=settings["tune"], train_heads=settings["train_heads"])
    return parameter_counts(checkpoint.model)


def print_results(report: Mapping[str, Any], latency_report: Mapping[str, Any]) -> None:
    """Accuracy beside latency, then the required figures."""
    rows = {(row["backend"], row["precision"]): row for row in latency_report["rows"]}
    shown = [("before", latency.EAGER, "fp32"), ("after", latency.EAGER, "fp32"), ("after", latency.MERGED, "fp32"),
             *((precision, latency.ONNX_RUNTIME, precision) for precision in PRECISIONS)]
    print(f"\n{'':32}{'mIoU':>8}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}")
    for key, backend, precision in shown:
        row = rows[backend, precision]
        if key == "before":  # the network before tuning was not timed: it has no LoRA factors
            print(f"{'before tuning':32}{score(report['miou'][key]):>8}")
        else:
            times = (row["stages"][latency.WHOLE][name] for name in PERCENTILES)
            print(f"{row['name']:32}{score(report['miou'][key]):>8}" + "".join(f"{value:>10.1f}" for value in times))
    print(f"\n{'required figure':44}{'measured':>16}{'required':>18}")
    for check in report["checks"]:
        print(f"{check['name']:44}{check['received']:>16}{check['expected']:>18}  "
              f"{'pass' if check['passed'] else 'FAIL'}")
    for engine in report["engines"]:
        print(f"engine {engine['graph']} {engine['precision'].upper()}: {engine['runtime']} {engine['version']}, "
              f"{engine['bytes'] / 1e6:.2f} MB, built in {engine['seconds']:.1f} s")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="demo/run.py", description=__doc__.partition("\n")[0],
                                     epilog="example:\n  python demo/run.py --samples 50",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--checkpoint", type=Path, default=ROOT / "weights" / "tiny",
                        help="what to tune (default: weights/tiny)")
    result.add_argument("--recipe", type=Path, default=DEMO / "recipe.yaml",
                        help="settings of the tuning (default: demo/recipe.yaml)")
    result.add_argument("--samples", type=int, default=150, metavar="N",
                        help="test pictures that accuracy is measured on (default: %(default)s)")
    return result


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.recipe.is_file():
        raise UserError(f"--recipe: no such file: {arguments.recipe}")
    if arguments.samples < 1:
        raise UserError(f"--samples: expected at least 1, received {arguments.samples}")
    original = load_checkpoint(arguments.checkpoint)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    step, answers = Steps(), Answers(arguments.samples)

    step("Before: the network on a kind of scene that it has never seen")
    answers.ask("before", torch_predictor(original.model), original)

    step("LoRA tuning")
    run_command("talent-train", train.main, "--config", arguments.recipe, "--init", arguments.checkpoint,
                "-o", TUNED.parent)

    step("After: the same test split")
    tuned = load_checkpoint(TUNED)
    answers.ask("after", torch_predictor(tuned.model), tuned)

    step("Merge, export to ONNX, build engines")
    bundles = {}
    for precision, options in PRECISIONS.items():
        # What a precision loses is judged below, on the test split; INT8 chooses its layers within its budget.
        output = OUT / f"bundle-{precision}"
        run_command("talent-export", export.main, TUNED, f"--{precision}", "-o", output, "--parity", "32",
                    *options)
        bundles[precision] = Bundle.load(output)
        if bundles[precision].precision != precision:
            raise UserError(f"expected the demo's network to be exported to {precision.upper()}, received "
                            f"{bundles[precision].precision.upper()}: its training went wrong, or INT8 did; the "
                            "ranking above says which blocks lose most")

    step("The bundles on the same test split")
    for precision, bundle in bundles.items():
        with Segmenter(bundle, backend="onnxruntime") as segmenter:
            answers.ask(precision, bundle_predictor(segmenter), tuned)

    step("Latency")
    timing = latency.benchmark(list(bundles.values()), checkpoint=TUNED, data=DATA, in_own_process=False,
                               command=["demo/run.py"])
    print(latency.table(timing))

    step("Report")
    trainable, total = trainable_share(tuned)
    engine_fields = ("graph", "precision", "runtime", "version", "bytes", "seconds")
    report = {
        "miou": answers.miou,
        "merge_max_abs": max(bundle.source["merge_max_abs"] for bundle in bundles.values()),
        "merge_allowed": min(bundle.source["merge_allowed"] for bundle in bundles.values()),
        "engines": [{name: getattr(engine, name) for name in engine_fields}
                    for bundle in bundles.values() for engine in bundle.engines],
        "latency": [{"backend": row["backend"], "precision": row["precision"], "stage": stage,
                     **{name: times[name] for name in PERCENTILES}}
                    for row in timing["rows"] for stage, times in row["stages"].items()],
        "trainable_parameters": trainable, "total_parameters": total,
        "seconds": step.seconds, "commit": provenance.commit(), "versions": provenance.versions(*PACKAGES),
        "device": latency.describe(timing["machine"])}
    report["checks"] = checks(report, bundles)
    write_json(REPORT, report)
    write_json(OUT / "latency.json", timing)
    write_page(PAGE, report, scenes=answers.for_page(), latency=timing)
    print_results(report, timing)
    print(f"\nwrote {PAGE} and {REPORT} in {step.seconds:.0f} s")
    return 0 if all(check["passed"] for check in report["checks"]) else 1


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
