"""Results as a Markdown table, and the README that includes one between markers.

    <!-- numbers: benchmarks/results/latency-base.json benchmarks/results/parity-base.json -->
    ... the table ...
    <!-- end -->

Between the markers stands what `markdown` makes of these files, and nothing else: `stale` finds what differs, `updated`
writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results_file
from benchmarks.goals import NOT_MEASURED, Outcome, evaluate
from benchmarks.report_pairs import joined
from benchmarks.report_text import (
    FACTS,
    as_written,
    asked_about,
    coverage,
    fact,
    interval,
    milliseconds,
    place_of,
    rounds_of,
    score,
)
from benchmarks.timing import FRAME, WHOLE
from talent.errors import UserError

RESULTS = "benchmarks/results"
BLOCK = re.compile(r"(?P<begin><!-- numbers:(?P<files>[^>]*?)-->\n)(?P<table>.*?)(?P<end><!-- end -->)", re.DOTALL)
MARKER = re.compile(r"<!-- numbers:|<!-- end -->")
PACKAGES = {"ONNX Runtime": ("onnxruntime-gpu", "onnxruntime"), "TensorRT": ("tensorrt",),
            "TensorRT-RTX": ("tensorrt_rtx",)}
"""What computes the rows of a backend; torch for all others."""
UPDATE = "python benchmarks/report.py --update-readme"
TAG = re.compile(r"<(?=[A-Za-z/!?])")
"""What HTML within Markdown begins with."""
TIMES = (FRAME, "text", "vision")
SHOWN = ("miou", "worst_delta", "delta/worse_0.01", "delta/worse_0.05", "delta/worse_0.1", "masks_agree",
         "first_inference_ms", "peak_host_bytes", "peak_gpu_bytes", "predicted_ms", "deviation", "energy_mj_per_frame")
"""Facts that a table in a README has room for, in this order."""


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table for each result, with its machine and commit below it, then the targets that the results can tell of;
    each line ends with a newline. A latency result has the accuracy of those rows in it that another of the results
    judged, a column for each set of sentences. Raises UserError without a result."""
    if not results:
        raise UserError("expected at least one result file, received none")
    judged = {sentences: {id(pair.row): pair.miou for pair in pairs} for sentences, pairs in joined(results).items()}
    accuracy = {"mIoU" if len(judged) == 1 else f"mIoU of {sentences}": scores for sentences, scores in judged.items()}
    timed = [result for result in results if not _only_accuracy(result)] or list(results)
    parts = ["\n".join([*_table(result, accuracy), "", _origin(result)]) for result in timed]
    parts += [f"Accuracy: {_origin(result)}" for result in results if result not in timed]
    targets = [_target(outcome) for outcome in evaluate(results) if outcome.state != NOT_MEASURED]
    parts += ["Ratios of medians of one run:", "\n".join(targets)] if targets else []
    return "\n\n".join(parts) + "\n"


def _target(outcome: Outcome) -> str:
    """A line of a list: "- a frame of small / a frame of base: 0.21 (0.20 – 0.22), at most 0.30: met"."""
    sure = interval(outcome.low, outcome.high, "{:.3f}".format)
    bound = outcome.goal.at_most
    asked = "" if bound is None else f", at most {bound:.2f}: {outcome.state}{'' if outcome.sure else ', within noise'}"
    return f"- {outcome.goal.name}: {outcome.ratio:.3f}{f' ({sure})' if sure else ''}{asked}"


def _only_accuracy(result: Mapping[str, Any]) -> bool:
    return not any(row["stages"] for row in result["rows"])


def _table(result: Mapping[str, Any], accuracy: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The lines of the table; columns that no row knows are left out. accuracy: mIoU by head and by id of the row."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {result["title"]: lambda row: row["name"]}
    for head, scores in accuracy.items():
        if any(id(row) in scores for row in result["rows"]):
            columns[head] = lambda row, scores=scores: score(scores[id(row)]) if id(row) in scores else ""
    covered = coverage(rounds_of(result))
    for stage in TIMES:
        head = f"{stage} p50 ({covered})" if covered else f"{stage} p50"
        columns[head] = lambda row, stage=stage: _median(row["stages"].get(stage))
    columns["whole p50 / p90 / p99"] = lambda row: _percentiles(row["stages"].get(WHOLE))
    for name in SHOWN:
        columns.setdefault(FACTS[name][0], lambda row, name=name: _fact(row, name))
    cells = {head: [cell(row) for row in result["rows"]] for head, cell in columns.items()}
    kept = {head: column for head, column in cells.items() if any(column)}
    lines = [list(kept), ["---", *["---:"] * (len(kept) - 1)], *map(list, zip(*kept.values(), strict=True))]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value: str) -> str:
    return _plain(value).replace("|", "\\|")


