"""Batches depend on the seed and the step alone, so that a run that is taken up again sees what it would have seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from talent.data.batches import Pick, RunSampler, TrainingSet
from talent.data.registry import open_dataset
from talent.data.sample import Sample
from talent.errors import UserError
from talent.image import letterbox_mask, preprocess
from talent.tokenizer import build_clip_tokenizer


def sampler(**changed) -> RunSampler:
    return RunSampler(**{"length": 10, "batch_size": 4, "batches": 9, "seed": 3, **changed})


def test_order_is_deterministic():
    assert list(sampler()) == list(sampler())
    assert list(sampler()) != list(sampler(seed=4))
    once = sampler()
    assert list(once) == list(once), "a second pass over the same sampler"


@pytest.mark.parametrize("start", range(10))
def test_start_skips_exactly(start):
    whole, rest = list(sampler()), sampler(start=start)
    assert list(rest) == whole[start:] and len(rest) == 9 - start


def test_every_epoch_is_a_new_order_of_all_samples():
    picks = [pick for batch in sampler(batches=10) for pick in batch]  # 40 picks: 4 epochs of 10
    epochs = [picks[at:at + 10] for at in range(0, 40, 10)]
    for number, epoch in enumerate(epochs):
        assert {pick.epoch for pick in epoch} == {number}
        assert sorted(pick.index for pick in epoch) == list(range(10))
    assert len({tuple(pick.index for pick in epoch) for epoch in epochs}) == 4


def test_batch_larger_than_the_data():
    first, = sampler(length=3, batch_size=8, batches=1)
    assert [pick.epoch for pick in first] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (3, 1), (1, 4), (2, 2)])
def test_a_global_batch_is_the_same_however_it_is_divided(processes, accumulate):
    """Batch b of one process is cut into pieces that are the batches of all processes, one after another, in order."""
    size, steps = 2, 5
    whole = list(sampler(batch_size=size * processes * accumulate, batches=steps))
    shares = [list(sampler(batch_size=size, batches=steps * accumulate, rank=rank, processes=processes))
              for rank in range(processes)]
    for step, batch in enumerate(whole):
        pieces = [shares[rank][step * accumulate + number] for number in range(accumulate) for rank in range(processes)]
        assert [len(piece) for piece in pieces] == [size] * len(pieces)
        assert [pick for piece in pieces for pick in piece] == batch


def test_processes_take_different_samples():
    """Over an epoch each sample is taken by one of them, once."""
    shares = [[pick for batch in sampler(length=16, batches=2, rank=rank, processes=2) for pick in batch]
              for rank in range(2)]
    assert not set(shares[0]) & set(shares[1]) and {pick.epoch for share in shares for pick in share} == {0}
    assert sorted(pick.index for share in shares for pick in share) == list(range(16))


@pytest.mark.parametrize("rank", range(2))
def test_a_process_that_goes_on(rank):
    whole = list(sampler(rank=rank, processes=2))
    assert list(sampler(rank=rank, processes=2, start=4)) == whole[4:]


def test_more_processes_than_samples():
    shares = [next(iter(sampler(length=3, batch_size=2, rank=rank, processes=4))) for rank in range(4)]
    assert [pick.epoch for share in shares for pick in share] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert {pick.index for share in shares[:2] for pick in share} == {0, 1, 2}


@pytest.fixture(scope="module")
def tokenizer():
    return build_clip_tokenizer(context_length=20, vocab_size=4096)


@pytest.fixture(scope="module")
def samples():
    return open_dataset("shapes", split="train", size=112, length=12)


def test_items(samples, tokenizer):
    items = TrainingSet(samples, tokenizer, image_size=84, seed=0)
    assert len(items) == 12
    for index in range(12):
        item, sample = items[Pick(0, index)], samples[index]
        assert item["image"].shape == (3, 84, 84) and item["image"].dtype == torch.float32
        image, box = preprocess(sample.image, 84)
        assert torch.equal(item["image"], torch.from_numpy(image[0]))
        assert item["mask"].shape == (1, 84, 84) and item["mask"].dtype == torch.float32
        assert torch.equal(item["mask"][0], torch.from_numpy(letterbox_mask(sample.mask, box)))
        assert item["mask"].min() == 0 and item["mask"].max() == pytest.approx(1)
        assert item["tokens"].shape == (3, 20) and item["tokens"].dtype == torch.int64
        assert item["valid"].shape == () and item["valid"].dtype == torch.bool and item["valid"]
        own, positive, negative = item["tokens"].tolist()
        ids = {text: tokenizer(text)[0].tolist() for text in sample.expressions + sample.negatives}
        assert own in [ids[t] for t in sample.expressions] and positive in [ids[t] for t in sample.expressions]
        assert own != positive and negative in [ids[t] for t in sample.negatives]
    batch = torch.utils.data.default_collate([items[Pick(0, 0)], items[Pick(0, 1)]])
    assert batch["tokens"].shape == (2, 3, 20) and batch["valid"].shape == (2,)


def test_sentences_change_with_the_epoch_and_not_with_the_call(samples, tokenizer):
    items = TrainingSet(samples, tokenizer, image_size=84, seed=0)
    again = TrainingSet(samples, tokenizer, image_size=84, seed=0)
    seen = [items[Pick(epoch, 5)]["tokens"] for epoch in range(12)]
    assert all(torch.equal(tokens, again[Pick(epoch, 5)]["tokens"]) for epoch, tokens in enumerate(seen))
    assert {tuple(tokens[0].tolist()) for tokens in seen} == \
        {tuple(tokenizer(text)[0].tolist()) for text in samples[5].expressions}


def test_sample_with_one_sentence_and_no_negative(samples, tokenizer):
    lonely = dataclasses.replace(samples[0], expressions=("the red circle",), negatives=())
    item = TrainingSet([lonely], tokenizer, image_size=84, seed=0)[Pick(0, 0)]
    assert not item["valid"]
    wanted = tokenizer(["the red circle", "the red circle.", "the red circle"])
    np.testing.assert_array_equal(item["tokens"], wanted)


def test_wide_picture_is_letterboxed(tokenizer):
    mask = np.zeros((40, 100), bool)
    mask[:, 50:] = True
    item = TrainingSet([Sample(np.full((40, 100, 3), 255, np.uint8), mask, ("it",))], tokenizer, image_size=84,
                       seed=0)[Pick(0, 0)]
    assert item["mask"].sum() == pytest.approx(42 * 84 * 0.4, rel=0.1)
    assert not item["mask"][0, 0].any() and not item["mask"][0, -1].any() and item["mask"][0, 42, 80]


def test_unknown_data_set():
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        open_dataset("shape", split="train", size=112, length=1)
