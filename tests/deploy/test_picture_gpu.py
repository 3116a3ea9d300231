"""The CUDA kernels for pictures on a GPU, against talent/image.py within the bounds of test_picture_host.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploy.runtime.picture_kernels import PictureKernels, installed_kernels, summary
from talent.image import CLIP_MEAN, CLIP_STD, Letterbox, binarise, bounding_box, preprocess, probability_on_photo
from talent.native import BUILD
from tests.deploy.picture_calls import TYPES, logits, photo, to_input, to_masks
from tests.deploy.test_picture_host import EXACT_OPENCV, MEAN_LEVELS, MOST_LEVELS, MOST_PIXELS, PHOTOS, SIZES

pytestmark = pytest.mark.gpu

TYPE = pytest.mark.parametrize("dtype", TYPES, ids=str)
SHAPE = pytest.mark.parametrize("shape", PHOTOS, ids=str)


@pytest.fixture(scope="module")
def kernels() -> PictureKernels:
    """The library that is installed. A lane that selects these tests has to have a GPU and the library."""
    if not torch.cuda.is_available():
        pytest.fail("expected a GPU that PyTorch can use, received none; leave these tests out with -m 'not gpu'")
    if (found := installed_kernels()) is None:
        pytest.fail(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    return found


@TYPE
@SHAPE
@pytest.mark.parametrize("size", SIZES)
def test_input(kernels, shape, size, dtype):
    if not EXACT_OPENCV and max(shape) < size:
        pytest.skip("OpenCV 4 places samples on a grid of 1/32 pixel: too coarse a truth where a photo is enlarged")
    image = photo(*shape)
    received = to_input(kernels, image, size, dtype).astype(np.float64)
    std = np.array(CLIP_STD)[:, None, None]
    levels = 255 * std * np.abs(received - preprocess(image, size)[0][0])
    rounding = 1e-3 if dtype == np.float32 else 0.2
    assert levels.max() <= MOST_LEVELS + rounding and levels.mean() <= MEAN_LEVELS + rounding
    np.testing.assert_array_equal(to_input(kernels, image, size, dtype, spare=5), received.astype(dtype))


def test_the_border_is_the_mean(kernels):
    received = to_input(kernels, photo(2, 300), 224, np.dtype(np.float32))[:, :50]
    levels = 255 * (received * np.array(CLIP_STD)[:, None, None] + np.array(CLIP_MEAN)[:, None, None])
    assert np.abs(levels - np.rint(255 * np.array(CLIP_MEAN))[:, None, None]).max() < 1e-3


@TYPE
@SHAPE
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [1e-4, 0.35, 0.999])
def test_masks(kernels, shape, size, dtype, threshold):
    letterbox, values = Letterbox(*shape, size), logits(3, size // 4, size // 4, dtype)
    masks, totals = to_masks(kernels, values, letterbox, threshold)
    assert not totals["not_finite"].any() and masks.max() <= 1
    for own, mask, one in zip(values, masks, totals, strict=True):
        probability, inside = probability_on_photo(own.astype(np.float32), letterbox), mask > 0
        assert np.mean(inside != binarise(probability, threshold)) <= MOST_PIXELS
        box, score = summary(one, letterbox)
        assert box == bounding_box(inside) and one["pixels"] == np.count_nonzero(inside)
        assert score == pytest.approx(probability[inside].mean(dtype=np.float64) if inside.any() else 0, abs=5e-6)
    again = to_masks(kernels, values, letterbox, threshold)
    assert np.array_equal(again[0], masks) and np.array_equal(again[1], totals)


def test_logits_that_are_not_finite(kernels):
    values = logits(2, 32, 32, np.dtype(np.float32))
    values[1, 3, 4] = np.inf
    _, totals = to_masks(kernels, values, Letterbox(60, 80, 128), 0.35)
    assert totals["not_finite"].astype(bool).tolist() == [False, True]
