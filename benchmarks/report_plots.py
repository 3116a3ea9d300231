"""Plots of the report, as HTML and SVG that take their colours from the page and need no script.

Bars are HTML, so that their words keep their size on a phone; points and curves are SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.latency_view import STAGE_COLOURS
from benchmarks.report_pairs import Pair, joined
from benchmarks.report_table import text
from benchmarks.report_text import (
    MEBI,
    PARITY,
    Sentences,
    change,
    coverage,
    milliseconds,
    place_of,
    rounds_of,
    score,
    signed,
)
from benchmarks.scaling_cost import LABELS
from benchmarks.timing import FRAME, STAGES, WHOLE

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 44
STRIP, STRIP_LEFT, NAME = 38, 16, 56  # of parity_strips: height of a row, where it begins, letters it has room for
NO_CHANGE = 0.01  # how far its axis reaches where nothing changed


def latency_bars(result: Mapping[str, Any]) -> str:
    """A bar per row: medians of its stages, the interval of the whole as a line across its end. Empty where no row has
    all stages."""
    rows = [row for row in result["rows"] if {*STAGES, WHOLE} <= row["stages"].keys()]
    if not rows:
        return ""
    longest = max(max(sum(row["stages"][stage]["p50_ms"] for stage in STAGES),
                      row["stages"][WHOLE]["ci_high_ms"] or 0) for row in rows)
    keys = "".join(f"<span><i class=key style='background:{STAGE_COLOURS[stage]}'></i> {stage}</span>"
                   for stage in STAGES)
    bars = "".join(_bar(row, longest) for row in rows)
    if covered := coverage(rounds_of(result)):
        keys += f"<span><i class='key whisker'></i> {covered} interval of the whole</span>"
    return (f"<p class=legend>{keys}</p>\n"
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
        first, last = round(self.least / self.step), round(self.most / self.step)
        return [self.step * index for index in range(first, last + 1)]

    def share(self, value: float) -> float:
        return (value - self.least) / (self.most - self.least)


def _x(axis: Axis, value: float, left: float = LEFT) -> float:
    return left + axis.share(value) * (WIDTH - left - RIGHT)


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


def _spread(axis: Axis, values: Sequence[float]) -> list[float]:
    """The values that have room for a number below them: from the right, those too near to the next are left out."""
    kept: list[float] = []
    for value in sorted(values, reverse=True):
        if not kept or _x(axis, kept[-1]) - _x(axis, value) > 24:
            kept.append(value)
    return kept


def scaling_curves(result: Mapping[str, Any]) -> str:
    """A panel of time and one of memory per series: points measured with their intervals, dashed what was predicted."""
    panels = []
    for name, series in result["settings"].get("series", {}).items():
        rows = [row for row in result["rows"] if row["facts"].get("series") == name]
        values = [row["facts"]["value"] for row in rows]
        x, label = Axis.over(values, from_zero=min(values) < 0.3 * max(values)), LABELS[name]
        memory = any(row["facts"].get("peak_host_bytes") for row in rows)
        panels.append(f"<div>{_time_panel(rows, series, x, label)}{_memory_panel(rows, x, label) if memory else ''}"
                      "</div>")
    return f"<div class=panels>{''.join(panels)}</div>\n" if panels else ""


def _time_panel(rows: Sequence[Mapping[str, Any]], series: Mapping[str, Any], x: Axis, label: str) -> str:
    values = [row["facts"]["value"] for row in rows]
    times = [row["stages"][series["stage"]] for row in rows]
    predicted = [row["facts"]["predicted_ms"] for row in rows]
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
    return _frame(f"{series['stage']}; dashed: predicted from {series['anchor']}; measured differs by "
                  f"{signed(series['largest_deviation'])} at most", x, y, across=label, up="milliseconds",
                  places=_spread(x, values), body=body)


def _memory_panel(rows: Sequence[Mapping[str, Any]], x: Axis, label: str) -> str:
    known = [row for row in rows if row["facts"].get("peak_host_bytes")]
    values = [row["facts"]["value"] for row in known]
    sizes = [row["facts"]["peak_host_bytes"] / MEBI for row in known]
    y = Axis.over(sizes)
    body = _line(x, y, values, sizes, "memory") + "".join(
        f'<circle class="dot memory" cx="{_x(x, value):.1f}" cy="{_y(y, size):.1f}" r="4"><title>{size:.0f} MiB</title>'
        "</circle>" for value, size in zip(values, sizes, strict=True))
    return _frame("most resident memory", x, y, across=label, up="MiB", places=_spread(x, values), body=body)


def _line(x: Axis, y: Axis, across: Sequence[float], up: Sequence[float], kind: str) -> str:
    points = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in zip(across, up, strict=True))
    return f'<polyline class="line {kind}" points="{points}"/>'


def parity_strips(result: Mapping[str, Any]) -> str:
    """How the IoU of every sentence changed: a strip per row but the reference, around a line at no change. Empty for
    results of other benchmarks, and where there is no other row."""
    if result["benchmark"] != PARITY:
        return ""
    reference = result["settings"]["reference"]
    rows = [row for row in result["rows"] if row["name"] != reference]
    ends = [row["facts"]["delta"][end] for row in rows for end in ("p0", "p100")]
    if not rows:
        return ""
    x = Axis.over([0.0, *ends] if any(ends) else [-NO_CHANGE, NO_CHANGE], from_zero=False)
    bottom = TOP + STRIP * len(rows)
    lines = [f'<line class="{"zero" if _round(tick) == 0 else "grid"}" x1="{_x(x, tick, STRIP_LEFT):.1f}" '
             f'x2="{_x(x, tick, STRIP_LEFT):.1f}" y1="{TOP}" y2="{bottom}"/>'
             f'<text class=m x="{_x(x, tick, STRIP_LEFT):.1f}" y="{bottom + 16}">{_round(tick):g}</text>'
             for tick in x.ticks]
    strips = "".join(_strip(row, x, TOP + STRIP * index) for index, row in enumerate(rows))
    caption = (f"change of IoU against {reference}, sentence by sentence: from the worst to the best, thick from 5 % "
               "to 95 % of them, marked the median")
    return (f"<figure><figcaption>{text(caption)}</figcaption><svg viewBox='0 0 {WIDTH} {bottom + 22}' role=img "
            f"aria-label=\"{text(caption)}\">{''.join(lines)}{strips}</svg></figure>\n")


def _strip(row: Mapping[str, Any], x: Axis, top: float) -> str:
    """A row's name, below it its changes."""
    delta, middle = row["facts"]["delta"], top + 23
    p0, p5, p50, p95, p100 = (_x(x, delta[name], STRIP_LEFT) for name in ("p0", "p5", "p50", "p95", "p100"))
    told = (f"{row['name']}: from {change(delta['p0'])} to {change(delta['p100'])}, 5 % to 95 %: "
            f"{change(delta['p5'])} to {change(delta['p95'])}, median {change(delta['p50'])}")
    name = row["name"] if len(row["name"]) <= NAME else f"{row['name'][:NAME - 1]}…"
    return (f'<g><title>{text(told)}</title><text class=on x="{STRIP_LEFT}" y="{top + 12}">{text(name)}</text>'
            f'<line class=reach x1="{p0:.1f}" x2="{p100:.1f}" y1="{middle}" y2="{middle}"/>'
            f'<line class=most x1="{p5:.1f}" x2="{p95:.1f}" y1="{middle}" y2="{middle}"/>'
            f'<line class=median x1="{p50:.1f}" x2="{p50:.1f}" y1="{middle - 7}" y2="{middle + 7}"/></g>')


