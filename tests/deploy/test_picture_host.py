"""Photo -> input and logits -> mask of deploy/csrc and deploy/cpp against talent/image.py, with no GPU.

By the C++ runtime on the CPU, and by the code of the CUDA kernels on an emulated device (tests/csrc), which is slow: it
gets small photos.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_uint8, c_void_p
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from talent.image import CLIP_MEAN, CLIP_STD, Letterbox, binarise, preprocess, probability_on_photo
from tests.native_build import build

FORMATS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "RGBA": (0, 1, 2, 0), "BGRA": (2, 1, 0, 0), "grey": (0,)}
PHOTOS = ((1, 1), (1, 500), (37, 53), (480, 640), (720, 1280), (640, 360), (333, 500), (9, 2000))  # H, W
# OpenCV 4 places samples on a grid of 1/32 pixel, OpenCV 5 does not: too coarse a truth where a photo is enlarged.
EXACT_OPENCV = int(cv2.__version__.split(".")[0]) >= 5
SMALL = ((1, 1), (1, 150), (37, 53), (61, 40))
SIZES = (224, 252, 448, 518)
MOST_LEVELS, MEAN_LEVELS = 2, 0.05  # of the network's input, in grey levels
MOST_PIXELS = 0.001  # share of a mask's pixels


@dataclass(frozen=True)
class Mask:
    """mask: uint8 [H, W]. probability: float32 [H, W]. box: zeros where the mask is empty."""

    mask: np.ndarray
    probability: np.ndarray
    finite: bool
    pixels: int
    score: float
    box: tuple[int, int, int, int]


class Host:
    """The library, called with arrays: photos uint8 [H, W, bytes of a pixel], logits [B, h, w] or [h, w]."""

    def __init__(self, directory: Path) -> None:
        library = ctypes.CDLL(str(directory / "libtalent_pictures.so"))

        def function(name: str, *arguments: type) -> ctypes._CFuncPtr:
            found = getattr(library, name)
            found.argtypes, found.restype = arguments, c_char_p
            return found

        self._input = function("talent_preprocess", c_void_p, c_int32, c_int32, c_int64, c_int32, c_int32, c_void_p)
        self._mask = function("talent_mask_on_photo", c_void_p, *[c_int32] * 5, c_float, c_void_p, c_void_p, c_void_p)
        self._input_kernel = function("talent_picture_to_input_emulated", c_void_p, *[c_int64] * 3, c_int32, c_void_p,
                                      c_int64, c_int32, c_int32)
        self._mask_kernel = function("talent_logits_to_mask_emulated", c_void_p, c_int32, *[c_int64] * 6, c_float,
                                     c_uint8, c_void_p, c_void_p, ctypes.POINTER(c_double), c_int32)

    def input(self, photo: np.ndarray, size: int, *, form: str = "RGB") -> np.ndarray:
        output = np.full((3, size, size), np.nan, np.float32)
        height, width = photo.shape[:2]
        _raise(self._input(photo.ctypes.data, width, height, photo.strides[0], list(FORMATS).index(form), size,
                           output.ctypes.data))
        return output

    def input_by_kernel(self, photo: np.ndarray, size: int, *, form: str = "RGB",
                        dtype: type = np.float32) -> np.ndarray:
        output = np.full((3, size, size), np.nan, dtype)
        height, width = photo.shape[:2]
        _raise(self._input_kernel(photo.ctypes.data, width, height, photo.strides[0], list(FORMATS).index(form),
                                  output.ctypes.data, size, int(dtype == np.float16), 0))
        return output

    def mask(self, logits: np.ndarray, box: Letterbox, threshold: float, *, with_probability: bool = True) -> Mask:
        mask = np.full((box.height, box.width), 77, np.uint8)
        probability = np.full(mask.shape, np.nan, np.float32)
        summary = np.zeros(6)
        _raise(self._mask(logits.ctypes.data, *logits.shape, box.width, box.height, box.size, threshold,
                          mask.ctypes.data, probability.ctypes.data if with_probability else None, summary.ctypes.data))
        return Mask(mask, probability, True, int(summary[0]), summary[1], tuple(map(int, summary[2:])))

    def masks_by_kernel(self, logits: np.ndarray, box: Letterbox, threshold: float, *, inside: int = 255) -> list[Mask]:
        batch, h, w = logits.shape
        masks = np.full((batch, box.height, box.width), 77, np.uint8)
        probabilities = np.full(masks.shape, np.nan, np.float32)
        summaries = np.zeros((batch, 7))
        _raise(self._mask_kernel(logits.ctypes.data, int(logits.dtype == np.float16), batch, w, h, box.size, box.width,
                                 box.height, threshold, inside, masks.ctypes.data, probabilities.ctypes.data,
                                 summaries.ctypes.data_as(ctypes.POINTER(c_double)), 0))
        return [Mask(mask, probability, bool(one[0]), int(one[1]), one[2], tuple(map(int, one[3:])))
                for mask, probability, one in zip(masks, probabilities, summaries, strict=True)]


def _raise(said: bytes | None) -> None:
    if said is not None:
        raise RuntimeError(said.decode())


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> Host:
    directory = tmp_path_factory.mktemp("pictures")
    build(directory, "-DTALENT_CUDA=OFF", targets=("talent_pictures",))
    return Host(directory)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _photo(height: int, width: int) -> np.ndarray:
    """Of large and small shapes with edges as soft as a lens makes them: uint8 [H, W, 3]."""
    coarse = _noise(height // 24 + 2, width // 24 + 2).astype(np.float32)
    fine = cv2.GaussianBlur(_noise(height, width, seed=1), (0, 0), 2).astype(np.float32)
    photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + (fine - 127.5)
    return np.clip(np.rint(photo), 0, 255).astype(np.uint8)


def _as(photo: np.ndarray, form: str, *, spare: int = 0) -> np.ndarray:
    """The photo in another order of bytes, its rows `spare` pixels further apart."""
    height, width = photo.shape[:2]
    channels = FORMATS[form]
    wide = np.full((height, width + spare, len(channels)), 201, np.uint8)
    for c, byte in enumerate(channels[:3]):
        wide[:, :width, byte] = photo[:, :, c]
    return wide[:, :width]


def _logits(h: int, w: int, *, seed: int = 0, mean: float = -2.0) -> np.ndarray:
    """Smooth, as a network gives them: float32 [h, w]."""
    coarse = np.random.default_rng(seed).normal(mean, 4.0, (h // 12 + 2, w // 12 + 2)).astype(np.float32)
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)


def _levels(tensor: np.ndarray) -> np.ndarray:
    """What the network reads [3, S, S] -> grey levels, float64."""
    mean, std = (np.array(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return 255 * (tensor.astype(np.float64) * std + mean)


def _exact_levels(photo: np.ndarray, size: int) -> np.ndarray:
    """The letterbox in double precision, not rounded: [3, S, S]."""
    box = Letterbox(*photo.shape[:2], size)
    levels = photo.astype(np.float64) - np.rint(255 * np.array(CLIP_MEAN))
    for axis, side in enumerate(photo.shape[:2]):
        position = (np.arange(size) - box.matrix[1 - axis, 2]) / box.scale  # on the photo
        distance = np.abs(position[:, None] - np.arange(side))  # [S, side]
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        levels = np.moveaxis(np.tensordot(weights, levels, (1, axis)), 0, axis)
    return np.clip(levels + np.rint(255 * np.array(CLIP_MEAN)), 0, 255).transpose(2, 0, 1)


def _check_input(received: np.ndarray, photo: np.ndarray, size: int, *, rounding: float = 1e-3) -> None:
    if not EXACT_OPENCV and max(photo.shape) < size:
        return
    difference = np.abs(_levels(received) - _levels(preprocess(photo, size)[0][0]))
    assert difference.max() <= MOST_LEVELS + rounding and difference.mean() <= MEAN_LEVELS


def _check_mask(received: Mask, probability: np.ndarray, threshold: float) -> None:
    """Against Python's float32 [H, W]; box and score against the mask itself."""
    inside = received.mask > 0
    assert set(np.unique(received.mask)) <= {0, 255}
    assert np.mean(inside != binarise(probability, threshold)) <= MOST_PIXELS
    assert received.pixels == np.count_nonzero(inside)
    if received.pixels == 0:
        assert (received.score, received.box) == (0.0, (0, 0, 0, 0))
        return
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert received.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert received.score == pytest.approx(probability[inside].mean(dtype=np.float64), abs=5e-6)


