"""Samples at a glance: pictures in a grid, the object that is meant outlined, its first sentence written below."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from talent.data.sample import Sample

SIDE, GAP, LINE = 240, 8, 20  # pixels: a picture's side, the space around it, the height of a line of text
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
PAPER, INK, HALO, MARK = (250, 250, 250), (20, 20, 20), (0, 0, 0), (255, 255, 0)


def contact_sheet(samples: Sequence[Sample], *, columns: int = 4) -> np.ndarray:
    """A sheet uint8 [H, W, 3] RGB, each sample in a tile of one size. Raises ValueError without samples or columns."""
    if not samples or columns < 1:
        raise ValueError(f"expected at least one sample and one column, received {len(samples)} and {columns}")
    columns = min(columns, len(samples))
    captions = [_wrap(sample.expressions[0], SIDE) for sample in samples]
    height, width = SIDE + LINE * max(map(len, captions)) + 2 * GAP, SIDE + 2 * GAP
    rows = -(-len(samples) // columns)
    sheet = np.full((rows * height, columns * width, 3), PAPER, np.uint8)
    for number, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        top, left = number // columns * height + GAP, number % columns * width + GAP
        picture = _outlined(sample)
        y, x = top + (SIDE - picture.shape[0]) // 2, left + (SIDE - picture.shape[1]) // 2
        sheet[y:y + picture.shape[0], x:x + picture.shape[1]] = picture
        for line, words in enumerate(caption, 1):
            cv2.putText(sheet, words, (left, top + SIDE + line * LINE - 5), FONT, SCALE, INK, 1, cv2.LINE_AA)
    return sheet


def _outlined(sample: Sample) -> np.ndarray:
    """The picture, its longer side SIDE pixels, with a yellow line on a black one around the mask."""
    height, width = sample.mask.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    mask = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    edges, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, HALO, 3, cv2.LINE_AA)
    return cv2.drawContours(picture, edges, -1, MARK, 1, cv2.LINE_AA)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of whole words that fit the width; a word that is longer than a line gets one of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and cv2.getTextSize(longer, FONT, SCALE, 1)[0][0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
