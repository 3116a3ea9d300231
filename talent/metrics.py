"""How good masks are: mIoU, oIoU and precision at five overlaps as the field reports them, and NTA: what the wrong
instances of the target's category got. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from talent.errors import UserError

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
COVERED = 0.5  # a mask that holds more than this share of a wrong instance covers it


def _check_masks(prediction: np.ndarray, target: np.ndarray) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"expected masks of one shape, received {prediction.shape} and {target.shape}")
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise ValueError(f"expected bool masks, received {prediction.dtype} and {target.dtype}")


def _overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two bool masks of one shape."""
    _check_masks(prediction, target)
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def _ratio(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1.0 when both are empty."""
    return _ratio(*_overlap(prediction, target))


@dataclass(frozen=True)
class Score:
    """How one expression was answered; small and picklable, so that processes can exchange it.

    intersection, union: pixels of the mask and the target. nta_activation: mean probability over the pixels of all
    other instances; target_activation: the same over the target (0.0 where it is empty); covers_wrong_instance: whether
    the mask holds more than half of any one of them. These three are None where the picture has no other instance, and
    where only a mask was scored. index: (number of the sample, number of the sentence) in the data set, None for a pair
    of masks from elsewhere. name: the sample's.
    """

    intersection: int
    union: int
    nta_activation: float | None = None
    target_activation: float | None = None
    covers_wrong_instance: bool | None = None
    index: tuple[int, int] | None = None
    name: str = ""
    expression: str = ""

    @property
    def iou(self) -> float:
        """Intersection over union; 1.0 when both masks are empty."""
        return _ratio(self.intersection, self.union)


def score(probability: np.ndarray, threshold: float, target: np.ndarray, others: Sequence[np.ndarray] = (), *,
          index: tuple[int, int] | None = None, name: str = "", expression: str = "") -> Score:
    """Score one expression: the answer is `probability > threshold`.

    probability: float32 [H, W]. target: bool [H, W]. others: bool [H, W] each, the other instances of the target's
    category; pixels that also belong to the target are taken from them, and those that vanish do not count.
    Raises ValueError for masks of another shape or type.
    """
    answer = probability > threshold
    intersection, union = _overlap(answer, target)
    wrong = []
    for other in others:
        _check_masks(answer, other)
        rest = other & ~target
        if rest.any():
            wrong.append(rest)
    if not wrong:
        return Score(intersection, union, index=index, name=name, expression=expression)
    return Score(intersection, union, nta_activation=_mean(probability, np.logical_or.reduce(wrong)),
                 target_activation=_mean(probability, target),
                 covers_wrong_instance=any(float(answer[rest].mean()) > COVERED for rest in wrong),
                 index=index, name=name, expression=expression)


def _mean(probability: np.ndarray, mask: np.ndarray) -> float:
    return float(probability[mask].mean(dtype=np.float64)) if mask.any() else 0.0


class SegmentationMetrics:
    """Accumulates expressions; `result()` reports fractions in [0, 1].

    mIoU is the mean over expressions; oIoU is the summed intersection over the summed union, so that large objects
    weigh more; Pr@t is the share of expressions whose IoU is above t (strictly, as the published numbers are counted).

    NTA (non-target activation) counts the expressions whose picture has other instances of the target's category. With
    a and t the mean probabilities of such an expression on those instances and on its target, NTA ratio is sum(a) /
    sum(t): a ratio of means, because a mean of a / t would be decided by the few expressions whose target got nothing.
    NTA rate is the share of them whose mask covers more than half of a wrong instance.
    """

    def __init__(self) -> None:
        self._scores: list[Score] = []

    @classmethod
    def from_scores(cls, scores: Iterable[Score]) -> SegmentationMetrics:
        """One result from the scores of several processes, in the order of their indices.

        Raises ValueError for a score without an index, and for two of one: an expression must not count twice.
        """
        metrics, seen = cls(), set()
        for one in scores:
            if one.index is None or one.index in seen:
                raise ValueError(f"expected scores whose indices differ, received {one.index} "
                                 f"{'' if one.index is None else 'twice '}({one.expression!r})")
            seen.add(one.index)
            metrics.add_score(one)
        metrics._scores.sort(key=lambda one: one.index)
        return metrics

    @property
    def scores(self) -> tuple[Score, ...]:
        """One per expression, in the order in which they were added."""
        return tuple(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, prediction: np.ndarray, target: np.ndarray) -> float:
        """Count one expression by its masks alone (bool, of one shape) and return its IoU."""
        self.add_score(Score(*_overlap(prediction, target)))
        return self._scores[-1].iou

    def add_score(self, score: Score) -> None:
        """Count one expression."""
        self._scores.append(score)

    def result(self) -> dict[str, float]:
        """`{"mIoU", "oIoU", "Pr@0.5", ..., "Pr@0.9", "samples"}`, samples being the number of expressions.

        Where expressions had other instances also `"NTA ratio"`, `"NTA rate"` and their number, `"NTA samples"`; the
        ratio is infinite where no target got any probability, and 0.0 where nothing got any.
        Raises UserError when nothing was added.
        """
        if not self._scores:
            raise UserError("no expressions were evaluated: expected at least one; check the data set and its split")
        ious = np.array([one.iou for one in self._scores])
        precision = {f"Pr@{threshold}": float(np.mean(ious > threshold)) for threshold in PRECISION_AT}
        overall = _ratio(sum(one.intersection for one in self._scores), sum(one.union for one in self._scores))
        return {"mIoU": float(ious.mean()), "oIoU": overall, **precision, **self._nta(), "samples": len(ious)}

    def _nta(self) -> dict[str, float]:
        counted = [one for one in self._scores if one.nta_activation is not None]
        if not counted:
            return {}
        wrong = math.fsum(one.nta_activation for one in counted)
        right = math.fsum(one.target_activation for one in counted)
        ratio = wrong / right if right else math.inf if wrong else 0.0
        rate = sum(one.covers_wrong_instance for one in counted) / len(counted)
        return {"NTA ratio": ratio, "NTA rate": rate, "NTA samples": len(counted)}
