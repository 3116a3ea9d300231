"""benchmarks/intervals.py: intervals cover the median as often as they say, and verdicts follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import intervals
from benchmarks.intervals import FASTER, NOISE, SLOWER, UNKNOWN, compare, interval, summary


def rounds(generator, *, count=5, runs=10, median=10.0, between=0.5, within=0.5):
    """Times whose rounds differ, too: a machine that drifts."""
    drift = generator.normal(0, between, (count, 1))
    return (median + drift + generator.normal(0, within, (count, runs))).tolist()


def test_percentiles_are_those_of_all_runs():
    times = summary([[3.0, 1.0], [2.0], [10.0, 4.0]])
    assert (times["p50_ms"], times["mean_ms"]) == (3.0, 4.0)
    assert times["p90_ms"] == pytest.approx(np.percentile([3, 1, 2, 10, 4], 90))
    assert times["samples_ms"] == [[3.0, 1.0], [2.0], [10.0, 4.0]]
    assert times["ci_low_ms"] <= times["p50_ms"] <= times["ci_high_ms"]


def test_no_runs_and_one_round():
    with pytest.raises(ValueError, match="at least one run"):
        summary([[]])
    assert interval([[1.0, 2.0, 3.0]]) == (None, None)
    assert summary([[1.0, 2.0]])["ci_low_ms"] is None


@pytest.mark.parametrize(("count", "share"), [(4, 0.84), (6, 0.92), (12, 0.92)])
def test_the_interval_covers_the_median_as_often_as_it_says(monkeypatch, count, share):
    """Of rounds that drift, where an interval over single runs would be far too narrow."""
    monkeypatch.setattr(intervals, "DRAWS", 400)
    generator = np.random.default_rng(0)
    found = [interval(rounds(generator, count=count)) for _ in range(300)]
    covered = np.mean([low <= 10 <= high for low, high in found])
    singles = [interval([[value] for value in np.ravel(rounds(generator, count=count))]) for _ in range(20)]
    assert covered >= share
    assert np.mean([high - low for low, high in found]) > 1.5 * np.mean([high - low for low, high in singles])


@pytest.mark.parametrize("count", [4, 8])
def test_two_runs_of_the_same_seldom_differ(monkeypatch, count):
    monkeypatch.setattr(intervals, "DRAWS", 400)
    generator = np.random.default_rng(5)
    verdicts = [compare(rounds(generator, count=count), rounds(generator, count=count), least=0).verdict
                for _ in range(300)]
    assert verdicts.count(NOISE) / len(verdicts) >= 0.93


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045)])
def test_students_t(degrees, expected):
    assert intervals._student(degrees) == pytest.approx(expected, abs=6e-3)


def test_uneven_rounds_give_the_same_as_even_ones():
    generator = np.random.default_rng(1)
    even = rounds(generator, count=6, runs=4)
    uneven = [list(samples) for samples in even]
    uneven[0] = uneven[0] + [uneven[0][0]]
    assert interval(uneven) == pytest.approx(interval(even), rel=0.03)


@pytest.mark.parametrize(("factor", "verdict"), [(0.7, FASTER), (1.4, SLOWER), (1.0, NOISE)])
def test_verdicts(factor, verdict):
    generator = np.random.default_rng(2)
    before, after = rounds(generator), [[factor * time for time in samples] for samples in rounds(generator)]
    found = compare(before, after)
    assert found.verdict == verdict and found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(factor, rel=0.1)
    opposite = compare(after, before)
    assert opposite.verdict == {FASTER: SLOWER, SLOWER: FASTER, NOISE: NOISE}[verdict]
    assert opposite.ratio == pytest.approx(1 / found.ratio)


def test_a_change_within_the_noise_of_drifting_rounds_is_none():
    """Runs of a round are near one another, rounds are not: 8 % more is no news."""
    generator = np.random.default_rng(3)
    before = rounds(generator, between=1.5, within=0.01)
    after = rounds(generator, between=1.5, within=0.01, median=10.8)
    assert compare(before, after).verdict == NOISE


def test_a_difference_that_is_sure_but_small_does_not_count():
    before = [[10.0, 10.001, 10.002]] * 5
    after = [[10.1, 10.101, 10.102]] * 5
    found = compare(before, after)
    assert found.low > 1 and found.verdict == compare(after, before).verdict == NOISE
    assert compare(before, after, least=0.005).verdict == SLOWER
    assert compare(after, before, least=0.005).verdict == FASTER


@pytest.mark.parametrize("before", [1, 3])
def test_few_rounds_give_no_verdict(before):
    found = compare([[1.0, 1.0]] * before, [[5.0]] * 9)
    assert (found.verdict, found.low, found.ratio) == (UNKNOWN, None, 5.0)


def test_rows_of_one_run_are_compared_round_by_round():
    """Half of the rounds are slow for both: their ratio is as sure as ever."""
    generator = np.random.default_rng(6)
    slow = np.where(np.arange(10) < 5, 1.0, 1.5)[:, None]
    before, after = ((median * slow * generator.normal(1, 0.01, (10, 4))).tolist() for median in (10, 8))
    paired, apart = compare(before, after, paired=True), compare(before, after)
    assert 0.78 < paired.low < 0.8 < paired.high < 0.82 and paired.ratio == apart.ratio
    assert apart.high - apart.low > 10 * (paired.high - paired.low)
    with pytest.raises(ValueError, match="received 10 and 9"):
        compare(before, after[1:], paired=True)


def test_the_same_rounds_give_the_same_interval():
    made = rounds(np.random.default_rng(4))
    assert interval(made) == interval(made) and all(map(math.isfinite, interval(made)))
