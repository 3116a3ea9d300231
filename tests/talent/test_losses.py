"""Each loss against a slow NumPy version written from its definition, one number at a time, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from talent.image import upsample_bicubic
from talent.losses import (
    LossWeights,
    contextual_pairwise_consistency,
    mask_target,
    segmentation_loss,
    talent_losses,
    target_centric_contrast,
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
    cpcl = sum(slow_cpcl(scale.double().numpy(), sentence) for scale in output.neck.scales)
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
