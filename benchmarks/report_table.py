"""Tables of the report: HTML whose heads sort by a click (report_page.SCRIPT), without a script still a table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.goals import MEASURED, MET, MISSED, Outcome
from benchmarks.report_text import FACTS, fact, facts_known, flat, interval, milliseconds
from benchmarks.timing import TIMED

UNKNOWN = "–"
WIDE = 8  # columns from which on a table is written closer


@dataclass(frozen=True)
class Cell:
    """shown: HTML. value: what it is sorted by, None for something that is not known, which sorts last."""

    shown: str
    value: float | str | None


def text(value: Any) -> str:
    """Any text as HTML."""
    return html.escape(str(value))


def words(value: Any) -> Cell:
    return Cell(text(value), str(value).lower())


def number(value: float | None, form: Any) -> Cell:
    return Cell(UNKNOWN, None) if value is None else Cell(text(form(value)), value)


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, numeric_from: int = 1, sortable: bool = True) -> str:
    """heads: plain text. Columns from `numeric_from` on are numbers."""
    def line(cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cells)}</tr>"
    kinds = ["" if index < numeric_from else " class=n" for index in range(len(heads))]
    head = line([f"<th{kind} scope=col{' aria-sort=none' if sortable else ''}>"
                 + (f"<button type=button>{text(title)}</button>" if sortable else text(title)) + "</th>"
                 for title, kind in zip(heads, kinds, strict=True)])
    body = "\n".join(line([f'<td{kind}{_sorted_by(cell)}>{cell.shown}</td>'
                           for cell, kind in zip(row, kinds, strict=True)]) for row in rows)
    classes = " ".join(name for name, fits in (("sortable", sortable), ("wide", len(heads) >= WIDE)) if fits)
    kind = f' class="{classes}"' if classes else ""
    return (f'<div class=scroll><table{kind}>\n<thead>{head}</thead>\n'
            f"<tbody>{body}</tbody>\n</table></div>\n")


def _sorted_by(cell: Cell) -> str:
    return "" if cell.value is None else f' data-value="{text(cell.value)}"'


def name_cell(row: Mapping[str, Any]) -> Cell:
    """A row's name, below it where it comes from."""
    source = f"<small>{text(row['source'])}</small>" if row["source"] else ""
    return Cell(f"{text(row['name'])}{source}", row["name"].lower())


def stage_table(result: Mapping[str, Any]) -> str:
    """Medians with their intervals and the other percentiles, a column per stage; empty where nothing was timed."""
    timed = dict.fromkeys(stage for row in result["rows"] for stage in row["stages"])
    stages = [*(stage for stage in TIMED if stage in timed), *(stage for stage in timed if stage not in TIMED)]
    if not stages:
        return ""
    rows = [[name_cell(row), *(_time_cell(row["stages"].get(stage)) for stage in stages)] for row in result["rows"]]
    return table(["row", *stages], rows)


def _time_cell(times: Mapping[str, Any] | None) -> Cell:
    """The median; small below it its interval, then p90 and p99."""
    if times is None:
        return Cell(UNKNOWN, None)
    sure = interval(times["ci_low_ms"], times["ci_high_ms"], milliseconds)
    tail = f"{milliseconds(times['p90_ms'])} · {milliseconds(times['p99_ms'])}"
    return Cell(f"<b>{milliseconds(times['p50_ms'])}</b><small>{sure}</small><small>{tail}</small>", times["p50_ms"])


def fact_table(result: Mapping[str, Any]) -> str:
    """What a row takes or reaches besides time; empty where no row knows any fact."""
    known = facts_known(result["rows"])
    if not known:
        return ""
    rows = [[name_cell(row), *(number(fact(row, name), FACTS[name][1]) for name in known)]
            for row in result["rows"]]
    return table(["row", *(FACTS[name][0] for name in known)], rows)


def goal_table(outcomes: Sequence[Outcome]) -> str:
    """Every target: what was measured, what is asked for, whether it is met, or why nobody knows."""
    classes = {MET: "pass", MISSED: "fail", MEASURED: ""}
    rows = []
    for outcome in outcomes:
        bound = outcome.goal.at_most
        state = f'<span class="{classes.get(outcome.state, "soft")}">{outcome.state}</span>'
        state += "" if bound is None else f"<small>at most {bound:.2f}</small>"
        if outcome.ratio is not None and outcome.low is None:
            state += "<small>too few rounds</small>"
        elif outcome.state in (MET, MISSED) and not outcome.sure:
            state += "<small>within noise</small>"
        changes = ", with local changes" if outcome.dirty else ""
        where = f"{outcome.title}, commit {outcome.commit[:10]}{changes}" if outcome.title else outcome.reason
        measured = number(outcome.ratio, "{:.3f}".format)
        sure = interval(outcome.low, outcome.high, "{:.3f}".format)
        name = outcome.goal.name
        rows.append([Cell(f"{text(name[:1].upper() + name[1:])}<small>{text(where)}</small>", name),
                     Cell(f"<b>{measured.shown}</b><small>{sure}</small>", measured.value),
                     Cell(state, outcome.state)])
    return table(["ratio of medians", "measured", "target"], rows)


def origin_table(result: Mapping[str, Any]) -> str:
    """Everything that a number needs so that somebody else can repeat it: settings, machine, versions."""
    lines = {"command": " ".join(map(str, result["command"])), **flat(result["settings"]),
             **flat(result["machine"], "machine: "), **flat(result["versions"], "version: ")}
    return table(["setting", "value"], [[words(name), words(value)] for name, value in lines.items()], numeric_from=9,
                 sortable=False)
