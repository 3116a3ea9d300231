"""Two result files of a benchmark: is it faster now, slower, or can nobody tell? A verdict per row and stage.

A time counts as changed where the 95 % interval of the ratio of the two medians, over rounds, leaves 1 out, and the
medians differ by as much as two runs of the same program do (--least). Another machine, other settings or other
versions are named first: then the ratio is right, and what it says of the program is open.

--relative-to names a row that both files have and whose program did not change, such as PyTorch eager. Every time is
then divided by the one of that row in the same round, so that a machine that was slower as a whole does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import results_file  # noqa: E402
from benchmarks.intervals import FASTER, LEAST, NOISE, SLOWER, UNKNOWN, Comparison, compare  # noqa: E402
from benchmarks.machine import busy  # noqa: E402
from benchmarks.measured import network_of  # noqa: E402
from benchmarks.rounds import aligned  # noqa: E402
from talent.errors import UserError, command, suggest  # noqa: E402

EXIT_SLOWER = 1
MACHINE = ("cpu", "cores", "architecture", "memory_bytes", "cpu_governor", "cpu_max_clock_mhz", "board", "jetpack",
           "power_mode", "gpu_architecture", "driver", "cuda")
"""What makes another machine of it; its clocks and temperatures of the moment do not."""
NETWORKS = ("bundles", "checkpoint")  # settings that name what was measured: rows are compared, not folders
EXAMPLE = """exit code: 0, with --fail-slower 1 where anything is slower, 2 for bad input

examples:
  python benchmarks/compare.py before.json after.json
  python benchmarks/compare.py main.json branch.json --stage frame --fail-slower
  python benchmarks/compare.py main.json branch.json --relative-to "PyTorch eager FP32"
"""


@dataclass(frozen=True)
class Line:
    """One row and stage in both files, medians in milliseconds."""

    row: str
    stage: str
    before_ms: float
    after_ms: float
    comparison: Comparison


@dataclass(frozen=True)
class Report:
    """differences: what else is not the same, as sentences. only_before, only_after: rows, or a row's stages.
    yardstick: the row that the ratios are relative to."""

    lines: tuple[Line, ...]
    differences: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    yardstick: str | None = None

    def count(self, verdict: str) -> int:
        return sum(line.comparison.verdict == verdict for line in self.lines)


def compare_results(before: Mapping[str, Any], after: Mapping[str, Any], *, stages: Sequence[str] = (),
                    least: float = LEAST, yardstick: str | None = None) -> Report:
    """stages: those that are compared, all where there are none. least: share below which a difference does not count.
    yardstick: the row whose times the others are divided by, round by round; None for none.

    Raises UserError for results of different benchmarks, for a stage that neither has, for a yardstick that one of them
    does not have, and where nothing can be compared.
    """
    if before["benchmark"] != after["benchmark"]:
        raise UserError(f"expected two results of one benchmark, received {before['benchmark']} and "
                        f"{after['benchmark']}; measure the same in both cases")
    old, new = _times(before), _times(after)
    known = dict.fromkeys(stage for _, stage in (*old, *new))
    for stage in stages:
        if stage not in known:
            raise UserError(f"--stage: neither file has the stage {stage!r}{suggest(stage, known)}")
    both = [key for key in old if key in new and (not stages or key[1] in stages)]
    if yardstick is not None:
        for result in (before, after):
            if yardstick not in _names(result):
                raise UserError(f"--relative-to: expected a row that both files have, received {yardstick!r}"
                                f"{suggest(yardstick, _names(result))}")
        both = [key for key in both if key[0] != yardstick and (yardstick, key[1]) in old.keys() & new.keys()]
    if not both:
        raise UserError("the two files have no row and stage in common: before: "
                        f"{', '.join(_names(before)) or 'no rows'}; after: {', '.join(_names(after)) or 'no rows'}")
    lines = [Line(*key, old[key]["p50_ms"], new[key]["p50_ms"],
                  compare(_rounds(old, key, yardstick), _rounds(new, key, yardstick), least=least)) for key in both]
    return Report(lines=tuple(lines), differences=tuple(differences(before, after)),
                  only_before=_only(before, after), only_after=_only(after, before), yardstick=yardstick)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Why the two need not be comparable: machine, what else it did, settings, versions, uncommitted changes."""
    found = [f"another machine: {name} is {_show(before['machine'].get(name))} before and "
             f"{_show(after['machine'].get(name))} after" for name in MACHINE
             if before["machine"].get(name) != after["machine"].get(name)]
    gpus = [[gpu["name"] for gpu in result["machine"].get("gpus", ())] for result in (before, after)]
    if gpus[0] != gpus[1]:
        found.append(f"another machine: gpus are {_show(gpus[0])} before and {_show(gpus[1])} after")
    found += _other_networks(before, after)
    for name in dict.fromkeys((*before["settings"], *after["settings"])):
        old, new = before["settings"].get(name), after["settings"].get(name)
        if old != new and name not in NETWORKS:
            found.append(f"other settings: {name} is {_show(old)} before and {_show(new)} after")
    for name in dict.fromkeys((*before["versions"], *after["versions"])):
        old, new = before["versions"].get(name), after["versions"].get(name)
        if old != new:
            found.append(f"other versions: {name} is {_show(old)} before and {_show(new)} after")
    for when, result in (("before", before), ("after", after)):
        if load := busy(result["machine"]):
            found.append(f"a busy machine: when the file {when} was begun, {load}")
        if result["dirty"]:
            found.append(f"uncommitted changes: the file {when} is of {result['commit'][:12]} with changes that are in "
                         "no commit")
    return found


