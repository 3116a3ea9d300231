"""Time of RCA on a GPU: our kernel, PyTorch eager and compiled, and cuBLAS, beside the least that the card could take.

The six shapes are those of `base` and `large`, whose widths agree: the block adapters (D = 128) with 17 words as in
RefCOCO and with 22 as in RefCOCOg, and the neck (D = 512, one sentence, relu), at 448 px (1024 tokens) and at 518 px
(1369 tokens).

Rows without a star are replays of a CUDA graph of many calls: what the GPU takes. Rows with a star are called from
Python each time: what a program without graphs sees. Both are timed with CUDA events. All rows of a case are measured
in rounds, the order rotated, so that a clock that drops hits all of them alike; figures are the medians. Inputs and
outputs rotate over sets that are twice as large as the L2 cache, because in a network other layers come between. Before
it is timed, every row is checked against the reference in float64.

The floor of a case is what it takes to move visual, text, weight, bias and output once at the bandwidth of a large
copy, and one launch of a kernel that writes one number; both are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as latency.py, before PyTorch is loaded

from tqdm import tqdm  # noqa: E402

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.kernel_cases import BYTES, ROWS, SHAPES, Case, Machine, Row  # noqa: E402
from benchmarks.kernel_chart import draw_chart  # noqa: E402
from benchmarks.latency import describe_device  # noqa: E402
from benchmarks.outputs import check_outputs, write_outputs  # noqa: E402
from benchmarks.rounds import aligned, measure  # noqa: E402
from talent import provenance  # noqa: E402
from talent.errors import UserError, command, suggest  # noqa: E402
from talent.files import atomic_write  # noqa: E402

PACKAGES = ("torch", "triton", "numpy")
COPY, LAUNCH = "copy", "launch"
MICRO = 1e6
EXAMPLE = """example:
  python benchmarks/kernels.py --batches 1,4,16 --types fp16,bf16 -o kernels.json --png kernels.png
