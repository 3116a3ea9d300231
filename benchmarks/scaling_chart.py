"""The picture of scaling.py: a column per series; time with the prediction above, memory below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_view import MEBI, device_name
from benchmarks.scaling_cost import BATCH, PROMPTS, SIZE, Curve
from talent.files import atomic_write
from talent.model.vision import PATCH
from talent.require import require

LABELS = {PROMPTS: "prompts per picture", SIZE: "input, pixels a side", BATCH: "pictures together"}
MEASURED, MEMORY, BEFORE = "#1f5f9e", "#5fa777", "#c9ced6"
SHADES = ("#dfe4ea", "#bcd3e8", "#f3dfb4", "#f3c07c")  # of the prediction's parts from the bottom, the last on top


def predicted_parts(series: Mapping[str, Any], name: str, values: np.ndarray,
                    anchor_ms: float) -> dict[str, np.ndarray]:
    """Milliseconds of each part of the arithmetic at the values, scaled to `anchor_ms` at the anchor; parts that are
    nothing are left out. series: of a result's settings."""
    curve = Curve(name, tuple(series["terms"].values()))
    scale = anchor_ms / curve.gflop(series["anchor"])
    points = [curve.parts(value) for value in values]
    parts = {part: scale * np.array([point[part] for point in points]) for part in series["terms"]}
    return {part: milliseconds for part, milliseconds in parts.items() if milliseconds.max() > 1e-6 * anchor_ms}


def draw_chart(result: Mapping[str, Any], path: str | Path) -> None:
    """Points: medians with their 95 % intervals; dashed: what the arithmetic predicts, its parts shaded."""
    matplotlib = require("matplotlib", extra="benchmarks")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", extra="benchmarks")
    settings = result["settings"]
    names = list(settings["series"])
    figure, panels = plt.subplots(2, len(names), figsize=(4.8 * len(names), 6.6), layout="constrained", squeeze=False,
                                  height_ratios=(3, 2))
    for (above, below), name in zip(panels.T, names, strict=True):
        rows = [row for row in result["rows"] if row["facts"]["series"] == name]
        _times(above, rows, settings["series"][name], name)
        _memory(below, rows, name)
    plural = "" if settings["threads"] == 1 else "s"
    figure.suptitle(f"{result['title']}; {device_name(result['machine'])}, {settings['threads']} thread{plural}; "
                    f"{settings['image_size']} px where the size stays", fontsize=10, color="#555555")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def _times(axes: Any, rows: list[Mapping[str, Any]], series: Mapping[str, Any], name: str) -> None:
    values = [row["facts"]["value"] for row in rows]
    times = [row["stages"][series["stage"]] for row in rows]
    medians = np.array([time["p50_ms"] for time in times])
    lows, highs = (np.array([np.nan if time[key] is None else time[key] for time in times])
                   for key in ("ci_low_ms", "ci_high_ms"))
    places = np.arange(min(values), max(values) + 1, PATCH if name == SIZE else 1)
    parts = predicted_parts(series, name, places, medians[values.index(series["anchor"])])
    axes.stackplot(places, *parts.values(), labels=parts, colors=[*SHADES[:len(parts) - 1], SHADES[-1]])
    axes.plot(places, sum(parts.values()), color="#444444", linestyle="--", linewidth=1.2,
              label=f"predicted, scaled to {series['anchor']}")
    axes.errorbar(values, medians, yerr=[medians - lows, highs - medians], fmt="o", color=MEASURED, markersize=5,
                  capsize=3, label=f"{series['stage']}, measured")
    for value, median, row in zip(values, medians, rows, strict=True):
        if value != series["anchor"]:
            axes.annotate(f"{row['facts']['deviation']:+.0%}", (value, median), xytext=(-6, 6), ha="right",
                          textcoords="offset points", fontsize=8, color=MEASURED,
                          bbox={"color": "white", "alpha": 0.75, "pad": 0.8})
    axes.set_title(LABELS[name], loc="left", fontsize=11)
    axes.set_ylabel("milliseconds")
    axes.set_ylim(0, 1.12 * np.nanmax([*medians, *highs, *sum(parts.values())]))
    axes.legend(loc="upper left", frameon=False, fontsize=8, reverse=True)
    _finish(axes, values)


def _memory(axes: Any, rows: list[Mapping[str, Any]], name: str) -> None:
    """Bars of the most resident memory; what Python took before is grey."""
    values = [row["facts"]["value"] for row in rows]
    places = np.arange(len(values))
    peaks = [row["facts"]["peak_host_bytes"] for row in rows]
    if all(peak is None for peak in peaks):
        axes.text(0.5, 0.5, "memory was not measured", ha="center", va="center", transform=axes.transAxes,
                  color="#777777")
        axes.set_axis_off()
        return
    peak = np.array([0 if peak is None else peak for peak in peaks]) / MEBI
    before = np.minimum(peak, np.array([row["facts"]["python_host_bytes"] or 0 for row in rows]) / MEBI)
    axes.bar(places, before, color=BEFORE, width=0.62, label="Python and its packages")
    axes.bar(places, peak - before, bottom=before, color=MEMORY, width=0.62, label="with the network")
    for place, value in zip(places, peak, strict=True):
        axes.annotate(f"{value:.0f}" if value else "?", (place, value), xytext=(0, 3), textcoords="offset points",
                      ha="center", fontsize=8)
    axes.set_xticks(places, [str(value) for value in values])
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("most resident memory, MiB")
    axes.set_ylim(0, 1.3 * peak.max())
    axes.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)
    _finish(axes, None)


def _finish(axes: Any, values: list[int] | None) -> None:
    if values is not None:
        axes.set_xticks(values, [str(value) for value in values])
    axes.yaxis.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
