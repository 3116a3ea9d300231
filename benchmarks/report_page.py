"""The page of the report: one HTML file with everything inside, for light and dark screens, phones and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import MEASURED, MET, MISSED, NOT_MEASURED, Outcome
from benchmarks.latency_view import peaks
from benchmarks.page_style import BASE_STYLE
from benchmarks.report_plots import latency_bars, parity_against_latency, parity_strips, scaling_curves
from benchmarks.report_table import fact_table, goal_table, origin_table, stage_table, text
from benchmarks.report_text import asked_about, coverage, fact, place_of, rounds_of
from talent.files import atomic_write


def write_page(path: str | Path, results: Sequence[Mapping[str, Any]], *, outcomes: Sequence[Outcome],
               left_out: Sequence[str] = ()) -> None:
    """Write the page. results: as results_file.read gives them. left_out: what was not shown, and why."""
    sections = [_summary(results, outcomes), _accuracy(results), *(section(number, result)
                                                                   for number, result in enumerate(results, 1))]
    sections += [_notes(left_out)] if left_out else []
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TALENT Edge: benchmarks</title>
<style>
{STYLE}
</style>
</head>
<body>
<main>
<h1>TALENT Edge <small>benchmarks</small></h1>
{"".join(sections)}
</main>
<script>
{SCRIPT}
</script>
</body>
</html>
"""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _summary(results: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome]) -> str:
    """What there is to read, and which targets are met."""
    items = "".join(f'<li><a href="#result-{number}">{text(result["title"])}</a> '
                    f"<span class=soft>{text(place_of(result))}; {_when(result)}</span></li>"
                    for number, result in enumerate(results, 1))
    counts = {state: sum(outcome.state == state for outcome in outcomes)
              for state in (MET, MISSED, MEASURED, NOT_MEASURED)}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return (f"<ul class=contents>{items}</ul>\n<h2>Targets</h2>\n<p>{said}. A target is a ratio of two medians of one "
            "run on two CPU cores at 448 px; small below it: its interval, of 95 % from six rounds on.</p>\n"
            f"{goal_table(outcomes)}")


def _accuracy(results: Sequence[Mapping[str, Any]]) -> str:
    plot = parity_against_latency(results)
    return f"<h2>Accuracy beside latency</h2>\n{plot}" if plot else ""


def section(number: int, result: Mapping[str, Any]) -> str:
    """One result file: plots, tables, notes, what was not run, where it comes from."""
    plots = parity_strips(result) or scaling_curves(result) or latency_bars(result)
    times, facts = stage_table(result), fact_table(result)
    if times:
        covered = coverage(rounds_of(result))
        interval = f"its {covered} interval over the rounds, then " if covered else ""
        times = (f"<h3>Milliseconds</h3>\n<p class=note>Bold: the median; below it {interval}the 90th and 99th "
                 f"percentile.</p>\n{times}")
    notes = [*map(str, result["notes"]), *_not_run(result)]
    if any(fact(row, "peak_share") is not None for row in result["rows"]):
        notes.insert(0, peaks(result))
    asked = f"<p>{text(asked)}</p>\n" if (asked := asked_about(result)) else ""
    return (f"<section><h2 id=result-{number}>{text(result['title'])}</h2>\n"
            f"<p class=note>{text(place_of(result))}; {_when(result)}</p>\n{asked}{plots}{times}"
            + ("<h3>Besides time</h3>\n" if times and facts else "") + facts + _notes(notes)
            + "<details class=origin><summary>Settings, machine, versions</summary>\n"
            + f"{origin_table(result)}</details></section>\n")


def _when(result: Mapping[str, Any]) -> str:
    """Day, commit, and that it had changes."""
    changes = " with local changes" if result["dirty"] else ""
    return f"{text(result['created'][:10])}, commit <code>{text(result['commit'][:10])}</code>{changes}"