def parity_against_latency(results: Sequence[Mapping[str, Any]]) -> str:
    """mIoU over the time of a frame, of all rows that were measured in both ways: a plot for each set of sentences
    (`joined`). Empty where no row was."""
    return "".join(_accuracy_plot(sentences, pairs) for sentences, pairs in joined(results).items())


def _accuracy_plot(sentences: Sentences, pairs: Sequence[Pair]) -> str:
    frames = [pair.row["stages"][FRAME] for pair in pairs]
    times = [time for frame in frames for time in (frame["p50_ms"], frame["ci_low_ms"], frame["ci_high_ms"])
             if time is not None]
    scores = [pair.miou for pair in pairs]
    x = Axis.over(times, from_zero=min(times) <= 0.5 * max(times))
    y = Axis.over([*scores, max(scores) - 0.01], from_zero=False)
    dots = [(_x(x, frame["p50_ms"]), _y(y, miou)) for frame, miou in zip(frames, scores, strict=True)]
    names = _named({id(pair.result): pair.result for pair in pairs})
    body, legend = "", dict.fromkeys(names, "")
    for number, (pair, frame, (place, height), beside) in enumerate(zip(pairs, frames, dots, _beside(dots),
                                                                        strict=True), 1):
        if frame["ci_low_ms"] is not None:
            body += (f'<line class=interval x1="{_x(x, frame["ci_low_ms"]):.1f}" x2="{_x(x, frame["ci_high_ms"]):.1f}" '
                     f'y1="{height:.1f}" y2="{height:.1f}"/>')
        kind = "dot emulated" if pair.row["emulated"] else "dot"
        told = f"{pair.row['name']}: {milliseconds(frame['p50_ms'])} ms, mIoU {score(pair.miou)}"
        legend[id(pair.result)] += f"<li value={number}>{text(told)}</li>"
        body += (f'<circle class="{kind}" cx="{place:.1f}" cy="{height:.1f}" r="5"><title>{text(told)}</title></circle>'
                 f'<text class="m on" x="{beside[0]:.1f}" y="{beside[1] + 4:.1f}">{number}</text>')
    plot = _frame("accuracy against time: up and to the left is better", x, y, across="frame, milliseconds (median)",
                  up="mIoU", places=[_round(tick) for tick in x.ticks], body=body)
    lists = "".join((f"<p class=note>{text(names[key])}</p>" if names[key] else "") + f"<ol>{items}</ol>"
                    for key, items in legend.items())
    return f"<p class=note>mIoU of {text(sentences)}</p>\n<div class=panels>{plot}<div>{lists}</div></div>\n"


def _named(results: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """What tells several results apart: their titles, or also machine and time where titles are alike; "" for one."""
    titles = [result["title"] for result in results.values()]
    if len(titles) == 1:
        return dict.fromkeys(results, "")
    return {key: result["title"] if titles.count(result["title"]) == 1 else
            f"{result['title']}, {place_of(result)}, {result['created'][:16]}" for key, result in results.items()}


def _beside(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The middle of a number for each dot, beside it where no dot and no other number is, if there is such a place."""
    taken, places = list(dots), []
    for x, y in dots:
        around = [(x + far * right, y + far * down) for far in (13, 26)
                  for right, down in ((0, -1), (1, 0), (-1, 0), (0, 1))]
        places.append(next((place for place in around if min(math.dist(place, other) for other in taken) >= 12),
                           around[0]))
        taken.append(places[-1])
    return places
