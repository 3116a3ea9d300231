"""The numbers of the field, by hand and against a slow count; what wrong instances got; shares of processes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from talent.errors import UserError
from talent.metrics import Score, SegmentationMetrics, iou, score


def row(*pixels: int) -> np.ndarray:
    return np.array([pixels], bool)


def chances(*pixels: float) -> np.ndarray:
    return np.array([pixels], np.float32)


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
    assert not [name for name in result if name.startswith("NTA")]


def test_score_by_hand():
    # pixels:            target    | both | wrong one         | wrong two
    probability = chances(0.9, 0.7, 0.8, 0.6, 0.2, 0.1, 0.1, 0.5, 0.3)
    target = row(1, 1, 1, 0, 0, 0, 0, 0, 0)
    one, two = row(0, 0, 1, 1, 1, 1, 1, 0, 0), row(0, 0, 0, 0, 0, 0, 0, 1, 1)
    found = score(probability, 0.5, target, [one, two], index=(3, 1), name="a.png", expression="it")
    assert (found.intersection, found.union, found.iou) == (3, 4, 0.75)  # 0.5 is not above the threshold
    assert found.target_activation == pytest.approx(0.8)
    assert found.nta_activation == pytest.approx((0.6 + 0.2 + 0.1 + 0.1 + 0.5 + 0.3) / 6)
    assert found.covers_wrong_instance is False  # 1 of 4 pixels, the shared one left out, and 0 of 2
    assert (found.index, found.name, found.expression) == ((3, 1), "a.png", "it")
    # At 0.4 half of the second is covered: more than half is asked for; at 0.25 it is whole.
    assert score(probability, 0.4, target, [one, two]).covers_wrong_instance is False
    assert score(probability, 0.25, target, [one, two]).covers_wrong_instance is True


def test_a_pixel_of_two_wrong_instances_counts_once():
    found = score(chances(0.5, 0.9, 0.0), 0.5, row(1, 0, 0), [row(0, 1, 0), row(0, 1, 1)])
    assert found.nta_activation == pytest.approx(0.45)


def test_instances_within_the_target_do_not_count():
    probability, target = chances(0.9, 0.8, 0.1), row(1, 1, 0)
    for others in ([], [row(0, 1, 0)], [row(0, 0, 0), row(1, 1, 0)]):
        found = score(probability, 0.5, target, others)
        assert found.nta_activation is found.target_activation is found.covers_wrong_instance is None
    assert score(probability, 0.5, target, [row(0, 1, 0), row(0, 1, 1)]).nta_activation == pytest.approx(0.1)


def test_score_refuses_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="one shape"):
        score(chances(0.5, 0.5), 0.5, row(1, 0), [row(1, 0, 0)])
    with pytest.raises(ValueError, match="bool"):
        score(chances(0.5, 0.5), 0.5, row(1, 0), [row(1, 0).astype(np.uint8)])
    with pytest.raises(ValueError, match="bool"):
        score(chances(0.5, 0.5), 0.5, row(1, 0).astype(np.uint8))


def test_nta_is_a_ratio_of_means():
    metrics = SegmentationMetrics()
    metrics.add_score(score(chances(0.9, 0.1), 0.5, row(1, 0), [row(0, 1)]))  # a 0.1, t 0.9
    metrics.add_score(score(chances(0.1, 0.8), 0.5, row(1, 0), [row(0, 1)]))  # a 0.8, t 0.1: covers the wrong one
    metrics.add_score(score(chances(0.0, 0.3), 0.5, row(1, 0), [row(0, 1)]))  # a / t is infinite
    metrics.add_score(score(chances(0.7, 0.7), 0.5, row(1, 0)))  # nothing to mistake it for: not counted
    result = metrics.result()
    assert result["NTA ratio"] == pytest.approx((0.1 + 0.8 + 0.3) / (0.9 + 0.1 + 0.0), rel=1e-6)
    assert result["NTA rate"] == pytest.approx(1 / 3)
    assert (result["NTA samples"], result["samples"]) == (3, 4)


@pytest.mark.parametrize(("wrong", "ratio"), [(0.5, math.inf), (0.0, 0.0)])
def test_nta_where_no_target_got_anything(wrong, ratio):
    metrics = SegmentationMetrics()
    metrics.add_score(score(chances(0.0, wrong), 0.5, row(1, 0), [row(0, 1)]))
    assert metrics.result()["NTA ratio"] == ratio


def random_case(rng: np.random.Generator):
    """A picture of odd size with 0 to 3 others, which may overlap the target or be empty."""
    height, width = rng.integers(3, 12, 2)
    probability = rng.random((height, width), np.float32)
    target = rng.random((height, width)) < 0.4
    others = [rng.random((height, width)) < rng.choice([0.0, 0.2, 0.6]) for _ in range(rng.integers(4))]
    return probability, target, others


def plain_numbers(cases, threshold: float) -> dict[str, float]:
    """All metrics pixel by pixel, in plain Python."""
    ious, both_all, either_all, wrong_all, right_all, covered, counted = [], 0, 0, 0.0, 0.0, 0, 0
    for probability, target, others in cases:
        pixels = [(y, x) for y in range(target.shape[0]) for x in range(target.shape[1])]
        both = sum(1 for p in pixels if probability[p] > threshold and target[p])
        either = sum(1 for p in pixels if probability[p] > threshold or target[p])
        ious.append(both / either if either else 1.0)
        both_all, either_all = both_all + both, either_all + either
        instances = [[p for p in pixels if other[p] and not target[p]] for other in others]
        instances = [instance for instance in instances if instance]
        if instances:
            counted += 1
            union = set().union(*instances)
            wrong_all += sum(float(probability[p]) for p in union) / len(union)
            meant = [float(probability[p]) for p in pixels if target[p]]
            right_all += sum(meant) / len(meant) if meant else 0.0
            covered += any(sum(1 for p in instance if probability[p] > threshold) > len(instance) / 2
                           for instance in instances)
    precision = {f"Pr@{t}": sum(value > t for value in ious) / len(ious) for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    return {"mIoU": sum(ious) / len(ious), "oIoU": both_all / either_all, **precision,
            "NTA ratio": wrong_all / right_all, "NTA rate": covered / counted, "NTA samples": counted,
            "samples": len(ious)}


def test_random_pictures_against_a_plain_count():
    rng = np.random.default_rng(3)
    cases = [random_case(rng) for _ in range(60)]
    metrics = SegmentationMetrics()
    for probability, target, others in cases:
        metrics.add_score(score(probability, 0.45, target, others))
    expected = plain_numbers(cases, 0.45)
    assert 20 < expected["NTA samples"] < 60 and 0 < expected["NTA rate"] < 1
    assert metrics.result() == pytest.approx(expected)
    pairs = SegmentationMetrics()
    for probability, target, _ in cases:
        pairs.add(probability > 0.45, target)
    assert pairs.result() == pytest.approx({k: v for k, v in expected.items() if not k.startswith("NTA")})


def test_shares_of_processes_give_the_result_of_the_whole():
    rng = np.random.default_rng(5)
    whole = SegmentationMetrics()
    for number in range(20):
        probability, target, others = random_case(rng)
        whole.add_score(score(probability, 0.5, target, others, index=(number // 2, number % 2),
                              expression=f"sentence {number}"))
    shares = [pickle.loads(pickle.dumps(whole.scores[first::3])) for first in (2, 0, 1)]
    merged = SegmentationMetrics.from_scores(one for share in shares for one in share)
    assert merged.scores == whole.scores and merged.result() == whole.result()


def test_an_expression_counts_once():
    one = Score(1, 2, index=(4, 0), expression="it")
    with pytest.raises(ValueError, match=r"\(4, 0\) twice \('it'\)"):
        SegmentationMetrics.from_scores([one, Score(1, 2, index=(4, 1)), one])
    with pytest.raises(ValueError, match="received None"):
        SegmentationMetrics.from_scores([Score(1, 2)])


def test_nothing_evaluated():
    with pytest.raises(UserError, match="no expressions"):
        SegmentationMetrics().result()