def _not_run(result: Mapping[str, Any]) -> list[str]:
    """A line a reason, with all that it kept from running."""
    reasons: dict[str, list[str]] = {}
    for entry in result["not_run"]:
        reasons.setdefault(entry["reason"], []).append(entry["name"])
    return [f"Not run: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=note>{text(note[:1].upper() + note[1:])}</p>\n" for note in notes)


STYLE = BASE_STYLE + """
a { color: var(--accent) } code { font-size: .92em } .soft { color: var(--soft) } .note { overflow-wrap: anywhere }
.contents { padding-left: 1.2rem } .legend { max-width: none }
th { vertical-align: bottom } tbody tr:hover { background: var(--card) } td.n { white-space: nowrap }
td:first-child { min-width: 9rem } td small { display: block; color: var(--soft); font-size: .88em }
td:first-child small, .origin td { overflow-wrap: anywhere }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid var(--accent) }
th[aria-sort=ascending] button::after { content: " ▲" } th[aria-sort=descending] button::after { content: " ▼" }
.track { position: relative; height: 1.3rem } .track i:first-child { border-radius: 4px 0 0 4px }
.track u { position: absolute; top: 50%; height: 0; border-top: 2px solid var(--ink) }
.track u::before, .track u::after { content: ""; position: absolute; top: -.35rem; height: .6rem;
  border-left: 2px solid var(--ink) }
.track u::before { left: 0 } .track u::after { right: 0 }
.whisker { height: 0; border-top: 2px solid var(--ink); border-radius: 0; vertical-align: .25rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem }
figure { margin: .5rem 0; max-width: 36rem } figure + figure { margin-top: 1rem }
figcaption { font-size: .9rem; color: var(--soft) }
svg { display: block; width: 100%; overflow: visible } svg text { font-size: 12px; fill: var(--soft) }
svg text.n { text-anchor: end } svg text.m { text-anchor: middle } svg text.on { fill: var(--ink); paint-order: stroke;
  stroke: var(--paper); stroke-width: 4px }
.grid { stroke: var(--line) } .line { fill: none; stroke: var(--accent); stroke-width: 2 }
.line.thin { stroke-width: 1; opacity: .5 } .line.predicted { stroke: var(--soft); stroke-dasharray: 6 4 }
.line.memory { stroke: var(--good) } .interval { stroke: var(--ink); stroke-width: 1.5 }
.zero { stroke: var(--ink) } .reach { stroke: var(--accent); stroke-width: 2 }
.most { stroke: var(--accent); stroke-width: 9; stroke-linecap: butt; opacity: .55 }
.median { stroke: var(--ink); stroke-width: 2.5 }
.panels ol { margin: .5rem 0 } .wide { font-size: .85rem } .wide td:first-child { overflow-wrap: anywhere }
.wide :is(th, td) { padding: .4rem .35rem }
.dot { fill: #2f6fb3 } .dot.memory { fill: var(--good) } .dot.emulated { fill: #8a6d3b }
details { margin: .75rem 0 } summary { cursor: pointer; color: var(--soft) }
@media (max-width: 700px) { main { padding: 1.25rem .9rem 3rem }
  .bar { grid-template-columns: 1fr auto; gap: .1rem .6rem } .bar span { grid-column: 1 / -1 }
  th, td { padding: .35rem .45rem } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #fff;
    --accent: #2f6fb3; --good: #1c7c45; --bad: #c22f35 }
  body { font-size: 10pt } main { max-width: none; padding: 0 } .scroll { overflow: visible } table { font-size: 7.5pt }
  th, td { padding: .15rem .25rem } td:first-child { min-width: 0 } details:not([open]) { display: none }
  .track, .track i, .key, .dot { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  tr, figure, .bar { break-inside: avoid } h2, h3 { break-after: avoid } }
"""

SCRIPT = """
"use strict";
// A click on a head sorts its table; another one turns the order round. What is not known stays below.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const number = (text) => text.trim() !== "" && !isNaN(text);
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = number(x) && number(y) ? x - y : x.localeCompare(y);
      return ascending ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""
