"""The bundles that scaling.py measures, one an input size: those that were given, else exported and kept. And how much
of the work that is asked for they take at once.

A bundle is exported again when the weights, its size or precision, or the code that makes it is another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.scaling_cost import SIZE
from calibration.records import digest
from deploy.build import LARGEST_BATCH
from deploy.bundle import Bundle
from deploy.pipeline import ExportOptions, export_bundle
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.segmenter import Segmenter
from deploy.runtime.tensorrt import RUNTIMES
from deploy.targets import build_command
from talent import provenance
from talent.checkpoint import CONFIG, WEIGHTS, load_config
from talent.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.path.relpath(ROOT / "benchmarks" / "out" / "scaling"))  # short paths in what is printed and kept
CODE = ("deploy/*.py", "talent/model/*.py")  # what a bundle's graphs come from
FEW = {"data": "shapes", "calibration": 2, "parity": 1, "allow_drop": True}  # times do not depend on accuracy


def given_bundles(checkpoint: Path, given: Iterable[Path], *, precision: str) -> dict[int, Bundle]:
    """Bundles of the checkpoint directory, by their size in pixels.

    Raises UserError for one of another checkpoint or precision, as `Bundle.load` does, and for no checkpoint.
    """
    own = {bundle.image_size: bundle for bundle in map(Bundle.load, given)}
    for bundle in own.values():
        bundle.check_precision(precision)
    if own and not (checkpoint / WEIGHTS).is_file():
        load_config(checkpoint)  # it says what is missing
    weights = provenance.sha256(checkpoint / WEIGHTS) if own else ""
    for bundle in own.values():
        if bundle.source.get("sha256") != weights:
            raise UserError(f"expected bundles of {checkpoint}, received {bundle.directory}, which was exported from "
                            f"other weights ({bundle.source.get('checkpoint')}); leave it out, or name its checkpoint")
    return own


def check_sizes(own: Mapping[int, Bundle], sizes: Iterable[int], *, checkpoint: Path, precision: str,
                backend: str) -> None:
    """Raise UserError where a TensorRT lacks a bundle: one that is exported here has no engines. own: as given."""
    missing = [size for size in sizes if size not in own]
    if backend in RUNTIMES and missing:
        raise UserError(f"--backend {backend}: expected --bundles with its engines for every size that is measured, "
                        f"received none for {', '.join(map(str, missing))} px; measure other --sizes, or make what is "
                        f"missing: talent-export {checkpoint} --{precision} --image-size {missing[0]} -o BUNDLE "
                        f"--no-engine, then {build_command('BUNDLE', runtime=backend, arch=gpu_architecture())}")


def bundles_of_sizes(checkpoint: Path, sizes: Iterable[int], *, precision: str, own: Mapping[int, Bundle] | None = None,
                     cache: Path = CACHE, progress: Callable[[int], object] = lambda size: None) -> dict[int, Bundle]:
    """A bundle of the checkpoint directory for every size in pixels. own: those that were given. progress: called
    before an export. Raises UserError as `export_bundle` does."""
    own, weights = own or {}, provenance.sha256(checkpoint / WEIGHTS)
    return {size: own[size] if size in own else kept_bundle(checkpoint, size, precision=precision, weights=weights,
                                                            cache=cache, progress=progress) for size in sizes}


def kept_bundle(checkpoint: Path, size: int, *, precision: str, weights: str, cache: Path,
                progress: Callable[[int], object]) -> Bundle:
    """The bundle of one size, exported now unless it is kept from before. weights: SHA-256 of the checkpoint's."""
    key = digest([weights, (checkpoint / CONFIG).read_bytes(), precision, str(size), *_sources()])
    path = cache / f"{checkpoint.name}-{precision}-{size}-{key[:12]}"
    if not path.is_dir():
        progress(size)
        cache.mkdir(parents=True, exist_ok=True)
        export_bundle(checkpoint, path, ExportOptions(precision=precision, image_size=size, engines=False, **FEW))
    return Bundle.load(path)


def _sources() -> list[bytes]:
    """The code that makes a bundle, file by file in order."""
    return [path.read_bytes() for pattern in CODE for path in sorted(ROOT.glob(pattern))]


def most_at_once(bundle: Bundle, backend: str, threads: int) -> int:
    """Prompts or pictures that a bundle takes at once. Raises UserError where it does not run in this backend."""
    with Segmenter(bundle, backend, threads=threads, prompts=0) as segmenter:
        return segmenter.backend.most_expressions


def divide(values: Mapping[str, Sequence[int]], *, most: int, bundle: Bundle,
           backend: str) -> tuple[dict[str, list[int]], list[dict[str, str]]]:
    """(of each series the values that a bundle takes at once, entries of a result's `not_run` for the others).

    most: what it takes. A series of which nothing is left is left out. Raises UserError where that is all of them.
    """
    taken = {name: [value for value in values[name] if name == SIZE or value <= most] for name in values}
    refused = [(name, value) for name in values for value in values[name] if value not in taken[name]]
    larger = max((value for _, value in refused if value <= LARGEST_BATCH), default=LARGEST_BATCH)
    not_run = [{"name": f"{name} {value}", "reason": _too_many(value, most=most, larger=larger, bundle=bundle,
                                                               backend=backend)} for name, value in refused]
    if not any(taken.values()):
        raise UserError(f"nothing is left to measure: {not_run[0]['name']}: {not_run[0]['reason']}")
    return {name: kept for name, kept in taken.items() if kept}, not_run


def _too_many(value: int, *, most: int, larger: int, bundle: Bundle, backend: str) -> str:
    """Why a number of prompts or pictures is not run, and what to do. larger: the batch of engines that would do."""
    if backend not in RUNTIMES:
        return f"the graphs of {bundle.directory} take at most {most} at once; measure fewer"
    engines = f"the engines of {bundle.directory} take at most {most} at once"
    if value > LARGEST_BATCH:
        return f"{engines}, and none can be built for more than {LARGEST_BATCH}; measure fewer"
    command = build_command(bundle.directory, runtime=backend, arch=gpu_architecture())
    return f"{engines}; build larger ones: {command} --batch {larger}"
