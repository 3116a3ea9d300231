"""Latency from a photo and a sentence to the mask, stage by stage, of every backend that runs here.

All rows see the same samples. They are measured in rounds, one pass of each row per round, the order rotated, so that a
clock that drops or another program that starts hits all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

# Before the OpenMP of PyTorch is loaded: threads that spin after their work take the cores from the row that comes next
# (seen on two cores: 113 ms instead of 29 ms for the same row).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are scripts, not installed

from benchmarks.rounds import aligned, rotations  # noqa: E402
from deploy.bundle import Bundle  # noqa: E402
from deploy.runtime.gpu import gpu_architecture  # noqa: E402
from deploy.runtime.segmenter import Segmentation, Segmenter  # noqa: E402
from deploy.runtime.tensorrt import RUNTIMES  # noqa: E402
from talent import provenance  # noqa: E402
from talent.data.registry import SHAPES, open_dataset  # noqa: E402
from talent.data.sample import Sample  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.files import atomic_write  # noqa: E402
from talent.image import Letterbox, check_image_path, preprocess  # noqa: E402
from talent.require import require  # noqa: E402

STAGES = ("preprocess", "text", "vision", "postprocess")
FRAME = "frame"  # what a frame costs while the expression stays: all but the text
WHOLE = "whole"
TIMED = (*STAGES, FRAME, WHOLE)
PERCENTILES = (50, 90, 99)
PHOTO = 640  # side of the photos in pixels, about what a camera gives: pre- and postprocessing depend on it
WARM_UP = 3  # samples per row that are not counted: the first runs allocate, and TensorRT-RTX compiles its kernels
EAGER, MERGED, ONNX_RUNTIME = "PyTorch eager", "PyTorch merged", "ONNX Runtime"
BACKENDS = {"onnxruntime": ONNX_RUNTIME, "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
EMULATED = ("emulated: a CPU computes FP16 by casting to FP32 and back, and INT8 bundles are FP16 between their INT8 "
            "layers; these rows say nothing about a GPU")
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "numpy",
            "opencv-python-headless")
STAGE_COLOURS = {"preprocess": "#9aa7b5", "text": "#e3a13a", "vision": "#3d7fc1", "postprocess": "#5fa777"}
EXAMPLE = """example:
  python benchmarks/latency.py bundle-fp16/ bundle-int8/ --checkpoint runs/mine/best --json latency.json
