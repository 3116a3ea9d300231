"""Time and memory as work grows: prompts per picture, input size, pictures together; measured and predicted.

    bundle per size, each opened once --> GFLOP by scaling_cost.py --> points of a curve in interleaved rounds -->
    each point in a process of its own: memory --> GFLOP scaled to the usual point --> result file, table, chart

The usual point is one prompt, one picture, the checkpoint's own size. The prediction passes through it, so that what is
judged is the shape of a curve: where the machine computes more or fewer operations a second than there.

Whatever cannot be measured is found before anything is: what a backend does not take at once is left out and said.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as latency.py, before PyTorch is loaded

import cv2  # noqa: E402
from tqdm import tqdm  # noqa: E402

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import results_file  # noqa: E402
from benchmarks.contenders import BACKENDS  # noqa: E402
from benchmarks.intervals import summary  # noqa: E402
from benchmarks.latency_view import EMULATED, MEBI, device_name, not_run  # noqa: E402
from benchmarks.machine import conditions, machine, usable_cores  # noqa: E402
from benchmarks.measured import networks  # noqa: E402
from benchmarks.outputs import check_outputs, write_outputs  # noqa: E402
from benchmarks.rounds import aligned, rotations  # noqa: E402
from benchmarks.scaling_bundles import (  # noqa: E402
    bundles_of_sizes,
    check_sizes,
    divide,
    given_bundles,
    most_at_once,
)
from benchmarks.scaling_chart import draw_chart  # noqa: E402
from benchmarks.scaling_cost import (  # noqa: E402
    BATCH,
    PROMPTS,
    SERIES,
    SIZE,
    SUPPORT,
    TERMS,
    Curve,
    curves,
    line,
    predict,
)
from benchmarks.scaling_points import (  # noqa: E402
    DATA,
    FRAME,
    PHOTO,
    POSTPROCESS,
    PREPROCESS,
    TEXT,
    VISION,
    Memory,
    Point,
    Questions,
    memory_alone,
    run_once,
)
from deploy.bundle import Bundle  # noqa: E402
from talent.checkpoint import load_checkpoint, load_config  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.image_size import SIZES  # noqa: E402

PROMPT_COUNTS, PIXELS, BATCHES = (1, 2, 4, 8, 16, 32), (224, 280, 336, 392, 448, 518), (1, 2, 4, 8)
PRECISIONS = ("fp32", "fp16")
NONE = "none"
WARM_UP = 2  # runs of a point that are not counted: the first allocates
ON_CPU = ("pictures together are prepared on the CPU, also the single one of their curve; the other curves are of "
          "whole frames on the GPU")
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "opencv-python-headless")
EXAMPLE = """examples:
  python benchmarks/scaling.py base/ --json scaling.json --png scaling.png
  python benchmarks/scaling.py weights/tiny --sizes none --batch none --prompts 1,8,32 --rounds 3
