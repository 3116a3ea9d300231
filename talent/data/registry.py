"""Data sets by name, as the commands know them."""

from __future__ import annotations

from talent.data.shapes import ShapesDataset
from talent.errors import UserError, suggest

DATASETS = {"shapes": "source", "shapes-shifted": "shifted"}


def open_dataset(name: str, *, split: str, size: int, length: int) -> ShapesDataset:
    """The data set `name` (one of DATASETS): pictures of size x size pixels, `length` samples of `split`."""
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}{suggest(name, DATASETS)}")
    return ShapesDataset(split=split, domain=DATASETS[name], size=size, length=length)
