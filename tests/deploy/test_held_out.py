"""The expressions on which INT8 layers are chosen: apart from those of the gate, scored as the network is scored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deploy.held_out import HeldOutExpressions, divide, spread
from deploy.parity import chosen_questions
from deploy.runtime.interface import IMAGE
from talent.data.sample import Sample
from talent.data.shapes import ShapesDataset
from talent.evaluate import torch_predictor
from talent.image import probability_on_photo
from talent.metrics import score
from talent.model import TalentModel
from talent.tokenizer import Tokenizer, build_clip_tokenizer
from tests.networks import SMALL, network

SIZE = SMALL.image_size


@pytest.fixture(scope="module")
def model() -> TalentModel:
    return network(SMALL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_clip_tokenizer(context_length=SMALL.context_length, vocab_size=SMALL.vocab_size)


@pytest.mark.parametrize("total", [2, 3, 5, 24, 72, 97])
@pytest.mark.parametrize(("first", "second"), [(48, 24), (1, 1), (1, 1000), (1000, 1), (2, 24)])
def test_two_parts_in_the_ratio_that_was_asked_for(total: int, first: int, second: int) -> None:
    one, other = divide(list(range(total)), first, second)
    numbers = [[part[index] for index in range(len(part))] for part in (one, other)]
    assert sorted(numbers[0] + numbers[1]) == list(range(total))
    assert numbers == [sorted(numbers[0]), sorted(numbers[1])] and min(len(one), len(other)) >= 1
    wanted = total * first / (first + second)
    assert abs(len(one) - wanted) <= 0.5 or 1 in (len(one), len(other))


def test_the_parts_are_evenly_mixed() -> None:
    """A data set is often in some order: by the picture's size, by the room."""
    for first, second in ((48, 24), (24, 48), (30, 42)):
        one, other = divide(list(range(72)), first, second)
        for part in (one, other):
            chosen = np.array([part[index] for index in range(len(part))])
            assert [int(((start <= chosen) & (chosen < start + 12)).sum()) for start in range(0, 72, 12)] == [
                len(part) // 6] * 6


def test_one_sample_is_in_both_parts() -> None:
    assert [[part[index] for index in range(len(part))] for part in divide(["only"], 48, 24)] == [["only"], ["only"]]


def test_a_part_ends_where_it_ends() -> None:
    one, _ = divide(list(range(10)), 1, 1)
    with pytest.raises(IndexError):
        one[len(one)]


@pytest.mark.parametrize("total", [1, 2, 3, 8, 13, 48, 72, 97, 200])
def test_every_beginning_of_what_is_spread_is_even(total: int) -> None:
    """Between neighbours of the first k lie less than twice as many others as if they were in equal steps; from the
    last one to the first the whole begins anew."""
    part = spread([str(number) for number in range(total)])
    order = [int(part[index]) for index in range(len(part))]
    assert sorted(order) == list(range(total))
    for count in range(1, total + 1):
        taken = np.sort(order[:count])
        assert np.diff([*taken, taken[0] + total]).max() < 2 * total / count, f"the first {count}"


def expressions(model: TalentModel, tokenizer: Tokenizer, samples, count: int = 4, *,
                threshold: float = 0.35) -> HeldOutExpressions:
    return HeldOutExpressions(model, tokenizer, samples, count, SIZE, threshold)


def test_the_judge_scores_as_evaluation_does(model, tokenizer) -> None:
    """A photo that is no square, and masks of other instances beside the target's."""
    samples = [stretched(sample) for sample in ShapesDataset(split="val", size=SIZE, length=4)]
    assert any(sample.others for sample in samples)
    predict, answered = torch_predictor(model), 0
    threshold = 0.35
    held_out = expressions(model, tokenizer, samples, threshold=threshold)
    questions = list(chosen_questions(spread(samples), 4, image_size=SIZE))
    for held, question in zip(held_out, questions, strict=True):
        logits = predict(question.image, tokenizer([question.expression]))
        logits = logits - np.quantile(logits, 0.7)  # the network is random: so its mask is neither empty nor all
        expected = score(probability_on_photo(logits[0, 0], question.box), threshold, question.sample.mask,
                         question.sample.others)
        assert held.judge(logits) == expected
        answered += expected.intersection > 0 and expected.covers_wrong_instance is not None
        assert np.array_equal(held.feeds()[IMAGE], question.image) and len(held.feeds()) > 3
    assert answered


def stretched(sample: Sample) -> Sample:
    """Twice as wide."""
    return dataclasses.replace(sample, image=sample.image.repeat(2, 1), mask=sample.mask.repeat(2, 1),
                               others=tuple(other.repeat(2, 1) for other in sample.others))


def test_the_first_expressions_lie_all_over_the_data_set(model, tokenizer) -> None:
    """In rising order, the first eight of 48 would be the first sixth of it."""
    read: list[int] = []

    class Noticing:
        def __init__(self, samples) -> None:
            self.samples = samples

        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return self.samples[index % 2]

    held_out = iter(expressions(model, tokenizer, Noticing(ShapesDataset(split="val", size=SIZE, length=2)), 48))
    for _ in range(8):
        next(held_out)
    assert len(set(read)) == 8
    assert [sum(start <= index < start + 12 for index in read) for start in range(0, 48, 12)] == [2] * 4


def test_they_can_be_read_again_and_are_no_more_than_asked_for(model, tokenizer) -> None:
    held_out = expressions(model, tokenizer, ShapesDataset(split="val", size=SIZE, length=5), 3)
    first, again = ([held.digest for held in held_out] for _ in range(2))
    assert first == again and len(set(first)) == 3


def test_the_digest_changes_with_all_that_the_score_depends_on(model, tokenizer) -> None:
    sample = next(one for one in ShapesDataset(split="val", size=SIZE, length=9) if one.others)
    image, mask, other = sample.image.copy(), sample.mask.copy(), sample.others[0].copy()
    image[5, 7] ^= 255
    mask[5, 7] ^= True
    other[5, 7] ^= True
    wide = stretched(sample)
    changed = [dataclasses.replace(sample, image=image), dataclasses.replace(sample, mask=mask),
               dataclasses.replace(sample, others=(other, *sample.others[1:])),
               dataclasses.replace(sample, others=()), dataclasses.replace(sample, expressions=("the blue thing",)),
               wide]
    digests = [held.digest for one in [sample, *changed] for held in expressions(model, tokenizer, [one], 1)]
    digests += [held.digest for held in expressions(model, tokenizer, [sample], 1, threshold=0.36)]
    assert len(set(digests)) == len(digests) == len(changed) + 2
    renamed = dataclasses.replace(sample, name="elsewhere", negatives=("the other one",))
    held, = expressions(model, tokenizer, [renamed], 1)
    assert held.digest == digests[0]
