"""The picture of a choice: it can be opened, and shows what it should in the colours that the legend names."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.budget import Block, Choice, Ranked
from calibration.chart import BUDGET, NO, PARTLY, YES, draw_choice
from calibration.sensitivity import Measured

MIOU = 0.62
NAMES = [*(f"vision.blocks.{number}" for number in range(12)), "projector", "neck", "decoder.layers.0",
         "decoder.layers.1", "vision"]


def choice_of(in_int8: list[int], *, bound: float = 0.005, loud: float = 1.0) -> Choice:
    """One block for each of `in_int8`, which says how many of its four layers are in INT8. loud: times all losses."""
    def measured(layers: frozenset[str], samples: int, drop: float) -> Measured:
        return Measured(layers, samples, MIOU - drop, MIOU, None, 0.01 * len(layers))

    number = len(in_int8)
    drops = loud * np.random.default_rng(0).exponential(0.0015, number)
    blocks = [Block(name, frozenset(f"{name}/{layer}" for layer in range(4))) for name in NAMES[:number]]
    ranking = [Ranked(block, 0.9 / number, float(drop), float(drop) * 12)
               for block, drop in zip(blocks, drops, strict=True)]
    every = frozenset(name for block in blocks for name in block.layers)
    chosen = frozenset(name for block, taken in zip(blocks, in_int8, strict=True)
                       for name in sorted(block.layers)[:taken])
    lost = float(sum(drops))
    part = 0.9 * len(chosen) / len(every)
    tried = [(0.9, measured(every, 48, lost)), (0.45, measured(frozenset(sorted(every)[:2 * number]), 48, 0.4 * lost))]
    if chosen:
        tried.append((part, measured(chosen, 48, min(0.7 * bound, lost))))
    return Choice(layers=chosen, bound=bound, reference=measured(frozenset(), 48, 0.0),
                  chosen=measured(chosen, 48, min(0.7 * bound, lost) if chosen else 0.0),
                  shares=dict.fromkeys(every, 0.9 / len(every)),
                  ranking=tuple(sorted(ranking, key=lambda one: -one.error)), ranking_samples=8, tried=tuple(tried),
                  curve=tuple((0.9 * step / 4, lost * (step / 4) ** 2) for step in range(5)), order=tuple(blocks))


def count(picture: np.ndarray, colour: str, *, blended: int = 0) -> int:
    """Pixels of a colour; of a thin line also those in which it is blended with white, up to so much."""
    wanted = [int(colour[start:start + 2], 16) for start in (5, 3, 1)]
    return int((np.abs(picture.astype(int) - wanted) <= blended).all(2).sum())


def drawn(choice: Choice, path: Path) -> np.ndarray:
    """uint8 [H, W, 3] BGR."""
    draw_choice(choice, path, title="INT8")
    picture = cv2.imread(str(path))
    assert picture is not None and picture.dtype == np.uint8
    return picture


@pytest.mark.parametrize(("in_int8", "present"), [
    ([4] * 10, {YES}), ([4, 4, 2, 0, 4, 0, 1, 4, 4, 0], {YES, PARTLY, NO}), ([0] * 10, {NO}), ([4] * 17, {YES}),
    ([0], {NO})])
def test_the_bars_have_the_colours_of_what_was_chosen(tmp_path: Path, in_int8: list[int], present: set[str]) -> None:
    picture = drawn(choice_of(in_int8), tmp_path / "int8.png")
    bars = picture[:, picture.shape[1] // 2:]
    assert {colour for colour in (YES, PARTLY, NO) if count(bars, colour) > 60} == present
    assert count(picture, BUDGET, blended=40) > 100 and not count(bars, BUDGET, blended=40)
    assert picture.shape[1] == 1320 and 500 < picture.shape[0] < 800
    assert (picture[[0, -1]] == 255).all() and (picture[:, [0, -1]] == 255).all(), "something is cut off at the edge"


def test_more_blocks_make_it_higher_so_that_names_do_not_touch(tmp_path: Path) -> None:
    few, many = (drawn(choice_of([4] * blocks), tmp_path / f"{blocks}.png").shape[0] for blocks in (10, 17))
    assert many > few


def test_two_drawings_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, taken in zip(paths, (1, 1, 0), strict=True):
        draw_choice(choice_of([4, 2, taken]), path, title="INT8")
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second != other


def test_what_was_taken_out_again_is_drawn_as_left_out(tmp_path: Path) -> None:
    """With a line at what is left, until nothing is."""
    choice = choice_of([4] * 4)
    whole, less, none = choice, choice.smaller(), choice.smaller().smaller().smaller().smaller()
    pictures = [drawn(one, tmp_path / "int8.png") for one in (whole, less, none)]
    bars = [picture[:, picture.shape[1] // 2:] for picture in pictures]
    assert [{colour for colour in (YES, PARTLY, NO) if count(half, colour) > 60} for half in bars] == [
        {YES}, {YES, NO}, {NO}]
    assert none.layers == frozenset() and none.fewer == 4
    sets = [count(picture[:, :picture.shape[1] // 2], YES, blended=60) for picture in pictures]
    assert min(sets[1:]) > sets[0] + 100, "the line at what is left"


def test_a_block_that_breaks_the_network_can_be_drawn(tmp_path: Path) -> None:
    """Its error is infinite; where all are, there is no scale."""
    for endless in (1, 3):
        choice = choice_of([4, 2, 0])
        ranking = [Ranked(one.block, one.share, one.drop, math.inf if number < endless else one.error)
                   for number, one in enumerate(choice.ranking)]
        changed = Choice(**{**vars(choice), "ranking": tuple(ranking)})
        picture = drawn(changed, tmp_path / "int8.png")
        assert min(count(picture, colour) for colour in (YES, PARTLY, NO)) > 60


def test_nothing_lost_can_be_drawn(tmp_path: Path) -> None:
    choice = choice_of([4, 4], bound=0.0, loud=0.0)
    assert all(one.error == 0 for one in choice.ranking)
    assert count(drawn(choice, tmp_path / "int8.png"), BUDGET, blended=40) > 100
