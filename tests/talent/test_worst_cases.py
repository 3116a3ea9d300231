"""The worst answers: which they are, and that the picture shows answer, target and wrong instances where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from talent.data.contact_sheet import GAP, LINE, SIDE, TARGET, Tile, outlined, sheet
from talent.data.sample import Sample
from talent.metrics import Score
from talent.tokenizer import build_clip_tokenizer
from talent.worst_cases import ANSWER, OTHER, draw_worst_cases, worst

SIZE = 64
TOKENIZER = build_clip_tokenizer(context_length=8, vocab_size=600)


def test_lowest_iou_first_then_what_lit_up_wrong_instances():
    def made(intersection, nta, number):
        return Score(intersection, 10, nta_activation=nta, index=(number, 0))

    scores = [made(9, 0.9, 0), made(0, None, 1), made(0, 0.2, 2), made(3, 0.1, 3), made(0, 0.7, 4), made(0, 0.0, 5)]
    assert [one.index[0] for one in worst(scores, 5)] == [4, 2, 1, 5, 3]
    assert len(worst(scores)) == 6 and worst([]) == []


def square(left: int) -> np.ndarray:
    """bool [75, 121] with a square of 25 pixels."""
    mask = np.zeros((75, 121), bool)
    mask[25:50, left:left + 25] = True
    return mask


class Left:
    """A network that marks the left third of every picture."""

    def __call__(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        logits = np.full((len(images), 1, SIZE // 4, SIZE // 4), -9, np.float32)
        logits[..., :SIZE // 12] = 9
        return logits


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(-1) < 60


def test_draws_the_answer_the_target_and_the_others():
    grey = Sample(np.full((75, 121, 3), 128, np.uint8), square(48), ("a", "the middle square"),
                  others=(square(5), square(91)), name="grey.png")
    samples = [grey, grey]
    chosen = [Score(0, 9, nta_activation=0.5, target_activation=0.1, index=(1, 1))]
    picture = draw_worst_cases(Left(), TOKENIZER, samples, chosen, image_size=SIZE, threshold=0.5)
    assert picture.dtype == np.uint8 and picture.shape[1] == SIDE + 2 * GAP
    top = int(np.flatnonzero((np.abs(picture.astype(int) - 128).max(-1) < 3).sum(1) > SIDE // 3)[0])  # of the photo
    tile = picture[top:top + round(75 * SIDE / 121), GAP:GAP + SIDE]
    yellow, red = near(tile, TARGET), near(tile, OTHER)
    columns = np.flatnonzero(yellow.any(0)) * 121 / SIDE  # in pixels of the photo
    assert 45 < columns.min() < 51 and 70 < columns.max() < 76
    columns = np.flatnonzero(red.any(0)) * 121 / SIDE
    assert columns.min() < 8 and 113 < columns.max() < 119 and not np.any((columns > 45) & (columns < 76))
    tinted = (tile[..., 2].astype(int) - tile[..., 0]) > 40  # what was grey is bluish
    assert tinted[:, :40].mean() > 0.4 and tinted[:, -60:].mean() < 0.01
    legend = picture[:top]
    for colour in (ANSWER, TARGET, OTHER):
        assert (legend == colour).all(-1).sum() > 80


def test_pictures_are_asked_again_for_their_own_sentence():
    sentences = []

    def network(images, tokens):
        sentences.append(tokens[0])
        return Left()(images, tokens)

    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 256, (31, 47, 3), np.uint8), rng.random((31, 47)) < 0.5, ("a", "b", "c"))
               for _ in range(3)]
    chosen = [Score(0, 1, index=index) for index in ((2, 1), (0, 2), (0, 0))]
    draw_worst_cases(network, TOKENIZER, samples, chosen, image_size=SIZE, threshold=0.5)
    np.testing.assert_array_equal(sentences, TOKENIZER(["b", "c", "a"]))


def test_numbers_are_explained_only_where_there_are():
    samples = [Sample(np.zeros((31, 47, 3), np.uint8), np.zeros((31, 47), bool), ("a",))]
    heights = [draw_worst_cases(Left(), TOKENIZER, samples, [one], image_size=SIZE, threshold=0.5).shape[0]
               for one in (Score(0, 1, index=(0, 0)), Score(0, 1, 0.5, 0.1, True, index=(0, 0)))]
    assert heights[1] > heights[0]


def test_sheet_keeps_words_within_their_tile():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    plain = sheet([Tile(grey, ["a"]), Tile(grey, [""])], columns=2)
    long = sheet([Tile(grey, ["x" * 100]), Tile(grey, [""])], columns=2)
    assert long.shape == plain.shape  # one line: the end of the word, after three dots
    assert not (long[SIDE + GAP:, SIDE + GAP:] < 200).any() and (long[SIDE + GAP:, :SIDE + GAP] < 200).any()
    wrapped = sheet([Tile(grey, ["many short words " * 4, "and another paragraph"])])
    assert wrapped.shape[0] >= plain.shape[0] + 2 * LINE
    assert not (wrapped[:, SIDE + GAP:] < 200).any()


def test_sheet_breaks_the_legend_where_the_sheet_is_narrow():
    tiles = [Tile(np.full((SIDE, SIDE, 3), 128, np.uint8), ["a"])] * 4
    legend = [("something", (1, 2, 3)), ("something else", (4, 5, 6)), ("yet another thing", (7, 8, 9))]
    wide, narrow = (sheet(tiles, columns=columns, title="A title", legend=legend) for columns in (4, 1))
    bare = sheet(tiles, columns=4)
    assert bare.shape[0] + 2 * LINE <= wide.shape[0] <= bare.shape[0] + 3 * LINE
    head = narrow.shape[0] - 4 * bare.shape[0]
    assert head >= 3 * LINE
    for _, colour in legend:  # no entry is cut off
        assert (narrow[:head] == colour).all(-1).sum() > 80


@pytest.mark.parametrize("shape", [(7, 501), (501, 7), (75, 121)])
def test_outlined_fits_any_proportion(shape):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 3:, shape[1] // 3:] = True
    picture = outlined(np.full((*shape, 3), 128, np.uint8), [(mask, TARGET)])
    assert max(picture.shape[:2]) == SIDE and near(picture, TARGET).any()
    assert picture.shape[0] / picture.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.2)
