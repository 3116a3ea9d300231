"""Accuracy of a checkpoint in PyTorch and of its bundles in every backend that runs here, on the same sentences.

mIoU, oIoU, Pr@X and NTA of each; how the IoU of every sentence changed against the first row, which is PyTorch where a
checkpoint is given; the ten sentences that lost most as one picture. Every network is asked as talent-eval asks it:
with its own input size, at its own threshold, about the same photos; shapes draws them at the first bundle's size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measured, results_file  # noqa: E402
from benchmarks.contenders import (  # noqa: E402
    BundleContender,
    Contender,
    bundle_contenders,
    checkpoint_contenders,
    named_apart,
)
from benchmarks.outputs import check_outputs, write_outputs  # noqa: E402
from benchmarks.parity_pictures import draw, worst  # noqa: E402
from benchmarks.parity_rows import Answer, Difference, answers, compared, facts, records  # noqa: E402
from benchmarks.parity_table import table  # noqa: E402
from deploy.bundle import Bundle  # noqa: E402
from deploy.evaluate import PACKAGES, SHAPES_SAMPLES, Network, open_network  # noqa: E402
from talent.data.registry import HELP, SHAPES, check_name, open_dataset  # noqa: E402
from talent.data.sample import Samples  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.image import save_image  # noqa: E402

EMULATED = ("emulated: a CPU computes most of FP16 in FP32 and so shows less of its rounding than a GPU; the bundle's "
            "export.json says how much there is")
EXAMPLE = """\
example:
  python benchmarks/parity.py bundle-fp32/ bundle-int8/ --checkpoint runs/mine/best --json parity.json --worst worst.png
  python benchmarks/parity.py bundle/ --data kitchen.jsonl --samples 200
"""


@dataclass(frozen=True)
class Parity:
    """What was measured. result: as results_file.py has it. differences: by the name of the row, in their order."""

    result: dict[str, Any]
    differences: dict[str, list[Difference]]
    samples: Samples


def networks(bundles: Sequence[Bundle], checkpoint: Path | None) -> list[Contender]:
    """PyTorch first, where there is a checkpoint; then every bundle in every backend."""
    first = checkpoint_contenders(checkpoint)[:1] if checkpoint else []
    return named_apart([*first, *bundle_contenders(bundles)])


def opened(contender: Contender, threshold: float | None) -> AbstractContextManager[Network]:
    """Its network. Raises UserError where it cannot run here."""
    backend = contender.runtime if isinstance(contender, BundleContender) else None
    return open_network(contender.source, backend=backend, threshold=threshold)


@dataclass(frozen=True)
class Asked:
    """A network's answers. image_size: side of its input in pixels."""

    image_size: int
    answers: list[Answer]


def ask(contenders: Sequence[Contender], samples: Samples, *,
        threshold: float | None = None) -> tuple[dict[Contender, Asked], list[dict[str, str]]]:
    """What every contender answered, and those that could not be asked, with the reason.

    Raises UserError where none runs, and where a checkpoint does not.
    """
    found: dict[Contender, Asked] = {}
    not_run = []
    for contender in contenders:
        try:
            with opened(contender, threshold) as network:
                found[contender] = Asked(network.image_size, answers(network, samples, label=contender.name))
        except UserError as error:
            if not isinstance(contender, BundleContender):
                raise
            not_run.append({"name": contender.name, "reason": str(error)})
    if not found:
        raise UserError(f"no bundle runs here: {not_run[0]['reason']}")
    return found, not_run


