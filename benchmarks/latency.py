"""Latency from a photo and a sentence to the mask, stage by stage, of every backend that runs here, and what it takes.

    each row in a process of its own: load time, first inference, memory --> all rows in one process, warmed up -->
    interleaved rounds (timing.py) while a thread reads the meters (power.py) --> result file, table, chart
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before the OpenMP of PyTorch is loaded: threads that spin after their work take the cores from the row that comes next
# (seen on two cores: 113 ms instead of 29 ms for the same row).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2  # noqa: E402
from tqdm import tqdm  # noqa: E402

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import results_file  # noqa: E402
from benchmarks.contenders import (  # noqa: E402
    EAGER,
    MERGED,
    ONNX_RUNTIME,
    BundleContender,
    Contender,
    NotRun,
    Opened,
    bundle_contenders,
    checkpoint_contenders,
    named_apart,
)
from benchmarks.fresh_process import Alone, Job, alone  # noqa: E402
from benchmarks.intervals import summary  # noqa: E402
from benchmarks.latency_view import EMULATED, STAGE_COLOURS, draw_chart, table  # noqa: E402
from benchmarks.machine import busy, conditions, describe, describe_device, machine, usable_cores  # noqa: E402
from benchmarks.measured import networks  # noqa: E402
from benchmarks.memory import NVML  # noqa: E402
from benchmarks.meters import find_meters  # noqa: E402
from benchmarks.outputs import check_outputs, write_outputs  # noqa: E402
from benchmarks.peak import Kind, Peaks  # noqa: E402
from benchmarks.power import PowerLog  # noqa: E402
from benchmarks.timing import FRAME, ON_GPU, STAGES, TIMED, WHOLE, Question, Times, measure  # noqa: E402
from benchmarks.warm_up import MOST  # noqa: E402
from deploy.bundle import Bundle  # noqa: E402
from talent.data.registry import HELP, open_dataset  # noqa: E402
from talent.data.sample import Samples  # noqa: E402
from talent.errors import UserError, command  # noqa: E402

__all__ = ["EAGER", "EMULATED", "FRAME", "MERGED", "ONNX_RUNTIME", "ON_GPU", "STAGES", "STAGE_COLOURS", "TIMED",
           "WHOLE", "benchmark", "describe", "describe_device", "draw_chart", "main", "table"]

PHOTO = 640  # side of the photos in pixels, about what a camera gives: pre- and postprocessing depend on it
JPEG_QUALITY = 95
PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "numpy",
            "opencv-python-headless")
NO_CHECKPOINT = "pass --checkpoint"
ALL = "all"
EXAMPLE = """examples:
  python benchmarks/latency.py bundle-fp16/ bundle-int8/ --checkpoint runs/mine/best --json latency.json
  python benchmarks/latency.py bundle-fp16/ --prompts 1,4,16 --batch 1,4
  python benchmarks/compare.py before.json latency.json
