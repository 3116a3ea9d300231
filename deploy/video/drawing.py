"""An answer drawn on its frame: the mask, the box, and what was looked for."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from deploy.runtime.segmenter import Segmentation
from deploy.video.lettering import Lettering
from talent.image import overlay

MASK_COLOR, BOX_COLOR = (255, 59, 92), (255, 204, 0)  # RGB; the first is that of talent.image.overlay
_WHITE, _PALE = (255, 255, 255), (210, 210, 210)
_DARKENED = 0.35  # what is left of the picture behind the text
_SMALLEST_LINE, _LARGEST_LINE = 15, 96  # pixels; smaller cannot be read
_OUTLINED = 200  # pixels; in smaller pictures the mask's outline would cover the object
_lettering = functools.lru_cache(maxsize=8)(Lettering)


def draw(image: np.ndarray, sentence: str | None, result: Segmentation | None, *,
         fps: float | None = None) -> np.ndarray:
    """A frame (uint8 [H, W, 3] RGB) with the mask, its box, and a caption: sentence, score, and, where given, `fps`.

    A new array; the picture as it is where sentence and result are None. For one thread at a time.
    """
    if sentence is None or result is None:
        return image.copy()
    picture = overlay(image, result.mask, color=MASK_COLOR, outline=max(image.shape[:2]) >= _OUTLINED)
    if result.box is not None:
        _draw_box(picture, result.box)
    found = "nothing found" if result.box is None else f"score {result.score:.2f}"
    _draw_caption(picture, sentence, found if fps is None else f"{found}   {fps:.1f} FPS", avoid=result.box)
    return picture


def _draw_box(picture: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """A little outside, beside the mask's outline and not on it."""
    width = max(1, round(max(picture.shape[:2]) / 640))
    x0, y0, x1, y1 = box
    away = 3 * width
    cv2.rectangle(picture, (x0 - away, y0 - away), (x1 - 1 + away, y1 - 1 + away), BOX_COLOR, width)


def _draw_caption(picture: np.ndarray, sentence: str, numbers: str, *,
                  avoid: tuple[int, int, int, int] | None) -> None:
    """On the left at the top, or at the bottom where the box is at the top only; on at most a third of the height,
    and not at all where the text could not be read."""
    height, width = picture.shape[:2]
    line = round(min(_LARGEST_LINE, max(_SMALLEST_LINE, min(height, width) / 22)))
    lettering, margin = _lettering(line), round(line / 3)
    room = width - 4 * margin  # without the margins around the panel and in it
    most = (height // 3 - 2 * margin) // line  # lines
    if most < 1:
        return
    texts = [(text, _WHITE) for text in lettering.fit(sentence, room, lines=min(2, max(1, most - 1)))]
    if len(texts) < most and lettering.width(numbers) <= room:
        texts.append((numbers, _PALE))
    if not texts:
        return
    tall, wide = line * len(texts) + 2 * margin, 2 * margin + max(lettering.width(text) for text, _ in texts)
    at_bottom = avoid is not None and avoid[1] < margin + tall and avoid[0] < margin + wide \
        and avoid[3] <= height - margin - tall
    top = height - margin - tall if at_bottom else margin
    panel = picture[top:top + tall, margin:margin + wide]
    panel[:] = cv2.convertScaleAbs(panel, alpha=_DARKENED)
    for row, (text, color) in enumerate(texts):
        lettering.put(picture, text, left=2 * margin, top=top + margin + row * line, color=color)
