"""Plots of the report, as HTML and SVG that take their colours from the page and need no script.

Bars are HTML, so that their words keep their size on a phone; points and curves are SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.latency_view import STAGE_COLOURS
from benchmarks.report_table import text
from benchmarks.report_text import MEBI, milliseconds, score, signed
from benchmarks.timing import FRAME, STAGES, WHOLE

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 44
LABELS = {"prompts": "prompts per picture", "size": "input, pixels a side", "batch": "pictures together"}


def latency_bars(result: Mapping[str, Any]) -> str:
    """A bar per row: medians of its stages, the 95 % interval of the whole as a line across its end. Empty where no row
    has all stages."""
    rows = [row for row in result["rows"] if {*STAGES, WHOLE} <= row["stages"].keys()]
    if not rows:
        return ""
    longest = max(max(sum(row["stages"][stage]["p50_ms"] for stage in STAGES),
                      row["stages"][WHOLE]["ci_high_ms"] or 0) for row in rows)
    keys = "".join(f"<span><i class=key style='background:{STAGE_COLOURS[stage]}'></i> {stage}</span>"
                   for stage in STAGES)
    bars = "".join(_bar(row, longest) for row in rows)
    return (f"<p class=legend>{keys}<span><i class='key whisker'></i> 95 % interval of the whole</span></p>\n"
            f"<div class=bars>{bars}</div>\n")


def _bar(row: Mapping[str, Any], longest: float) -> str:
    stages, whole = row["stages"], row["stages"][WHOLE]
    parts = "".join(f'<i title="{stage}: {milliseconds(stages[stage]["p50_ms"])} ms" '
                    f'style="width:{100 * stages[stage]["p50_ms"] / longest:.3f}%;background:{STAGE_COLOURS[stage]}">'
                    "</i>" for stage in STAGES)
    low, high = whole["ci_low_ms"], whole["ci_high_ms"]
    whisker = "" if low is None else (f'<u style="left:{100 * low / longest:.3f}%;'
                                      f'width:{100 * (high - low) / longest:.3f}%"></u>')
    return (f"<div class=bar><span>{text(row['name'])}</span><div class=track>{parts}{whisker}</div>"
            f"<b>{milliseconds(whole['p50_ms'])} ms</b></div>")


@dataclass(frozen=True)
class Axis:
    """From 0 or the smallest value to `most`, with round steps."""

    least: float
    most: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool = True) -> Axis:
        least, most = (0.0 if from_zero else min(values)), max(values)
        rough = ((most - least) or abs(most) or 1.0) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return cls(math.floor(least / step) * step, math.ceil(most / step + 1e-9) * step, step)

    @property
    def ticks(self) -> list[float]:
        return [self.least + self.step * index for index in range(round((self.most - self.least) / self.step) + 1)]

    def share(self, value: float) -> float:
        return (value - self.least) / (self.most - self.least)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, x: Axis, y: Axis, *, across: str, up: str, places: Sequence[float], body: str) -> str:
    """Axes around `body`. across, up: what they are. places: where the lower axis has numbers."""
    lines = [f'<line class=grid x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(y, tick):.1f}" y2="{_y(y, tick):.1f}"/>'
             f'<text class=n x="{LEFT - 6}" y="{_y(y, tick) + 4:.1f}">{tick:g}</text>' for tick in map(_round, y.ticks)]
    lines += [f'<text class=m x="{_x(x, place):.1f}" y="{HEIGHT - BOTTOM + 16}">{place:g}</text>' for place in places]
    lines.append(f'<text class=m x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{text(across)}</text>')
    lines.append(f'<text class=m transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{text(up)}</text>')
    return (f"<figure><figcaption>{text(title)}</figcaption><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img "
            f"aria-label=\"{text(title)}\">{''.join(lines)}{body}</svg></figure>\n")


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _spread(values: Sequence[float]) -> list[float]:
    """The values that have room for a number below them: from the right, those too near to the next are left out."""
    axis, kept = Axis.over(values), []
    for value in sorted(values, reverse=True):
        if not kept or _x(axis, kept[-1]) - _x(axis, value) > 24:
            kept.append(value)
    return kept


def scaling_curves(result: Mapping[str, Any]) -> str:
    """A panel of time and one of memory per series: points measured with their intervals, dashed what was predicted."""
    panels = []
    for name, series in result["settings"].get("series", {}).items():
        rows = [row for row in result["rows"] if row["facts"].get("series") == name]
        label = LABELS.get(name, name)
        memory = any(row["facts"].get("peak_host_bytes") for row in rows)
        panels.append(f"<div>{_time_panel(rows, series, label)}{_memory_panel(rows, label) if memory else ''}</div>")
    return f"<div class=panels>{''.join(panels)}</div>\n" if panels else ""


def _time_panel(rows: Sequence[Mapping[str, Any]], series: Mapping[str, Any], label: str) -> str:
    values = [row["facts"]["value"] for row in rows]
    times = [row["stages"][series["stage"]] for row in rows]
    predicted = [row["facts"]["predicted_ms"] for row in rows]
    x = Axis.over(values, from_zero=min(values) < 0.3 * max(values))
    y = Axis.over([*predicted, *(time["ci_high_ms"] or time["p50_ms"] for time in times)])
    body = _line(x, y, values, predicted, "predicted") + _line(x, y, values, [time["p50_ms"] for time in times], "thin")
    for value, time, row in zip(values, times, rows, strict=True):
        place, height = _x(x, value), _y(y, time["p50_ms"])
        if time["ci_low_ms"] is not None:
            body += (f'<line class=interval x1="{place:.1f}" x2="{place:.1f}" y1="{_y(y, time["ci_low_ms"]):.1f}" '
                     f'y2="{_y(y, time["ci_high_ms"]):.1f}"/>')
        deviation = signed(row["facts"]["deviation"])
        body += (f'<circle class=dot cx="{place:.1f}" cy="{height:.1f}" r="4"><title>{text(row["name"])}: '
                 f'{milliseconds(time["p50_ms"])} ms, predicted {milliseconds(row["facts"]["predicted_ms"])} ms '
                 f"({deviation})</title></circle>")
    return _frame(f"{series['stage']}: measured, and predicted from {series['anchor']} (dashed), which is "
                  f"{signed(series['largest_deviation'])} off at most", x, y, across=label, up="milliseconds",
                  places=_spread(values), body=body)


def _memory_panel(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    known = [row for row in rows if row["facts"].get("peak_host_bytes")]
    values = [row["facts"]["value"] for row in known]
    sizes = [row["facts"]["peak_host_bytes"] / MEBI for row in known]
    x, y = Axis.over(values, from_zero=min(values) < 0.3 * max(values)), Axis.over(sizes)
    body = _line(x, y, values, sizes, "memory") + "".join(
        f'<circle class="dot memory" cx="{_x(x, value):.1f}" cy="{_y(y, size):.1f}" r="4"><title>{size:.0f} MiB</title>'
        "</circle>" for value, size in zip(values, sizes, strict=True))
    return _frame("most resident memory", x, y, across=label, up="MiB", places=_spread(values), body=body)


def _line(x: Axis, y: Axis, across: Sequence[float], up: Sequence[float], kind: str) -> str:
    points = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in zip(across, up, strict=True))
    return f'<polyline class="line {kind}" points="{points}"/>'


def parity_against_latency(results: Sequence[Mapping[str, Any]]) -> str:
    """mIoU over the time of a frame, of all rows that were measured in both ways (`joined`); empty where none was."""
    pairs = joined(results)
    if not pairs:
        return ""
    x = Axis.over([frame["p50_ms"] for _, frame, _ in pairs])
    scores = [miou for _, _, miou in pairs]
    y = Axis.over([*scores, max(scores) - 0.01], from_zero=False)
    body, legend = "", []
    for index, (row, frame, miou) in enumerate(pairs, 1):
        place, height = _x(x, frame["p50_ms"]), _y(y, miou)
        if frame["ci_low_ms"] is not None:
            body += (f'<line class=interval x1="{_x(x, frame["ci_low_ms"]):.1f}" x2="{_x(x, frame["ci_high_ms"]):.1f}" '
                     f'y1="{height:.1f}" y2="{height:.1f}"/>')
        kind = "dot emulated" if row["emulated"] else "dot"
        body += (f'<circle class="{kind}" cx="{place:.1f}" cy="{height:.1f}" r="9"/>'
                 f'<text class="m inside" x="{place:.1f}" y="{height + 4:.1f}">{index}</text>')
        legend.append(f"<li>{text(row['name'])}: {milliseconds(frame['p50_ms'])} ms, mIoU {score(miou)}</li>")
    plot = _frame("accuracy against time: up and to the left is better", x, y, across="frame, milliseconds (median)",
                  up="mIoU", places=[_round(tick) for tick in x.ticks], body=body)
    return f"<div class=panels>{plot}<ol>{''.join(legend)}</ol></div>\n"


def joined(results: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any], float]]:
    """(row, its frame's times, its mIoU) of every row that one result timed and one judged: of the same backend,
    precision and source. Of several the last counts."""
    def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["backend"], row["precision"], row["source"]

    rows = [row for result in results for row in result["rows"]]
    scores = {key(row): row["facts"]["miou"] for row in rows if row["facts"].get("miou") is not None}
    timed = {key(row): row for row in rows if FRAME in row["stages"] and "series" not in row["facts"]}
    return [(row, row["stages"][FRAME], scores[name]) for name, row in timed.items() if name in scores]
