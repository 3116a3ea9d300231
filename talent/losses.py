"""The training losses: segmentation, and target-aware learning (TLM) as published or rectified.

B batch, N image tokens (a square grid), C neck width, S image size. Source: model.md of the design ("Training"), read
off the official code; the rectified losses are this project's, after the paper's words (docs/tlm.md). Everything is
computed in float32, whatever the network ran in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from talent.errors import UserError, suggest
from talent.model.talent import TalentOutput

PAIR_THRESHOLD = 0.7
TEMPERATURE = 0.1  # of the rectified losses: cosines of -1..1 become logits of -10..10
WEIGHTS = {"official": (0.1, 0.01), "rectified": (1.2, 0.2), "none": (0.0, 0.0)}  # CPCL, TCCL


@dataclass(frozen=True)
class LossWeights:
    """Target-aware learning beside the segmentation loss (whose weight is 1).

    Args:
        tlm: official (as published), rectified or none
        cpcl: weight of contextual pairwise consistency; default 0.1 for official, 1.2 for rectified
        tccl: weight of the target-centric contrast; default 0.01 for official, 0.2 for rectified
    """

    tlm: str = "official"
    cpcl: float | None = None
    tccl: float | None = None

    def __post_init__(self) -> None:
        if self.tlm not in WEIGHTS:
            raise UserError(f"losses.tlm: expected one of {', '.join(WEIGHTS)}, received {self.tlm!r}"
                            f"{suggest(self.tlm, WEIGHTS)}")

    def resolved(self) -> tuple[float, float]:
        """The weights of CPCL and TCCL."""
        cpcl, tccl = WEIGHTS[self.tlm]
        return cpcl if self.cpcl is None else self.cpcl, tccl if self.tccl is None else self.tccl


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


def target_centric_contrast(target: Tensor, positive: Tensor, negative: Tensor, valid: Tensor,
                            count: Tensor | None = None) -> Tensor:
    """TCCL: `-log softmax([cos(v, pos), cos(v, neg)])[0]`, mean over the samples that have a negative.

    target v, positive, negative [B, C]; valid bool [B]. count: what the sum is divided by, the samples that are valid
    unless given (several processes share one mean). Zero where no sample is valid.
    """
    v = target.float()
    pair = torch.stack([F.cosine_similarity(v, positive.float()), F.cosine_similarity(v, negative.float())], 1)
    loss = -pair.log_softmax(1)[:, 0]
    count = valid.sum() if count is None else count
    return (loss * valid).sum() / count.clamp_min(1e-6)  # a mean over processes may lie below 1


def grid_coverage(mask: Tensor, tokens: int) -> Tensor:
    """How much of each image token's cell mask [B, 1, S, S] (in 0..1) covers: [B, N]."""
    return F.adaptive_avg_pool2d(mask.float(), round(tokens ** 0.5)).flatten(1)


def _pooled(features: Tensor, weight: Tensor) -> Tensor:
    """Mean of features [B, N, C] under weight [B, N]: [B, C]; zero where there is no weight."""
    return (weight.unsqueeze(1) @ features).squeeze(1) / weight.sum(1, keepdim=True).clamp_min(1e-6)


def text_referred_confusers(features: Tensor, sentence: Tensor, coverage: Tensor) -> Tensor:
    """Where outside the target the sentence seems to point: weights [B, N] that sum to 1, without gradient.

    features f [B, N, C] and sentence s [B, C], any length; coverage [B, N] of the target. The weights are
    `softmax(cos(f, s) / TEMPERATURE)` over what the target does not cover.
    """
    with torch.no_grad():
        reference = (F.normalize(features, dim=2) @ F.normalize(sentence, dim=1).unsqueeze(2)).squeeze(2)  # [B, N]
        return (reference / TEMPERATURE + torch.log((1 - coverage).clamp_min(1e-6))).softmax(1)


