"""The choice of INT8 layers as a picture: mIoU lost against the share of INT8 arithmetic, and the blocks' ranking."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.budget import Choice
from talent.require import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

YES, PARTLY, NO, BUDGET = "#1f6feb", "#e6a117", "#9aa0a6", "#c0392b"
FAINT = "#cccccc"
COLOURS = {"yes": (YES, "in INT8"), "partly": (PARTLY, "partly"), "no": (NO, "stays FP16")}


def draw_choice(choice: Choice, path: Path, *, title: str) -> None:
    """Write `choice` as PNG."""
    require("matplotlib", extra="export").use("Agg")
    from matplotlib import pyplot

    height = max(5.0, 0.26 * len(choice.ranking) + 2.2)
    figure, (sets, bars) = pyplot.subplots(1, 2, figsize=(12, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle(title, fontsize=11)
    _draw_sets(choice, sets)
    _draw_blocks(choice, bars)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # no version in it: two exports give the same bytes
    pyplot.close(figure)


def _draw_sets(choice: Choice, axes: Axes) -> None:
    """Every set that was measured: its share of the arithmetic, and what it loses."""
    others = [(part, choice.reference.miou - one.miou) for part, one in choice.tried
              if one.layers != choice.chosen.layers]
    full, few = f"{choice.chosen.samples} expressions", f"{choice.ranking_samples} expressions"
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    axes.axhline(choice.bound, color=BUDGET, linewidth=1.2, linestyle="--", label=f"budget {choice.bound:g}")
    axes.axvline(100 * choice.share(), color=NO, linewidth=1.2, linestyle=":", label="all that can be INT8")
    if choice.curve:
        axes.plot([100 * part for part, _ in choice.curve], [drop for _, drop in choice.curve], marker=".", color=NO,
                  label=f"blocks as they join, {few}")
    if others:
        axes.plot([100 * part for part, _ in others], [drop for _, drop in others], marker="o", linestyle="",
                  markerfacecolor="none", color="black", label=f"tried, {full}")
    axes.plot(100 * choice.share(choice.chosen.layers), choice.drop, marker="o", markersize=9, linestyle="", color=YES,
              clip_on=False, label=f"chosen, {full}" if choice.chosen.layers else "chosen: nothing")
    if choice.fewer:
        axes.axvline(100 * choice.share(choice.layers), color=YES, linewidth=1.2, linestyle=":",
                     label="left in the finished bundle")
    drops = [0.0, choice.bound, *(drop for _, drop in (*others, *choice.curve)), choice.drop]
    room = 0.08 * (max(drops) - min(drops) or 1.0)
    axes.set(xlabel="share of the arithmetic in INT8 (%)", ylabel="mIoU lost", xlim=(-2, 102),
             ylim=(min(drops) - room, max(drops) + room))
    _finish(axes, "blocks and layers together", columns=2)


def _draw_blocks(choice: Choice, axes: Axes) -> None:
    """The blocks, the most sensitive on top. An error that is infinite has the longest bar."""
    blocks = choice.ranking[::-1]
    longest = max((one.error for one in blocks if math.isfinite(one.error)), default=0.0) or 0.01
    lengths = [100 * (one.error if math.isfinite(one.error) else longest) for one in blocks]
    axes.barh([one.block.name for one in blocks], lengths,
              color=[COLOURS[choice.taken(one.block)][0] for one in blocks])
    for row, one in enumerate(blocks):
        axes.annotate(f"{one.drop:+.4f}" + ("" if math.isfinite(one.error) else ", not finite"), (lengths[row], row),
                      xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(xlabel="error at the logits (%); beside the bar: mIoU lost", xlim=(0, 118 * longest),
             ylim=(-0.6, len(blocks) - 0.4))
    axes.tick_params(axis="y", labelsize=9, length=0)
    for taken, (colour, label) in COLOURS.items():
        if any(choice.taken(one.block) == taken for one in blocks):
            axes.barh(blocks[0].block.name, 0, color=colour, label=label)
    _finish(axes, f"each block alone, {choice.ranking_samples} expressions", columns=3)


def _finish(axes: Axes, title: str, *, columns: int) -> None:
    """The legend stands below, where nothing is drawn."""
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure = axes.get_figure()
    axes.legend(frameon=False, fontsize=9, ncols=columns, loc="upper center",
                bbox_to_anchor=(0.5, -0.55 / (figure.get_figheight() - 2)))
