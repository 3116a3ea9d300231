"""From the grid of the logits to the photo's pixels, tile by tile.

Two cubic interpolations lie between them: from the grid to the canvas (the network's square input) with corners
aligned, and from the canvas to the photo, undoing the letterbox. Both are linear, and a letterbox only scales and
shifts, so that they compose into one matrix for the rows of the photo and one for its columns, with a handful of
numbers in each row. The canvas itself is never made, and parts of the photo that nothing can reach are left out.
Samples are taken exactly where they belong; OpenCV 4 rounds their places to 1/32 pixel.

NumPy only. Letters: h, w grid; S canvas; n pixels of a band.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BICUBIC_A = -0.75  # Keys' coefficient as PyTorch and OpenCV set it
TAPS = 4
TILE_HEIGHT, TILE_WIDTH = 128, 256  # pixels; a float32 tile is 128 KiB, so that it stays in a core's own cache
_SLACK = 1e-4  # relative, for what float32 rounds: the bound holds for the values as they are computed, too


def _taps(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places between samples, float64 [n] -> the first of the four samples around each, int64 [n], and their weights,
    float64 [n, 4]."""
    first = np.floor(position).astype(np.int64) - 1
    distance = np.abs(position[:, None] - (first[:, None] + np.arange(TAPS)))
    near = ((BICUBIC_A + 2) * distance - (BICUBIC_A + 3)) * distance**2 + 1
    far = ((BICUBIC_A * distance - 5 * BICUBIC_A) * distance + 8 * BICUBIC_A) * distance - 4 * BICUBIC_A
    return first, np.where(distance <= 1, near, far)


@functools.lru_cache(maxsize=16)
def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: `M @ x` is PyTorch's bicubic interpolation of x with align_corners=True."""
    first, weights = _taps(np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0))
    matrix = np.zeros((target, source))
    for tap in range(TAPS):
        # Taps beyond the edge repeat the edge, so one source pixel may collect several weights.
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), weights[:, tap])
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True)
class Band:
    """Neighbouring rows of the photo (or columns), and what they need of the grid.

    pixels, cells: what the band makes, and from what. weights: float32 [pixels, cells], so that `weights @ grid[cells]`
    are these rows. gain: no value grows by more than this factor on the way, in magnitude. total: the least sum of the
    weights of a pixel, 1 but at the canvas's edge.
    """

    pixels: slice
    cells: slice
    weights: np.ndarray
    gain: float
    total: float


@functools.lru_cache(maxsize=32)  # some 100 KiB each: rows and columns of 16 sizes of photo
def bands(pixels: int, *, scale: float, offset: float, canvas: int, grid: int, step: int) -> tuple[Band, ...]:
    """One axis of the way from the grid to the photo, cut into bands of `step` pixels.

    Pixel i of the photo lies at `scale * i + offset` on the canvas of `canvas` pixels, whose surroundings are 0; the
    canvas is the grid of `grid` cells, enlarged.
    """
    enlarge = bicubic_matrix(grid, canvas)  # [S, h]
    found = []
    for start in range(0, pixels, step):
        stop = min(start + step, pixels)
        first, weights = _taps(scale * np.arange(start, stop) + offset)
        near, far = max(int(first[0]), 0), min(int(first[-1]) + TAPS, canvas)
        back = np.zeros((stop - start, far - near))  # [n, part of S]
        for tap in range(TAPS):
            inside = np.flatnonzero((first + tap >= 0) & (first + tap < canvas))
            back[inside, first[inside] + tap - near] = weights[inside, tap]
        composed = back @ enlarge[near:far]  # [n, h]
        used = np.flatnonzero(composed.any(axis=0))
        cells = slice(int(used[0]), int(used[-1]) + 1)
        matrix = np.ascontiguousarray(composed[:, cells], dtype=np.float32)
        matrix.flags.writeable = False
        found.append(Band(slice(start, stop), cells, matrix, gain=float(np.abs(composed).sum(axis=1).max()),
                          total=float(composed.sum(axis=1).min())))
    return tuple(found)


def tiles(grid: np.ndarray, rows: tuple[Band, ...], columns: tuple[Band, ...], *,
          above: float) -> Iterator[tuple[tuple[slice, slice], np.ndarray, bool]]:
    """The tiles of the photo in which a value can lie above `above`: (where, float32 [rows, columns], a new array,
    whether all of its values are known to lie above).

    grid: float32 [h, w], finite, none below 0. above: at least 0. A tile that is left out has no value above it. The
    same tile of the same grid has the same bits whatever `above` is.
    """
    for row in rows:
        strip = grid[row.cells]  # [cells, w]
        top, bottom = strip.max(axis=0), strip.min(axis=0)  # [w]
        for column in columns:
            # Interpolation is linear: no value of a tile is larger than its weights make of the largest cell,
            gain, high = row.gain * column.gain, float(top[column.cells].max())
            if gain * high <= above * (1 - _SLACK):
                continue
            # and none is smaller than the weights above 0 make of the smallest, and those below 0 of the largest.
            total, low = row.total * column.total, float(bottom[column.cells].min())
            full = total * low - (gain - total) / 2 * (high - low) > above + _SLACK
            yield (row.pixels, column.pixels), row.weights @ (strip[:, column.cells] @ column.weights.T), full