@pytest.mark.parametrize("size", SIZES)
def test_input_on_the_cpu(host, size):
    for shape in PHOTOS:
        photo = _photo(*shape)
        _check_input(host.input(photo, size), photo, size)


@pytest.mark.parametrize("shape", [(37, 53), (61, 40), (720, 1280)], ids=str)
def test_input_is_the_exact_interpolation_rounded(host, shape):
    """Noise, where OpenCV 4's positions on a grid of 1/32 pixel would show: rounded otherwise only beside a tie."""
    photo = _noise(*shape)
    exact = _exact_levels(photo, 224)
    for received in (host.input(photo, 224), host.input_by_kernel(photo, 224)):
        assert np.abs(_levels(received) - exact).max() <= 0.5 + 1e-3
        assert np.mean(np.abs(_levels(received) - np.rint(exact)) > 0.1) <= 1e-3


@pytest.mark.parametrize("size", [28, 224])
def test_input_by_the_kernel(host, size):
    for shape in SMALL if size == 28 else ((37, 53),):
        photo = _photo(*shape)
        _check_input(host.input_by_kernel(photo, size), photo, size)
        half = host.input_by_kernel(photo, size, dtype=np.float16)
        _check_input(half, photo, size, rounding=0.2)  # FP16 has 11 bits