"""


def measure(points: Sequence[Point], *, rounds: int, samples: int, progress: tqdm) -> dict[Point, dict[str, list]]:
    """Milliseconds of every run, a list a round, by stage, of the points of one curve: in rounds, the order rotated."""
    found: dict[Point, dict[str, list]] = {point: {} for point in points}
    with contextlib.ExitStack() as stack:
        opened = {}
        for point in points:  # points of one bundle share its segmenter
            if point.bundle not in opened:
                opened[point.bundle] = stack.enter_context(point.open())
        questions = {point: Questions(point) for point in points}
        for point in points:
            for _ in range(WARM_UP):
                run_once(opened[point.bundle], questions[point])
            progress.update()
        for turn in rotations(points, rounds):
            for point in turn:
                runs = [run_once(opened[point.bundle], questions[point]) for _ in range(samples)]
                for stage in runs[0]:
                    found[point].setdefault(stage, []).append([run[stage] for run in runs])
                progress.update()
    return found


def judged(stages: Mapping[str, Any]) -> str:
    """The stage whose time follows the arithmetic: the vision graph, or the frame where it is not timed by itself."""
    return VISION if VISION in stages else FRAME


def benchmark(checkpoint: Path, *, values: Mapping[str, Sequence[int]], bundles: Sequence[Path] = (),
              precision: str = "fp32", backend: str = "onnxruntime", samples: int = 3, rounds: int = 6,
              threads: int | None = None, in_own_process: bool = True,
              command: Sequence[str] = ("benchmarks/scaling.py",)) -> dict[str, Any]:
    """The whole result, as `--json` writes it.

    values: of each series (of SERIES) that is measured. bundles: of the checkpoint, which saves exporting them; a
    TensorRT needs them all. rounds: from six on the 95 % intervals are wide enough. threads: None for one per core.
    in_own_process: also measure the memory of every point alone.
    Raises UserError, before anything is measured, for bad input, and where a bundle cannot be exported or does not run
    here. What a bundle does not take at once is no error but a line of the result.
    """
    threads = threads or usable_cores()
    own = given_bundles(checkpoint, bundles, precision=precision)
    usual = {PROMPTS: 1, SIZE: load_config(checkpoint).image_size, BATCH: 1}
    counted = values.keys() - {SIZE}
    sizes = sorted({*values.get(SIZE, ()), *([usual[SIZE]] if counted else [])})
    check_sizes(own, sizes, checkpoint=checkpoint, precision=precision, backend=backend)
    made = bundles_of_sizes(checkpoint, sizes, precision=precision, own=own,
                            progress=lambda size: print(f"exporting {checkpoint} for {size} px", file=sys.stderr))
    most = {size: most_at_once(bundle, backend, threads) for size, bundle in
            tqdm(made.items(), desc="open", unit="bundle", leave=False, disable=None)}
    too_much = []
    if counted:
        values, too_much = divide(values, most=most[usual[SIZE]], bundle=made[usual[SIZE]], backend=backend)
    with tqdm(total=sum(len(SUPPORT[name]) for name in values), desc="arithmetic", unit="count", leave=False,
              disable=None) as bar:
        expected = curves(load_checkpoint(checkpoint), list(values), bar.update)
    facts = machine()
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    rows, series, notes = [], {}, []
    try:
        with tqdm(total=sum(map(len, values.values())) * (rounds + 1), desc="scaling", unit="pass", leave=False,
                  disable=None) as bar:
            for name in values:
                points = [_point(name, value, made[value if name == SIZE else usual[SIZE]], backend, threads)
                          for value in values[name]]
                times = measure(points, rounds=rounds, samples=samples, progress=bar)
                memory = _memory(points) if in_own_process else {}
                added, series[name] = _rows(points, times, memory, expected[name], usual[name], made)
                rows += added
    finally:
        cv2.setNumThreads(before)
    facts["after"] = conditions()
    first = made[sizes[0]]
    if any(row["emulated"] for row in rows):
        notes.append(EMULATED)
    if {one["stage"] for one in series.values()} == {VISION, FRAME}:
        notes.append(ON_CPU)
    settings = {"samples": samples, "rounds": rounds, "threads": threads, "photo": PHOTO, "data": DATA,
                "image_size": usual[SIZE], "series": series, **networks(list(made.values()), checkpoint)}
    failed = [{"name": f"{row['name']}: memory", "reason": row["facts"].pop("memory_failure")} for row in rows
              if row["facts"].get("memory_failure")]
    return results_file.new("scaling", title=f"Cost as work grows, {first.preset}", rows=rows, settings=settings,
                            command=command, packages=PACKAGES, machine=facts, not_run=[*too_much, *failed],
                            notes=notes)


def _point(series: str, value: int, bundle: Bundle, backend: str, threads: int) -> Point:
    counts = {PROMPTS: {"prompts": value}, SIZE: {}, BATCH: {"pictures": value, "prompts": value}}[series]
    return Point(series, value, str(bundle.directory), backend, threads, **counts)


def _memory(points: Sequence[Point]) -> dict[Point, Memory]:
    return {point: memory_alone(point)
            for point in tqdm(points, desc="memory", unit="point", leave=False, disable=None)}


def _rows(points: Sequence[Point], times: Mapping[Point, Mapping[str, list]], memory: Mapping[Point, Memory],
          curve: Curve, usual: int, bundles: Mapping[int, Bundle]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows of the result file, what its settings say of the series)."""
    stages = {point: {stage: summary(rounds) for stage, rounds in times[point].items()} for point in points}
    stage = judged(stages[points[0]])
    measured = {point.value: stages[point][stage]["p50_ms"] for point in points}
    anchor, predicted = predict(curve, measured, usual=usual)
    precisions = {str(bundle.directory): bundle.precision for bundle in bundles.values()}
    rows = []
    for point in points:
        took, gflop, precision = measured[point.value], curve.gflop(point.value), precisions[point.bundle]
        alone = dataclasses.asdict(memory.get(point, Memory()))
        facts = {"series": point.series, "value": point.value, "gflop": gflop, "gflop_per_second": 1000 * gflop / took,
                 "predicted_ms": predicted[point.value], "deviation": took / predicted[point.value] - 1,
                 "memory_failure": alone.pop("failure"), **alone}
        on_cpu = point.backend == "onnxruntime"
        rows.append(results_file.row(
            point.name, backend=BACKENDS[point.backend], precision=precision, device="cpu" if on_cpu else "cuda",
            source=point.bundle, emulated=on_cpu and precision != "fp32", stages=stages[point], facts=facts))
    fitted = line(measured) if curve.series != SIZE else None
    return rows, {"values": list(measured), "stage": stage, "anchor": anchor,
                  "terms": dict(zip(TERMS[curve.series], curve.coefficients, strict=True)),
                  "once_ms": fitted and fitted[0], "each_ms": fitted and fitted[1],
                  "largest_deviation": max((row["facts"]["deviation"] for row in rows), key=abs)}


