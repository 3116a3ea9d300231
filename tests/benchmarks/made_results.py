"""Result files as the benchmarks write them, with numbers made up, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results_file
from benchmarks.contenders import ONNX_RUNTIME
from benchmarks.intervals import summary
from benchmarks.peers import OFFICIAL, PLAIN
from benchmarks.timing import FRAME, TIMED, WHOLE

MACHINE = {"cpu": "Processor <8>", "cores": 2, "cpu_governor": "performance", "board": None, "jetpack": None,
           "power_mode": None, "gpus": [], "driver": None, "before": {"gpus": [], "load_average": [0.1, 0.2, 0.3]},
           "memory_bytes": 8_000_000_000, "unknown": {"board": "no Jetson"}}
SHA256 = "5f" * 32  # of the weights that everything here was exported from
SHARES = {"read": 0.02, "preprocess": 0.005, "text": 0.1, "vision": 0.87, "postprocess": 0.005, FRAME: 0.88, WHOLE: 1.0}


def rounds_around(milliseconds: float, *, seed: int = 0, rounds: int = 6, runs: int = 4) -> list[list[float]]:
    """Times that scatter by a percent."""
    return (milliseconds * np.random.default_rng(seed).normal(1, 0.01, (rounds, runs))).tolist()


def timed_row(backend: str, whole_ms: float, *, precision: str = "fp32", device: str = "cpu", source: str = "",
              emulated: bool = False, seed: int = 0, **facts: Any) -> dict[str, Any]:
    """A row of latency.py whose stages are SHARES of the whole."""
    stages = {stage: summary(rounds_around(SHARES[stage] * whole_ms, seed=seed)) for stage in TIMED}
    return results_file.row(f"{backend} {precision.upper()}", backend=backend, precision=precision, device=device,
                            source=source, emulated=emulated, stages=stages, facts=facts)


def result(benchmark: str, rows: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any], title: str = "",
           created: str = "2026-11-23T05:00:00+00:00", dirty: bool = False, **others: Any) -> dict[str, Any]:
    """Of a commit and a day that do not change."""
    made = results_file.new(benchmark, title=title or benchmark, rows=rows, settings=settings, machine=MACHINE,
                            command=[f"benchmarks/{benchmark}.py"], **others)
    return {**made, "commit": "0123456789abcdef", "dirty": dirty, "created": created,
            "versions": {"python": "3.11.7", "torch": "2.99.1", "onnxruntime": "1.99.2", "tensorrt": "not installed"}}


def networks(bundles: Mapping[str, tuple[str, int]], sha256: str = SHA256) -> dict[str, Any]:
    """As measured.networks: bundles, (preset, image size) by directory, and the checkpoint "weights" of the first one,
    all with weights of the same SHA-256."""
    described = [{"name": name, "precision": "fp32", "preset": preset, "image_size": size, "commit": "89abcdef",
                  "sha256": sha256} for name, (preset, size) in bundles.items()]
    preset, size = next(iter(bundles.values()))
    return {"bundles": described, "checkpoint": {"name": "weights", "preset": preset, "image_size": size,
                                                 "sha256": sha256}}


NOT_RUN = [{"name": f"TensorRT {precision}", "reason": "no <GPU> here", "backend": "TensorRT", "precision":
            precision.lower()} for precision in ("FP16", "INT8")]


def base_rows(*, ours: float = 1000, official: float = 2000, plain: float = 1250) -> list[dict[str, Any]]:
    """The rows of base that targets are about; milliseconds of their frames."""
    return [timed_row(OFFICIAL, official, source="weights", seed=1), timed_row(PLAIN, plain, source="weights", seed=2),
            timed_row(ONNX_RUNTIME, ours, source="base", seed=3, load_seconds=1.25, peak_host_bytes=300 * 2**20)]


def latency_result(rows: Sequence[Mapping[str, Any]], *, threads: int = 2, title: str = "Latency, base at 448 px",
                   bundles: Mapping[str, tuple[str, int]] | None = None, sha256: str = SHA256,
                   machine: Mapping[str, Any] = MACHINE, **others: Any) -> dict[str, Any]:
    """bundles: (preset, image size) by directory."""
    bundles = {"base": ("base", 448)} if bundles is None else bundles
    settings = {"threads": threads, "rounds": 6, "samples": 4, "photo": 640, "data": "shapes",
                "image_size": next(iter(bundles.values()))[1], **networks(bundles, sha256)}
    return {**result("latency", rows, settings=settings, title=title, **others), "machine": dict(machine)}


def changes(worst: float, best: float) -> dict[str, float]:
    """As parity_rows.distribution, of changes of IoU between these."""
    middle = (worst + best) / 2
    return {"mean": middle, "p0": worst, "p5": 0.75 * worst, "p50": middle, "p95": 0.75 * best, "p100": best,
            "worse_0.01": 0.25, "worse_0.05": 0.125, "worse_0.1": 0.0625}


def parity_result(scores: Mapping[tuple[str, str, str], float], *, bundles: Mapping[str, tuple[str, int]] | None = None,
                  sha256: str = SHA256, data: str = "shapes", threshold: float | None = None,
                  **others: Any) -> dict[str, Any]:
    """scores: mIoU by (backend, precision, source), of which the first is the reference."""
    rows = [results_file.row(f"{backend} {precision.upper()}", backend=backend, precision=precision, device="cpu",
                             source=source, facts={"miou": miou, "oiou": miou - 0.01, "nta": None,
                                                   "delta": changes(-0.2 * index, 0.08 * index)})
            for index, ((backend, precision, source), miou) in enumerate(scores.items())]
    settings = {"data": data, "split": "test", "samples": 40, "threshold": threshold, "expressions": 112,
                "reference": rows[0]["name"] if rows else "", **networks(bundles or {"base": ("base", 448)}, sha256)}
    return result("parity", rows, settings=settings, title="Accuracy", **others)


def scaling_result(**others: Any) -> dict[str, Any]:
    """A curve of prompts that costs 10 ms once and 20 ms each, and was predicted as 15 + 15."""
    rows = []
    for value in (1, 2, 4):
        took, predicted = 10 + 20 * value, 15 + 15 * value
        times = {stage: summary(rounds_around(took + more, seed=value)) for stage, more in (("vision", 0), (FRAME, 2))}
        rows.append(results_file.row(
            f"prompts {value}", backend="ONNX Runtime", precision="fp32", device="cpu", source="base", stages=times,
            facts={"series": "prompts", "value": value, "predicted_ms": predicted, "deviation": took / predicted - 1,
                   "gflop": predicted / 10, "gflop_per_second": 100.0, "peak_host_bytes": 2**20 * (90 + 10 * value),
                   "python_host_bytes": 2**26, "peak_gpu_bytes": None}))
    series = {"prompts": {"values": [1, 2, 4], "stage": "vision", "anchor": 1, "largest_deviation": 0.2,
                          "terms": {"once a picture": 1.5, "for each expression": 1.5}, "once_ms": 10.0,
                          "each_ms": 20.0}}
    return result("scaling", rows, settings={"threads": 2, "rounds": 6, "samples": 4, "series": series,
                                                **networks({"base": ("base", 448)})},
                  title="Cost as work grows", **others)