"""


def benchmark(machine: Machine, cases: Sequence[Case], *, rounds: int) -> dict[str, Any]:
    """The whole report, as `--output` writes it. The yardsticks are measured before the cases and again after them."""
    device = describe_device()
    yardsticks = {COPY: machine.copy, LAUNCH: machine.launch}
    measured: dict[Case, dict[Row, list[float]]] = {}
    errors: dict[Case, dict[Row, float]] = {}
    not_run = []
    with tqdm(total=len(cases) + 2, desc="kernels", unit="case", leave=False, disable=None) as bar:
        ideal = measure(yardsticks, rounds=rounds)
        bar.update()
        for case in cases:
            opened = machine.open(case)
            measured[case] = measure({row: it.timer for row, it in opened.contenders.items()}, rounds=rounds)
            errors[case] = {row: it.error for row, it in opened.contenders.items()}
            not_run += [{**describe(case), "row": row.name, "how": row.how, "reason": reason}
                        for row, reason in opened.not_run.items()]
            del opened  # and with it the memory of its sets, before those of the next case
            bar.update()
        for name, seconds in measure(yardsticks, rounds=rounds).items():
            ideal[name] += seconds
        clocks_after = describe_device()["gpu"]
        bar.update()
    bandwidth = machine.copied_bytes / statistics.median(ideal[COPY])
    launch = statistics.median(ideal[LAUNCH])
    rows = []
    for case, times in measured.items():
        floor = case.floor_seconds(bandwidth, launch)
        for row, seconds in times.items():
            median = statistics.median(seconds)
            rows.append({**describe(case), "row": row.name, "how": row.how, "microseconds": MICRO * median,
                         "floor_microseconds": MICRO * floor, "of_floor": median / floor,
                         "relative_error": errors[case][row], "rounds_microseconds": [MICRO * s for s in seconds]})
    return {"rows": rows, "not_run": not_run, "rounds": rounds,
            "copy_bytes_per_second": bandwidth, "copied_bytes": machine.copied_bytes,
            "copy_seconds": ideal[COPY], "launch_microseconds": MICRO * launch,
            "rounds_launch_microseconds": [MICRO * s for s in ideal[LAUNCH]],
            "card": machine.describe(), "device": device, "gpu_after": clocks_after,
            "commit": provenance.commit(), "versions": provenance.versions(*PACKAGES)}


def describe(case: Case) -> dict[str, Any]:
    """A case as the report has it."""
    _, tokens, words, width = case.sizes
    return {"shape": case.shape.label, "type": case.type, "batch": case.batch, "pixels": case.shape.pixels,
            "tokens": tokens, "words": words, "width": width, "activation": case.shape.activation,
            "bytes": case.bytes}


def table(report: dict[str, Any]) -> str:
    """The report as text: a line per case, a column per row, each in microseconds and in floors."""
    found: dict[tuple[str, str, int], dict[Row, dict[str, Any]]] = {}
    for record in report["rows"]:
        case = record["shape"], record["type"], record["batch"]
        found.setdefault(case, {})[Row(record["row"], record["how"])] = record
    rows = [row for row in ROWS if any(row in records for records in found.values())]
    lines = [["microseconds (of floor)", "type", "batch", "floor", *(row.label for row in rows)]]
    for (shape, type_name, batch), records in found.items():
        floor = next(iter(records.values()))["floor_microseconds"]
        cells = [f"{records[row]['microseconds']:.2f} ({records[row]['of_floor']:.2f}x)" if row in records else "-"
                 for row in rows]
        lines.append([shape, type_name, str(batch), f"{floor:.2f}", *cells])
    text = aligned(lines, left=2)
    text += [f"{row.label}: {ROWS[row]}" for row in rows]
    reasons = dict.fromkeys((entry["row"], entry["type"], entry["reason"]) for entry in report["not_run"])
    text += [f"not run: {row} in {type_name}: {reason}" for row, type_name, reason in reasons]
    text.append(f"median of {report['rounds']} interleaved rounds, CUDA events around replays of a graph (*: around "
                f"calls from Python); floor: every byte moved once at {report['copy_bytes_per_second'] / 1e9:.0f} "
                f"GB/s, the bandwidth of a copy, and a launch of {report['launch_microseconds']:.2f} us")
    text.append(f"{report['card']['name']}, {report['device']['gpu'] or 'clocks unknown'}; after the last round "
                f"{report['gpu_after'] or 'unknown'}")
    return "\n".join(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="kernels.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--types", default="fp16", help=f"of {', '.join(BYTES)}, by commas (default: %(default)s)")
    result.add_argument("--batches", default="1,4,16", help="pictures, by commas (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds (default: %(default)s)")
    result.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured, as JSON")
    result.add_argument("--png", type=Path, metavar="FILE", help="write a chart")
    return result


def read_cases(arguments: argparse.Namespace) -> list[Case]:
    """Every shape in every type and batch. Raises UserError for what no run can have, before anything is computed."""
    if arguments.rounds < 1:
        raise UserError(f"--rounds: expected at least 1, received {arguments.rounds}")
    types = arguments.types.split(",")
    for name in types:
        if name not in BYTES:
            raise UserError(f"--types: expected some of {', '.join(BYTES)} by commas, received {name!r}"
                            f"{suggest(name, BYTES)}")
    batches = arguments.batches.split(",")
    for batch in batches:
        if not batch.isdecimal() or int(batch) < 1:
            raise UserError(f"--batches: expected whole numbers of at least 1 by commas, received {batch!r}; write "
                            "--batches 1,4,16")
    check_outputs(arguments.output, arguments.png)
    return [Case(shape, name, int(batch)) for name in dict.fromkeys(types) for shape in SHAPES
            for batch in dict.fromkeys(batches)]


def _write(path: Path, report: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")


@command("kernels.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cases = read_cases(arguments)
    from benchmarks.kernel_rows import Card  # PyTorch, which --help does not need

    report = benchmark(Card(), cases, rounds=arguments.rounds)
    write_outputs(arguments.output, arguments.png, write=lambda path: _write(path, report),
                  draw=lambda path: draw_chart(report, path), otherwise="-o kernels.json", table=table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
