"""Masks as users write them: equal to pycocotools where it is right, and refused before it crashes where it is not."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pycocotools.mask as coco
import pytest

from talent.data.annotations import decode_mask, read_mask
from talent.errors import UserError
from tests.talent.refcoco_files import box, compressed, rectangle, uncompressed

SIZES = [(1, 1), (1, 7), (9, 1), (5, 7), (47, 61), (128, 33)]


def masks(size: tuple[int, int]):
    """Empty, full, noise of several densities and blobs."""
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    yield np.zeros(size, bool)
    yield np.ones(size, bool)
    for density in (0.02, 0.3, 0.5, 0.98):
        yield rng.random(size) < density
    blob = np.zeros(size, np.uint8)
    cv2.circle(blob, (size[1] // 2, size[0] // 3), max(size) // 3, 1, -1)
    yield blob.astype(bool)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("write", [compressed, uncompressed])
def test_run_lengths_round_trip(size, write):
    for mask in masks(size):
        runs = write(mask)
        decoded = decode_mask(runs, *size)
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)
        if write is compressed:
            np.testing.assert_array_equal(decode_mask({**runs, "counts": runs["counts"].encode()}, *size), mask)


def test_polygons_equal_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(5, 90, 2).tolist()
        polygons = [(rng.random(2 * corners) * np.tile([width, height], corners)).tolist()
                    for corners in rng.integers(3, 9, rng.integers(1, 4))]
        expected = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
        np.testing.assert_array_equal(decode_mask(polygons, height, width), expected)


def test_polygons_are_united():
    left, right = box(1, 2, 8, 9), box(5, 5, 12, 20)
    expected = rectangle((23, 17), 1, 2, 8, 9) | rectangle((23, 17), 5, 5, 12, 20)
    np.testing.assert_array_equal(decode_mask([left, right], 23, 17), expected)
    assert decode_mask([[0, 0, 17, 0, 17, 23, 0, 23]], 23, 17).all()
    np.testing.assert_array_equal(decode_mask([box(-4, -4, 3, 4)], 23, 17), rectangle((23, 17), 0, 0, 3, 4))


@pytest.mark.parametrize(("shape", "message"), [
    ([], r"expected polygons .* or COCO run lengths .*received \[\]"),
    (None, "received None"),
    ("0.png", "received '0.png'"),
    (7, "received 7"),
    ([1, 1, 9, 1, 9, 9], "at least three corners in each polygon; received 1"),
    ([[1, 1, 9, 9]], r"at least three corners in each polygon; received \[1, 1, 9, 9\]"),
    ([[1, 1, 9, 1, 9, 9, 5]], "at least three corners"),
    ([box(1, 1, 5, 5), []], r"at least three corners in each polygon; received \[\]"),
    ([[1, 1, 9, 1, 9, float("nan")]], "not a number"),
    ([[1, 1, 9, 1, 9, "9"]], "not a number"),
    ([[1, 1, 9, 1, 9, None]], "not a number"),
    ([[1, 1, 9, 1, 9, float("inf")]], "corners within a picture of 30 x 20 pixels"),
    ([[1, 1, 9, 1, 9, -float("inf")]], "corners within a picture"),
    ([[1, 1, 9, 1, 1e9, 9]], "corners within a picture"),
    ([[1, 1, 9, 1, 10**400, 9]], "corners within a picture"),
    ([[1, 1, 9, 1, 9, 41]], "corners within a picture"),
    ([[-31, 1, 9, 1, 9, 1]], "corners within a picture"),
])
def test_wrong_polygons_are_explained(shape, message):
    with pytest.raises(UserError, match=message):
        decode_mask(shape, 20, 30)


@pytest.mark.parametrize(("runs", "message"), [
    ({}, r"\[height, width\] = \[4, 5\], received size None"),
    ({"size": [5, 4], "counts": [20]}, r"\[height, width\] = \[4, 5\], received size \[5, 4\]"),
    ({"size": "4x5", "counts": [20]}, "received size '4x5'"),
    ({"size": [4, 5]}, "received counts of type NoneType"),
    ({"size": [4, 5], "counts": 20}, "received counts of type int"),
    ({"size": [4, 5], "counts": [19]}, r"sum up to 20 pixels, received \[19\]"),
    ({"size": [4, 5], "counts": [19, 2]}, "sum up to 20 pixels"),
    ({"size": [4, 5], "counts": [-1, 21]}, "sum up to 20 pixels"),
    ({"size": [4, 5], "counts": [10.0, 10.0]}, "sum up to 20 pixels"),
    ({"size": [4, 5], "counts": []}, "sum up to 20 pixels"),
    ({"size": [4, 5], "counts": ""}, "compressed run lengths that sum up to 20 pixels, received 0"),
    ({"size": [4, 5], "counts": "ä"}, "expected COCO's compressed run lengths, received the character"),
    ({"size": [4, 5], "counts": "d\0"}, r"received the character '\\x00' in them"),
    ({"size": [4, 5], "counts": "d0 "}, "received the character ' ' in them"),
])
def test_wrong_run_lengths_are_explained(runs, message):
    with pytest.raises(UserError, match=message):
        decode_mask(runs, 4, 5)


@pytest.mark.parametrize("size", [(5, 7), (47, 61)])
def test_cut_compressed_run_lengths_are_refused(size):
    for mask in masks(size):
        counts = compressed(mask)["counts"]
        for length in range(len(counts)):
            with pytest.raises(UserError, match="sum up to"):
                decode_mask({"size": list(size), "counts": counts[:length]}, *size)


def test_compressed_run_lengths_of_another_picture_are_refused():
    counts = compressed(np.random.default_rng(1).random((47, 61)) < 0.5)["counts"]
    for height, width in ((46, 61), (47, 60), (1, 1), (480, 640)):
        with pytest.raises(UserError, match=f"sum up to {height * width} pixels, received 2867"):
            decode_mask({"size": [height, width], "counts": counts}, height, width)


def test_random_text_as_counts_is_refused_or_sums_up():
    generator = random.Random(0)
    refused = 0
    for _ in range(3000):
        counts = "".join(chr(48 + generator.randrange(64)) for _ in range(generator.randrange(1, 9)))
        try:
            assert decode_mask({"size": [3, 4], "counts": counts}, 3, 4).shape == (3, 4)
        except UserError:
            refused += 1
    assert refused > 2900


def test_numbers_too_long_for_pycocotools_are_refused():
    # -9 with nine characters instead of one. pycocotools shifts its sign by 45 bits in an int of 32, which gives -1,
    # and the runs 10, 10, 10, 10, 1, ... of 100 pixels become more than there are.
    plain = coco.frPyObjects({"size": [10, 10], "counts": [10, 10, 10, 1, 69]}, 10, 10)["counts"].decode()
    assert decode_mask({"size": [10, 10], "counts": plain}, 10, 10).sum() == 11
    for length in (7, 9, 14):
        long = chr(48 + 0x37) + chr(48 + 0x3F) * (length - 2) + chr(48 + 0x1F)
        counts = plain[:3] + long + plain[4:]
        assert plain[3] == chr(48 + 0x17), "the fourth run is not the -9 that is written longer"
        with pytest.raises(UserError, match="at most 6 characters each"):
            decode_mask({"size": [10, 10], "counts": counts}, 10, 10)


@pytest.mark.parametrize("kind", ["grey", "one bit", "sixteen bits", "colour", "transparent", "grey in other files"])
def test_mask_files(tmp_path, kind):
    mask = rectangle((23, 17), 3, 5, 9, 20)
    path = tmp_path / ("mask.bmp" if kind == "grey in other files" else "mask.png")
    colour = np.zeros((23, 17, 3), np.uint8)
    colour[mask] = (0, 0, 1)
    if kind == "transparent":  # white everywhere, and seen only where the object is
        pixels = np.full((23, 17, 4), 255, np.uint8)
        pixels[..., 3] = mask
    else:
        pixels = {"grey": mask * np.uint8(255), "one bit": mask * np.uint8(255), "sixteen bits": mask.astype(np.uint16),
                  "colour": colour, "grey in other files": mask.astype(np.uint8)}[kind]
    assert cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_BILEVEL, 1] if kind == "one bit" else [])
    read = read_mask(path)
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask)


def test_opaque_black_is_background(tmp_path):
    pixels = np.zeros((6, 7, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[2, 3] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), pixels)
    np.testing.assert_array_equal(np.argwhere(read_mask(tmp_path / "mask.png")), [[2, 3]])


def test_wrong_mask_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such mask: .*mask.png"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(UserError, match="cannot read the mask"):
        read_mask(tmp_path)
    for content in (b"", b"no picture", cv2.imencode(".png", np.ones((9, 9), np.uint8))[1].tobytes()[:20]):
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(UserError, match="not a picture: .*mask.png; expected a mask as a PNG"):
            read_mask(tmp_path / "mask.png")
    (tmp_path / "mask.png").write_bytes(cv2.imencode(".jpg", np.ones((9, 9), np.uint8))[1].tobytes())
    with pytest.raises(UserError, match="expected a mask without loss, such as PNG, received a JPEG"):
        read_mask(tmp_path / "mask.png")
