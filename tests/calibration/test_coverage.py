"""Coverage: chosen pictures leave none far away, on any number of threads, and sentences come in all lengths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibration.coverage import FEATURES, Space, covering, distances, features, gaps, spread_lengths
from talent.data.shapes import ShapesDataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """400 pictures of shapes."""
    samples = ShapesDataset(split="train", size=112, length=400)
    measured = np.array([features(samples[index].image) for index in range(len(samples))])
    return Space.of(measured).points(measured)


def random_choice(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).choice(len(points), count, replace=False)


def test_features_tell_pictures_apart_and_hardly_see_their_size() -> None:
    one, other = (ShapesDataset(split="train", size=112, length=2)[index].image for index in range(2))
    larger = ShapesDataset(split="train", size=448, length=2)[0].image
    measured = [features(image) for image in (one, larger, other, 255 - one, one[:, :40])]
    assert {(each.dtype, each.shape) for each in measured} == {(np.dtype(np.float32), (FEATURES,))}
    assert all(-0.1 <= each.min() and each.max() <= 1.1 for each in measured)
    same, *different = (np.abs(measured[0] - each).sum() for each in measured[1:])
    assert all(each > 1.5 * same for each in different)


def test_points_are_whole_numbers_of_bounded_size(points) -> None:
    assert points.shape == (400, FEATURES) and points.dtype == np.float64
    np.testing.assert_array_equal(points, np.rint(points))
    space = Space(mean=(0.0,) * FEATURES, spread=(0.02,) * FEATURES)
    assert np.abs(space.points(np.full((1, FEATURES), 1e9))).max() == 8 * 4096


def test_a_feature_that_hardly_differs_is_not_blown_up() -> None:
    measured = np.full((10, FEATURES), 0.5, np.float32)
    measured[0] += 1e-6
    assert np.abs(Space.of(measured).points(measured)).max() <= 1


def test_distances_are_those_to_the_nearest(points) -> None:
    few, chosen = points[:30], points[30:40]
    expected = np.linalg.norm(few[:, None] - chosen, axis=2) / 4096  # [30, 10]
    np.testing.assert_allclose(distances(few, chosen), expected.min(1), rtol=1e-12)
    between = np.linalg.norm(few[:, None] - few, axis=2) / 4096 + np.diag(np.full(30, np.inf))
    np.testing.assert_allclose(gaps(few), between.min(1), rtol=1e-12)


def test_covering_beats_random_choice_on_shapes(points) -> None:
    """Over five seeds: the mean distance in each, the largest on average."""
    ours, random = ([distances(points, points[choice(seed)]) for seed in range(5)] for choice in (
        lambda seed: covering(points, 48, seed=seed), lambda seed: random_choice(points, 48, seed)))
    for one, other in zip(ours, random, strict=True):
        assert one.mean() < 0.985 * other.mean()
    assert np.mean([each.max() for each in ours]) < 0.95 * np.mean([each.max() for each in random])


def test_rare_pictures_are_not_missed_where_most_are_alike() -> None:
    """As in a robot's recording: 950 frames of one place, ten of each of five others."""
    rng = np.random.default_rng(0)
    places = rng.normal(0, 4000, (6, 20))
    owner = np.repeat(np.arange(6), (950, 10, 10, 10, 10, 10))
    frames = np.rint(places[owner] + rng.normal(0, 50, (1000, 20)))
    for seed in range(5):
        assert set(owner[covering(frames, 12, seed=seed)]) == set(range(6))
    missed = [len(set(owner[random_choice(frames, 12, seed)])) < 6 for seed in range(5)]
    assert all(missed)


def test_all_chosen_are_different_even_where_pictures_are_copies() -> None:
    copies = np.rint(np.random.default_rng(0).normal(0, 1000, (4, 8)))[np.arange(20) % 4]
    for count in (1, 3, 4, 7, 20):
        chosen = covering(copies, count, seed=0)
        assert len(set(chosen)) == count and chosen == sorted(chosen)
        assert len({tuple(copies[row]) for row in chosen}) == min(count, 4)
    for count in (0, 21):
        with pytest.raises(ValueError, match=f"expected 1 to 20 pictures to choose.*received {count}"):
            covering(copies, count, seed=0)


def test_a_seed_gives_the_same_on_any_number_of_threads(points, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", points)
    code = ("import sys, cv2, numpy as np; from calibration.coverage import *; cv2.setNumThreads(int(sys.argv[2]));"
            "image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8);"
            "print(covering(np.load(sys.argv[1]), 60, seed=3), features(image).tobytes().hex())")
    printed = {subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "points.npy"), threads], cwd=ROOT, check=True, capture_output=True,
        text=True, env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}).stdout
        for threads in ("1", "2")}
    assert len(printed) == 1 and printed.pop().startswith(str(covering(points, 60, seed=3)))
    assert covering(points, 60, seed=3) != covering(points, 60, seed=4)


def test_lengths_run_evenly_from_the_shortest_to_the_longest() -> None:
    among = np.bincount([3] * 10 + [4] * 60 + [5] * 20 + [9] * 10)
    everything = np.tile(among, (3, 1))
    given = spread_lengths(everything, np.array([4, 4, 3]), among)
    assert sorted(length for _, length in given) == [3] * 2 + [4] * 6 + [5] * 2 + [9]  # of ranks 0, 9, 19, ... 99
    assert np.bincount([picture for picture, _ in given]).tolist() == [4, 4, 3]
    assert spread_lengths(everything[:1], np.array([1]), among) == [(0, 4)]


def test_a_picture_with_a_choice_leaves_the_common_length_to_one_without() -> None:
    """Every length is had by two pictures; if the first gave 4, only one would be left for 9 and 12."""
    available = np.array([np.bincount(lengths, minlength=13) for lengths in ([4, 9, 12], [4], [9, 12])])
    given = spread_lengths(available, np.array([1, 1, 1]), available.sum(0))
    assert sorted(length for _, length in given) == [4, 9, 12] and (1, 4) in given


def test_no_sentence_is_given_twice() -> None:
    available = np.array([np.bincount(lengths, minlength=10) for lengths in ([3, 3, 8], [5])])
    given = spread_lengths(available, np.array([3, 1]), available.sum(0))
    assert sorted(given) == [(0, 3), (0, 3), (0, 8), (1, 5)]
