"""The picture of scaling.py: a column per series; time with the prediction above, memory below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency_view import MEBI, device_name
from benchmarks.scaling_cost import LABELS, Curve
from talent.files import atomic_write
from talent.require import require

MEASURED, MEMORY, BEFORE = "#1f5f9e", "#5fa777", "#c9ced6"
PLACES = 200  # of a predicted curve
ROOM = 1 / 12  # of an axis, that a number takes
LEGEND, LINE = 0.6, 0.06  # of a panel: the width of its legend, the height of a line of it
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


def spread(places: Sequence[float]) -> list[int]:
    """Which of some places on an axis have room for a number: the last, and going down each that is far enough from the
    one before. places: in ascending order."""
    least = ROOM * (places[-1] - places[0])
    kept = [len(places) - 1]
    for index in range(len(places) - 2, -1, -1):
        if places[kept[-1]] - places[index] >= least:
            kept.append(index)
    return kept[::-1]


def draw_chart(result: Mapping[str, Any], path: str | Path) -> None:
    """Points: medians with their 95 % intervals; dashed: what the arithmetic predicts, its parts shaded. Where no
    memory was measured there are no panels of it."""
    matplotlib = require("matplotlib", extra="benchmarks")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", extra="benchmarks")
    settings = result["settings"]
    names = list(settings["series"])
    with_memory = any(row["facts"]["peak_host_bytes"] is not None for row in result["rows"])
    figure, panels = plt.subplots(2 if with_memory else 1, len(names), squeeze=False, layout="constrained",
                                  figsize=(4.8 * len(names), 7 if with_memory else 4.4),
                                  height_ratios=(3, 2) if with_memory else None)
    for column, name in zip(panels.T, names, strict=True):
        rows = [row for row in result["rows"] if row["facts"]["series"] == name]
        _times(column[0], rows, settings["series"][name], name)
        if with_memory:
            _memory(column[1], rows, name)
    plural = "" if settings["threads"] == 1 else "s"
    figure.suptitle(f"{result['title']}; {settings['image_size']} px where the size stays\n"
                    f"{device_name(result['machine'])}, {settings['threads']} thread{plural}", fontsize=10,
                    color="#555555")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


def _times(axes: Any, rows: list[Mapping[str, Any]], series: Mapping[str, Any], name: str) -> None:
    """Both axes are linear, so that what grows evenly is a straight line."""
    values = [row["facts"]["value"] for row in rows]
    times = [row["stages"][series["stage"]] for row in rows]
    medians = np.array([time["p50_ms"] for time in times])
    lows, highs = (np.array([np.nan if time[key] is None else time[key] for time in times])
                   for key in ("ci_low_ms", "ci_high_ms"))
    ends = (values[0], values[-1]) if len(values) > 1 else (values[0] / 1.2, values[0] * 1.2)
    places = np.linspace(*ends, PLACES)
    parts = predicted_parts(series, name, places, medians[values.index(series["anchor"])])
    axes.stackplot(places, *parts.values(), labels=parts, colors=[*SHADES[:len(parts) - 1], SHADES[-1]])
    predicted = sum(parts.values())
    axes.plot(places, predicted, color="#444444", linestyle="--", linewidth=1.2,
              label=f"predicted, scaled to {series['anchor']}")
    intervals = "" if np.isnan(highs).all() else " with its 95 % interval"
    axes.errorbar(values, medians, yerr=[medians - lows, highs - medians], fmt="o", color=MEASURED, markersize=5,
                  capsize=3, label=f"{series['stage']}, median{intervals}")
    across = np.array(values, float)
    labelled = spread(across)
    tops = np.fmax(medians, highs)
    for index in labelled:
        if values[index] != series["anchor"]:
            _deviation(axes, rows[index]["facts"], tops[index], tops[np.abs(across - across[index])
                                                                   <= ROOM / 2 * np.ptp(across)].max())
    axes.set_xticks([values[index] for index in labelled], [str(values[index]) for index in labelled])
    axes.set_xticks([value for value in values if value not in axes.get_xticks()], [], minor=True)
    axes.set_title(LABELS[name], loc="left", fontsize=11)
    axes.set_ylabel("milliseconds")
    below_legend = max(tops[across <= across[0] + LEGEND * np.ptp(across)].max(), predicted[int(LEGEND * PLACES)])
    axes.set_ylim(0, max(1.2 * tops.max(), 1.2 * predicted.max(), below_legend / (1 - LINE * (len(parts) + 4))))
    axes.margins(x=0.07)
    axes.legend(loc="upper left", framealpha=0.8, edgecolor="none", fontsize=8, reverse=True)
    _finish(axes)


def _deviation(axes: Any, facts: Mapping[str, Any], top: float, above: float) -> None:
    """How far a point is off, centred above it. top: of its interval; above: of the intervals that the words are as
    wide as, so that they cover no other point; where that is higher a thin line leads to them."""
    if above > top:
        axes.plot([facts["value"]] * 2, [top, above], color=MEASURED, linewidth=0.6)
    deviation = round(facts["deviation"], 2) + 0.0  # no "-0%"
    axes.annotate(f"{deviation:+.0%}", (facts["value"], above), xytext=(0, 6), ha="center", textcoords="offset points",
                  fontsize=8, color=MEASURED, bbox={"color": "white", "alpha": 0.75, "pad": 0.8})


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
    labelled = spread(places)
    for index in labelled:
        axes.annotate(f"{peak[index]:.0f}" if peak[index] else "?", (index, peak[index]), xytext=(0, 3),
                      textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(labelled, [str(values[index]) for index in labelled])
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("most resident memory, MiB")
    axes.set_ylim(0, 1.3 * peak.max())
    axes.legend(loc="upper left", framealpha=0.8, edgecolor="none", fontsize=8, ncols=2)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.yaxis.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
