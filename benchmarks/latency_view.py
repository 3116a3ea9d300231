"""A latency result for people: a table of text, and a chart with a bar for each row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import EAGER
from benchmarks.rounds import aligned
from benchmarks.timing import FRAME, STAGES, TIMED, WHOLE
from talent.files import atomic_write
from talent.require import require

EMULATED = ("emulated: a CPU computes FP16 by casting to FP32 and back, and INT8 bundles are FP16 between their INT8 "
            "layers; these rows say nothing about a GPU")
STAGE_COLOURS = {"read": "#c9ced6", "preprocess": "#9aa7b5", "text": "#e3a13a", "vision": "#3d7fc1",
                 "postprocess": "#5fa777"}
MEBI = 2**20


def of_eager(result: Mapping[str, Any]) -> dict[str, float]:
    """By name of a row: what a frame takes (median, the expression cached) over what it takes PyTorch eager on the same
    device; rows of a device without PyTorch eager are left out."""
    eager = {row["device"]: row["stages"][FRAME]["p50_ms"] for row in result["rows"] if row["backend"] == EAGER}
    return {row["name"]: row["stages"][FRAME]["p50_ms"] / eager[row["device"]] for row in result["rows"]
            if row["device"] in eager}


def device_name(machine: Mapping[str, Any]) -> str:
    """What the numbers were measured on, in a few words: the board, the GPU, or else the processor."""
    gpu = machine["gpus"][0]["name"] if machine["gpus"] else None
    return machine["board"] or gpu or machine["cpu"]


def table(result: Mapping[str, Any]) -> str:
    """Times of every row and stage, what a row takes besides, and what was not run and why."""
    settings, shares = result["settings"], of_eager(result)
    lines = [["", "device", "from", *TIMED, "frame of eager"]]
    for row in result["rows"]:
        cells = [_percentiles(row["stages"][stage]) for stage in TIMED]
        share = f"{shares[row['name']]:.2f}" if row["name"] in shares else "-"
        lines.append([row["name"], row["device"], row["source"], *cells, share])
    text = aligned(lines, left=3)
    text.append(f"milliseconds p50/p90/p99 of {settings['rounds']} rounds x {settings['samples']} samples of "
                f"{settings['data']}, {settings['photo']} px photos, {settings['threads']} threads, "
                f"{device_name(result['machine'])}; a frame is all but reading a file and the text, which a robot "
                "computes once per expression")
    text += _further(result) + _facts(result)
    text += [f"note: {note}" for note in result["notes"]]
    return "\n".join([*text, *not_run(result)])


def not_run(result: Mapping[str, Any]) -> list[str]:
    """A line for every reason, with the rows that it keeps from running."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in result["not_run"]:
        reasons[entry["reason"]].append(entry["name"])
    return [f"not run: {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]


def _percentiles(times: Mapping[str, float]) -> str:
    return "/".join(f"{times[name]:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms"))


def _further(result: Mapping[str, Any]) -> list[str]:
    """Stages besides TIMED, where there are any."""
    stages = list(dict.fromkeys(stage for row in result["rows"] for stage in row["stages"] if stage not in TIMED))
    if not stages:
        return []
    lines = [["", *stages]]
    lines += [[row["name"], *(_percentiles(row["stages"][stage]) if stage in row["stages"] else "-"
                              for stage in stages)] for row in result["rows"]]
    return ["", *aligned(lines, left=1)]


def _facts(result: Mapping[str, Any]) -> list[str]:
    """What a row takes besides time; "-" for what is not known, which `energy_reason` and the notes explain."""
    columns = {
        "load s": ("load_seconds", lambda value: f"{value:.2f}"),
        "first ms": ("first_inference_ms", lambda value: f"{value:.1f}"),
        "host MiB": ("peak_host_bytes", lambda value: f"{value / MEBI:.0f}"),
        "GPU MiB": ("peak_gpu_bytes", lambda value: f"{value / MEBI:.0f}"),
        "ONNX MiB": ("onnx_bytes", lambda value: f"{value / MEBI:.1f}"),
        "engine MiB": ("engine_bytes", lambda value: f"{value / MEBI:.1f}"),
        "GFLOP": ("gflop", lambda value: f"{value:.2f}"),
        "GFLOP/s": ("gflop_per_second", lambda value: f"{value:.0f}"),
        "of peak": ("peak_share", lambda value: f"{value:.0%}"),
        "mJ a frame": ("energy_mj_per_frame", lambda value: f"{value:.0f}"),
        "warm-up": ("warm_up_runs", str)}
    lines = [["", *columns]]
    for row in result["rows"]:
        values = [(row["facts"].get(name), form) for name, form in columns.values()]
        lines.append([row["name"], *("-" if value is None else form(value) for value, form in values)])
    reasons = dict.fromkeys(row["facts"].get("energy_reason") for row in result["rows"])
    return ["", *aligned(lines, left=1), *filter(None, [peaks(result)]),
            *(f"no energy: {reason}" for reason in reasons if reason), ""]


def peaks(result: Mapping[str, Any]) -> str:
    """What "of peak" is a share of, as one line; empty where it was not measured."""
    measured = result["machine"].get("peak_gflop_per_second") or {}
    each = ", ".join(f"{peak:.0f} GFLOP/s ({kind})" for kind, peak in measured.items())
    return f"peak, of a product of large matrices: {each}" if each else ""


def draw_chart(result: Mapping[str, Any], path: str | Path) -> None:
    """A bar per row, its stages stacked (p50), the whole written beside it with the interval of its median."""
    matplotlib = require("matplotlib", extra="benchmarks")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", extra="benchmarks")
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.52 * len(rows)), layout="constrained")
    places, left = np.arange(len(rows)), np.zeros(len(rows))
    for stage in STAGES:
        values = np.array([row["stages"][stage]["p50_ms"] for row in rows])
        axes.barh(places, values, left=left, height=0.62, color=STAGE_COLOURS[stage], label=stage)
        left += values
    for place, end, row in zip(places, left, rows, strict=True):
        whole = row["stages"][WHOLE]
        if whole["ci_low_ms"] is not None:
            axes.plot([whole["ci_low_ms"], whole["ci_high_ms"]], [place, place], color="#1d2125", linewidth=1.5,
                      marker="|", markersize=7)
            end = max(end, whole["ci_high_ms"])
        axes.annotate(f"{whole['p50_ms']:.1f} ms", (end, place), xytext=(8, 0), textcoords="offset points", va="center",
                      fontweight="bold", bbox={"color": "white", "pad": 1})
        left[place] = end
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * left.max())
    figure.supxlabel("milliseconds: medians of the stages; bold: median of the whole, with its 95 % interval",
                     fontsize=10)
    threads = result["settings"]["threads"]
    axes.set_title(f"{device_name(result['machine'])}, {threads} thread{'' if threads == 1 else 's'}", loc="left",
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
