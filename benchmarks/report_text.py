"""How numbers of result files are written for people: in pages, in Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.machine import describe

MEBI = 2**20
Format = Callable[[Any], str]


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mebibytes(value: float) -> str:
    return f"{value / MEBI:.1f}" if value < 100 * MEBI else f"{value / MEBI:.0f}"


def score(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    return f"{value:+.1%}"


def interval(low: float | None, high: float | None, form: Format) -> str:
    """"1.2 - 1.4"; empty where one round tells nothing of the others."""
    return "" if low is None or high is None else f"{form(low)} – {form(high)}"


FACTS: dict[str, tuple[str, Format]] = {
    "miou": ("mIoU", score), "oiou": ("oIoU", score), **{f"pr@{at}": (f"Pr@{at}", score) for at in
                                                        ("0.5", "0.6", "0.7", "0.8", "0.9")},
    "nta": ("NTA ratio", score), "nta_rate": ("NTA rate", score), "masks_agree": ("masks agree", score),
    "masks_agree_min": ("masks agree at least", score), "worst_delta": ("worst change of IoU", "{:+.4f}".format),
    "expressions": ("sentences", str), "gflop": ("GFLOP", "{:.2f}".format),
    "gflop_per_second": ("GFLOP/s", "{:.0f}".format), "peak_share": ("of peak", "{:.0%}".format),
    "predicted_ms": ("predicted ms", milliseconds),
    "deviation": ("deviation", signed), "load_seconds": ("load s", "{:.2f}".format),
    "first_inference_ms": ("first answer ms", milliseconds), "peak_host_bytes": ("host memory MiB", mebibytes),
    "peak_gpu_bytes": ("GPU memory MiB", mebibytes), "onnx_bytes": ("ONNX MiB", mebibytes),
    "weights_bytes": ("weights MiB", mebibytes), "engine_bytes": ("engines MiB", mebibytes),
    "energy_mj_per_frame": ("mJ a frame", "{:.0f}".format)}
"""Facts of rows that people look at, in this order: the head of their column and how they are written."""


def facts_known(rows: list[Mapping[str, Any]]) -> list[str]:
    """The names of FACTS that at least one row knows."""
    return [name for name in FACTS if any(row["facts"].get(name) is not None for row in rows)]


def place_of(result: Mapping[str, Any]) -> str:
    """The machine in a line: "AMD EPYC, 2 cores, 2 threads"."""
    facts = describe(result["machine"])
    threads = result["settings"].get("threads")
    parts = [facts["board"], facts["power_mode"], facts["gpu"], facts["cpu"],
             f"{facts['cores']} cores", threads and f"{threads} thread{'' if threads == 1 else 's'}",
             facts["cpu_governor"] and f"governor {facts['cpu_governor']}"]
    return ", ".join(str(part) for part in parts if part)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings and machine as lines: {"before: load_average": "0.1, 0.2, 0.3", ...}; what is not known is left out."""
    lines: dict[str, str] = {}
    for name, item in value.items():
        label = f"{prefix}{name}"
        if isinstance(item, Mapping):
            lines |= flat(item, f"{label}: ")
        elif isinstance(item, list) and any(isinstance(one, Mapping) for one in item):
            for number, one in enumerate(item, 1):
                lines |= flat(one, f"{label} {number}: ")
        elif isinstance(item, list) and item:
            lines[label] = ", ".join(map(str, item))
        elif item is not None and item != []:
            lines[label] = f"{item:,}" if name.endswith("_bytes") and isinstance(item, int) else str(item)
    return lines
