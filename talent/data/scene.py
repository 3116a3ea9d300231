"""Things on a photograph: outlines, fills and backdrops of the procedural scenes, drawn in uint8.

Lengths and places are fractions of the picture's side, so that one scene can be drawn at any size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talent.errors import UserError
from talent.require import require

SUBPIXEL_BITS = 4  # fixed-point fraction of the coordinates that cv2.fillPoly receives
OPAQUE = 128  # coverage (of 255) from which a pixel belongs to a thing


@dataclass(frozen=True)
class Thing:
    """One object of a scene, described by the words of its vocabulary and by what has to be drawn.

    texture: plain, striped or dotted. x, y: centre of area. radius: of a circle of the same rank; an outline reaches at
    most `reach` from the centre. turn: radians.
    """

    shape: str
    colour: str
    texture: str
    big: bool
    outline: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    turn: float

    @property
    def reach(self) -> float:
        return self.radius * REACH[self.outline]


@dataclass(frozen=True)
class Backdrop:
    """A part of one photograph that ships inside the scikit-image wheel; region: left, top, right, bottom in 0..1."""

    photo: str
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


# How far an outline reaches in radii: thin outlines reach further, so that "big" means much the same area for all.
REACH = {"circle": 1.0, "square": 1.15, "triangle": 1.25, "star": 1.25, "ring": 1.05, "cross": 1.15,
         "heart": 1.15, "crescent": 1.2, "arrow": 1.25, "diamond": 1.2}


@functools.cache
def contours(outline: str) -> tuple[np.ndarray, ...]:
    """Closed contours (float64 [n, 2], y down) of area centre 0 and greatest distance 1; a second one is a hole."""
    around = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    circle = np.stack([np.cos(around), np.sin(around)], 1)
    if outline == "ring":
        return circle, 0.55 * circle
    if outline == "circle":
        points = circle
    elif outline in ("square", "triangle"):
        corners = 4 if outline == "square" else 3
        angles = 2 * math.pi * (np.arange(corners) + (0.5 if corners == 4 else 0)) / corners - math.pi / 2
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
    elif outline == "star":
        angles = math.pi * np.arange(10) / 5 - math.pi / 2
        points = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif outline == "cross":
        arm = 0.36
        quarter = np.array([(arm, -arm), (arm, -1.0), (-arm, -1.0)])
        turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1))]
        points = np.concatenate([quarter @ turn for turn in turns])
    elif outline == "heart":
        points = np.stack([16 * np.sin(around) ** 3, -(13 * np.cos(around) - 5 * np.cos(2 * around)
                                                      - 2 * np.cos(3 * around) - np.cos(4 * around))], 1)
    elif outline == "crescent":
        # The outer circle less a circle of radius 0.8 whose centre is 0.5 to the right; they meet at `outer`.
        meet = (1 + 0.5 ** 2 - 0.8 ** 2) / (2 * 0.5)
        outer = math.acos(meet)
        inner = math.atan2(math.sin(outer), meet - 0.5)
        back = np.linspace(outer, 2 * math.pi - outer, 48)
        front = np.linspace(2 * math.pi - inner, inner, 48)
        points = np.concatenate([np.stack([np.cos(back), np.sin(back)], 1),
                                 np.stack([0.5 + 0.8 * np.cos(front), 0.8 * np.sin(front)], 1)])
    elif outline == "arrow":
        points = np.array([(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)])
    elif outline == "diamond":
        points = np.array([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)])
    else:
        raise ValueError(f"no outline is called {outline!r}; known: {', '.join(REACH)}")
    following = np.roll(points, -1, 0)
    cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    points = points - ((points + following) * cross[:, None]).sum(0) / (3 * cross.sum())
    return (points / np.linalg.norm(points, axis=1).max(),)


def coverage(thing: Thing, size: int) -> tuple[np.ndarray, int, int]:
    """Anti-aliased coverage uint8 [h, w] of the thing within its bounding box, with the box's left and top pixel."""
    radius = thing.reach * size
    left, right = (int(thing.x * size - radius) - 1, int(thing.x * size + radius) + 2)
    top, bottom = (int(thing.y * size - radius) - 1, int(thing.y * size + radius) + 2)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, size), min(bottom, size)
    cos, sin = math.cos(thing.turn) * radius, math.sin(thing.turn) * radius
    rotation = np.array([(cos, sin), (-sin, cos)])
    centre = np.array((thing.x * size - left - 0.5, thing.y * size - top - 0.5))  # pixel centres are whole numbers
    polygons = [np.rint((points @ rotation + centre) * (1 << SUBPIXEL_BITS)).astype(np.int32)
                for points in contours(thing.outline)]
    covered = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(covered, polygons, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return covered, left, top


def visible_fractions(things: Sequence[Thing], size: int = 112) -> list[float]:
    """The part (0..1) of each thing's area that later things leave to see, measured on a grid of `size`."""
    labels = np.zeros((size, size), np.uint8)
    areas = []
    for number, thing in enumerate(things, 1):
        covered, left, top = coverage(thing, size)
        solid = covered >= OPAQUE
        labels[top:top + solid.shape[0], left:left + solid.shape[1]][solid] = number
        areas.append(max(int(solid.sum()), 1))
    seen = np.bincount(labels.ravel(), minlength=len(things) + 1)[1:]
    return [int(count) / area for count, area in zip(seen, areas, strict=True)]


def draw(things: Sequence[Thing], *, backdrops: Sequence[Backdrop], size: int,
         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the things in order, each over those before it, on a crop of one backdrop.

    Returns the picture, uint8 [size, size, 3] RGB, and labels, uint8 [size, size]: 0 for the backdrop, i + 1 for
    things[i].
    """
    backdrop = backdrops[int(rng.random() * len(backdrops))]
    image = _crop(backdrop, size, rng)
    labels = np.zeros((size, size), np.uint8)
    for number, thing in enumerate(things, 1):
        covered, left, top = coverage(thing, size)
        rows, columns = slice(top, top + covered.shape[0]), slice(left, left + covered.shape[1])
        fill = _fill(thing, covered.shape, left, top, size, backdrop, rng)
        weight = covered[:, :, None].astype(np.float32) / 255
        patch = image[rows, columns]
        patch[:] = patch + (fill - patch) * weight
        labels[rows, columns][covered >= OPAQUE] = number
    return image, labels


@functools.lru_cache(maxsize=16)
def photograph(name: str) -> np.ndarray:
    """A photograph of the scikit-image wheel, uint8 [H, W, 3] RGB, its longer side at most 512; read once a process."""
    path = Path(require("skimage", extra="train").__file__).parent / "data" / name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"expected the photograph {path}, which ships inside the scikit-image wheel, but it cannot be "
                        "read; run: pip install --force-reinstall scikit-image")
    scale = 512 / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image.setflags(write=False)  # every picture shares it
    return image


@functools.lru_cache(maxsize=16)
def _brightness(name: str) -> np.ndarray:
    """The photograph in grey, spread over 0..255, as the grain of fills."""
    return cv2.equalizeHist(cv2.cvtColor(photograph(name), cv2.COLOR_RGB2GRAY))


def _region(backdrop: Backdrop, photo: np.ndarray) -> np.ndarray:
    height, width = photo.shape[:2]
    left, top, right, bottom = backdrop.region
    return photo[round(top * height):round(bottom * height), round(left * width):round(right * width)]


def _crop(backdrop: Backdrop, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop, uint8 [size, size, 3], perhaps mirrored or blurred, paler and greyer than the photograph."""
    at = rng.random(11)
    area = _region(backdrop, photograph(backdrop.photo))
    height, width = area.shape[:2]
    side = int((0.45 + 0.55 * at[0]) * min(height, width))
    top, left = int(at[1] * (height - side)), int(at[2] * (width - side))
    crop = cv2.resize(area[top:top + side, left:left + side], (size, size), interpolation=cv2.INTER_LINEAR)
    if at[3] < 0.5:
        crop = cv2.flip(crop, 1)
    if at[4] < 0.4:
        kernel = 2 * max(1, round(size / 90)) + 1
        crop = cv2.blur(crop, (kernel, kernel))
    # One affine map of the colours: mix each channel with the grey value, then fix mean, contrast and a mild tint.
    contrast, saturation, level = 0.35 + 0.3 * at[5], 0.2 + 0.4 * at[6], 75 + 85 * at[7]
    grey = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)
    mean = np.array(cv2.mean(crop)[:3])
    tint = 1 + 0.16 * (at[8:11] - 0.5)
    matrix = contrast * grey * tint[:, None]
    return cv2.transform(crop, np.column_stack([matrix, level * tint - matrix @ mean]))


def _fill(thing: Thing, shape: tuple[int, int], left: int, top: int, size: int, backdrop: Backdrop,
          rng: np.random.Generator) -> np.ndarray:
    """The thing's paint over its bounding box, float32 [h, w, 3]: its colour, with a pattern or a photo's grain."""
    at = rng.random(6)
    colour = np.clip(np.array(thing.rgb) + 16 * (at[:3] - 0.5), 0, 255).astype(np.float32)
    height, width = shape
    if thing.texture == "plain":
        if at[3] < 0.5:
            return np.broadcast_to(colour, (height, width, 3))
        grain = _region(backdrop, _brightness(backdrop.photo))
        side = int(min(grain.shape) * min(1.0, 1.4 * max(shape) / size))
        y, x = int(at[4] * (grain.shape[0] - side)), int(at[5] * (grain.shape[1] - side))
        grain = cv2.resize(grain[y:y + side, x:x + side], (width, height), interpolation=cv2.INTER_LINEAR)
        shade = 0.72 + 0.36 * (grain.astype(np.float32) / 255)
        return np.minimum(colour * shade[:, :, None], 255)
    # Light colours get a dark pattern and dark ones a light pattern, of the same hue, so that the colour's name holds.
    luminance = colour @ np.array((0.299, 0.587, 0.114), np.float32)
    second = 0.45 * colour if luminance > 110 else 0.45 * colour + 0.55 * 235
    period = 0.56 * thing.radius * size
    angle = at[3] * math.pi if thing.texture == "striped" else at[3] * 0.5
    x = np.arange(width, dtype=np.float32) + (left - thing.x * size)
    y = np.arange(height, dtype=np.float32)[:, None] + (top - thing.y * size)
    along = (x * math.cos(angle) + y * math.sin(angle)) / period + at[4]
    from_line = np.abs(along - np.rint(along))
    if thing.texture == "striped":
        inside = 0.19 - from_line
    else:
        across = (y * math.cos(angle) - x * math.sin(angle)) / period + at[5]
        inside = 0.31 - np.hypot(from_line, across - np.rint(across))
    pattern = np.clip(inside * period + 0.5, 0, 1)[:, :, None]
    return colour + (second - colour) * pattern
