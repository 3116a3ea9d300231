"""Preprocessing and the way back to the photo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from talent import image as talent_image
from talent.errors import UserError
from talent.image import (
    CLIP_MEAN,
    CLIP_STD,
    Letterbox,
    binarise,
    letterbox,
    letterbox_mask,
    normalise,
    overlay,
    preprocess,
    probability_on_photo,
    read_image,
    save_image,
    upsample_bicubic,
)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def expected_matrix(height: int, width: int, size: int) -> np.ndarray:
    """As the published network's data set computes it: three corners of the photo onto three of the canvas."""
    scale = min(size / height, size / width)
    x, y = (size - width * scale) / 2, (size - height * scale) / 2
    source = np.array([[0, 0], [width, 0], [0, height]], np.float32)
    target = np.array([[x, y], [width * scale + x, y], [x, height * scale + y]], np.float32)
    return cv2.getAffineTransform(source, target)


@pytest.mark.parametrize("height, width, size", [(480, 640, 448), (640, 427, 448), (33, 71, 56), (1, 9, 28),
                                                 (448, 448, 448)])
def test_letterbox_geometry(height, width, size):
    canvas, box = letterbox(photo(height, width), size)
    assert canvas.shape == (size, size, 3) and canvas.dtype == np.uint8
    assert box == Letterbox(height=height, width=width, size=size)
    np.testing.assert_allclose(box.matrix, expected_matrix(height, width, size), atol=1e-4)
    # The photo's opposite corners lie centred: equal margins on both sides.
    near, far = box.matrix @ [0, 0, 1], box.matrix @ [width, height, 1]
    np.testing.assert_allclose(near, size - far, atol=1e-9)
    assert np.isclose(min(near), 0)


def test_letterbox_pixels_are_the_published_ones():
    picture = photo(90, 160)
    border = [0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255]
    expected = cv2.warpAffine(picture, expected_matrix(90, 160, 112), (112, 112), flags=cv2.INTER_CUBIC,
                              borderValue=border)
    assert np.abs(letterbox(picture, 112)[0].astype(int) - expected).max() <= 1


def test_letterbox_border_is_the_mean_and_normalises_to_zero():
    canvas, _ = letterbox(np.full((20, 80, 3), 255, np.uint8), 64)
    assert canvas[0, 0].tolist() == [round(255 * mean) for mean in CLIP_MEAN] == [123, 117, 104]
    assert canvas[32, 32].tolist() == [255, 255, 255]
    assert np.abs(normalise(canvas)[:, 0, 0]).max() < 0.01


def test_identity_letterbox_keeps_every_pixel():
    picture = photo(32, 32)
    assert np.array_equal(letterbox(picture, 32)[0], picture)


def test_normalise():
    canvas = photo(12, 12)
    expected = ((canvas / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    planes = normalise(canvas)
    assert planes.dtype == np.float32 and planes.flags.c_contiguous
    np.testing.assert_allclose(planes, expected, atol=1e-6)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (4, 1), (3, 3)])
