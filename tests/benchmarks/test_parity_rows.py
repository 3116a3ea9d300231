"""benchmarks/parity_rows.py on networks whose answers are known: scores, changes, agreement, the worst, the picture."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import parity_pictures
from benchmarks.parity_pictures import AFTER, BEFORE, draw, lit, worst
from benchmarks.parity_rows import PackedMask, answers, compared, distribution, facts, records
from deploy.evaluate import Network
from talent.data.contact_sheet import GAP, SIDE
from talent.data.sample import Sample
from talent.errors import UserError
from talent.tokenizer import build_clip_tokenizer

SIZE = 64
TOKENIZER = build_clip_tokenizer(context_length=8, vocab_size=600)


def half(side: str) -> np.ndarray:
    """bool [SIZE, SIZE], the left or the right half."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, slice(0, SIZE // 2) if side == "left" else slice(SIZE // 2, None)] = True
    return mask


GREY = np.full((SIZE, SIZE, 3), 128, np.uint8)
SAMPLES = [Sample(GREY, half("left"), ("the left", "left side"), others=(half("right"),), name="first.png"),
           Sample(GREY, half("right"), ("the right",), name="second.png")]


def network(*sides: str, batch_size: int = 2) -> Network:
    """One that marks these halves in the order in which it is asked: left, right, both or neither."""
    asked = iter(sides)

    def predict(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        logits = np.full((len(images), 1, 16, 16), -9, np.float32)
        for one in logits:
            side = next(asked)
            one[..., :8] = 9 if side in ("left", "both") else -9
            one[..., 8:] = 9 if side in ("right", "both") else -9
        return logits

    return Network(predict, TOKENIZER, SIZE, 0.5, batch_size, {})


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 64)])
def test_packed_masks_come_back(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    np.testing.assert_array_equal(PackedMask.of(mask).unpacked(), mask)
    assert len(PackedMask.of(np.zeros((480, 640), bool)).data) < 2000


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_sentence_is_asked_whatever_the_batch(batch_size):
    found = answers(network("left", "both", "left", batch_size=batch_size), SAMPLES, label="test")
    assert [one.score.index for one in found] == [(0, 0), (0, 1), (1, 0)]
    assert [one.score.expression for one in found] == ["the left", "left side", "the right"]
    assert [one.score.iou for one in found] == pytest.approx([1, 0.5, 0], abs=0.06)
    assert found[0].score.covers_wrong_instance is False and found[1].score.covers_wrong_instance is True
    assert found[2].score.nta_activation is None


@pytest.fixture
def differences():
    """The first network is right everywhere; the second wrong once, half right once."""
    reference = answers(network("left", "left", "right"), SAMPLES, label="test")
    return compared(answers(network("left", "both", "left"), SAMPLES, label="test"), reference)


def test_facts_hold_scores_agreement_and_changes(differences):
    own = facts(differences)
    assert own["miou"] == pytest.approx(0.5, abs=0.03) and own["pr@0.9"] == pytest.approx(1 / 3)
    assert own["expressions"] == 3 and own["nta_samples"] == 2 and own["nta_rate"] == 0.5
    assert own["nta"] == pytest.approx(0.5, abs=0.03)
    assert own["masks_agree"] == pytest.approx(0.5, abs=0.03) and own["masks_agree_min"] == pytest.approx(0, abs=0.03)
    assert own["worst_delta"] == pytest.approx(-1, abs=0.06) == own["delta"]["p0"]
    assert own["delta"]["p100"] == 0 and own["delta"]["worse_0.1"] == pytest.approx(2 / 3)
    assert own["delta"]["better_0.01"] == 0


def test_the_first_row_differs_from_itself_in_nothing():
    found = answers(network("left", "both", "neither"), SAMPLES, label="test")
    same = compared(found, found)
    assert facts(same)["masks_agree_min"] == 1 and facts(same)["worst_delta"] == 0
    assert worst({"same": same}) == []


def test_nta_is_unknown_where_no_target_got_anything():
    found = answers(network("right", "right", "right"), SAMPLES, label="test")
    few = [one for one in compared(found, found) if one.answer.score.index[0] == 1]
    assert facts(few)["nta"] is None and facts(few)["nta_rate"] is None and facts(few)["nta_samples"] == 0


def test_distribution():
    changes = distribution([-0.2, -0.1, -0.02, 0.0, 0.07])
    assert (changes["p0"], changes["p50"], changes["p100"]) == (-0.2, -0.02, 0.07)
    assert changes["mean"] == pytest.approx(-0.05)
    assert [changes[f"worse_{step}"] for step in (0.01, 0.05, 0.1)] == [0.6, 0.4, 0.2]
    assert [changes[f"better_{step}"] for step in (0.01, 0.05, 0.1)] == [0.2, 0.2, 0.0]


def test_records_name_the_words_once(differences):
    named, short = records(differences, named=True), records(differences, named=False)
    assert [(one["sample"], one["sentence"], one["expression"]) for one in named] == [
        (0, 0, "the left"), (0, 1, "left side"), (1, 0, "the right")]
    assert set(short[0]) == {"sample", "sentence", "iou", "delta", "agreement"}
    assert short[2]["delta"] == differences[2].change < -0.9


def test_answers_to_other_sentences_are_refused(differences):
    found = [one.answer for one in differences]
    with pytest.raises(UserError, match="expected answers to the same sentences, received 3 and 2"):
        compared(found, found[:2])


def test_the_worst_come_first_each_sentence_once(differences):
    reference = [one.reference for one in differences]
    better = compared(answers(network("both", "left", "both"), SAMPLES, label="test"), reference)
    chosen = worst({"a": differences, "b": better})
    assert [(name, one.answer.score.index) for name, one in chosen] in (
        [("a", (1, 0)), ("a", (0, 1)), ("b", (0, 0))], [("a", (1, 0)), ("b", (0, 0)), ("a", (0, 1))])
    assert len(worst({"a": differences, "b": better}, 2)) == 2


def test_the_picture_lights_both_masks(differences):
    chosen = worst({"INT8": differences})
    picture = draw(chosen[:1], SAMPLES, reference="PyTorch", title="the worst")
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * (SIDE + 2 * GAP), "one sentence: two tiles"
    tiles = [picture[:, left + GAP:left + GAP + SIDE] for left in (0, SIDE + 2 * GAP)]
    left, right = (slice(20, SIDE // 2 - 20), slice(SIDE // 2 + 20, SIDE - 20))
    rows = [int(np.flatnonzero((tile[:, 40] == tile[0, 40]).all(-1) == 0)[-1]) for tile in tiles]
    assert min(rows) > SIDE
    for tile, bright, dark in ((tiles[0], right, left), (tiles[1], left, right)):  # "the right": right, then left
        photo = tile[np.flatnonzero(np.isin(tile[:, SIDE // 4], (64, 128)).all(-1))]
        assert np.median(photo[:, bright]) == 128 and np.median(photo[:, dark]) == 64


def test_lit_keeps_the_mask_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.eye(8, dtype=bool)
    picture = lit(image, mask)
    np.testing.assert_array_equal(picture[mask], image[mask])
    np.testing.assert_array_equal(picture[~mask], np.rint(parity_pictures.DIM * image[~mask]).astype(np.uint8))
    assert BEFORE != AFTER
