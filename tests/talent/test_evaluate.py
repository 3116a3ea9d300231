"""Every sentence is scored once, in order, whatever the batches and the processes; nothing is read before its turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from talent.data.sample import Sample
from talent.errors import UserError
from talent.evaluate import evaluate, torch_predictor
from talent.image import preprocess, probability_on_photo
from talent.metrics import SegmentationMetrics, score
from talent.tokenizer import build_clip_tokenizer
from tests.networks import TINY, inputs, network, relative_error
from tests.recorded import Recorded

SIZE = 32
TOKENIZER = build_clip_tokenizer(context_length=8, vocab_size=600)


def random_samples(count: int, seed: int = 0) -> Recorded:
    """Pictures of odd sizes with 1 to 3 sentences and 0 to 2 other instances."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        height, width = 2 * rng.integers(8, 40, 2) + 1
        sentences = tuple("".join(rng.choice(list("rgb"), 3)) for _ in range(rng.integers(1, 4)))
        others = tuple(rng.random((height, width)) < 0.3 for _ in range(rng.integers(3)))
        samples.append(Sample(rng.integers(0, 256, (height, width, 3), np.uint8), rng.random((height, width)) < 0.5,
                              sentences, others=others, name=f"{number}.png"))
    return Recorded(samples)


class Network:
    """Logits that depend on the picture and the words; remembers how large its batches were."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """[B,3,S,S], [B,L] -> [B,1,S/4,S/4]."""
        assert images.shape[1:] == (3, SIZE, SIZE) and len(images) == len(tokens)
        self.batches.append(len(images))
        channel = tokens.sum(1) % 3
        return np.stack([image[c, ::4, ::4][None] * 2 for image, c in zip(images, channel, strict=True)])


def run(samples, predict=None, **options) -> SegmentationMetrics:
    return evaluate(predict or Network(), TOKENIZER, samples, image_size=SIZE, threshold=0.4, progress=False, **options)


def one_by_one(samples: Recorded) -> list:
    """Every sentence by itself, with the public functions that a runtime uses."""
    scores, predict = [], Network()
    for number, sample in enumerate(samples.samples):
        for sentence, text in enumerate(sample.expressions):
            image, box = preprocess(sample.image, SIZE)
            probability = probability_on_photo(predict(image, TOKENIZER([text]))[0, 0], box)
            scores.append(score(probability, 0.4, sample.mask, sample.others, index=(number, sentence),
                                name=sample.name, expression=text))
    return scores


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sentence_is_scored_whatever_the_batches(batch_size):
    samples, predict = random_samples(9), Network()
    metrics = run(samples, predict, batch_size=batch_size)
    assert metrics.scores == tuple(one_by_one(samples))
    assert len(metrics) > len(samples) and 0 < metrics.result()["NTA samples"] < len(metrics)
    assert samples.read == list(range(9))  # each picture once, in order
    assert set(predict.batches[:-1]) <= {batch_size} and sum(predict.batches) == len(metrics)


def test_pictures_are_read_when_their_turn_comes():
    samples = random_samples(9)
    read = []

    def predict(images, tokens):
        read.append(len(samples.read))
        return Network()(images, tokens)

    run(samples, predict, batch_size=2)
    assert read[0] <= 2 and read == sorted(read) and all(b - a <= 2 for a, b in zip(read, read[1:], strict=False))


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_the_indices_merge_to_the_whole(processes):
    samples = random_samples(9, seed=2)
    whole = run(samples)
    shares = [run(samples, indices=range(rank, 9, processes), batch_size=3) for rank in reversed(range(processes))]
    merged = SegmentationMetrics.from_scores(one for share in shares for one in share.scores)
    assert merged.scores == whole.scores and merged.result() == whole.result()
    assert all(len(share) < len(whole) for share in shares)


def test_threshold_decides_the_mask():
    samples = random_samples(4)
    low, high = (evaluate(Network(), TOKENIZER, samples, image_size=SIZE, threshold=threshold, progress=False)
                 for threshold in (0.05, 0.95))
    assert sum(one.union for one in low.scores) > sum(one.union for one in high.scores)
    assert [one.nta_activation for one in low.scores] == [one.nta_activation for one in high.scores]


def test_logits_that_are_not_finite_are_no_empty_mask():
    def predict(images, tokens):
        logits = Network()(images, tokens)
        logits[-1, 0, 2, 3] = np.nan
        return logits

    samples = random_samples(2)
    with pytest.raises(UserError, match=rf"not finite for '{samples.samples[1].expressions[-1]}' \(1\.png\).*FP32"):
        run(samples, predict)


def test_torch_predictor():
    model = network(TINY)
    image, tokens = inputs(TINY, 2, seed=4)
    with torch.inference_mode():
        expected = model(image, tokens).logits
    received = torch_predictor(model)(image.numpy(), tokens.numpy())
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, expected.numpy())
    rough = torch_predictor(model, precision="bf16")(image.numpy(), tokens.numpy())
    assert rough.dtype == np.float32 and 0 < relative_error(torch.from_numpy(rough), expected) < 0.1
