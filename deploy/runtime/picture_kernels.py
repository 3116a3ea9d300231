"""A photo to the network's input, and logits to masks, on the GPU: deploy/csrc/picture_kernel.h through ctypes.

They compute what `preprocess` and `mask_on_photo` of talent.image do, so that a frame need not leave the GPU between.
Letters: H, W photo; S square input of the network; h, w grid of the logits; B expressions.
"""

from __future__ import annotations

from ctypes import c_char_p, c_float, c_int32, c_int64, c_uint8, c_void_p
from pathlib import Path

import numpy as np

from deploy.runtime.device_array import DevicePicture
from talent.errors import UserError
from talent.image import Letterbox
from talent.native import KERNELS, find_library, load_kernels

TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}  # PictureType of picture_kernel.h
TOTALS = np.dtype([("probability", "<u8"), ("pixels", "<u4"), ("not_finite", "<u4"), ("before", "<u4", 2),
                   ("behind", "<u4", 2)])  # PictureTotals
_RGB = 0  # of PictureFormat
_PROBABILITY_UNIT = 2.0**-20
_TO_INPUT, _TO_MASK = "talent_picture_to_input", "talent_logits_to_mask"


class PictureKernels:
    """libtalent_kernels.so: a call queues one kernel on a stream of the device that is current.

    path: of the library. Raises UserError for a file that cannot be loaded, and for one of another interface.
    """

    def __init__(self, path: Path) -> None:
        library = load_kernels(path, [_TO_INPUT, _TO_MASK])
        self._to_input, self._to_mask = library[_TO_INPUT], library[_TO_MASK]
        self._to_input.restype = self._to_mask.restype = c_char_p
        self._to_input.argtypes = (c_void_p, *[c_int64] * 3,  # pixels, width, height, stride
                                   c_int32, c_void_p, c_int64, c_int32, c_void_p)  # format, output, S, type, stream
        self._to_mask.argtypes = (c_void_p, c_int32, *[c_int64] * 6,  # logits, type; batch, w, h, S, W, H
                                  c_float, c_uint8, *[c_void_p] * 4)  # masks, probability, totals, stream

    def to_input(self, picture: DevicePicture, *, output: int, size: int, dtype: np.dtype, stream: int) -> None:
        """A photo -> the network's input [3, S, S] of `dtype` at the address `output`."""
        _check(self._to_input(picture.address, picture.width, picture.height, picture.stride, _RGB, output, size,
                              TYPES[dtype], stream))

    def to_masks(self, logits: int, *, dtype: np.dtype, shape: tuple[int, int, int], letterbox: Letterbox,
                 threshold: float, masks: int, totals: int, stream: int) -> None:
        """Logits of `shape` [B, h, w] and `dtype` -> masks uint8 [B, H, W], 1 inside, and TOTALS [B]; all addresses."""
        batch, h, w = shape
        _check(self._to_mask(logits, TYPES[dtype], batch, w, h, letterbox.size, letterbox.width, letterbox.height,
                             threshold, 1, masks, None, totals, stream))


def installed_kernels() -> PictureKernels | None:
    """The kernels; None where the library is not built. Raises UserError as PictureKernels."""
    path = find_library(KERNELS)
    return PictureKernels(path) if path else None


def summary(totals: np.void, letterbox: Letterbox) -> tuple[tuple[int, int, int, int] | None, float]:
    """One of TOTALS, on the host -> box and score as `mask_on_photo` gives them."""
    pixels = int(totals["pixels"])
    if not pixels:
        return None, 0.0
    (left, top), (right, bottom) = totals["before"].tolist(), totals["behind"].tolist()
    score = int(totals["probability"]) * _PROBABILITY_UNIT / pixels
    return (letterbox.width - left, letterbox.height - top, right, bottom), score


def _check(error: bytes | None) -> None:
    if error:
        raise UserError(f"a kernel for pictures failed: {error.decode()}; where that is not about the picture, build "
                        "libtalent_kernels.so for this GPU and driver (make plugin), or do without: an empty directory "
                        "in $TALENT_EDGE_LIBRARIES")
