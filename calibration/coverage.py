"""Which pictures of a pool cover it, and which of their sentences: a choice that leaves none far away.

NumPy and OpenCV only. Letters: H, W picture; S side on which features are measured; N pictures; D features of a
picture; K pictures wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_SIDE = 224  # near what networks see; finer detail does not reach them
_COLOURS = 7  # a histogram of 7 x 7 colours, without the lightness
_THUMBNAIL = 4  # mean colours of 4 x 4 areas
_DIRECTIONS = 4  # of edges
_OCTAVES = 4  # of detail, each half as fine as the one before
_STATISTICS = 9
_SIZES = (_COLOURS**2, 3 * _THUMBNAIL**2, _DIRECTIONS, _OCTAVES, _STATISTICS)
# What each kind counts for. Colours count most: which colours there are tells domains apart better than where they
# lie, which is chance in most data sets.
_WEIGHTS = (3.0, 1.0, 1.0, 1.0, 1.0)
FEATURES = sum(_SIZES)
_LEAST_SPREAD = 0.02  # what hardly differs within a pool is not blown up until it counts as much as the rest
_STEPS, _FARTHEST = 4096, 8.0  # points are whole numbers of 1/4096 from -8 to 8: float64 adds their products exactly
_ITERATIONS = 100  # k-means; 1024 pictures settle in about 10
_ROWS = 1024  # of distances that are held at once


def features(image: np.ndarray) -> np.ndarray:
    """What a picture (uint8 [H, W, 3] RGB) looks like: float32 [D], each number in about 0..1.

    Which colours it has (CIE Lab), where they lie, how strong its edges are in each direction, how much detail it has
    of each fineness, and mean, spread and extremes of its lightness and colour, with its height to width.
    """
    square = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(square, cv2.COLOR_RGB2LAB)  # uint8 [S, S, 3]
    thumbnail = cv2.resize(lab.astype(np.float32) / 255, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    light = lab[:, :, 0].astype(np.float32) / 255  # [S, S]
    height, width = image.shape[:2]
    statistics = [*lab.mean((0, 1)) / 255, *lab.std((0, 1)) / 255, *np.percentile(light, (1, 99)),
                  0.5 + 0.25 * np.log2(height / width)]
    return np.concatenate([_colours(lab), thumbnail.ravel(), _edges(light), _detail(light), statistics],
                          dtype=np.float32)


def _colours(lab: np.ndarray) -> np.ndarray:
    """Root of each colour's part of the picture, float64 [49]; a bin is 16 of Lab's units wide, grey in the middle."""
    bins = np.clip((lab[:, :, 1:].astype(int) - 128 + 8 * _COLOURS) // 16, 0, _COLOURS - 1)
    return np.sqrt(np.bincount((bins[:, :, 0] * _COLOURS + bins[:, :, 1]).ravel(), minlength=_COLOURS**2) / _SIDE**2)


def _edges(light: np.ndarray) -> np.ndarray:
    """Root of the mean edge strength in each direction, float64 [4]; a direction and its opposite are one."""
    half = cv2.resize(light, (_SIDE // 2, _SIDE // 2), interpolation=cv2.INTER_AREA)
    across, down = cv2.Sobel(half, cv2.CV_32F, 1, 0), cv2.Sobel(half, cv2.CV_32F, 0, 1)
    direction = np.floor(np.arctan2(down, across) / np.pi * _DIRECTIONS + 0.5).astype(int) % _DIRECTIONS
    return np.sqrt(np.bincount(direction.ravel(), np.hypot(across, down).ravel(), _DIRECTIONS) / half.size)


def _detail(light: np.ndarray) -> list[float]:
    """What a slight blur takes away, in four octaves, on a logarithmic scale from 0 (nothing) to 1."""
    strengths = []
    for _ in range(_OCTAVES):
        blurred = cv2.GaussianBlur(light, (0, 0), 1.0)
        strengths.append(1 + 0.25 * float(np.log10(np.abs(light - blurred).mean(dtype=np.float64) + 1e-4)))
        light = cv2.resize(blurred, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return strengths


@dataclass(frozen=True)
class Space:
    """The scale on which pictures of a pool are compared. mean, spread: of each feature in the pool, D numbers."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def of(cls, measured: np.ndarray) -> Space:
        """The scale of a pool, from the features of its pictures (float [N, D])."""
        measured = measured.astype(np.float64)
        return cls(tuple(measured.mean(0).tolist()), tuple(np.maximum(measured.std(0), _LEAST_SPREAD).tolist()))

    def points(self, measured: np.ndarray) -> np.ndarray:
        """Features (float [N, D]) as points, float64 [N, D], that `covering` and `distances` take.

        They are whole numbers, so that sums of their products are exact: any order of adding, on any number of
        threads, gives the same bits.
        """
        weight = np.repeat(np.divide(_WEIGHTS, np.sqrt(_SIZES)), _SIZES)  # [D]
        scaled = (measured.astype(np.float64) - self.mean) / self.spread * weight
        return np.rint(np.clip(scaled, -_FARTHEST, _FARTHEST) * _STEPS)


