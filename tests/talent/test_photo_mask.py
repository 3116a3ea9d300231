"""Logits to the mask on the photo: against a straightforward version, PyTorch in float64, and every pixel computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from benchmarks.processing import straightforward_postprocess
from talent import photo_mask
from talent.errors import UserError
from talent.image import Letterbox, binarise, bounding_box, mask_on_photo, probability_on_photo
from talent.photo_mask import bands, tiles

PHOTOS = [(1, 1), (1, 500), (500, 1), (2, 3), (37, 53), (128, 256), (129, 257), (480, 641), (720, 1280), (1280, 720),
          (3000, 4000)]  # H, W
INPUTS = [(448, 128), (56, 16), (518, 148)]  # S, cells of the grid
THRESHOLDS = (0.0, 0.35, 0.999)


def opencv_is_exact() -> bool:
    """Whether cv2.warpAffine takes samples where they belong; OpenCV 4 rounds their places to 1/32 pixel."""
    ramp = np.tile(np.arange(16, dtype=np.float32), (16, 1))
    moved = cv2.warpAffine(ramp, np.array([[1, 0, 0.01], [0, 1, 0]]), (16, 16),
                           flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return abs(moved[8, 8] - 8.01) < 1e-3


# Share of pixels that may differ. What OpenCV 4 rounds moves probabilities by up to 0.02; the comparison with
# PyTorch below needs no OpenCV.
DIFFERENT = 1e-3 if opencv_is_exact() else 1e-2


def smooth(cells: int, seed: int, *, mean: float = 0.0) -> np.ndarray:
    """Logits with some soft blobs, float32 [h, w]."""
    noise = np.random.default_rng(seed).normal(0, 1, (cells, cells)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), cells / 16)
    return mean + 5 * (soft / soft.std())


def sharp(cells: int, seed: int) -> np.ndarray:
    """Logits that differ from cell to cell, so that interpolation overshoots everywhere, float32 [h, w]."""
    return np.random.default_rng(seed).normal(-1, 4, (cells, cells)).astype(np.float32)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("height, width", PHOTOS)
def test_masks_are_those_of_the_straightforward_version(height, width, threshold):
    small = height * width < 1e5
    for seed, (size, cells) in enumerate(4 * INPUTS if small else INPUTS[:1]):
        logits, box = smooth(cells, seed), Letterbox(height=height, width=width, size=size)
        expected, bounds, score = straightforward_postprocess(logits, box, threshold)
        mask, received_bounds, received_score = mask_on_photo(logits, box, threshold)
        assert mask.shape == (height, width) and mask.dtype == np.bool_
        assert np.count_nonzero(mask != expected) <= max(1, DIFFERENT * mask.size)
        assert (received_bounds is None) == (bounds is None) == (not mask.any())
        if bounds is not None:
            np.testing.assert_allclose(received_bounds, bounds, atol=1)
        assert received_score == pytest.approx(score, abs=DIFFERENT)


@pytest.mark.parametrize("mean, share", [(-40.0, 0.0), (40.0, 1.0)])
@pytest.mark.parametrize("height, width", [(37, 53), (480, 641)])
def test_all_or_nothing(height, width, mean, share):
    box = Letterbox(height=height, width=width, size=448)
    mask, bounds, score = mask_on_photo(smooth(128, 0, mean=mean), box, 0.35)
    assert np.array_equal(mask, straightforward_postprocess(smooth(128, 0, mean=mean), box, 0.35)[0])
    # The photo's last pixel lies within a pixel of the canvas's edge, whose surroundings count as 0.
    assert mask[:-2, :-2].mean() == share
    assert (bounds is None, score) == (True, 0.0) if share == 0 else bounds[:2] == (0, 0) and score > 0.98


@pytest.mark.parametrize("height, width", [(480, 641), (641, 480), (37, 53), (1, 9)])
@pytest.mark.parametrize("size, cells", [(448, 128), (56, 16)])
def test_probabilities_are_pytorchs_in_float64(height, width, size, cells):
    torch = pytest.importorskip("torch")
    logits, box = sharp(cells, 3), Letterbox(height=height, width=width, size=size)
    grid = torch.sigmoid(torch.from_numpy(logits).double())[None, None]
    canvas = torch.nn.functional.interpolate(grid, (size, size), mode="bicubic", align_corners=True)
    x, y = (torch.arange(pixels, dtype=torch.float64) * box.scale + offset
            for pixels, offset in zip((width, height), box.matrix[:, 2], strict=True))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1) * 2 / (size - 1) - 1  # [H, W, 2]
    expected = torch.nn.functional.grid_sample(canvas, places[None], mode="bicubic", padding_mode="zeros",
                                               align_corners=True)[0, 0].numpy()
    assert expected.min() < 0 and expected.max() > 1 or height == 1  # else clipping is not tested
    received = probability_on_photo(logits, box)
    assert received.dtype == np.float32 and received.shape == (height, width)
    np.testing.assert_allclose(received, expected.clip(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", (*THRESHOLDS, 0.9))
@pytest.mark.parametrize("make", [smooth, sharp])
def test_what_is_left_out_is_not_in_the_mask(make, threshold):
    for seed, (height, width) in enumerate([(300, 700), (700, 300), (37, 53), (129, 257)]):
        logits, box = make(128, seed) - 2, Letterbox(height=height, width=width, size=448)
        probability = probability_on_photo(logits, box)
        mask, bounds, score = mask_on_photo(logits, box, threshold)
        assert np.array_equal(mask, binarise(probability, threshold))
        assert bounds == bounding_box(mask)
        assert score == pytest.approx(float(probability[mask].mean(dtype=np.float64)) if mask.any() else 0.0, abs=1e-6)


def test_cells_below_the_threshold_can_overshoot_it():
    probability = np.where(np.arange(128) < 64, 0.34, 0.001) * np.ones((128, 1))
    logits = np.log(probability / (1 - probability)).astype(np.float32)
    mask, bounds, score = mask_on_photo(logits, Letterbox(height=448, width=448, size=448), 0.35)
    assert bounds[1] == 0 and 210 < bounds[0] < bounds[2] < 226 and 0.35 < score < 0.38  # a line beside the step


def test_only_tiles_that_a_mask_can_reach_are_computed():
    box = Letterbox(height=1024, width=1024, size=448)
    rows = bands(1024, scale=box.scale, offset=0.0, canvas=448, grid=128, step=128)
    columns = bands(1024, scale=box.scale, offset=0.0, canvas=448, grid=128, step=256)
    grid = np.full((128, 128), 0.01, np.float32)
    grid[20:26, 40:60] = 1  # pixels 160 to 208 down, 320 to 480 across, and what interpolation adds
    found = [where for where, _, _ in tiles(grid, rows, columns, above=0.35)]
    assert found == [(slice(128, 256), slice(256, 512))]
    assert len(list(tiles(grid, rows, columns, above=0.0))) == len(rows) * len(columns) == 32
    assert list(tiles(np.zeros_like(grid), rows, columns, above=0.0)) == []


def test_a_tile_has_the_same_bits_whatever_is_left_out():
    rows = bands(300, scale=1.5, offset=-0.0, canvas=450, grid=128, step=128)
    columns = bands(290, scale=1.5, offset=7.5, canvas=450, grid=128, step=256)
    grid = np.full((128, 128), 0.01, np.float32)
    grid[30:90, 10:70] = np.random.default_rng(5).random((60, 60))
    grid[40:45, 80:85] = 0.4
    every, some = (dict((str(where), tile) for where, tile, _ in tiles(grid, rows, columns, above=above))
                   for above in (0.0, 0.9))
    assert 0 < len(some) < len(every) == 6
    assert all(np.array_equal(tile, every[where]) for where, tile in some.items())


def test_bands_hold_only_what_they_need():
    found = bands(4000, scale=448 / 4000, offset=0.0, canvas=448, grid=128, step=256)
    assert [band.pixels.start for band in found] == list(range(0, 4000, 256)) and found[-1].pixels.stop == 4000
    for band in found:
        assert band.weights.shape == (band.pixels.stop - band.pixels.start, band.cells.stop - band.cells.start)
        assert band.weights.shape[1] <= 16 and band.weights.dtype == np.float32 and not band.weights.flags.writeable
        assert 1 <= band.gain < 2 and band.gain == pytest.approx(np.abs(band.weights).sum(axis=1).max(), rel=1e-5)


def test_threads_share_a_bounded_cache():
    bands.cache_clear()
    boxes = [Letterbox(height=40 + i, width=300 - i, size=112) for i in range(24)]
    logits = smooth(32, 7)

    def answer(box: Letterbox):
        return mask_on_photo(logits, box, 0.35)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answer, boxes * 3))
    for one, box in zip(together, boxes * 3, strict=True):
        alone = answer(box)
        assert np.array_equal(one[0], alone[0]) and one[1:] == alone[1:]
    found = bands.cache_info()
    assert found.currsize == found.maxsize == 32


def test_half_precision_logits():
    logits, box = smooth(32, 1).astype(np.float16), Letterbox(height=60, width=90, size=112)
    received = mask_on_photo(logits, box, 0.35)
    expected = mask_on_photo(logits.astype(np.float32), box, 0.35)
    assert np.array_equal(received[0], expected[0]) and received[1:] == expected[1:] and received[0].any()


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(UserError, match="expected a threshold from 0 to below 1, received"):
        mask_on_photo(smooth(16, 0), Letterbox(height=5, width=5, size=56), threshold)


def test_logits_of_another_shape_are_refused():
    for function in (mask_on_photo, probability_on_photo):
        with pytest.raises(ValueError, match=r"expected logits as \[h, w\], received \[1, 4, 4\]"):
            function(np.zeros((1, 4, 4), np.float32), Letterbox(height=5, width=5, size=56))


def test_bounding_box():
    mask = np.zeros((20, 30), bool)
    assert bounding_box(mask) is None
    mask[4, 7] = True
    assert bounding_box(mask) == (7, 4, 8, 5)
    mask[19, 0] = mask[9, 29] = True
    assert bounding_box(mask) == (0, 4, 30, 20)


def test_the_bound_has_room_for_rounding():
    """A plateau exactly at the bound of its tiles: a bound that float32 passes would lose pixels."""
    assert 1e-5 < photo_mask._SLACK < 1e-2
    box = Letterbox(height=256, width=512, size=448)
    for seed in range(20):
        logits = np.random.default_rng(seed).choice([-6.0, 6.0], (128, 128)).astype(np.float32)
        probability = probability_on_photo(logits, box)
        threshold = float(np.nextafter(probability[probability < 1].max(), np.float32(0)))
        assert np.array_equal(mask_on_photo(logits, box, threshold)[0], probability > threshold)


def test_a_tile_that_is_called_full_is_full():
    """Noise of several strengths around several levels, also where the photo reaches beyond the canvas."""
    generator, full = np.random.default_rng(0), 0
    for scale, offset in ((0.35, 0.0), (0.35, 9.0), (0.39, -4.0)):
        rows = bands(300, scale=scale, offset=offset, canvas=112, grid=28, step=50)
        columns = bands(280, scale=scale, offset=0.0, canvas=112, grid=28, step=70)
        for level in (0.36, 0.5, 0.8, 1.0):
            for strength in (0.0, 1e-3, 0.05, 0.3):
                grid = np.clip(level - strength * generator.random((28, 28)), 0, 1).astype(np.float32)
                for _, tile, said in tiles(grid, rows, columns, above=0.35):
                    full += said
                    assert not said or tile.min() > 0.35
    assert full > 100
