"""The numbers of the field, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from talent.errors import UserError
from talent.metrics import SegmentationMetrics, iou


def row(*pixels: int) -> np.ndarray:
    return np.array([pixels], bool)


def test_iou():
    assert iou(row(1, 1, 0, 0), row(0, 1, 1, 0)) == pytest.approx(1 / 3)
    assert iou(row(1, 0), row(0, 1)) == 0.0
    assert iou(row(0, 0), row(0, 0)) == 1.0
    assert iou(row(1, 0), row(0, 0)) == 0.0


def test_iou_refuses_what_is_no_pair_of_masks():
    with pytest.raises(ValueError, match="one shape"):
        iou(row(1, 0), row(1, 0, 0))
    with pytest.raises(ValueError, match="bool"):
        iou(row(1, 0).astype(np.float32), row(1, 0))


def test_metrics_by_hand():
    metrics = SegmentationMetrics()
    assert metrics.add(row(1, 1, 1, 1), row(1, 1, 1, 1)) == 1.0  # I 4, U 4
    metrics.add(row(1, 1, 0, 0), row(1, 0, 0, 0))  # I 1, U 2: exactly 0.5, which is not above 0.5
    metrics.add(row(1, 1, 1, 0), row(1, 1, 1, 1))  # I 3, U 4: 0.75
    metrics.add(row(0, 0, 0, 0), row(0, 0, 1, 0))  # I 0, U 1
    result = metrics.result()
    assert len(metrics) == result["samples"] == 4
    assert result["mIoU"] == pytest.approx((1 + 0.5 + 0.75 + 0) / 4)
    assert result["oIoU"] == pytest.approx(8 / 11)
    assert [result[f"Pr@0.{digit}"] for digit in (5, 6, 7, 8, 9)] == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_random_masks_against_a_plain_count():
    chance = np.random.default_rng(3)
    pairs = [chance.random((2, 7, 11)) < chance.random() for _ in range(50)]
    metrics = SegmentationMetrics()
    for prediction, target in pairs:
        metrics.add(prediction, target)
    both = [sum(p and t for p, t in zip(a.flat, b.flat, strict=True)) for a, b in pairs]
    either = [sum(p or t for p, t in zip(a.flat, b.flat, strict=True)) for a, b in pairs]
    assert metrics.result()["oIoU"] == pytest.approx(sum(both) / sum(either))
    ious = [b / e if e else 1 for b, e in zip(both, either, strict=True)]
    assert metrics.result()["mIoU"] == pytest.approx(np.mean(ious))


def test_nothing_evaluated():
    with pytest.raises(UserError, match="no expressions"):
        SegmentationMetrics().result()