def _plain(value: str) -> str:
    """Text that is no HTML, and on one line."""
    return " ".join(TAG.sub("&lt;", value).split())


def _median(times: Mapping[str, Any] | None) -> str:
    if times is None:
        return ""
    sure = interval(times["ci_low_ms"], times["ci_high_ms"], milliseconds)
    return milliseconds(times["p50_ms"]) + (f" ({sure})" if sure else "")


def _percentiles(times: Mapping[str, Any] | None) -> str:
    return "" if times is None else " / ".join(milliseconds(times[name]) for name in ("p50_ms", "p90_ms", "p99_ms"))


def _fact(row: Mapping[str, Any], name: str) -> str:
    value = fact(row, name)
    return "" if value is None else FACTS[name][1](value)


def _origin(result: Mapping[str, Any]) -> str:
    """Where the numbers come from, as one paragraph."""
    settings, versions = result["settings"], result["versions"]
    rounds = (f"Milliseconds over {settings['rounds']} interleaved rounds of {settings['samples']}; "
              if "rounds" in settings else "")
    names = dict.fromkeys(name for row in result["rows"] for name in _packages(row["backend"]))
    packages = "".join(f"{name} {versions[name]}, " for name in names
                       if versions.get(name, "not installed") != "not installed")
    notes = "".join(f" {note[:1].upper()}{note[1:].rstrip('.')}." for note in result["notes"])
    asked = asked_about(result)
    return _plain(f"{rounds}{asked and f'{asked}; '}{place_of(result)}; {packages}commit `{result['commit'][:10]}`"
                  f"{' with local changes' if result['dirty'] else ''}, {result['created'][:10]}.{notes}")


def _packages(backend: str) -> tuple[str, ...]:
    """"ONNX Runtime plain export" -> what ONNX Runtime is installed as."""
    fitting = [prefix for prefix in PACKAGES if backend.startswith(prefix)]
    return PACKAGES[max(fitting, key=len)] if fitting else ("torch",)


def updated(readme: str, root: Path) -> str:
    """The README's text with every table written anew from its result files, which lie below `root`.

    Raises UserError for markers that do not pair up, and for files that are not results in RESULTS as this version
    writes them.
    """
    blocks = list(BLOCK.finditer(readme))
    markers = len(MARKER.findall(readme))
    if markers != 2 * len(blocks):
        raise UserError(f"expected '<!-- numbers: {RESULTS}/FILE.json -->' and '<!-- end -->' in pairs, each on a line "
                        f"of its own, received {markers} markers that make {len(blocks)} pairs")
    return BLOCK.sub(lambda block: block["begin"] + markdown(_read(block["files"].split(), root)) + block["end"],
                     readme)


def _read(files: Sequence[str], root: Path) -> list[dict[str, Any]]:
    for file in files:
        if not (root / file).resolve().is_relative_to((root / RESULTS).resolve()):
            raise UserError(f"expected result files in {RESULTS} in a marker, received {file}; a README's numbers come "
                            f"from results that are kept with it: move the file to {RESULTS}")
    results = [results_file.read(root / file) for file in files]
    for file, result in zip(files, results, strict=True):
        with as_written(f"{file}: {result['title']!r}"):
            markdown([result])
    return results


def stale(readme: str, root: Path) -> list[str]:
    """Each table of the README that is not that of its result files, as a sentence that says what to do.

    Raises UserError as `updated`.
    """
    pairs = zip(BLOCK.finditer(readme), BLOCK.finditer(updated(readme, root)), strict=True)
    return [f"the numbers of {old['files'].strip()} are not those of the file (first difference: "
            f"{_difference(old['table'], new['table'])}); run: {UPDATE}"
            for old, new in pairs if old["table"] != new["table"]]


def _difference(old: str, new: str) -> str:
    """The first line of `old` that `new` has not."""
    known = set(new.splitlines())
    return next((repr(line) for line in old.splitlines() if line not in known), "a line is missing")
