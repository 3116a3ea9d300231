"""How good masks are: mIoU, oIoU and precision at five overlaps, as the field reports them."""

from __future__ import annotations

import numpy as np

from talent.errors import UserError

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


def _overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two bool masks of one shape."""
    if prediction.shape != target.shape:
        raise ValueError(f"expected masks of one shape, received {prediction.shape} and {target.shape}")
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise ValueError(f"expected bool masks, received {prediction.dtype} and {target.dtype}")
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))


def _ratio(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1.0 when both are empty."""
    return _ratio(*_overlap(prediction, target))


class SegmentationMetrics:
    """Accumulates (prediction, target) pairs, one per expression; `result()` reports fractions in [0, 1].

    mIoU is the mean over expressions; oIoU is the summed intersection over the summed union, so that large objects
    weigh more; Pr@t is the share of expressions whose IoU is above t (strictly, as the published numbers are counted).
    """

    def __init__(self) -> None:
        self._ious: list[float] = []
        self._intersection = 0
        self._union = 0

    def __len__(self) -> int:
        return len(self._ious)

    def add(self, prediction: np.ndarray, target: np.ndarray) -> float:
        """Count one expression (bool masks of one shape) and return its IoU."""
        intersection, union = _overlap(prediction, target)
        self._intersection += intersection
        self._union += union
        self._ious.append(_ratio(intersection, union))
        return self._ious[-1]

    def result(self) -> dict[str, float]:
        """`{"mIoU", "oIoU", "Pr@0.5", ..., "Pr@0.9", "samples"}`. Raises UserError when nothing was added."""
        if not self._ious:
            raise UserError("no expressions were evaluated: expected at least one; check the data set and its split")
        ious = np.asarray(self._ious)
        precision = {f"Pr@{threshold}": float(np.mean(ious > threshold)) for threshold in PRECISION_AT}
        return {"mIoU": float(ious.mean()), "oIoU": _ratio(self._intersection, self._union), **precision,
                "samples": len(ious)}
