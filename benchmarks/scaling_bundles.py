"""The bundles that scaling.py measures, one an input size: those that were given, else exported and kept.

A bundle is exported again when the weights, its size or precision, or the code that makes it is another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from calibration.records import digest
from deploy.bundle import Bundle
from deploy.pipeline import ExportOptions, export_bundle
from talent import provenance
from talent.checkpoint import CONFIG, WEIGHTS
from talent.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.path.relpath(ROOT / "benchmarks" / "out" / "scaling"))  # short paths in what is printed and kept
CODE = ("deploy/*.py", "talent/model/*.py")  # what a bundle's graphs come from
FEW = {"data": "shapes", "calibration": 2, "parity": 1, "allow_drop": True}  # times do not depend on accuracy


def bundles_of_sizes(checkpoint: Path, sizes: Iterable[int], *, precision: str, given: Iterable[Path] = (),
                     cache: Path = CACHE, progress: Callable[[int], object] = lambda size: None) -> dict[int, Bundle]:
    """A bundle of the checkpoint directory for every size in pixels. progress: called before an export.

    Raises UserError for a given bundle of another checkpoint or precision, and as `export_bundle` does.
    """
    weights = provenance.sha256(checkpoint / WEIGHTS)
    own = {bundle.image_size: bundle for bundle in map(Bundle.load, given)}
    for bundle in own.values():
        bundle.check_precision(precision)
        if bundle.source.get("sha256") != weights:
            raise UserError(f"expected bundles of {checkpoint}, received {bundle.directory}, which was exported from "
                            f"other weights ({bundle.source.get('checkpoint')}); leave it out, or name its checkpoint")
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