def table(result: Mapping[str, Any]) -> str:
    """The result as text: a line per point, then what fits each curve, then how it was measured."""
    stages = [stage for stage in (TEXT, PREPROCESS, VISION, POSTPROCESS, FRAME)
              if any(stage in row["stages"] for row in result["rows"])]
    lines = [["", *stages, "predicted", "deviation", "GFLOP", "GFLOP/s", "host MiB", "GPU MiB"]]
    for row in result["rows"]:
        facts = row["facts"]
        times = (f"{row['stages'][stage]['p50_ms']:.1f}" if stage in row["stages"] else "-" for stage in stages)
        sizes = ("-" if size is None else f"{size / MEBI:.0f}" for size in (facts["peak_host_bytes"],
                                                                             facts["peak_gpu_bytes"]))
        lines.append([row["name"], *times, f"{facts['predicted_ms']:.1f}", f"{facts['deviation']:+.1%}",
                      f"{facts['gflop']:.2f}", f"{facts['gflop_per_second']:.0f}", *sizes])
    text = [one.rstrip() for one in aligned(lines, left=1)]
    settings = result["settings"]
    for name, series in settings["series"].items():
        fitted = (f"; a straight line through what was measured: {series['once_ms']:.1f} ms once and "
                  f"{series['each_ms']:.1f} ms for each" if series["each_ms"] is not None else "")
        text.append(f"{name}: {series['stage']} differs by {series['largest_deviation']:+.1%} at most from its "
                    f"arithmetic, scaled to {series['anchor']}{fitted}")
    text.append(f"medians of {settings['rounds']} rounds x {settings['samples']} runs in milliseconds, "
                f"{settings['photo']} px photos, {settings['threads']} threads, {device_name(result['machine'])}; a "
                "frame is all but the text, which a robot computes once per expression")
    return "\n".join([*text, *not_run(result), *(f"note: {note}" for note in result["notes"])])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="scaling.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("checkpoint", type=Path, help="checkpoint directory (talent-train, talent-import)")
    for option, default, what in (("--prompts", PROMPT_COUNTS, "expressions about one picture"),
                                  ("--sizes", PIXELS, "sides of the input in pixels"),
                                  ("--batch", BATCHES, "pictures together, with an expression each")):
        result.add_argument(option, default=",".join(map(str, default)), metavar="N,...",
                            help=f"{what}, or {NONE} (default: %(default)s)")
    result.add_argument("--bundles", type=Path, nargs="+", default=[], metavar="BUNDLE",
                        help="bundles of the checkpoint; what is missing is exported once and kept")
    result.add_argument("--precision", choices=PRECISIONS, default="fp32",
                        help="of the bundles (default: %(default)s, which a CPU does not emulate)")
    result.add_argument("--backend", choices=list(BACKENDS), default="onnxruntime",
                        help="what runs them; a TensorRT needs --bundles with engines of it for every size, and what "
                             "they do not take at once is left out (default: %(default)s)")
    result.add_argument("--samples", type=int, default=3, metavar="N",
                        help="runs of a point in each round (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=6, metavar="R",
                        help="rounds; from six on an interval holds the true median in 95 %% of cases (default: "
                             "%(default)s)")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    result.add_argument("--not-alone", action="store_true",
                        help="leave out the memory, which takes a process for each point")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    result.add_argument("--png", type=Path, metavar="FILE", help="write a chart")
    return result


def read_values(arguments: argparse.Namespace) -> dict[str, list[int]]:
    """The values of each series that is asked for, in ascending order. Raises UserError."""
    asked = {PROMPTS: ("--prompts", arguments.prompts), SIZE: ("--sizes", arguments.sizes),
             BATCH: ("--batch", arguments.batch)}
    values = {}
    for name in SERIES:
        option, text = asked[name]
        if text == NONE:
            continue
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UserError(f"{option}: expected numbers of at least 1 with commas between, as 1,4, or {NONE}, "
                            f"received {text!r}")
        values[name] = sorted(set(map(int, parts)))
    if not values:
        raise UserError(f"expected at least one of --prompts, --sizes and --batch, received {NONE} for all of them")
    for size in values.get(SIZE, ()):
        if size not in SIZES:
            raise UserError(f"--sizes: expected {SIZES[0]} to {SIZES[-1]} pixels in steps of {SIZES.step}, received "
                            f"{size}")
    return values


@command("scaling.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    values = read_values(arguments)
    for name in ("samples", "rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: expected at least 1, received {value}")
    check_outputs(arguments.json, arguments.png)
    result = benchmark(arguments.checkpoint, values=values, bundles=arguments.bundles, precision=arguments.precision,
                       backend=arguments.backend, samples=arguments.samples, rounds=arguments.rounds,
                       threads=arguments.threads, in_own_process=not arguments.not_alone,
                       command=["benchmarks/scaling.py", *map(str, sys.argv[1:] if argv is None else argv)])
    write_outputs(arguments.json, arguments.png, write=lambda path: results_file.write(path, result),
                  draw=lambda path: draw_chart(result, path), otherwise="--json scaling.json", table=table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
