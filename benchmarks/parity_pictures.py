"""The sentences whose answers lost most, drawn: what the first network marked, what the other one marks instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.parity_rows import Difference
from talent.data.contact_sheet import TARGET, Tile, outlined, sheet
from talent.data.sample import Samples

COUNT = 10
BEFORE, AFTER = (0, 200, 255), (255, 110, 90)  # RGB of the lines around the two masks
DIM = 0.5  # how much light is left where the mask is not
COLUMNS = 4  # two sentences a line


def worst(rows: Mapping[str, Sequence[Difference]], count: int = COUNT) -> list[tuple[str, Difference]]:
    """The `count` sentences that lost most, each with the name of the row where it did, the worst first.

    Of equal losses those whose masks agree less come first; there may be fewer, or none.
    """
    found: dict[tuple[int, int], tuple[str, Difference]] = {}
    for name, differences in rows.items():
        for one in differences:
            index = one.answer.score.index
            if one.change < 0 and (index not in found or _order(one) < _order(found[index][1])):
                found[index] = name, one
    return sorted(found.values(), key=lambda item: _order(item[1]))[:count]


def _order(one: Difference) -> tuple[float, float]:
    return one.change, one.agreement


def draw(chosen: Sequence[tuple[str, Difference]], samples: Samples, *, reference: str, title: str) -> np.ndarray:
    """A sheet uint8 [H, W, 3] RGB: two tiles a sentence, the first row's mask and the other's, lit in the photo.

    reference: the first row's name. Raises ValueError where nothing is chosen.
    """
    tiles = []
    for number, (name, one) in enumerate(chosen, 1):
        score, before = one.answer.score, one.reference.score
        sample = samples[score.index[0]]
        for mask, colour, caption in (
                (one.reference.mask, BEFORE, [f"{number}. {score.expression}", f"{reference}: IoU {before.iou:.2f}",
                                              score.name]),
                (one.answer.mask, AFTER, [f"{number}. {name}: IoU {score.iou:.2f} ({one.change:+.3f}), masks agree "
                                          f"{one.agreement:.2f}"])):
            pixels = mask.unpacked()
            tiles.append(Tile(outlined(lit(sample.image, pixels), [(pixels, colour), (sample.mask, TARGET)]), caption))
    legend = (("before", BEFORE), ("after", AFTER), ("target", TARGET))
    return sheet(tiles, columns=COLUMNS, title=title, legend=legend)


def lit(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo (uint8 [H, W, 3] RGB), dark outside the mask (bool [H, W]): a tint would be lost on things of its own
    colour."""
    dark = np.rint(DIM * np.arange(256)).astype(np.uint8)  # by grey level, because there are few of them
    return np.where(mask[:, :, None], image, dark[image])
