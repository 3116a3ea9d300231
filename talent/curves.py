"""The curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from talent.require import require

COLOURS = {"loss": "#c0392b", "segmentation": "#7f8c8d", "mIoU": "#1f6feb", "oIoU": "#8e44ad", "NTA rate": "#e67e22"}


def draw_curves(lines: Sequence[dict], path: Path) -> None:
    """Losses, validation metrics and learning rate over the steps, as PNG. lines: of metrics.jsonl."""
    require("matplotlib", extra="train").use("Agg")
    from matplotlib import pyplot

    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    figure, (losses, metrics, rates) = pyplot.subplots(1, 3, figsize=(13, 3.8), sharex=True, layout="constrained")
    steps = [line["step"] for line in train]
    dot = "o" if len(train) == 1 else ""  # a line of one point is not seen
    for name in ("loss", "segmentation"):
        values = [line[name] for line in train]
        losses.plot(steps, values, color=COLOURS[name], alpha=0.3, linewidth=0.8)
        losses.plot(steps, smoothed(values, max(15, len(values) // 40)), color=COLOURS[name], label=name, marker=dot)
    losses.set(title="training loss", xlabel="step")
    for name in ("mIoU", "oIoU", "NTA rate"):
        points = [(line["step"], line[name]) for line in validation if name in line]
        if points:
            metrics.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[name], label=name)
    metrics.set(title="validation", xlabel="step", ylim=(0, 1))
    rates.plot(steps, [line["learning_rate"] for line in train], color="#27ae60", marker=dot)
    rates.set(title="learning rate", xlabel="step")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (losses, metrics, rates):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)
    losses.set_xlim(left=0)  # for all three
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def smoothed(values: Sequence[float], width: int = 15) -> np.ndarray:
    """Running mean over up to `width` values around each one, narrower at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    half = np.minimum(np.minimum(at, len(values) - 1 - at), width // 2)
    return (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)