"""


class Stages(Protocol):
    """What is timed: the four steps of a Segmenter."""

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, Letterbox]: ...

    def encode(self, sentence: str) -> Any: ...

    def infer(self, tensor: np.ndarray, prompt: Any) -> np.ndarray: ...

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Segmentation: ...


class TorchSegmenter:
    """A PyTorch network as `Stages`: the runtime's pre- and postprocessing around the model's own two halves."""

    def __init__(self, model, tokenizer, *, image_size: int, postprocessor: Segmenter, device: str) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.tokenizer, self.image_size = tokenizer, image_size
        self.postprocess = postprocessor.postprocess
        self._torch = require("torch", extra="train")

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        return preprocess(image, self.image_size)

    def encode(self, sentence: str):
        torch = self._torch
        with torch.inference_mode():
            tokens = torch.from_numpy(self.tokenizer([sentence])).to(self.device)
            prompt = self.model.prompt(self.model.text(tokens))
            if self.device == "cuda":
                torch.cuda.synchronize()  # else the work would be timed in the next stage
        return prompt

    def infer(self, tensor: np.ndarray, prompt) -> np.ndarray:
        with self._torch.inference_mode():
            logits, _ = self.model.segment(self._torch.from_numpy(tensor).to(self.device), prompt)
            return logits.float().cpu().numpy()


@dataclass(frozen=True)
class Row:
    """One row of the table. device: cpu or cuda. source: the bundle or checkpoint it comes from."""

    backend: str
    precision: str
    device: str
    source: str
    emulated: bool = False

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision.upper()}{' (emulated)' if self.emulated else ''}"


@dataclass(frozen=True)
class NotRun:
    """A row that could not be measured, and why."""

    backend: str
    precision: str
    source: str
    reason: str


class Contenders:
    """Everything that is measured, opened; a context manager that closes it."""

    def __init__(self, bundles: Sequence[Bundle], *, checkpoint: Path | None, threads: int) -> None:
        self.rows: dict[Row, Stages] = {}
        self.not_run: list[NotRun] = []
        self._stack = contextlib.ExitStack()
        try:
            segmenters = self._open_bundles(bundles, threads)
            self._open_checkpoint(checkpoint, segmenters)
        except BaseException:
            self._stack.close()
            raise
        self.rows.update(segmenters)

    def __enter__(self) -> Contenders:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _open_bundles(self, bundles: Sequence[Bundle], threads: int) -> dict[Row, Segmenter]:
        segmenters = {}
        for backend in ("onnxruntime", *RUNTIMES):
            for bundle in bundles:
                on_cpu = backend == "onnxruntime"
                row = Row(BACKENDS[backend], bundle.precision, "cpu" if on_cpu else "cuda", str(bundle.directory),
                          emulated=on_cpu and bundle.precision != "fp32")
                try:
                    # no prompt is kept: the text is to be computed whenever it is timed
                    segmenter = Segmenter(bundle, backend, threads=threads, prompts=0)
                    segmenters[row] = self._stack.enter_context(segmenter)
                except UserError as error:
                    self.not_run.append(NotRun(row.backend, row.precision, row.source, str(error)))
        if not segmenters:
            raise UserError(f"no bundle runs here: {self.not_run[0].reason}")
        return segmenters

    def _open_checkpoint(self, path: Path | None, segmenters: dict[Row, Segmenter]) -> None:
        if path is None:
            self.not_run += [NotRun(backend, "fp32", "", "pass --checkpoint") for backend in (EAGER, MERGED)]
            return
        from talent.checkpoint import load_checkpoint  # torch, which the bundles do not need
        from talent.image_size import resized
        from talent.model.lora import merge_lora

        sizes = sorted({segmenter.bundle.image_size for segmenter in segmenters.values()})
        if len(sizes) > 1:
            raise UserError(f"expected bundles of one image size beside --checkpoint, received {sizes} pixels; measure "
                            "one size at a time")
        torch = require("torch", extra="train")
        checkpoint = resized(load_checkpoint(path), sizes[0])
        postprocessor = next(iter(segmenters.values()))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        models = {EAGER: checkpoint.model}
        if checkpoint.lora:
            models[MERGED] = copy.deepcopy(checkpoint.model)
            merge_lora(models[MERGED])
        else:
            self.not_run.append(NotRun(MERGED, "fp32", str(path), "this checkpoint has no LoRA factors to merge"))
        for backend, model in models.items():
            self.rows[Row(backend, "fp32", device, str(path))] = TorchSegmenter(
                model, checkpoint.tokenizer, image_size=checkpoint.config.image_size, postprocessor=postprocessor,
                device=device)


def run_once(stages: Stages, sample: Sample) -> tuple[float, ...]:
    """Seconds of TIMED."""
    start = time.perf_counter()
    tensor, box = stages.preprocess(sample.image)
    preprocessed = time.perf_counter()
    prompt = stages.encode(sample.expressions[0])
    encoded = time.perf_counter()
    logits = stages.infer(tensor, prompt)
    inferred = time.perf_counter()
    stages.postprocess(logits, box)
    end = time.perf_counter()
    text = encoded - preprocessed
    return preprocessed - start, text, inferred - encoded, end - inferred, end - start - text, end - start


def measure(rows: dict[Row, Stages], samples: Sequence[Sample], *, rounds: int) -> list[dict[str, Any]]:
    """Percentiles in milliseconds, one record per row and stage, over rounds x samples runs of each row."""
    times: dict[Row, list[tuple[float, ...]]] = defaultdict(list)
    names = list(rows)
    with tqdm(total=len(names) * (rounds + 1), desc="latency", unit="pass", leave=False, disable=None) as bar:
        for row in names:
            for sample in samples[:WARM_UP]:
                run_once(rows[row], sample)
            bar.update()
        for turn in rotations(names, rounds):
            for row in turn:
                times[row] += [run_once(rows[row], sample) for sample in samples]
                bar.update()
    records = []
    for row in names:
        milliseconds = 1000 * np.percentile(times[row], PERCENTILES, axis=0).T  # [stage, percentile]
        for stage, values in zip(TIMED, milliseconds, strict=True):
            percentiles = {f"p{q}_ms": float(value) for q, value in zip(PERCENTILES, values, strict=True)}
            records.append({**asdict(row), "stage": stage, **percentiles})
    return records


def benchmark(bundles: Sequence[Bundle | str | Path], *, checkpoint: str | Path | None = None, data: str = "shapes",
              samples: int = 20, rounds: int = 5, threads: int | None = None) -> dict[str, Any]:
    """The whole report, as `--json` writes it. threads: None for one per core. Raises UserError for bad input."""
    for name, value in (("samples", samples), ("rounds", rounds), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise UserError(f"--{name}: expected at least 1, received {value}")
    opened = [bundle if isinstance(bundle, Bundle) else Bundle.load(bundle) for bundle in bundles]
    if not opened:
        raise UserError("expected at least one bundle; make one with talent-export")
    scenes = open_dataset(data, split="test", size=PHOTO, length=samples)
    threads = threads or _cores()
    checkpoint = Path(checkpoint) if checkpoint else None
    with _limited(threads), Contenders(opened, checkpoint=checkpoint, threads=threads) as contenders:
        latency = measure(contenders.rows, [scenes[i] for i in range(samples)], rounds=rounds)
        not_run = [asdict(entry) for entry in contenders.not_run]
    return {"latency": latency, "not_run": not_run, "device": describe_device(), "threads": threads, "data": data,
            "samples": samples, "rounds": rounds, "photo": PHOTO,
            "bundles": [{"name": str(bundle.directory), "precision": bundle.precision, "preset": bundle.preset,
                         "image_size": bundle.image_size, "commit": bundle.commit, "source": dict(bundle.source)}
                        for bundle in opened],
            "commit": provenance.commit(), "versions": provenance.versions(*PACKAGES)}


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """PyTorch (where it is installed) and OpenCV with this many threads; afterwards as before."""
    try:
        import torch
    except ModuleNotFoundError:
        torch = None
    before = cv2.getNumThreads(), torch and torch.get_num_threads()
    cv2.setNumThreads(threads)
    if torch:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        if torch:
            torch.set_num_threads(before[1])


def describe_device() -> dict[str, Any]:
    """Processor, clocks and power mode: what a number needs so that somebody else can repeat it."""
    return {"cpu": _cpu_name(), "cores": _cores(),
            "cpu_governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            "board": _first_line(Path("/proc/device-tree/model")), "power_mode": _output("nvpmodel", "-q"),
            "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
                           "--format=csv,noheader") or gpu_architecture()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip("\0\n").partition("\n")[0] or None
    except OSError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return " / ".join(done.stdout.split("\n")).strip(" /") or None if done.returncode == 0 else None


def by_row(report: dict[str, Any]) -> dict[Row, dict[str, dict[str, float]]]:
    """Row -> stage -> {"p50_ms", "p90_ms", "p99_ms"}, in the order of measurement."""
    rows: dict[Row, dict[str, dict[str, float]]] = defaultdict(dict)
    for record in report["latency"]:
        row = Row(*(record[name] for name in ("backend", "precision", "device", "source", "emulated")))
        rows[row][record["stage"]] = {f"p{q}_ms": record[f"p{q}_ms"] for q in PERCENTILES}
    return dict(rows)


def of_eager(rows: dict[Row, dict[str, dict[str, float]]]) -> dict[Row, float]:
    """What a frame takes (median, the expression cached) over what it takes PyTorch eager on the same device."""
    eager = {row.device: stages[FRAME]["p50_ms"] for row, stages in rows.items() if row.backend == EAGER}
    return {row: stages[FRAME]["p50_ms"] / eager[row.device] for row, stages in rows.items() if row.device in eager}


def table(report: dict[str, Any]) -> str:
    """The report as text: a line per row, then what was not run and why."""
    lines = [["", "device", "from", *TIMED, "frame of eager"]]
    rows = by_row(report)
    shares = of_eager(rows)
    for row, stages in rows.items():
        cells = ["/".join(f"{value:.1f}" for value in stages[stage].values()) for stage in TIMED]
        lines.append([row.label, row.device, row.source, *cells, f"{shares[row]:.2f}" if row in shares else "-"])
    text = aligned(lines, left=3)
    text.append(f"milliseconds p50/p90/p99 of {report['rounds']} rounds x {report['samples']} samples of "
                f"{report['data']}, {report['photo']} px photos, {report['threads']} threads, "
                f"{report['device']['gpu'] or report['device']['cpu']}; a frame is all but the text, which a robot "
                "computes once per expression")
    if any(record["emulated"] for record in report["latency"]):
        text.append(EMULATED)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in report["not_run"]:
        reasons[entry["backend"], entry["reason"]].append(entry["precision"].upper())
    text += [f"not run: {backend} {', '.join(precisions)}: {reason}"
             for (backend, reason), precisions in reasons.items()]
    return "\n".join(text)


def draw_chart(report: dict[str, Any], path: str | Path) -> None:
    """A bar per row, its stages stacked (p50), the whole written beside it."""
    matplotlib = require("matplotlib", extra="benchmarks")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", extra="benchmarks")
    rows = by_row(report)
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.52 * len(rows)), layout="constrained")
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):  # two bundles of one precision
        labels = [f"{row.label}\n{row.source}" for row in rows]
    places, left = np.arange(len(rows)), np.zeros(len(rows))
    for stage in STAGES:
        values = np.array([stages[stage]["p50_ms"] for stages in rows.values()])
        axes.barh(places, values, left=left, height=0.62, color=STAGE_COLOURS[stage], label=stage)
        left += values
    wholes = [stages[WHOLE] for stages in rows.values()]
    for place, end, whole in zip(places, left, wholes, strict=True):
        axes.annotate(f"{whole['p50_ms']:.1f} ms", (end, place), xytext=(6, 0), textcoords="offset points", va="center",
                      fontweight="bold", bbox={"color": "white", "pad": 1})
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * left.max())
    axes.set_xlabel("milliseconds, median; bold: the whole way from photo and sentence to mask")
    axes.set_title(f"{report['device']['gpu'] or report['device']['cpu']}, {report['threads']} threads", loc="left",
                   fontsize=10, color="#555555")
    axes.xaxis.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper left", ncols=len(STAGES), frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="latency.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="directory that talent-export wrote")
    result.add_argument("--checkpoint", type=Path, help="checkpoint of the bundles: adds the PyTorch rows")
    result.add_argument("--data", default="shapes", help=f"samples: {', '.join(SHAPES)} (default: %(default)s)")
    result.add_argument("--samples", type=int, default=20, metavar="N", help="samples of a pass (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=5, metavar="R", help="passes per row (default: %(default)s)")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    result.add_argument("--png", type=Path, metavar="FILE", help="write a chart")
    return result


@command("latency.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.png:
        check_image_path(arguments.png)
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"cannot write {arguments.json}: the folder {arguments.json.parent} does not exist; run: "
                        f"mkdir -p {arguments.json.parent}")
    report = benchmark(arguments.bundles, checkpoint=arguments.checkpoint, data=arguments.data,
                       samples=arguments.samples, rounds=arguments.rounds, threads=arguments.threads)
    print(table(report))
    written = []
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        written.append(f"the numbers to {arguments.json}")
    if arguments.png:
        draw_chart(report, arguments.png)
        written.append(f"the chart to {arguments.png}")
    print(f"wrote {' and '.join(written)}" if written else "wrote nothing; add --json latency.json to keep the numbers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
