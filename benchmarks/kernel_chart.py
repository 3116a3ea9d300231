"""The picture of benchmarks/kernels.py: time against batch, a panel per shape, the floor as a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import finish
from benchmarks.kernel_cases import CALLS, ROWS, SHAPES
from talent.require import require

FLOOR_COLOUR = "#222222"
COLUMNS = 3


def draw_chart(report: dict[str, Any], path: str | Path) -> None:
    """Solid lines: replays of a graph; dotted ones: calls from Python; dashed and black: the floor."""
    matplotlib = require("matplotlib", extra="benchmarks")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", extra="benchmarks")
    types = list(dict.fromkeys(record["type"] for record in report["rows"]))
    shapes = [shape.label for shape in SHAPES]
    lines = len(types) * -(-len(shapes) // COLUMNS)
    figure, grid = plt.subplots(lines, COLUMNS, figsize=(4.6 * COLUMNS, 3.4 * lines + 0.8), layout="constrained",
                                squeeze=False, sharex=True)
    panels = grid.flatten()
    colours = plt.colormaps["tab10"].colors
    places = ((name, shape) for name in types for shape in shapes)
    for axes, (type_name, shape) in zip(panels, places, strict=True):
        records = [record for record in report["rows"] if (record["type"], record["shape"]) == (type_name, shape)]
        for colour, row in zip(colours, ROWS, strict=False):
            own = [record for record in records if (record["row"], record["how"]) == (row.name, row.how)]
            if own:
                axes.plot([record["batch"] for record in own], [record["microseconds"] for record in own], marker="o",
                          markersize=3, color=colour, linestyle=":" if row.how == CALLS else "-", label=row.label)
        floors = {record["batch"]: record["floor_microseconds"] for record in records}
        axes.plot(list(floors), list(floors.values()), color=FLOOR_COLOUR, linestyle="--", label="floor")
        axes.set_title(f"{shape}, {type_name}", loc="left", fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(floors), [str(batch) for batch in floors])
        axes.minorticks_off()
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("batch")
        axes.set_ylabel("microseconds")
    figure.suptitle(f"{report['card']['name']}; solid: replays of a CUDA graph, dotted (*): calls from Python",
                    fontsize=10, color="#555555")
    finish(figure, panels, Path(path))
