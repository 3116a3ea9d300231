"""All benchmarks of the runtime in a few minutes, with the tiny weights of this repository: `make bench` runs it.

    talent-export --> latency.py --> parity.py --> scaling.py --> report.py

Leaves bundles, result files, charts and report.html in benchmarks/out. Short runs of a tiny network say whether the
benchmarks work here, and roughly how fast this machine is; for numbers to be published run each one by itself.
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

from benchmarks import latency, parity, report, scaling  # noqa: E402
from deploy import export  # noqa: E402
from deploy.runtime.gpu import gpu_architecture  # noqa: E402
from talent.errors import UserError, command  # noqa: E402

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))  # short paths in what is printed and kept
WEIGHTS, OUT = ROOT / "weights" / "tiny", ROOT / "benchmarks" / "out"
PRECISIONS = ("fp32", "fp16")
PEERS = "official,official-kept,plain"  # torch.compile takes a minute, CLIPSeg is no network of this size

Step = tuple[str, Callable[[Sequence[str]], int], list[str]]


def steps(out: Path, checkpoint: Path) -> list[Step]:
    """What is called, with which arguments."""
    bundles = [str(out / f"bundle-{precision}") for precision in PRECISIONS]
    engines = [] if gpu_architecture() else ["--no-engine"]  # without a GPU nothing would run them
    results = {name: str(out / f"{name}.json") for name in ("latency", "parity", "scaling")}
    return [
        *(("talent-export", export.main, [str(checkpoint), f"--{precision}", "-o", bundle, "--data", "shapes",
                                          "--calibration", "2", "--parity", "2", "--allow-drop", *engines])
          for precision, bundle in zip(PRECISIONS, bundles, strict=True)),
        ("latency.py", latency.main, [*bundles, "--checkpoint", str(checkpoint), "--peers", PEERS, "--samples", "5",
                                      "--rounds", "6", "--prompts", "1,4", "--batch", "1,4", "--json",
                                      results["latency"], "--png", str(out / "latency.png")]),
        ("parity.py", parity.main, [*bundles, "--checkpoint", str(checkpoint), "--samples", "20", "--json",
                                    results["parity"], "--worst", str(out / "worst.png")]),
        ("scaling.py", scaling.main, [str(checkpoint), "--bundles", bundles[0], "--prompts", "1,4,16", "--sizes",
                                      "none", "--batch", "1,4", "--rounds", "4", "--not-alone", "--json",
                                      results["scaling"], "--png", str(out / "scaling.png")]),
        ("report.py", report.main, [*results.values(), "-o", str(out / "report.html")])]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="short.py", description=__doc__.partition("\n")[0],
                                     epilog="example:\n  python benchmarks/short.py -o benchmarks/out",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--checkpoint", type=Path, default=WEIGHTS, help="what is measured (default: weights/tiny)")
    result.add_argument("-o", "--output", type=Path, default=OUT, metavar="DIR",
                        help="directory for everything (default: benchmarks/out)")
    return result


@command("short.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    started = time.perf_counter()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {arguments.output}: {error.strerror}; name another one: -o DIR"
                        ) from error
    for name, run, call in steps(arguments.output, arguments.checkpoint):
        print(f"\n=== {name} {' '.join(call)}  [{time.perf_counter() - started:.0f} s]", flush=True)
        if code := run(call):
            raise UserError(f"{name} failed with exit code {code}; its message is above")
    print(f"\nwrote {arguments.output / 'report.html'} and what it is made of in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
