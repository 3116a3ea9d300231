"""The training losses: segmentation, and the two losses of target-aware learning (TLM).

B batch, N image tokens, C neck width. Source: model.md of the design ("Training"), read off the official code.
Everything is computed in float32, whatever the network ran in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from talent.model.talent import TalentOutput

PAIR_THRESHOLD = 0.7


@dataclass(frozen=True)
class LossWeights:
    """Weights of the target-aware losses beside the segmentation loss (1): the published effective values."""

    cpcl: float = 0.1
    tccl: float = 0.01


def mask_target(mask: Tensor, height: int, width: int) -> Tensor:
    """What the logits should say of mask [B, 1, S, S] in 0..1: [B, 1, height, width].

    Sampled where the logits come to lie when they are brought back to the picture (the first on the first pixel, the
    last on the last: align_corners), after a 3x3 average, since a logit stands for 3.5 pixels a side. Cells averaged
    side by side would be off by up to 1.25 pixels at the border.
    """
    smooth = F.avg_pool2d(mask.float(), 3, stride=1, padding=1, count_include_pad=False)
    return F.interpolate(smooth, (height, width), mode="bilinear", align_corners=True)


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy + (1 - soft IoU) against `mask_target`. logits [B, 1, h, w]; mask [B, 1, S, S] in 0..1."""
    logits = logits.float()
    target = mask_target(mask, *logits.shape[2:])
    probability = logits.sigmoid()
    intersection = (probability * target).sum((1, 2, 3))
    union = (probability + target - probability * target).sum((1, 2, 3))
    soft_iou = (intersection / union.clamp_min(1e-6)).mean()
    return F.binary_cross_entropy_with_logits(logits, target) + 1 - soft_iou


def contextual_pairwise_consistency(features: Tensor, sentence: Tensor) -> Tensor:
    """CPCL of one neck scale: mean row norm of `A * M - M`.

    features f [B, N, C], sentence [B, C]. `A = softmax(cos(f, f))` over pixels; with `s = f . sentence`,
    `M = [softmax(s s^t) > 0.7]` without gradient. Almost constant as the official code writes it (model.md).
    """
    f = features.float()
    normal = F.normalize(f, dim=2)
    affinity = (normal @ normal.transpose(1, 2)).softmax(2)  # [B, N, N]
    with torch.no_grad():
        score = f @ sentence.float().unsqueeze(2)  # [B, N, 1]
        pairs = ((score @ score.transpose(1, 2)).softmax(2) > PAIR_THRESHOLD).float()
    return (affinity * pairs - pairs).norm(dim=2).mean()


def target_centric_contrast(target: Tensor, positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """TCCL: `-log softmax([cos(v, pos), cos(v, neg)])[0]`, mean over the samples that have a negative.

    target v, positive, negative [B, C]; valid bool [B]. Zero where no sample is valid.
    """
    v = target.float()
    pair = torch.stack([F.cosine_similarity(v, positive.float()), F.cosine_similarity(v, negative.float())], 1)
    loss = -pair.log_softmax(1)[:, 0]
    return (loss * valid).sum() / valid.sum().clamp_min(1)


@dataclass(frozen=True)
class Losses:
    """Scalars: segmentation, cpcl (sum over the three scales), tccl, and their weighted sum."""

    segmentation: Tensor
    cpcl: Tensor
    tccl: Tensor
    total: Tensor


def talent_losses(output: TalentOutput, contrast: Tensor, mask: Tensor, valid: Tensor, weights: LossWeights) -> Losses:
    """All losses of a batch. contrast [B, 2, C]: the positive and the negative sentence, as wide as the neck."""
    segmentation = segmentation_loss(output.logits, mask)
    cpcl = sum(contextual_pairwise_consistency(scale, output.sentence) for scale in output.neck.scales)
    tccl = target_centric_contrast(output.neck.aggregated.mean(1), contrast[:, 0], contrast[:, 1], valid)
    return Losses(segmentation, cpcl, tccl, segmentation + weights.cpcl * cpcl + weights.tccl * tccl)