def _other_networks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Rows of one name that are not of one network, or not on one device. Folders and weights do not count."""
    def described(result: Mapping[str, Any]) -> dict[str, list[Any]]:
        networks = ((row, network_of(result, row)) for row in result["rows"])
        return {row["name"]: [network.get("preset"), network.get("image_size"), row["device"]]
                for row, network in networks}

    old, new = described(before), described(after)
    return [f"another network: {name} is {_show(old[name])} before and {_show(new[name])} after"
            for name in old if name in new and old[name] != new[name]]


def table(report: Report) -> str:
    """What is not the same, a line per row and stage, what only one file has, and the sum of the verdicts."""
    text = [f"WARNING: {difference}" for difference in report.differences]
    ratio = f"ratio, relative to {report.yardstick}" if report.yardstick else "ratio"
    lines = [["row", "stage", "before ms", "after ms", ratio, "95 % interval", "verdict"]]
    for line in report.lines:
        found = line.comparison
        interval = "too few rounds" if found.low is None else f"{found.low:.3f} - {found.high:.3f}"
        lines.append([line.row, line.stage, f"{line.before_ms:.2f}", f"{line.after_ms:.2f}", f"{found.ratio:.3f}",
                      interval, found.verdict])
    text += aligned(lines, left=2)
    text += [f"only before: {name}" for name in report.only_before]
    text += [f"only after: {name}" for name in report.only_after]
    counts = Counter(line.comparison.verdict for line in report.lines)
    text.append(", ".join(f"{counts[verdict]} {verdict}" for verdict in (FASTER, SLOWER, NOISE, UNKNOWN)
                          if counts[verdict]))
    return "\n".join(text)


def _times(result: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["name"], stage): times for row in result["rows"] for stage, times in row["stages"].items()
            if times["samples_ms"]}


def _rounds(times: Mapping[tuple[str, str], Mapping[str, Any]], key: tuple[str, str],
            yardstick: str | None) -> list[list[float]]:
    """The times of each round, over the median of the yardstick's in the same round where there is one."""
    rounds = times[key]["samples_ms"]
    if yardstick is None:
        return rounds
    return [[value / statistics.median(unit) for value in samples]
            for samples, unit in zip(rounds, times[yardstick, key[1]]["samples_ms"], strict=True)]


def _names(result: Mapping[str, Any]) -> list[str]:
    return [row["name"] for row in result["rows"]]


def _only(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Rows of the first that the second has not, with the reason where it says one; stages of rows that both have."""
    reasons = {entry["name"]: entry["reason"] for entry in other["not_run"]}
    rows, times = _names(other), _times(other)
    found = [f"{name} (not run there: {reasons[name]})" if name in reasons else name for name in _names(one)
             if name not in rows]
    return (*found, *(f"{row}: {stage}" for row, stage in _times(one) if row in rows and (row, stage) not in times))


def _show(value: Any) -> str:
    return "unknown" if value is None else json.dumps(value, ensure_ascii=False)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="compare.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("before", type=Path, help="result file, such as latency.py --json writes")
    result.add_argument("after", type=Path, help="another one of the same benchmark")
    result.add_argument("--stage", action="append", default=[], metavar="NAME",
                        help="compare this stage only; may be given several times (default: all)")
    result.add_argument("--least", type=float, default=100 * LEAST, metavar="PERCENT",
                        help="a smaller difference of the medians does not count (default: %(default)g)")
    result.add_argument("--relative-to", metavar="ROW",
                        help="divide by the times of this row, which both files have and which did not change")
    result.add_argument("--fail-slower", action="store_true", help="exit with 1 where anything is slower")
    return result


@command("compare.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not 0 <= arguments.least < 100:
        raise UserError(f"--least: expected a percentage from 0 to below 100, received {arguments.least:g}")
    report = compare_results(results_file.read(arguments.before), results_file.read(arguments.after),
                             stages=arguments.stage, least=arguments.least / 100, yardstick=arguments.relative_to)
    print(table(report))
    return EXIT_SLOWER if arguments.fail_slower and report.count(SLOWER) else 0


if __name__ == "__main__":
    raise SystemExit(main())
