"""The ways to write a mask (COCO's polygons and run lengths, a picture file) as pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from talent.errors import UserError
from talent.require import require

EXPECTED = ("expected polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or COCO run lengths {'size': [height, width], "
            "'counts': [...] or '...'}")
_JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG file
_DIGITS = 6  # of 5 bits in one compressed run length: pycocotools shifts an int beyond its width where there are more


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
        runs = coco.merge(coco.frPyObjects(_polygons(segmentation, height, width), height, width))
    return coco.decode(runs).astype(bool)


def read_mask(path: str | Path) -> np.ndarray:
    """A mask's picture file (PNG) as bool [H, W]: what is not black is the object, whatever the channels or bits.

    Transparent pixels are not the object. The file is taken as it is stored, without turning it by EXIF. Raises
    UserError when it is missing, unreadable, no picture, or a JPEG (which is nowhere quite black around the object).
    """
    path = Path(path)
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no such mask: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read the mask {path}: {error.strerror}") from error
    if encoded.startswith(_JPEG):
        raise UserError(f"expected a mask without loss, such as PNG, received a JPEG: {path}")
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
    except cv2.error:  # a broken header can claim a size that OpenCV refuses
        pixels = None
    if pixels is None:
        raise UserError(f"not a picture: {path}; expected a mask as a PNG file")
    if pixels.ndim == 2:
        return pixels != 0
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    return (colours != 0).any(-1) & (alpha != 0).all(-1)


def _polygons(segmentation: object, height: int, width: int) -> list[list[float]]:
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{EXPECTED}, received {_shown(segmentation)}")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{EXPECTED}, with at least three corners in each polygon; received {_shown(polygon)}")
        if not all(isinstance(number, (int, float)) and number == number for number in polygon):  # NaN is not itself
            raise UserError(f"{EXPECTED}; received something that is not a number in {_shown(polygon)}")
        # pycocotools walks along every edge pixel by pixel: corners far away take all memory, or crash it.
        if not all(-side <= number <= 2 * side for numbers, side in ((polygon[::2], width), (polygon[1::2], height))
                   for number in numbers):
            raise UserError(f"expected corners within a picture of {width} x {height} pixels, received "
                            f"{_shown(polygon)}")
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
        if shift > 5 * _DIGITS:
            raise UserError(f"expected compressed run lengths of at most {_DIGITS} characters each, received a longer "
                            "one")
        if digit & 0x20:
            continue
        if digit & 0x10:
            value |= -1 << shift
        # From the fourth on they are differences to the one before the last.
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift or min(runs, default=-1) < 0 or sum(runs) != pixels:
        raise UserError(f"expected compressed run lengths that sum up to {pixels} pixels, received {sum(runs)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
