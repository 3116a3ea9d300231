"""All benchmarks of the runtime, one after the other: short with the tiny network, or as they are published.

    checkpoints --> talent-export --> latency.py --> parity.py --> scaling.py --> report.py

Leaves bundles, result files, charts and report.html in one directory. Short runs (`make bench`) of a tiny network say
whether the benchmarks work here, and roughly how fast this machine is. The full ones (`make bench-full`) take about an
hour of two cores that nothing else uses; benchmarks/results has those that the README quotes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as latency.py, before PyTorch is loaded

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import latency, parity, random_checkpoint, report, scaling  # noqa: E402
from deploy import export  # noqa: E402
from deploy.runtime.gpu import gpu_architecture  # noqa: E402
from talent.errors import UserError, command  # noqa: E402

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))  # short paths in what is printed and kept
WEIGHTS, OUT = ROOT / "weights" / "tiny", ROOT / "benchmarks" / "out"
QUICK_PEERS = "official,official-kept,plain"  # torch.compile takes a minute, CLIPSeg is no network of tiny's size
FEW = ["--data", "shapes", "--calibration", "2", "--parity", "2", "--allow-drop"]  # times do not depend on accuracy

Step = tuple[str, Callable[[Sequence[str]], int], list[str]]


def short(out: Path) -> list[Step]:
    """What is called, with which arguments: some minutes, tiny only."""
    bundles = {precision: out / f"bundle-{precision}" for precision in ("fp32", "fp16")}
    return [
        *(_export(WEIGHTS, bundle, precision, FEW) for precision, bundle in bundles.items()),
        _latency(out, "latency", [*bundles.values(), "--checkpoint", WEIGHTS, "--peers", QUICK_PEERS, "--samples", 5,
                                  "--rounds", 6, "--prompts", "1,4", "--batch", "1,4"]),
        _parity(out, "parity", [*bundles.values(), "--checkpoint", WEIGHTS, "--samples", 20]),
        _scaling(out, "scaling", [WEIGHTS, "--bundles", bundles["fp32"], "--prompts", "1,4,16", "--sizes", "none",
                                  "--batch", "1,4", "--not-alone"]),
        _report(out, "latency", "parity", "scaling")]


def full(out: Path) -> list[Step]:
    """What is published: times of base and small with random weights, accuracy of tiny, which is trained."""
    base, small = out / "base", out / "small"
    precisions = ("fp32", "fp16") if gpu_architecture() else ("fp32",)  # a CPU would emulate FP16
    bases = {precision: out / f"base-{precision}" for precision in precisions}
    tinies = {precision: out / f"tiny-{precision}" for precision in ("fp32", "fp16", "int8")}
    return [
        _step("random_checkpoint.py", random_checkpoint.main, ["base", "--lora", "-o", base]),
        _step("random_checkpoint.py", random_checkpoint.main, ["small", "--lora", "-o", small]),
        *(_export(base, bundle, precision, FEW) for precision, bundle in bases.items()),
        _export(small, out / "small-fp32", "fp32", FEW),
        *(_export(WEIGHTS, bundle, precision, ["--data", "shapes"]) for precision, bundle in tinies.items()),
        _latency(out, "latency-base", [*bases.values(), "--checkpoint", base, "--peers", "--samples", 4]),
        _latency(out, "latency-small", [bases["fp32"], out / "small-fp32", "--rounds", 20]),  # its target is near
        _latency(out, "latency-tiny", [*tinies.values(), "--checkpoint", WEIGHTS, "--peers", QUICK_PEERS, "--prompts",
                                       "1,4,16", "--batch", "1,4"]),
        _parity(out, "parity-tiny", [*tinies.values(), "--checkpoint", WEIGHTS]),
        _scaling(out, "scaling-base", [base, "--bundles", bases["fp32"], "--samples", 1, "--rounds", 6]),
        _report(out, "latency-base", "latency-small", "latency-tiny", "parity-tiny", "scaling-base")]


def _step(name: str, run: Callable[[Sequence[str]], int], call: Sequence[object]) -> Step:
    return name, run, list(map(str, call))


def _export(checkpoint: Path, bundle: Path, precision: str, options: Sequence[str]) -> Step:
    engines = [] if gpu_architecture() else ["--no-engine"]  # without a GPU nothing would run them
    return _step("talent-export", export.main, [checkpoint, f"--{precision}", "-o", bundle, *options, *engines])


def _latency(out: Path, name: str, call: Sequence[object]) -> Step:
    return _step("latency.py", latency.main, [*call, "--json", out / f"{name}.json", "--png", out / f"{name}.png"])


def _parity(out: Path, name: str, call: Sequence[object]) -> Step:
    return _step("parity.py", parity.main, [*call, "--json", out / f"{name}.json", "--worst", out / f"{name}.jpg"])


def _scaling(out: Path, name: str, call: Sequence[object]) -> Step:
    return _step("scaling.py", scaling.main, [*call, "--json", out / f"{name}.json", "--png", out / f"{name}.png"])


def _report(out: Path, *results: str) -> Step:
    return _step("report.py", report.main, [*(out / f"{name}.json" for name in results), "-o", out / "report.html"])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="suite.py", description=__doc__.partition("\n")[0],
                                     epilog="example:\n  python benchmarks/suite.py --full -o benchmarks/out/full",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--full", action="store_true", help="the runs that are published: about an hour")
    result.add_argument("-o", "--output", type=Path, metavar="DIR",
                        help="directory for everything (default: benchmarks/out, benchmarks/out/full with --full)")
    return result


@command("suite.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    output = arguments.output or (OUT / "full" if arguments.full else OUT)
    started = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {output}: {error.strerror}; name another one: -o DIR") from error
    for name, run, call in (full if arguments.full else short)(output):
        print(f"\n=== {name} {' '.join(call)}  [{time.perf_counter() - started:.0f} s]", flush=True)
        if code := run(call):
            raise UserError(f"{name} failed with exit code {code}; its message is above")
    print(f"\nwrote {output / 'report.html'} and what it is made of in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