"""


def benchmark(bundles: Sequence[Bundle | str | Path], *, checkpoint: str | Path | None = None, data: str = "shapes",
              samples: int = 10, rounds: int = 10, threads: int | None = None, prompts: Sequence[int] = (1,),
              batches: Sequence[int] = (1,), most_warm_up: int = MOST, further: Sequence[Contender] = (),
              in_own_process: bool = True, root: Path | None = None,
              command: Sequence[str] = ("benchmarks/latency.py",)) -> dict[str, Any]:
    """The whole result, as `--json` writes it.

    threads: None for one per core. prompts, batches: expressions per photo, and pictures together, that are measured.
    further: contenders besides the bundles and the checkpoint. in_own_process: also measure every row alone; one that
    fails there is not opened here. root: where RefCOCO's files lie.
    Raises UserError for bad input, and where no bundle runs here.
    """
    numbers = {"samples": samples, "rounds": rounds, "threads": 1 if threads is None else threads,
               "warm-up": most_warm_up, "prompts": min(prompts, default=1), "batch": min(batches, default=1)}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"--{name}: expected at least 1, received {value}")
    opened = [bundle if isinstance(bundle, Bundle) else Bundle.load(bundle) for bundle in bundles]
    if not opened:
        raise UserError("expected at least one bundle; make one with talent-export")
    known_networks = networks(opened, checkpoint)
    notes = check_checkpoint(known_networks)
    if further:
        from benchmarks.peers import prepare

        # an export takes minutes and is no part of opening what it made
        further = prepare(further, image_size=opened[0].image_size)
    contenders, image_size = gather(opened, checkpoint=checkpoint, further=further)
    scenes = open_dataset(data, split="test", size=PHOTO, length=samples, root=root)
    samples = min(samples, len(scenes))
    threads = threads or usable_cores()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        questions = write_questions(scenes, samples, Path(folder))
        costs = _alone(contenders, questions[0], image_size, threads) if in_own_process else {}
        failed = {contender: cost.failure for contender, cost in costs.items() if cost.failure}
        with _limited(threads), Opened(contenders, image_size=image_size, threads=threads, failed=failed) as ready:
            if not any(isinstance(contender, BundleContender) for contender in ready.stages):
                raise UserError(f"no bundle runs here: {_reason_of_bundles(contenders, ready)}")
            known = {contender: stages.facts() for contender, stages in ready.stages.items()}
            meters, no_meters = find_meters()
            peaks = Peaks(filter(None, map(Kind.of, ready.stages)), threads=threads)
            peaks.measure()
            with PowerLog(meters) as power:
                times = measure(ready.stages, questions, rounds=rounds, prompts=prompts, batches=batches,
                                most_warm_up=most_warm_up, metered=bool(meters))
                facts["after"] = conditions()  # at once, while clocks and temperatures are those of the last round
            peaks.measure()
    facts["peak_gflop_per_second"] = {str(kind): peak for kind, peak in peaks.gflop_per_second.items()}
    facts["unknown"].update({f"peak of {kind}": reason for kind, reason in peaks.unknown.items()})
    facts["unknown"].update({f"power of the {what}": reason for what, reason in no_meters.items()})
    rows = [_row(contender, times[contender], known[contender], costs.get(contender), power, peaks)
            for contender in times]
    settings = {"data": data, "samples": samples, "rounds": rounds, "threads": threads, "photo": PHOTO,
                "image_size": image_size, "prompts": list(prompts), "batches": list(batches),
                "most_warm_up": most_warm_up, **known_networks}
    not_run = [*ready.not_run, *_stages_not_run(times)]
    if checkpoint is None:
        not_run += [NotRun(f"{backend} FP32", NO_CHECKPOINT, backend, "fp32") for backend in (EAGER, MERGED)]
    return results_file.new("latency", title=_title(opened), rows=rows, settings=settings, command=command,
                            packages=PACKAGES, machine=facts, not_run=[dataclasses.asdict(entry) for entry in not_run],
                            notes=[*notes, *_notes(times, rows, busy(facts))])


def gather(bundles: Sequence[Bundle], *, checkpoint: str | Path | None,
           further: Sequence[Contender] = ()) -> tuple[list[Contender], int]:
    """Everything that is to be measured, the checkpoint first, and the side of the input in pixels.

    Raises UserError where there are bundles of several sizes and others that would have to take them all.
    """
    if len({bundle.directory.resolve() for bundle in bundles}) < len(bundles):
        raise UserError(f"expected every bundle once, received {', '.join(str(one.directory) for one in bundles)}")
    sizes = sorted({bundle.image_size for bundle in bundles})
    contenders = [*(checkpoint_contenders(Path(checkpoint)) if checkpoint else []), *further]
    if len(sizes) > 1 and any(contender.image_size is None for contender in contenders):
        raise UserError(f"expected bundles of one image size beside --checkpoint, received {sizes} pixels; measure "
                        "one size at a time")
    return named_apart([*contenders, *bundle_contenders(bundles)]), sizes[0]


def check_checkpoint(known: dict[str, Any]) -> list[str]:
    """Notes about bundles of other weights than the checkpoint's. known: what `networks` says.

    Raises UserError where they are of another preset: then every comparison would be one of two networks.
    """
    checkpoint = known["checkpoint"]
    if checkpoint is None:
        return []
    for bundle in known["bundles"]:
        if bundle["preset"] != checkpoint["preset"]:
            raise UserError(f"expected bundles of the checkpoint {checkpoint['name']}, a {checkpoint['preset']}, "
                            f"received {bundle['name']}, a {bundle['preset']}; measure them in a run of their own")
    return [f"{bundle['name']} was exported from other weights than those of {checkpoint['name']}"
            for bundle in known["bundles"] if bundle["sha256"] != checkpoint["sha256"]]


def write_questions(scenes: Samples, count: int, folder: Path) -> list[Question]:
    """The first pictures of a data set as JPEG files, which cameras and disks give, with their first sentences."""
    questions = []
    for index in tqdm(range(count), desc="pictures", unit="picture", leave=False, disable=None):
        sample = scenes[index]
        path = folder / f"{index:04}.jpg"
        image = cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise UserError(f"cannot write the picture {path}; check the free space of the folder for temporary files")
        questions.append(Question(path, sample.expressions[0]))
    return questions


def _alone(contenders: Sequence[Contender], question: Question, image_size: int,
           threads: int) -> dict[Contender, Alone]:
    """What each contender costs in a process of its own."""
    return {contender: alone(Job(contender, image_size, threads, str(question.picture), question.sentence))
            for contender in tqdm(contenders, desc="each alone", unit="row", leave=False, disable=None)}


def _row(contender: Contender, times: Times, known: dict[str, Any], cost: Alone | None, power: PowerLog,
         peaks: Peaks) -> dict[str, Any]:
    stages = {stage: summary(rounds) for stage, rounds in times.stages.items()}
    gflop = known.get("gflop")
    rate = gflop and 1000 * gflop / stages["vision"]["p50_ms"]
    facts = {name: value for name, value in dataclasses.asdict(cost or Alone()).items() if name != "failure"}
    facts |= {"engine_bytes": None, "gflop": None, **known,
              "gflop_per_second": rate, "peak_share": peaks.share(contender, rate),
              "warm_up_runs": times.warm_up.runs, "warm_up_stable": times.warm_up.stable,
              **power.per_frame(times.spans, times.frames)}
    return results_file.row(contender.name, backend=contender.backend or contender.name, precision=contender.precision,
                            device=contender.device, source=contender.source, emulated=contender.emulated,
                            stages=stages, facts=facts)


def _stages_not_run(times: dict[Contender, Times]) -> list[NotRun]:
    return [NotRun(f"{contender.name}: {stage}", reason, contender.backend, contender.precision, contender.source)
            for contender, found in times.items() for stage, reason in found.not_run.items()]


def _notes(times: dict[Contender, Times], rows: Sequence[dict[str, Any]], load: str | None) -> list[str]:
    notes = [EMULATED] if any(contender.emulated for contender in times) else []
    shared = {row["facts"]["peak_gpu_source"] for row in rows} - {None, NVML}
    notes += [f"memory of the GPU as told by {source}" for source in sorted(shared)]
    notes += [f"a busy machine: before the first run {load}; end them and measure again"] if load else []
    return notes + [f"{contender.name} was not stable after {found.warm_up.runs} runs of warm-up"
                    for contender, found in times.items() if not found.warm_up.stable]


def _reason_of_bundles(contenders: Sequence[Contender], ready: Opened) -> str:
    """Why the first bundle does not run."""
    first = next(contender.name for contender in contenders if isinstance(contender, BundleContender))
    return next(entry.reason for entry in ready.not_run if entry.name == first)


def _title(bundles: Sequence[Bundle]) -> str:
    networks = dict.fromkeys(f"{bundle.preset} at {bundle.image_size} px" for bundle in bundles)
    return f"Latency, {', '.join(networks)}"


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """PyTorch (where it is installed) and OpenCV with this many threads; afterwards as before."""
    try:
        import torch
    except ModuleNotFoundError:
        torch = None
    before = cv2.getNumThreads(), torch and torch.get_num_threads()
    cv2.setNumThreads(threads)
    if torch:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        if torch:
            torch.set_num_threads(before[1])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="latency.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="directory that talent-export wrote")
    result.add_argument("--checkpoint", type=Path, help="checkpoint of the bundles: adds the PyTorch rows")
    result.add_argument("--peers", nargs="?", const=ALL, metavar="NAME,...",
                        help="add what a user might pick instead, all of them or those of these names "
                             "(benchmarks/peers.py)")
    result.add_argument("--data", default="shapes", metavar="NAME|FILE", help=f"{HELP} (default: %(default)s)")
    result.add_argument("--data-root", type=Path, metavar="DIR", help="where RefCOCO's files lie")
    result.add_argument("--samples", type=int, default=10, metavar="N", help="samples of a pass (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=10, metavar="R",
                        help="passes per row; from four on two runs can be compared (default: %(default)s)")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    result.add_argument("--prompts", default="1", metavar="N,...",
                        help="expressions per photo that are measured (default: %(default)s)")
    result.add_argument("--batch", default="1", metavar="N,...",
                        help="pictures together that are measured (default: %(default)s)")
    result.add_argument("--warm-up", type=int, default=MOST, metavar="N",
                        help="runs at most until a row counts as warm (default: %(default)s)")
    result.add_argument("--not-alone", action="store_true",
                        help="leave out what each row takes in a process of its own: load time, first inference and "
                             "memory")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    result.add_argument("--png", type=Path, metavar="FILE", help="write a chart")
    return result


def read_counts(text: str, option: str) -> list[int]:
    """"1,4" -> [1, 4]. Raises UserError."""
    counts = text.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise UserError(f"{option}: expected numbers of at least 1 with commas between, as 1,4, received {text!r}")
    return list(dict.fromkeys(map(int, counts)))


def _peers(arguments: argparse.Namespace) -> list[Contender]:
    if arguments.peers is None:
        return []
    from benchmarks.peers import PEERS, peer_contenders  # torch, which the bundles do not need

    names = list(PEERS) if arguments.peers == ALL else arguments.peers.split(",")
    return peer_contenders(arguments.checkpoint, names=names)


@command("latency.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    prompts, batches = read_counts(arguments.prompts, "--prompts"), read_counts(arguments.batch, "--batch")
    check_outputs(arguments.json, arguments.png)
    result = benchmark(arguments.bundles, checkpoint=arguments.checkpoint, data=arguments.data,
                       samples=arguments.samples, rounds=arguments.rounds, threads=arguments.threads, prompts=prompts,
                       batches=batches, most_warm_up=arguments.warm_up, further=_peers(arguments),
                       in_own_process=not arguments.not_alone, root=arguments.data_root,
                       command=["benchmarks/latency.py", *map(str, sys.argv[1:] if argv is None else argv)])
    write_outputs(arguments.json, arguments.png, write=lambda path: results_file.write(path, result),
                  draw=lambda path: draw_chart(result, path), otherwise="--json latency.json", table=table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
