"""The expressions that a network answered worst, drawn: what it marked, what was meant, what was mistaken for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from talent.data.contact_sheet import TARGET, Tile, outlined, sheet
from talent.data.sample import Samples
from talent.evaluate import Predict, probabilities, questions
from talent.image import binarise, overlay
from talent.metrics import Score
from talent.require import require
from talent.tokenizer import Tokenizer

COUNT = 12
ANSWER, OTHER = (0, 210, 255), (255, 40, 40)  # RGB of the answer's tint and of the lines around wrong instances
LEGEND = (("answer", ANSWER), ("target", TARGET), ("others of its category", OTHER))
NUMBERS = "others, target: mean probability on them"


def worst(scores: Iterable[Score], count: int = COUNT) -> list[Score]:
    """The `count` scores of lowest IoU, worst first; of equal ones, those that lit up wrong instances more."""
    return sorted(scores, key=lambda one: (one.iou, -(one.nta_activation or 0.0)))[:count]


def draw_worst_cases(predict: Predict, tokenizer: Tokenizer, samples: Samples, scores: Sequence[Score], *,
                     image_size: int, threshold: float, title: str = "") -> np.ndarray:
    """A sheet uint8 [H, W, 3] RGB, a tile per score (which need an index in `samples`), in their order.

    The samples are read and asked again, one at a time: nobody has to keep the pictures of a whole evaluation.
    Raises ValueError without scores.
    """
    tqdm = require("tqdm", extra="cpu").tqdm
    tiles = []
    for score in tqdm(scores, desc="worst cases", unit="sentence", leave=False, disable=None):
        index, number = score.index
        question = next(q for q in questions(samples, [index], image_size=image_size) if q.index == (index, number))
        probability, = probabilities(predict, tokenizer, [question])
        sample = question.sample
        mask = binarise(probability, threshold)
        outlines = [(mask, ANSWER), *((other, OTHER) for other in sample.others), (sample.mask, TARGET)]
        image = overlay(sample.image, mask, color=ANSWER, outline=False)
        tiles.append(Tile(outlined(image, outlines), [_numbers(score), sample.expressions[number], sample.name]))
    numbers = NUMBERS if any(score.nta_activation is not None for score in scores) else ""
    return sheet(tiles, title="; ".join(filter(None, (title, numbers))), legend=LEGEND)


def _numbers(score: Score) -> str:
    text = f"IoU {score.iou:.2f}"
    if score.nta_activation is not None:
        text += f"; others {score.nta_activation:.2f}, target {score.target_activation:.2f}"
    return text
