"""Pictures out of messages that were serialised as CDR: encodings, long rows, kinds of data, refusals."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest

from deploy.ros.pictures import ENCODINGS, rgb_picture
from talent.errors import UserError
from tests.deploy.ros_recordings import compressed, image, through_cdr


@pytest.fixture
def noisy() -> np.ndarray:
    """uint8 [7, 5, 3]: odd sides, every pixel another colour."""
    return np.random.default_rng(1).integers(0, 256, (7, 5, 3), np.uint8)


@pytest.mark.parametrize("padding", [0, 1, 13])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_with_long_rows(noisy, encoding, padding):
    message = through_cdr(image(noisy, encoding=encoding, padding=padding))
    found = rgb_picture(message)
    wanted = np.repeat(cv2.cvtColor(noisy, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) if encoding == "mono8" else noisy
    assert found.dtype == np.uint8 and found.shape == noisy.shape
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("B", data),
                                  lambda data: np.frombuffer(data, np.uint8)],
                         ids=["bytes", "bytearray", "memoryview", "array", "numpy"])
def test_data_of_any_library(noisy, kind):
    message = image(noisy, padding=2)
    message.data = kind(message.data.tobytes())
    np.testing.assert_array_equal(rgb_picture(message), noisy)


def test_the_order_of_bytes_means_nothing_for_8_bits(noisy):
    np.testing.assert_array_equal(rgb_picture(image(noisy, is_bigendian=1)), noisy)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "8UC3", "mono16", "yuv422", "bayer_rggb8", ""])
def test_other_encodings_are_refused(noisy, encoding):
    with pytest.raises(UserError, match=f"in rgb8, bgr8, mono8, rgba8 or bgra8, received '{encoding}'; choose"):
        rgb_picture(image(noisy, encoding=encoding, data=np.zeros(7 * 15, np.uint8)))


@pytest.mark.parametrize(("changes", "problem"), [
    ({"data": np.zeros(104, np.uint8)}, "expected 105 bytes of data for 7 rows of 15 bytes, received 104"),
    ({"data": np.zeros(106, np.uint8)}, "of 15 bytes, received 106; the sender of this picture is at fault"),
    ({"data": np.zeros(0, np.uint8)}, "received 0; the sender"),
    ({"step": 14}, "a step of at least 15 bytes for 5 pixels of rgb8, received 5 x 7 pixels and a step of 14"),
    ({"step": 16}, "expected 112 bytes"), ({"height": 0}, "at least one pixel"), ({"width": 0}, "at least one pixel"),
    ({"height": 2**32 - 1, "width": 2**32 - 1}, "a step of at least 12884901885 bytes"),
    ({"data": [1, 2, 3]}, "as bytes, received list"), ({"data": None}, "as bytes, received NoneType")], ids=str)
def test_data_that_does_not_fit_its_description(noisy, changes, problem):
    with pytest.raises(UserError, match=problem):
        rgb_picture(image(noisy, **changes))


def test_compressed_pictures(picture):
    np.testing.assert_array_equal(rgb_picture(through_cdr(compressed(picture))), picture)
    lossy = rgb_picture(through_cdr(compressed(picture, suffix=".jpg", name="rgb8; jpeg compressed bgr8")))
    assert lossy.shape == picture.shape and np.abs(lossy.astype(int) - picture).mean() < 4
    grey = compressed(picture[..., 0].copy())
    np.testing.assert_array_equal(rgb_picture(grey), np.repeat(picture[..., :1], 3, axis=2))


def test_compressed_pictures_that_cannot_be_used(picture):
    depth = compressed(np.full((4, 4), 1000, np.uint16), name="16UC1; png compressed")
    with pytest.raises(UserError, match="8 bits per channel, received uint16 in '16UC1; png compressed'"):
        rgb_picture(depth)
    damaged = compressed(picture)
    for data in (damaged.data[:40], np.zeros(0, np.uint8), np.arange(99, dtype=np.uint8)):
        damaged.data = data
        with pytest.raises(UserError, match=f"received {len(data)} bytes of 'png' that OpenCV cannot read"):
            rgb_picture(damaged)