def test_normalise_any_memory_layout(height, width):
    canvas = photo(3 * height, 2 * width)[::3, ::-2]
    planes = normalise(canvas)
    assert planes.shape == (3, height, width)
    np.testing.assert_allclose(planes, ((canvas / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1), atol=1e-6)


def test_preprocess_is_the_published_warp_to_the_last_grey_level():
    """Checkpoints were trained on cv2.warpAffine's cubic: a faster letterbox must not be another one."""
    for height, width in ((720, 1280), (641, 480), (7, 3)):
        picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        tensor, box = preprocess(picture, 112)
        canvas = cv2.warpAffine(picture, box.matrix, (112, 112), flags=cv2.INTER_CUBIC,
                                borderValue=[255 * mean for mean in CLIP_MEAN])
        levels = 255 * (tensor[0].transpose(1, 2, 0) * CLIP_STD + CLIP_MEAN)
        np.testing.assert_allclose(levels, canvas, atol=1e-3)


def test_preprocess():
    tensor, box = preprocess(photo(31, 47), 56)
    assert tensor.shape == (1, 3, 56, 56) and tensor.dtype == np.float32
    assert np.array_equal(tensor[0], normalise(letterbox(photo(31, 47), 56)[0]))
    assert (box.height, box.width, box.size) == (31, 47, 56)


@pytest.mark.parametrize("bad, received", [
    (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"), (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
    (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"), (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]"),
    (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"), (np.zeros((4, 0, 3), np.uint8), r"\[4, 0, 3\]"),
    (np.zeros((1, 40000, 3), np.uint8), "40000"), ("photo.jpg", "str; read a file"), (None, "NoneType")])
def test_preprocess_refuses(bad, received):
    with pytest.raises(UserError, match=rf"expected a picture as uint8 \[H, W, 3\] RGB.*received.*{received}"):
        preprocess(bad, 56)


def test_preprocess_refuses_a_size():
    with pytest.raises(UserError, match="positive image size"):
        preprocess(photo(4, 4), 0)


def torch_bicubic(grid, size: int) -> np.ndarray:
    torch = pytest.importorskip("torch")
    return torch.nn.functional.interpolate(grid[None, None], (size, size), mode="bicubic",
                                           align_corners=True)[0, 0].numpy()


@pytest.mark.parametrize("h, w, size", [(128, 128, 448), (7, 5, 31), (1, 3, 8), (16, 16, 16), (9, 9, 4), (4, 4, 1)])
def test_bicubic_equals_pytorch(h, w, size):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(h * w).random((h, w), np.float32)  # probabilities, as it is used on
    result = upsample_bicubic(grid, size)
    assert result.dtype == np.float32 and result.shape == (size, size)
    # PyTorch's own float32 error is about 1e-5 here (it keeps positions in float32), so float64 is the judge of ours.
    for dtype, tolerance in ((torch.float64, 2e-6), (torch.float32, 1e-5)):
        expected = torch_bicubic(torch.from_numpy(grid).to(dtype), size)
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("height, width", [(480, 640), (333, 120)])
def test_probability_on_photo_follows_the_published_steps(height, width):
    torch = pytest.importorskip("torch")
    logits = cv2.resize(np.random.default_rng(1).normal(0, 4, (9, 9)).astype(np.float32), (32, 32))
    box = Letterbox(height=height, width=width, size=112)
    canvas = torch_bicubic(torch.sigmoid(torch.from_numpy(logits)), 112)
    back = cv2.invertAffineTransform(box.matrix)
    expected = cv2.warpAffine(canvas, back, (width, height), flags=cv2.INTER_CUBIC, borderValue=0.0).clip(0, 1)
    result = probability_on_photo(logits, box)
    assert result.shape == (height, width) and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    # OpenCV 4 places samples on a grid of 1/32 pixel: a coordinate that is rounded moves a value by this much.
    np.testing.assert_allclose(result, expected, atol=2e-2)
    assert np.mean(np.abs(result - expected)) < 1e-4


def test_extreme_logits_do_not_overflow():
    with np.errstate(all="raise"):
        result = probability_on_photo(np.full((4, 4), -1e4, np.float32), Letterbox(height=10, width=10, size=14))
    assert result.max() == 0


@pytest.mark.parametrize("height, width", [(90, 130), (131, 77)])
def test_mask_survives_the_way_there_and_back(height, width):
    mask = np.zeros((height, width), bool)
    mask[20:60, 30:70] = True
    box = Letterbox(height=height, width=width, size=112)
    canvas = letterbox_mask(mask, box)
    assert canvas.shape == (112, 112) and canvas.dtype == np.float32
    assert canvas.min() >= 0 and canvas.max() == 1 and np.any((canvas > 0) & (canvas < 1))
    logits = np.where(canvas > 0.5, 8, -8).astype(np.float32)
    result = binarise(probability_on_photo(logits, box), 0.5)
    assert np.count_nonzero(result & mask) / np.count_nonzero(result | mask) > 0.93


def test_mask_lies_where_its_photo_lies():
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[10:40, 50:90] = 255
    canvas, box = letterbox(picture, 84)
    inside = letterbox_mask(picture[..., 0] > 0, box) > 0.5
    strip = slice(20, 64)  # clear of the border
    assert np.mean(inside[strip] == (canvas[strip, :, 0] > 127)) > 0.995
    with pytest.raises(ValueError, match=r"\[60, 100\]"):
        letterbox_mask(np.zeros((100, 60), bool), box)


def test_binarise_default_threshold():
    assert binarise(np.array([0.34, 0.35, 0.351], np.float32).astype(np.float64)).tolist() == [False, False, True]
    assert talent_image.THRESHOLD == 0.35


def test_overlay():
    picture = photo(120, 160)
    mask = np.zeros((120, 160), bool)
    mask[40:80, 50:100] = True
    before = picture.copy()
    result = overlay(picture, mask, color=(255, 0, 0), opacity=0.5)
    assert np.array_equal(picture, before)
    assert result.dtype == np.uint8 and result.shape == picture.shape
    np.testing.assert_allclose(result[60, 75], (picture[60, 75].astype(float) + [255, 0, 0]) / 2, atol=1)
    assert result[40, 75].tolist() == [255, 0, 0]  # the outline is opaque
    assert np.array_equal(result[:30], picture[:30])  # the rest is untouched
    assert np.array_equal(overlay(picture, np.zeros_like(mask)), picture)
    plain = overlay(picture, mask, outline=False)
    assert np.array_equal(plain[~mask], picture[~mask])


def test_save_and_read(tmp_path):
    picture = photo(20, 30)
    save_image(tmp_path / "bild ü.png", picture)
    assert np.array_equal(read_image(tmp_path / "bild ü.png"), picture)
    save_image(tmp_path / "mask.png", np.eye(5, dtype=np.uint8) * 255)
    assert np.array_equal(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED), np.eye(5, dtype=np.uint8) * 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bild ü.png", "mask.png"]


def test_colours_are_rgb(tmp_path):
    save_image(tmp_path / "red.png", np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_read_refuses(tmp_path):
    with pytest.raises(UserError, match="no such picture"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot read"):
        read_image(tmp_path)
    save_image(tmp_path / "cut.png", photo(40, 40))
    contents = {"empty.png": b"", "text.jpg": b"hello, this is not a picture",
                "cut.png": (tmp_path / "cut.png").read_bytes()[:30]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"not a picture: .*{name}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name, message", [("no/a.png", "mkdir -p"), ("a.xyz", "'.xyz'"), ("a", "unknown picture")])
def test_save_refuses(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        save_image(tmp_path / name, photo(4, 4))
    assert list(tmp_path.iterdir()) == []