def text_referred_affinity(features: Tensor, sentence: Tensor, coverage: Tensor) -> Tensor:
    """Rectified CPCL of one neck scale: every pixel belongs with the target or with what the words confuse it with.

    features f [B, N, C], sentence [B, C], coverage [B, N] of the target's mask. With the prototypes P (mean of the
    target's f) and Q (mean of f under `text_referred_confusers`) the affinity of pixel i is the logit
    `a_i = (cos(f_i, P) - cos(f_i, Q)) / TEMPERATURE`; the loss is the balanced cross-entropy of a against target and
    confusers. There is no threshold and no sum over N that is not a mean. Samples without a visible target count as 0.
    """
    f, s = features.float(), sentence.float()
    confusers = text_referred_confusers(f, s, coverage)
    normal = F.normalize(f, dim=2)
    prototypes = torch.stack([_pooled(normal, coverage), _pooled(normal, confusers)], 2)  # [B, C, 2]
    cosines = normal @ F.normalize(prototypes, dim=1)  # [B, N, 2]
    logit = (cosines[:, :, 0] - cosines[:, :, 1]) / TEMPERATURE
    inside = (F.softplus(-logit) * coverage).sum(1) / coverage.sum(1).clamp_min(1e-6)
    outside = (F.softplus(logit) * confusers).sum(1)
    return (0.5 * (inside + outside) * _visible(coverage)).mean()


def target_instance_contrast(features: Tensor, sentence: Tensor, positive: Tensor, negative: Tensor, valid: Tensor,
                             coverage: Tensor, others: Tensor) -> Tensor:
    """Rectified TCCL: the target, not the whole picture, against unrelated sentences and unrelated instances.

    features f [B, N, C]; sentence, positive, negative [B, C]; valid bool [B]; coverage and others [B, N]: the masks of
    the target and of the other instances of its category (zero where unknown). With v, q, o the means of f over
    target, confusers and other instances: `-log softmax([cos(v, pos), cos(v, neg), cos(q, pos), cos(o, pos)] / T)[0]`,
    the terms that a sample lacks left out. Mean over the batch; samples without a visible target count as 0.
    """
    f = features.float()
    positive, negative = positive.float(), negative.float()
    v, o = _pooled(f, coverage), _pooled(f, others * (1 - coverage))
    q = _pooled(f, text_referred_confusers(f, sentence.float(), coverage))
    cosines = torch.stack([F.cosine_similarity(v, positive), F.cosine_similarity(v, negative),
                           F.cosine_similarity(q, positive), F.cosine_similarity(o, positive)], 1)  # [B, 4]
    there = torch.ones_like(cosines, dtype=torch.bool)
    there[:, 1], there[:, 3] = valid, _visible(others) > 0
    logits = (cosines / TEMPERATURE).masked_fill(~there, -torch.inf)
    return (-logits.log_softmax(1)[:, 0] * _visible(coverage)).mean()


def _visible(coverage: Tensor) -> Tensor:
    """1 for the samples whose mask covers something on the grid, else 0: float32 [B]."""
    return (coverage.sum(1) > 1e-3).float()


@dataclass(frozen=True)
class Losses:
    """Scalars: segmentation, cpcl (mean over the three scales), tccl, and their weighted sum."""

    segmentation: Tensor
    cpcl: Tensor
    tccl: Tensor
    total: Tensor


def talent_losses(output: TalentOutput, contrast: Tensor | None, batch: dict[str, Tensor], weights: LossWeights,
                  count: Tensor | None = None) -> Losses:
    """All losses of a batch.

    contrast [B, 2, C]: the positive and the negative sentence, as wide as the neck; None without target-aware learning.
    batch: "mask" and "others" [B, 1, S, S] in 0..1, "valid" bool [B] (batches.py). count: see target_centric_contrast.
    """
    with torch.autocast(output.logits.device.type, enabled=False):
        segmentation = segmentation_loss(output.logits, batch["mask"])
        if weights.tlm == "none":
            nothing = torch.zeros_like(segmentation)
            return Losses(segmentation, nothing, nothing, segmentation)
        scales, aggregated, sentence = output.neck.scales, output.neck.aggregated, output.sentence
        if weights.tlm == "official":
            cpcl = sum(contextual_pairwise_consistency(scale, sentence) for scale in scales) / len(scales)
            tccl = target_centric_contrast(aggregated.float().mean(1), contrast[:, 0], contrast[:, 1],
                                           batch["valid"], count)
        else:
            coverage, others = (grid_coverage(batch[name], aggregated.shape[1]) for name in ("mask", "others"))
            cpcl = sum(text_referred_affinity(scale, sentence, coverage) for scale in scales) / len(scales)
            tccl = target_instance_contrast(aggregated, sentence, contrast[:, 0], contrast[:, 1], batch["valid"],
                                            coverage, others)
        cpcl_weight, tccl_weight = weights.resolved()
        return Losses(segmentation, cpcl, tccl, segmentation + cpcl_weight * cpcl + tccl_weight * tccl)