def distances(points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far each of `points` ([N, D]) lies from the nearest of `chosen` ([K, D]), float64 [N].

    1 is about one spread of one kind of feature.
    """
    nearest = [_squared(points[row:row + _ROWS], chosen).min(1) for row in range(0, len(points), _ROWS)]
    return np.sqrt(np.concatenate(nearest)) / _STEPS


def gaps(points: np.ndarray) -> np.ndarray:
    """How far each of `points` ([N, D], at least two) lies from the nearest of the others, float64 [N]."""
    return np.array([distances(points[row:row + 1], np.delete(points, row, 0))[0] for row in range(len(points))])


def covering(points: np.ndarray, count: int, *, seed: int) -> list[int]:
    """`count` rows of `points` ([N, D], whole numbers), all different, that lie all over them; sorted.

    k-means with `count` centres, begun as k-means++ (Arthur and Vassilvitskii, 2007), then the point nearest each
    centre. A centre without points is replaced by the point that is farthest from all chosen. The same points and seed
    give the same rows, whatever the number of threads.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"expected 1 to {len(points)} pictures to choose, as many as there are, received {count}")
    centres = _begun(points, count, np.random.default_rng(seed))
    owner = _nearest(points, centres)
    for _ in range(_ITERATIONS):
        sizes, sums = np.bincount(owner, minlength=count), np.zeros_like(centres)
        np.add.at(sums, owner, points)
        centres = np.where(sizes[:, None] > 0, np.rint(sums / np.maximum(sizes, 1)[:, None]), centres)
        before, owner = owner, _nearest(points, centres)
        if np.array_equal(owner, before):
            break
    chosen = []
    for centre in np.unique(owner):
        members = np.flatnonzero(owner == centre)
        chosen.append(int(members[_squared(points[members], centres[centre:centre + 1])[:, 0].argmin()]))
    while len(chosen) < count:
        away = distances(points, points[chosen])
        away[chosen] = -1  # a copy of a chosen point is 0 away, and still another picture
        chosen.append(int(away.argmax()))
    return sorted(chosen)


def _begun(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centres [count, D]: each a point drawn with a chance that grows with its squared distance from the others.
    """
    centres = [points[rng.integers(len(points))]]
    away = np.full(len(points), np.inf)
    while len(centres) < count:
        away = np.minimum(away, _squared(points, centres[-1][None])[:, 0])
        reached = np.cumsum(away)
        # Where all points are copies of centres, any will do: its cluster is empty.
        drawn = rng.integers(int(reached[-1])) if reached[-1] else 0
        centres.append(points[min(np.searchsorted(reached, drawn, side="right"), len(points) - 1)])
    return np.array(centres)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre nearest each point, int64 [N]; of several the first."""
    return np.concatenate([_squared(points[row:row + _ROWS], centres).argmin(1)
                           for row in range(0, len(points), _ROWS)])


def _squared(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [N, K], exact for whole numbers."""
    return (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * (points @ centres.T)


def spread_lengths(available: np.ndarray, times: np.ndarray, among: np.ndarray) -> list[tuple[int, int]]:
    """A length of sentence for every sample, so that together they are spread as the pool's, shortest to longest.

    available: int [K, L], sentences of each length (0..L-1) that each picture may be asked. times: int [K], how often
    it is taken, at most as often as it has sentences. among: int [L], lengths in the pool. Returns (picture, length),
    sum(times) of them, none more often than there are sentences.

    The wanted lengths are quantiles of the pool's at even distances. The length that fewest pictures have for each time
    that it is wanted goes first, to the picture that comes nearest; of several to the one with the fewest others.
    """
    available, times, count = available.copy(), times.copy(), int(times.sum())
    reached = np.cumsum(among)
    last = int(reached[-1]) - 1
    ranks = [number * last // (count - 1) for number in range(count)] if count > 1 else [last // 2]
    wanted = np.bincount(np.searchsorted(reached, ranks, side="right"), minlength=len(among))
    lengths = np.arange(len(among))
    given = []
    while wanted.any():
        has = (available > 0) & (times > 0)[:, None]  # [K, L]
        urgent = int(np.where(wanted > 0, has.sum(0) / np.maximum(wanted, 1), np.inf).argmin())
        others = (has & (wanted > 0)).sum(1, keepdims=True)  # [K, 1]
        # The distance counts first: all the others together weigh less than one token.
        cost = np.where(has, np.abs(lengths - urgent) + others / (len(lengths) + 1), np.inf)
        picture, length = np.unravel_index(cost.argmin(), cost.shape)
        available[picture, length] -= 1
        times[picture] -= 1
        wanted[urgent] -= 1
        given.append((int(picture), int(length)))
    return given
