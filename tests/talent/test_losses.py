"""Each loss against a slow NumPy version written from its definition, one number at a time, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from talent.errors import UserError
from talent.image import upsample_bicubic
from talent.losses import (
    LossWeights,
    contextual_pairwise_consistency,
    grid_coverage,
    mask_target,
    segmentation_loss,
    talent_losses,
    target_centric_contrast,
    target_instance_contrast,
    text_referred_affinity,
    text_referred_confusers,
)
from talent.metrics import iou


def sampled(mask: np.ndarray, y: int, x: int, height: int, width: int) -> float:
    """The 3x3 average of `mask` at the place of logit (y, x), linear between pixels."""
    place = [i * (side - 1) / max(grid - 1, 1)
             for i, grid, side in ((y, height, mask.shape[0]), (x, width, mask.shape[1]))]
    total = 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            weight = max(0.0, 1 - abs(row - place[0])) * max(0.0, 1 - abs(column - place[1]))
            total += weight * mask[max(row - 1, 0):row + 2, max(column - 1, 0):column + 2].mean()
    return total


def slow_segmentation(logits: np.ndarray, mask: np.ndarray) -> float:
    """BCE + (1 - soft IoU), the mask averaged 3x3 and sampled where align_corners puts each logit."""
    batch, _, height, width = logits.shape
    entropy, ious = [], []
    for b in range(batch):
        intersection = union = 0.0
        for y in range(height):
            for x in range(width):
                target = sampled(mask[b, 0], y, x, height, width)
                p = 1 / (1 + np.exp(-logits[b, 0, y, x]))
                entropy.append(-target * np.log(p) - (1 - target) * np.log(1 - p))
                intersection += p * target
                union += p + target - p * target
        ious.append(intersection / union)
    return float(np.mean(entropy) + 1 - np.mean(ious))


def slow_cpcl(features: np.ndarray, sentence: np.ndarray) -> float:
    """Mean row norm of A * M - M: A = softmax(cos(f, f)), M = [softmax(s s^t) > 0.7], s = f . sentence."""
    norms = []
    for f, word in zip(features, sentence, strict=True):
        score = [float(np.dot(pixel, word)) for pixel in f]
        for i, pixel in enumerate(f):
            cosine = np.array([np.dot(pixel, o) / (np.linalg.norm(pixel) * np.linalg.norm(o)) for o in f])
            affinity = np.exp(cosine) / np.exp(cosine).sum()
            products = np.array([score[i] * other for other in score])
            similar = np.exp(products - products.max())
            pairs = np.where(similar / similar.sum() > 0.7, 1.0, 0.0)
            norms.append(np.sqrt(((affinity * pairs - pairs) ** 2).sum()))
    return float(np.mean(norms))


def slow_tccl(target: np.ndarray, positive: np.ndarray, negative: np.ndarray, valid: np.ndarray) -> float:
    """-log of the share of the positive in exp(cos), mean over the valid samples."""
    losses = []
    for v, pos, neg, use in zip(target, positive, negative, valid, strict=True):
        near, far = (np.exp(np.dot(v, o) / (np.linalg.norm(v) * np.linalg.norm(o))) for o in (pos, neg))
        if use:
            losses.append(-np.log(near / (near + far)))
    return float(np.mean(losses)) if losses else 0.0


def mean_under(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return sum(w * f for w, f in zip(weight, features, strict=True)) / sum(weight)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_confusers(features: np.ndarray, sentence: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Of one sample: exp(cos / 0.1) times what the target leaves uncovered, made to sum to 1."""
    weight = np.array([np.exp(cosine(f, sentence) / 0.1) * (1 - c) for f, c in zip(features, coverage, strict=True)])
    return weight / weight.sum()


def slow_rectified_cpcl(features: np.ndarray, sentence: np.ndarray, coverage: np.ndarray) -> float:
    """Balanced cross-entropy of (cos(f, P) - cos(f, Q)) / 0.1, P of the target and Q of the confusers."""
    losses = []
    for fs, word, cover in zip(features, sentence, coverage, strict=True):
        unit = np.array([f / np.linalg.norm(f) for f in fs])
        confusers = slow_confusers(fs, word, cover)
        target, confused = mean_under(unit, cover), mean_under(unit, confusers)
        inside = outside = 0.0
        for f, share, weight in zip(unit, cover / cover.sum(), confusers, strict=True):
            logit = (cosine(f, target) - cosine(f, confused)) / 0.1
            inside += share * np.log1p(np.exp(-logit))
            outside += weight * np.log1p(np.exp(logit))
        losses.append((inside + outside) / 2)
    return float(np.mean(losses))


