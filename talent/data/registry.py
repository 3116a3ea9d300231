"""Data sets by name, as the commands know them."""

from __future__ import annotations

from pathlib import Path

from talent.data.sample import Samples, Subset, evenly
from talent.errors import UserError, suggest

SHAPES = {"shapes": "source", "shapes-shifted": "shifted"}
SHAPES_LENGTH = {"train": 20000, "val": 200, "test": 500}
REFCOCO = ("refcoco", "refcoco+", "refcocog", "refcocog-google")
DATASETS = (*SHAPES, *REFCOCO)
HELP = "shapes, shapes-shifted, refcoco, refcoco+, refcocog, refcocog-google, or a .jsonl file of your own"


def check_name(name: str) -> None:
    """Raise UserError where `name` is neither a data set nor a .jsonl file."""
    if not name.endswith(".jsonl") and name not in DATASETS:
        raise UserError(f"unknown data set {name!r}{suggest(name, DATASETS)}; or name a .jsonl file")


def open_dataset(name: str, *, split: str, size: int, length: int | None = None,
                 root: str | Path | None = None) -> Samples:
    """The data set `name` (one of DATASETS, or a .jsonl file), split `split`.

    size: side of the pictures that shapes draws; photographs keep their own. length: at most so many samples, taken
    evenly from the whole; None: all there are (of shapes, SHAPES_LENGTH). root: where RefCOCO's files lie. Raises
    UserError for an unknown name or split, and for missing or broken files.
    """
    check_name(name)
    if name in SHAPES:
        from talent.data.shapes import ShapesDataset
        return ShapesDataset(split=split, domain=SHAPES[name], size=size,
                             length=length or SHAPES_LENGTH.get(split, 1))
    if name in REFCOCO:
        from talent.data.refcoco import RefCocoDataset
        if root is None:
            raise UserError(f"{name} needs the folder of its files: add --data_root DIR (docs/data.md: what is in it)")
        samples = RefCocoDataset(root, name=name, split=split)
    else:
        from talent.data.jsonl import JsonlDataset
        samples = JsonlDataset(name, split=split)
    return samples if length is None or length >= len(samples) else Subset(samples, evenly(len(samples), length))
