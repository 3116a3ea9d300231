"""Pictures at a glance: tiles in a grid, objects outlined, words below; a legend says what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from talent.data.sample import Sample

SIDE, GAP, LINE = 240, 8, 20  # pixels: a picture's side, the space around it, the height of a line of text
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
PAPER, INK, HALO = (250, 250, 250), (20, 20, 20), (0, 0, 0)
TARGET = (255, 255, 0)  # RGB of the line around the object that is meant

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """picture: uint8 [h, w, 3] RGB, at most SIDE a side (`outlined` makes it). caption: paragraphs."""

    picture: np.ndarray
    caption: Sequence[str]


def contact_sheet(samples: Sequence[Sample], *, columns: int = 4) -> np.ndarray:
    """Samples with the object that is meant outlined and the first sentence below: uint8 [H, W, 3] RGB.

    Raises ValueError without samples or columns.
    """
    return sheet([Tile(outlined(sample.image, [(sample.mask, TARGET)]), sample.expressions[:1]) for sample in samples],
                 columns=columns)


def outlined(image: np.ndarray, outlines: Sequence[tuple[np.ndarray, Colour]]) -> np.ndarray:
    """The picture (uint8 [H, W, 3] RGB) with its longer side SIDE pixels, and lines around masks (bool [H, W]).

    Each mask comes with the colour of its line; the last lies on top.
    """
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for mask, colour in outlines:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        edges, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A black rim keeps the line visible on things of its own colour.
        cv2.drawContours(picture, edges, -1, HALO, 3, cv2.LINE_AA)
        cv2.drawContours(picture, edges, -1, colour, 1, cv2.LINE_AA)
    return picture


def sheet(tiles: Sequence[Tile], *, columns: int = 4, title: str = "",
          legend: Sequence[tuple[str, Colour]] = ()) -> np.ndarray:
    """The tiles in a grid, uint8 [H, W, 3] RGB; above them a title and a legend, where there are.

    Raises ValueError without tiles or columns.
    """
    if not tiles or columns < 1:
        raise ValueError(f"expected at least one sample and one column, received {len(tiles)} and {columns}")
    columns = min(columns, len(tiles))
    captions = [[line for paragraph in tile.caption if paragraph for line in _wrap(paragraph, SIDE)] for tile in tiles]
    height, width = SIDE + LINE * max(len(caption) for caption in captions) + 2 * GAP, SIDE + 2 * GAP
    rows = -(-len(tiles) // columns)
    page = np.full((rows * height, columns * width, 3), PAPER, np.uint8)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top, left = number // columns * height + GAP, number % columns * width + GAP
        picture = tile.picture
        y, x = top + (SIDE - picture.shape[0]) // 2, left + (SIDE - picture.shape[1]) // 2
        page[y:y + picture.shape[0], x:x + picture.shape[1]] = picture
        for line, words in enumerate(caption, 1):
            _write(page, words, left, top + SIDE + line * LINE)
    return np.concatenate([_head(title, legend, columns * width), page])


def _head(title: str, legend: Sequence[tuple[str, Colour]], width: int) -> np.ndarray:
    """Title and legend, uint8 [h, width, 3]; each entry a square of its colour and a word, broken into lines."""
    lines = _wrap(title, width - 2 * GAP) if title else []
    places, left, line = [], GAP, len(lines) + 1
    for words, _ in legend:
        needed = LINE + _length(words)
        if left > GAP and left + needed > width - GAP:
            left, line = GAP, line + 1
        places.append((left, line))
        left += needed + LINE
    count = places[-1][1] if places else len(lines)
    head = np.full((count * LINE + GAP if count else 0, width, 3), PAPER, np.uint8)
    for number, words in enumerate(lines, 1):
        _write(head, words, GAP, number * LINE)
    for (words, colour), (left, line) in zip(legend, places, strict=True):
        low, high = (left, line * LINE - LINE + 4), (left + LINE - GAP, line * LINE - 4)  # as high as its letters
        cv2.rectangle(head, low, high, colour, cv2.FILLED)
        cv2.rectangle(head, low, high, HALO, 1)
        _write(head, words, left + LINE, line * LINE)
    return head


def _write(page: np.ndarray, words: str, left: int, bottom: int) -> None:
    cv2.putText(page, words, (left, bottom - 5), FONT, SCALE, INK, 1, cv2.LINE_AA)


def _length(words: str) -> int:
    return cv2.getTextSize(words, FONT, SCALE, 1)[0][0]


def _wrap(text: str, width: int) -> list[str]:
    """Lines of whole words that fit the width; of a word that is longer than a line the end is kept."""
    lines: list[str] = []
    for word in text.split():
        if _length(word) > width:
            word = next(end for end in (f"...{word[cut:]}" for cut in range(1, len(word) + 1)) if _length(end) <= width)
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