def slow_rectified_tccl(features, sentence, positive, negative, valid, coverage, others) -> float:
    """-log of the share of exp(cos(v, pos) / 0.1) among target, negative sentence, confusers and other instances."""
    losses = []
    for b, fs in enumerate(features):
        v = mean_under(fs, coverage[b])
        terms = [cosine(v, positive[b]), cosine(mean_under(fs, slow_confusers(fs, sentence[b], coverage[b])),
                                                positive[b])]
        if valid[b]:
            terms.append(cosine(v, negative[b]))
        if others[b].any():
            terms.append(cosine(mean_under(fs, others[b] * (1 - coverage[b])), positive[b]))
        shares = np.exp(np.array(terms) / 0.1)
        losses.append(-np.log(shares[0] / shares.sum()))
    return float(np.mean(losses))


def numbers(*shapes: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal(shape) for shape in shapes]


def tensors(*arrays: np.ndarray, dtype=torch.float32) -> list[torch.Tensor]:
    return [torch.from_numpy(a).to(dtype) for a in arrays]


@pytest.mark.parametrize(("batch", "side", "step"), [(3, 5, 4), (1, 7, 1), (2, 3, 3)])
def test_segmentation(batch, side, step):
    logits, = numbers((batch, 1, side, side), scale=2)
    mask = (numbers((batch, 1, side * step, side * step), seed=1)[0] > 0.5).astype(float)
    received = segmentation_loss(*tensors(logits, mask))
    assert float(received) == pytest.approx(slow_segmentation(logits, mask), rel=1e-5)


