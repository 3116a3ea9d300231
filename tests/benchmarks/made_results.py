"""Result files as the benchmarks write them, with numbers made up, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results_file
from benchmarks.intervals import summary
from benchmarks.timing import FRAME, TIMED, WHOLE

MACHINE = {"cpu": "Processor <8>", "cores": 2, "cpu_governor": "performance", "board": None, "jetpack": None,
           "power_mode": None, "gpus": [], "driver": None, "before": {"gpus": [], "load_average": [0.1, 0.2, 0.3]},
           "memory_bytes": 8_000_000_000, "unknown": {"board": "no Jetson"}}
SHARES = {"read": 0.02, "preprocess": 0.005, "text": 0.1, "vision": 0.87, "postprocess": 0.005, FRAME: 0.88, WHOLE: 1.0}


def rounds_around(milliseconds: float, *, seed: int = 0, rounds: int = 5, runs: int = 4) -> list[list[float]]:
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


def latency_result(rows: Sequence[Mapping[str, Any]], *, threads: int = 2, title: str = "Latency, base at 448 px",
                   bundles: Mapping[str, tuple[str, int]] | None = None, **others: Any) -> dict[str, Any]:
    """bundles: (preset, image size) by directory."""
    described = [{"name": name, "precision": "fp32", "preset": preset, "image_size": size}
                 for name, (preset, size) in ({"base": ("base", 448)} if bundles is None else bundles).items()]
    settings = {"threads": threads, "rounds": 5, "samples": 4, "photo": 640, "data": "shapes", "bundles": described}
    return result("latency", rows, settings=settings, title=title, **others)


def parity_result(scores: Mapping[tuple[str, str, str], float], **others: Any) -> dict[str, Any]:
    """scores: mIoU by (backend, precision, source)."""
    rows = [results_file.row(f"{backend} {precision.upper()}", backend=backend, precision=precision, device="cpu",
                             source=source, facts={"miou": miou, "oiou": miou - 0.01, "nta": None})
            for (backend, precision, source), miou in scores.items()]
    return result("parity", rows, settings={"data": "shapes", "samples": 40}, title="Accuracy", **others)


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
    return result("scaling", rows, settings={"threads": 2, "rounds": 5, "samples": 4, "series": series},
                  title="Cost as work grows", **others)
