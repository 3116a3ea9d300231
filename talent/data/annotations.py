"""COCO's ways to write a mask (polygons, run lengths) as pixels."""

from __future__ import annotations

import numpy as np

from talent.errors import UserError
from talent.require import require

EXPECTED = ("expected polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or COCO run lengths {'size': [height, width], "
            "'counts': [...] or '...'}")


def decode_mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """A COCO `segmentation` as bool [height, width].

    segmentation: polygons in pixels of the picture (their union), run lengths (uncompressed, as `iscrowd` annotations
    have them) or compressed run lengths. Raises UserError for anything else, and where the size does not fit.
    Source: pycocotools, the reference implementation.
    """
    coco = require("pycocotools.mask", extra="train")
    if isinstance(segmentation, dict):
        runs = _run_lengths(segmentation, height, width, coco)
    else:
        runs = coco.merge(coco.frPyObjects(_polygons(segmentation), height, width))
    return coco.decode(runs).astype(bool)


def _polygons(segmentation: object) -> list[list[float]]:
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{EXPECTED}, received {_shown(segmentation)}")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{EXPECTED}, with at least three corners in each polygon; received {_shown(polygon)}")
        if not all(isinstance(number, (int, float)) and np.isfinite(number) for number in polygon):
            raise UserError(f"{EXPECTED}; received something that is not a number in {_shown(polygon)}")
    return [[float(number) for number in polygon] for polygon in segmentation]


def _run_lengths(segmentation: dict, height: int, width: int, coco) -> dict:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise UserError(f"expected run lengths of a picture of [height, width] = [{height}, {width}], "
                        f"received size {size!r}")
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
            raise UserError(f"expected run lengths that sum up to {height * width} pixels, received "
                            f"{_shown(counts)}")
        return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if isinstance(counts, (str, bytes)):
        runs = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        _check_compressed(runs["counts"], height * width)
        return runs
    raise UserError(f"{EXPECTED}, received counts of type {type(counts).__name__}")


def _check_compressed(counts: bytes, pixels: int) -> None:
    """Unpack COCO's 6-bit numbers and check their sum: pycocotools writes beyond its buffer where it is wrong."""
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise UserError(f"expected COCO's compressed run lengths, received the character {chr(byte)!r} in them")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)  # from the fourth on, differences to the one before last
        value = shift = 0
    if shift or min(runs, default=-1) < 0 or sum(runs) != pixels:
        raise UserError(f"expected compressed run lengths that sum up to {pixels} pixels, received {sum(runs)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