@pytest.mark.parametrize("form", FORMATS)
def test_formats_and_strides(host, form):
    photo = _photo(37, 53)
    if form == "grey":
        photo[:] = photo[:, :, :1]
    wanted, wanted_of_kernel = host.input(photo, 28), host.input_by_kernel(photo, 28)
    for spare in (0, 3):
        given = _as(photo, form, spare=spare)
        np.testing.assert_array_equal(host.input(given, 28, form=form), wanted)
        np.testing.assert_array_equal(host.input_by_kernel(given, 28, form=form), wanted_of_kernel)
    assert np.mean(wanted != wanted_of_kernel) < 1e-3  # where the compiler fuses a sum on the one side


@pytest.mark.parametrize("size", SIZES)
def test_mask_on_the_cpu(host, size):
    for seed, (height, width) in enumerate(PHOTOS):
        box = Letterbox(height, width, size)
        logits = _logits(size // 4, size // 4, seed=seed)
        probability = probability_on_photo(logits, box)
        for threshold in (1e-4, 0.35, 0.999):
            received = host.mask(logits, box, threshold)
            _check_mask(received, probability, threshold)
            assert np.abs(received.probability - probability).max() < 5e-6
            alone = host.mask(logits, box, threshold, with_probability=False)
            np.testing.assert_array_equal(alone.mask, received.mask)
            assert (alone.box, alone.score, alone.pixels) == (received.box, received.score, received.pixels)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_masks_by_the_kernel(host, dtype):
    for (height, width), size, grid in (((37, 53), 56, (16, 16)), ((1, 150), 448, (112, 90)), ((1, 1), 28, (8, 8)),
                                        ((70, 40), 28, (28, 28))):
        box = Letterbox(height, width, size)
        logits = np.stack([_logits(*grid, seed=seed) for seed in (7, 8)]).astype(dtype)
        for own, received in zip(logits, host.masks_by_kernel(logits, box, 0.35), strict=True):
            _check_mask(received, probability_on_photo(own, box), 0.35)
            on_cpu = host.mask(own.astype(np.float32), box, 0.35)
            assert received.finite and np.abs(received.probability - on_cpu.probability).max() < 2e-6
            assert received.box == on_cpu.box and received.score == pytest.approx(on_cpu.score, abs=2e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.999])
@pytest.mark.parametrize("logit", [12.0, -12.0])
def test_all_or_nothing(host, threshold, logit):
    box = Letterbox(height=18, width=48, size=48)
    logits = np.full((12, 12), logit, np.float32)
    for received in (host.mask(logits, box, threshold), host.masks_by_kernel(logits[None], box, threshold)[0]):
        _check_mask(received, probability_on_photo(logits, box), threshold)
        assert received.pixels in ((0,) if logit < 0 < threshold else range(18 * 40, 18 * 48 + 1))


def test_one_inside_is_what_was_asked_for(host):
    box, logits = Letterbox(height=20, width=30, size=28), np.tile(np.linspace(-4, 4, 7, dtype=np.float32), (7, 1))
    ones, = host.masks_by_kernel(logits[None], box, 0.35, inside=1)
    np.testing.assert_array_equal(ones.mask * 255, host.masks_by_kernel(logits[None], box, 0.35)[0].mask)
    assert set(np.unique(ones.mask)) == {0, 1}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (5, 3), (11, 11)])
def test_logits_that_are_not_finite_are_reported(host, value, place):
    """Also in the border of the letterbox, which no pixel of the photo depends on."""
    box, logits = Letterbox(height=2, width=48, size=48), np.full((2, 12, 12), -5.0, np.float32)
    logits[1][place] = value
    assert [one.finite for one in host.masks_by_kernel(logits, box, 0.35)] == [True, False]
    with pytest.raises(RuntimeError, match="not finite, which FP16 overflow does"):
        host.mask(logits[1], box, 0.35)


def test_what_cannot_be_is_refused_in_words(host):
    photo, logits, box = _photo(4, 4), _logits(8, 8), Letterbox(height=4, width=4, size=28)
    with pytest.raises(RuntimeError, match="image size from 1 to 32766, received 0"):
        host.input(photo, 0)
    with pytest.raises(RuntimeError, match="stride of at least 16 bytes, received 12"):
        host.input(photo, 28, form="RGBA")
    with pytest.raises(RuntimeError, match="expected a stride of at least the bytes of a row"):
        host.input_by_kernel(photo, 28, form="RGBA")
    with pytest.raises(RuntimeError, match="threshold from 0 to below 1, received 1"):
        host.mask(logits, box, 1.0)
    with pytest.raises(RuntimeError, match="expected a threshold from 0 to below 1"):
        host.masks_by_kernel(logits[None], box, -0.1)
    with pytest.raises(RuntimeError, match="logits of 1 x 1 to 4 x 4, received 8 x 8"):
        host.mask(logits, Letterbox(height=4, width=4, size=4), 0.35)
    assert host.masks_by_kernel(logits[None][:0], box, 0.35) == []