def benchmark(bundles: Sequence[Bundle | str | Path], *, checkpoint: str | Path | None = None, data: str = "shapes",
              split: str = "test", root: Path | None = None, samples: int | None = None,
              threshold: float | None = None, command: Sequence[str] = ()) -> Parity:
    """samples: at most so many, None for all (of shapes SHAPES_SAMPLES). threshold: None for each network's own.

    command: the words that asked for it, for the result. Raises UserError for bad input.
    """
    loaded = [bundle if isinstance(bundle, Bundle) else Bundle.load(bundle) for bundle in bundles]
    if not loaded:
        raise UserError("expected at least one bundle; make one with talent-export")
    scenes = open_dataset(data, split=split, size=loaded[0].image_size, root=root,
                          length=samples or (SHAPES_SAMPLES if data in SHAPES else None))
    contenders = networks(loaded, Path(checkpoint) if checkpoint else None)
    asked, not_run = ask(contenders, scenes, threshold=threshold)
    reference = next(iter(asked.values())).answers
    differences = {contender.name: compared(one.answers, reference) for contender, one in asked.items()}
    rows = []
    for contender, one in asked.items():
        own = differences[contender.name]
        row = results_file.row(contender.name, backend=contender.backend, precision=contender.precision,
                               device=contender.device, source=contender.source, emulated=contender.emulated,
                               facts={**facts(own), "image_size": one.image_size})
        rows.append({**row, "samples": records(own, named=not rows)})
    settings = {"data": Path(data).name, "split": split, "samples": len(scenes), "threshold": threshold,
                "expressions": rows[0]["facts"]["expressions"], "reference": rows[0]["name"],
                **measured.networks(loaded, checkpoint)}
    result = results_file.new("parity", title=f"Accuracy of {len(rows)} networks on the same sentences", rows=rows,
                              settings=settings, command=command, packages=PACKAGES, not_run=not_run,
                              notes=list(_notes(rows)))
    return Parity(result, differences, scenes)


def _notes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if any(row["emulated"] for row in rows):
        yield EMULATED
    sizes = sorted({row["facts"]["image_size"] for row in rows})
    if len(sizes) > 1:
        yield f"inputs of {', '.join(map(str, sizes))} pixels: what a row lost, it lost by its input size, too"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="parity.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="directory that talent-export wrote")
    result.add_argument("--checkpoint", type=Path, help="checkpoint of the bundles: PyTorch becomes the first row")
    result.add_argument("--data", default="shapes", metavar="NAME|FILE", help=f"{HELP} (default: %(default)s)")
    result.add_argument("--data-root", type=Path, metavar="DIR", help="where RefCOCO's files lie")
    result.add_argument("--split", default="test", help="part of the data set (default: %(default)s)")
    result.add_argument("--samples", type=int, metavar="N", help="at most so many samples, taken evenly (default: all; "
                                                                 f"{SHAPES_SAMPLES} of shapes)")
    result.add_argument("--threshold", type=float, metavar="X", help="probability above which a pixel belongs to the "
                                                                     "object (default: each network's own)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    result.add_argument("--worst", type=Path, metavar="PNG", help="draw the sentences that lost most")
    return result


def _check(arguments: argparse.Namespace) -> None:
    """Everything that can be refused before a network is loaded. Raises UserError."""
    if arguments.samples is not None and arguments.samples < 1:
        raise UserError(f"--samples: expected at least 1, received {arguments.samples}")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, received {arguments.threshold}")
    check_name(arguments.data)
    check_outputs(arguments.json, arguments.worst, plotted=False)


@command("parity.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _check(arguments)
    parity = benchmark(arguments.bundles, checkpoint=arguments.checkpoint, data=arguments.data, split=arguments.split,
                       root=arguments.data_root, samples=arguments.samples, threshold=arguments.threshold,
                       command=["benchmarks/parity.py", *map(str, sys.argv[1:] if argv is None else argv)])
    result, chosen = parity.result, worst(parity.differences)
    settings = result["settings"]
    title = (f"The {len(chosen)} of {settings['expressions']} sentences of {settings['data']} that lost most against "
             f"{settings['reference']}")
    text = table(result)
    if arguments.worst and not chosen:
        text += f"\nno picture at {arguments.worst}: no sentence lost against {settings['reference']}"
    write_outputs(arguments.json, arguments.worst if chosen else None,
                  write=lambda path: results_file.write(path, result),
                  draw=lambda path: save_image(path, draw(chosen, parity.samples, reference=settings["reference"],
                                                          title=title)),
                  otherwise="--json parity.json", table=text, what=f"the {len(chosen)} sentences that lost most")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