def test_segmentation_of_an_empty_mask_is_finite():
    loss = segmentation_loss(torch.full((2, 1, 4, 4), -200.0), torch.zeros(2, 1, 8, 8))
    assert float(loss) == pytest.approx(1)  # no entropy, no overlap
    everywhere = torch.ones(1, 1, 8, 8)
    assert float(segmentation_loss(torch.full((1, 1, 4, 4), 100.0), everywhere)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("centre", [(84, 84), (24, 30), (140, 146)])
def test_the_target_comes_back_to_the_picture_where_the_mask_was(centre):
    """As the runtime upsamples: an offset of a pixel would cost a disc of this size more than a tenth of its IoU."""
    y, x = np.mgrid[:168, :168]
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 16 ** 2
    target = mask_target(torch.from_numpy(disc.astype(np.float32))[None, None], 48, 48)
    assert iou(upsample_bicubic(target[0, 0].numpy(), 168) > 0.5, disc) > 0.95


@pytest.mark.parametrize(("batch", "pixels", "width"), [(2, 9, 6), (1, 13, 4), (3, 3, 2)])
def test_cpcl(batch, pixels, width):
    features, sentence = numbers((batch, pixels, width), (batch, width), scale=1.5)
    wanted = slow_cpcl(features, sentence)
    assert wanted > 0, "no pair passes the threshold, so that nothing is compared"
    received = contextual_pairwise_consistency(*tensors(features, sentence))
    assert float(received) == pytest.approx(wanted, rel=1e-5)


def test_cpcl_without_pairs_is_zero():
    features = torch.ones(1, 8, 3)
    assert float(contextual_pairwise_consistency(features, torch.ones(1, 3))) == 0


def test_cpcl_has_no_gradient_through_the_pairs():
    features, sentence = tensors(*numbers((2, 9, 6), (2, 6), scale=1.5))
    sentence.requires_grad_()
    features.requires_grad_()
    contextual_pairwise_consistency(features, sentence).backward()
    assert sentence.grad is None and features.grad.abs().sum() > 0 and features.grad.isfinite().all()


@pytest.mark.parametrize("valid", [[True, True, True], [True, False, True], [False, True, False]])
def test_tccl(valid):
    v, positive, negative = numbers((3, 5), (3, 5), (3, 5))
    received = target_centric_contrast(*tensors(v, positive, negative), torch.tensor(valid))
    assert float(received) == pytest.approx(slow_tccl(v, positive, negative, np.array(valid)), rel=1e-5)


def test_tccl_of_no_valid_sample_is_zero():
    v, positive, negative = tensors(*numbers((3, 5), (3, 5), (3, 5)))
    v.requires_grad_()
    loss = target_centric_contrast(v, positive, negative, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not v.grad.any()


def output_of(dtype: torch.dtype, scale: float = 1.0) -> tuple[SimpleNamespace, torch.Tensor, torch.Tensor]:
    """What the losses look at of a network's output, with the states of the further sentences, and a mask."""
    arrays = numbers((2, 1, 6, 6), (2, 9, 8), (2, 9, 8), (2, 9, 8), (2, 9, 8), (2, 8), (2, 2, 8), scale=scale)
    logits, *maps, aggregated, sentence, contrast = tensors(*arrays, dtype=dtype)
    mask = (torch.arange(2 * 12 * 12).reshape(2, 1, 12, 12) % 5 < 2).float()
    neck = SimpleNamespace(scales=tuple(maps), aggregated=aggregated)
    return SimpleNamespace(logits=logits, neck=neck, sentence=sentence), contrast, mask


def test_total_is_the_weighted_sum():
    output, contrast, mask = output_of(torch.float32)
    valid = torch.tensor([True, False])
    losses = talent_losses(output, contrast, {"mask": mask, "valid": valid}, LossWeights(cpcl=0.3, tccl=0.7))
    sentence = output.sentence.double().numpy()
    cpcl = np.mean([slow_cpcl(scale.double().numpy(), sentence) for scale in output.neck.scales])
    tccl = slow_tccl(output.neck.aggregated.double().numpy().mean(1), contrast[:, 0].double().numpy(),
                     contrast[:, 1].double().numpy(), valid.numpy())
    segmentation = slow_segmentation(output.logits.double().numpy(), mask.double().numpy())
    for received, wanted in ((losses.segmentation, segmentation), (losses.cpcl, cpcl), (losses.tccl, tccl),
                             (losses.total, segmentation + 0.3 * cpcl + 0.7 * tccl)):
        assert float(received) == pytest.approx(wanted, rel=1e-5)
    assert LossWeights().resolved() == (0.1, 0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("tlm", ["official", "rectified"])
def test_half_precision_is_finite(dtype, scale, tlm):
    """With features of 60, s s^t is about 1e8: far above float16's 65504."""
    output, contrast, mask = output_of(dtype, scale)
    for tensor in (output.logits, output.sentence, contrast, output.neck.aggregated, *output.neck.scales):
        tensor.requires_grad_()
    batch = {"mask": mask, "others": mask.flip(3), "valid": torch.tensor([True, True])}
    losses = talent_losses(output, contrast, batch, LossWeights(tlm=tlm))
    assert losses.total.dtype == torch.float32
    for name, loss in vars(losses).items():
        assert loss.isfinite(), name
    losses.total.backward()
    assert all(t.grad.isfinite().all() for t in (output.logits, contrast, output.neck.aggregated, *output.neck.scales))


def rectified_inputs(*, seed: int = 0) -> dict[str, np.ndarray]:
    """Three samples on a 3 x 3 grid, 6 channels: soft masks, one sample without a negative, one without others."""
    rng = np.random.default_rng(seed)
    features, sentence, positive, negative = numbers((3, 9, 6), (3, 6), (3, 6), (3, 6), seed=seed)
    coverage = rng.random((3, 9)) * (rng.random((3, 9)) > 0.4)
    others = (rng.random((3, 9)) > 0.5).astype(float)
    others[2] = 0
    return {"features": features, "sentence": sentence, "positive": positive, "negative": negative,
            "valid": np.array([True, False, True]), "coverage": coverage, "others": others}


def as_tensors(given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a if a.dtype == bool else a.astype(np.float32)) for name, a in given.items()}


@pytest.mark.parametrize("seed", range(3))
def test_rectified_cpcl(seed):
    given = rectified_inputs(seed=seed)
    names = ("features", "sentence", "coverage")
    received = text_referred_affinity(*tensors(*(given[name] for name in names)))
    assert float(received) == pytest.approx(slow_rectified_cpcl(*(given[name] for name in names)), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_rectified_tccl(seed):
    given = rectified_inputs(seed=seed)
    assert float(target_instance_contrast(**as_tensors(given))) == pytest.approx(slow_rectified_tccl(**given), rel=1e-4)


def test_confusers_lie_outside_the_target_and_where_the_sentence_points():
    features = torch.eye(4)[None]
    weights = text_referred_confusers(features, torch.tensor([[1.0, 0.9, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0, 0]]))
    assert weights[0, 0] < 1e-4 and weights.sum() == pytest.approx(1)
    assert weights[0, 1] > 0.9, "the first pixel is the target's own; the second is what the words confuse it with"


@pytest.mark.parametrize("times", [2, 16])
def test_rectified_losses_do_not_depend_on_the_number_of_pixels(times):
    one = as_tensors(rectified_inputs())
    many = {name: a.repeat_interleave(times, 1) if name in ("features", "coverage", "others") else a
            for name, a in one.items()}
    names = ("features", "sentence", "coverage")
    assert float(text_referred_affinity(*(many[n] for n in names))) == pytest.approx(
        float(text_referred_affinity(*(one[n] for n in names))), rel=1e-5)
    assert float(target_instance_contrast(**many)) == pytest.approx(float(target_instance_contrast(**one)), rel=1e-5)


def test_rectified_losses_fall_when_the_target_stands_apart():
    one = as_tensors(rectified_inputs())
    one["coverage"] = (one["coverage"] > 0.3).float()
    apart = one | {"features": one["features"] + 5 * one["coverage"].unsqueeze(2) * one["positive"].unsqueeze(1)}
    names = ("features", "sentence", "coverage")
    assert text_referred_affinity(*(apart[n] for n in names)) < 0.9 * text_referred_affinity(*(one[n] for n in names))
    assert target_instance_contrast(**apart) < 0.9 * target_instance_contrast(**one)


def test_sample_without_a_visible_target_counts_as_zero_and_has_no_gradient():
    one = as_tensors(rectified_inputs())
    one["coverage"][1] = 0
    features = one["features"].requires_grad_()
    total = text_referred_affinity(features, one["sentence"], one["coverage"]) + target_instance_contrast(**one)
    total.backward()
    assert total.isfinite() and features.grad.isfinite().all()
    assert not features.grad[1].any() and features.grad[0].any()


@pytest.mark.parametrize("size", [12, 13])
def test_grid_coverage_is_the_mean_of_each_cell(size):
    mask = torch.zeros(1, 1, size, size)
    mask[..., :size // 2] = 1
    coverage = grid_coverage(mask, 16).reshape(4, 4)
    assert coverage[:, 0].eq(1).all() and coverage[:, 3].eq(0).all()
    if size % 4 == 0:
        assert float(coverage.mean()) == pytest.approx(float(mask.mean()))


def test_without_target_aware_learning_only_the_mask_counts():
    output, _, mask = output_of(torch.float32)
    losses = talent_losses(output, None, {"mask": mask}, LossWeights(tlm="none"))
    assert losses.total == losses.segmentation and losses.cpcl == losses.tccl == 0


def test_rectified_total_is_the_weighted_sum():
    output, contrast, mask = output_of(torch.float32)
    batch = {"mask": mask, "others": mask.flip(3), "valid": torch.tensor([True, False])}
    losses = talent_losses(output, contrast, batch, LossWeights(tlm="rectified", cpcl=0.3, tccl=0.7))
    coverage, others = (grid_coverage(batch[name], 9).double().numpy() for name in ("mask", "others"))
    sentence = output.sentence.double().numpy()
    cpcl = np.mean([slow_rectified_cpcl(scale.double().numpy(), sentence, coverage) for scale in output.neck.scales])
    tccl = slow_rectified_tccl(output.neck.aggregated.double().numpy(), sentence, contrast[:, 0].double().numpy(),
                               contrast[:, 1].double().numpy(), batch["valid"].numpy(), coverage, others)
    assert (float(losses.cpcl), float(losses.tccl)) == pytest.approx((cpcl, tccl), rel=1e-4)
    assert float(losses.total) == pytest.approx(float(losses.segmentation) + 0.3 * cpcl + 0.7 * tccl, rel=1e-4)


def test_unknown_kind():
    with pytest.raises(UserError, match="did you mean 'rectified'"):
        LossWeights(tlm="rectifed")


def test_count_of_all_processes_divides_the_contrast():
    v, positive, negative = tensors(*numbers((3, 5), (3, 5), (3, 5)))
    valid = torch.tensor([True, True, False])
    own = target_centric_contrast(v, positive, negative, valid)
    shared = target_centric_contrast(v, positive, negative, valid, torch.tensor(1.5))
    assert float(shared) == pytest.approx(float(own) * 2 / 1.5)


def test_official_golden_numbers():
    """1024 pixels, as base has them. The numbers come from a float64 NumPy version of model.md, written on its own.

    CPCL is the share of rows of M that are not empty, to about 1e-3: what makes it nearly constant.
    """
    rng = np.random.default_rng(2604)
    features, sentence = rng.standard_normal((2, 1024, 64)), rng.standard_normal((2, 64))
    v, positive, negative = (rng.standard_normal((3, 64)) for _ in range(3))
    cpcl = float(contextual_pairwise_consistency(*tensors(features, sentence)))
    assert cpcl == pytest.approx(0.7194822410161199, rel=1e-5)
    assert 1 - 2e-3 < cpcl / 0.72021484375 < 1, "the share of rows with a pixel above the threshold"
    tccl = target_centric_contrast(*tensors(v, positive, negative), torch.tensor([True, False, True]))
    assert float(tccl) == pytest.approx(0.6796713180565719, rel=1e-6)
