"""Pictures in, masks out: everything between a photo and the network's tensors, for training and runtime alike.

NumPy and OpenCV only. Letters: H, W photo; S square input of the network; h, w grid of the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talent.errors import UserError
from talent.files import atomic_write
from talent.photo_mask import TILE_HEIGHT, TILE_WIDTH, bands, bicubic_matrix, tiles

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB; the published checkpoints were trained with these,
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)  # not with ImageNet's
THRESHOLD = 0.35  # probability above which a pixel belongs to the object
_MAX_SIDE = 32766  # OpenCV's warp keeps coordinates in 16 bits


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Raises UserError when the file is missing, unreadable or not a picture.
    """
    path = Path(path)
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"no such picture: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror}") from error
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error:  # a broken header can claim a size that OpenCV refuses
        bgr = None
    if bgr is None:
        raise UserError(f"not a picture: {path}; expected a file that OpenCV reads, such as PNG or JPEG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def check_image_path(path: str | Path) -> None:
    """Raise UserError when `save_image(path, ...)` would: ask before the work, not after it."""
    path = Path(path)
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise UserError(f"cannot write {path}: unknown picture type {path.suffix!r}; expected .png or .jpg")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist; run: mkdir -p {path.parent}")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory, expected a file name")


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB or [H, W] grey, whole or not at all; the suffix chooses the format.

    Raises UserError when the folder is missing or the suffix is no picture type.
    """
    path = Path(path)
    check_image_path(path)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"expected uint8 [H, W, 3] or [H, W], received {image.dtype} {list(image.shape)}")
    done, encoded = cv2.imencode(path.suffix, image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise UserError(f"cannot write {path}: OpenCV could not encode {list(image.shape)} as {path.suffix}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


@dataclass(frozen=True)
class Letterbox:
    """How a photo of `height` x `width` lies in a square of `size`: scaled to fit, centred, the rest is border."""

    height: int
    width: int
    size: int

    @property
    def scale(self) -> float:
        return min(self.size / self.height, self.size / self.width)

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """float64 [2, 3], photo (x, y, 1) -> canvas (x, y).

        Pixel indices are scaled as they are, without the half-pixel shift of centres: the published checkpoints were
        trained on pictures that were warped so.
        """
        scale = self.scale
        matrix = np.array([[scale, 0.0, (self.size - self.width * scale) / 2],
                           [0.0, scale, (self.size - self.height * scale) / 2]])
        matrix.flags.writeable = False
        return matrix


_PHOTO = "expected a picture as uint8 [H, W, 3] RGB"


def check_photo(image: np.ndarray) -> None:
    """Raise UserError for anything but a photo: uint8 [H, W, 3] with sides that OpenCV's warp takes."""
    if not isinstance(image, np.ndarray):
        raise UserError(f"{_PHOTO}, received {type(image).__name__}; read a file with talent.image.read_image")
    check_photo_layout(image.dtype, image.shape)


def check_photo_layout(dtype: object, shape: Sequence[int]) -> None:
    """The same for what is known of a picture that lies elsewhere. dtype: of NumPy, or its name."""
    if str(dtype) != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise UserError(f"{_PHOTO}, received {dtype} {list(shape)}")
    if not 0 < min(shape[:2]) <= max(shape[:2]) <= _MAX_SIDE:
        raise UserError(f"{_PHOTO} with sides from 1 to {_MAX_SIDE} pixels, received {list(shape)}")


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Fit a photo (uint8 [H, W, 3] RGB) into a square: (uint8 [S, S, 3], where it lies). Raises UserError."""
    check_photo(image)
    if size < 1:
        raise UserError(f"expected a positive image size, received {size}")
    box = Letterbox(height=image.shape[0], width=image.shape[1], size=size)
    canvas = cv2.warpAffine(image, box.matrix, (size, size), flags=cv2.INTER_CUBIC,
                            borderValue=[255 * mean for mean in CLIP_MEAN])
    return canvas, box


def letterbox_mask(mask: np.ndarray, box: Letterbox) -> np.ndarray:
    """Lay a mask (bool [H, W]) where `letterbox` laid its photo: float32 [S, S] in [0, 1], soft at the edge."""
    if mask.shape != (box.height, box.width):
        raise ValueError(f"expected a mask of [{box.height}, {box.width}], received {list(mask.shape)}")
    return cv2.warpAffine(mask.astype(np.float32), box.matrix, (box.size, box.size), flags=cv2.INTER_LINEAR,
                          borderValue=0)


def normalise(canvas: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3] RGB -> float32 [3, S, S] with CLIP's mean 0 and standard deviation 1."""
    planes = np.empty((3, *canvas.shape[:2]), np.float32)
    for channel, plane, mean, std in zip(cv2.split(canvas), planes, CLIP_MEAN, CLIP_STD, strict=True):
        # plane = channel / (255 std) - mean / std, from bytes to float32 in one pass
        cv2.addWeighted(channel, 1 / (255 * std), channel, 0, -mean / std, dst=plane, dtype=cv2.CV_32F)
    return planes


def preprocess(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """A photo (uint8 [H, W, 3] RGB) -> the network's input (float32 [1, 3, S, S]) and where the photo lies in it.

    Raises UserError for a wrong type, number of dimensions or size.
    """
    canvas, box = letterbox(image, size)
    return normalise(canvas)[None], box


def upsample_bicubic(grid: np.ndarray, size: int) -> np.ndarray:
    """float32 [h, w] -> float32 [S, S], bicubic with corners aligned, equal to PyTorch's to rounding."""
    h, w = grid.shape
    return bicubic_matrix(h, size) @ grid @ bicubic_matrix(w, size).T


def _tiles(logits: np.ndarray, box: Letterbox, *,
           above: float) -> Iterator[tuple[tuple[slice, slice], np.ndarray, bool]]:
    """The tiles of the photo that have a probability above `above`, before it is clipped: see talent.photo_mask."""
    if logits.ndim != 2:
        raise ValueError(f"expected logits as [h, w], received {list(logits.shape)}")
    # The logistic function by tanh, which does not overflow for very negative logits.
    probability = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float32, copy=False))  # [h, w]
    (h, w), (x, y) = logits.shape, box.matrix[:, 2].tolist()
    rows = bands(box.height, scale=box.scale, offset=y, canvas=box.size, grid=h, step=TILE_HEIGHT)
    columns = bands(box.width, scale=box.scale, offset=x, canvas=box.size, grid=w, step=TILE_WIDTH)
    return tiles(probability, rows, columns, above=above)


def probability_on_photo(logits: np.ndarray, box: Letterbox) -> np.ndarray:
    """The network's logits (float32 [h, w]) -> the probability of each photo pixel, float32 [H, W] in [0, 1]."""
    photo = np.zeros((box.height, box.width), np.float32)
    for where, tile, _ in _tiles(logits, box, above=0):
        np.clip(tile, 0, 1, out=photo[where])  # cubic interpolation overshoots
    return photo


def binarise(probability: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """float32 [H, W] -> bool [H, W]."""
    return probability > threshold


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The smallest (x0, y0, x1, y1) around bool [H, W], ends excluded; None for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def mask_on_photo(logits: np.ndarray, box: Letterbox,
                  threshold: float = THRESHOLD) -> tuple[np.ndarray, tuple[int, int, int, int] | None, float]:
    """The network's logits (float32 [h, w]) -> (mask bool [H, W], its bounding box, mean probability inside it).

    The mask is `binarise(probability_on_photo(logits, box), threshold)` to the bit, at a fraction of the time: only
    tiles of the photo that can pass the threshold are computed, and the probability is kept nowhere. The bounding box
    is None and the mean 0.0 when the mask is empty. Raises UserError for a threshold outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise UserError(f"expected a threshold from 0 to below 1, received {threshold}")
    mask, total = np.zeros((box.height, box.width), bool), 0.0
    for where, tile, full in _tiles(logits, box, above=threshold):
        _, tile = cv2.threshold(tile, 1, 0, cv2.THRESH_TRUNC, dst=tile)  # clipped as in `probability_on_photo`
        if full:
            mask[where] = True
        else:
            np.greater(tile, threshold, out=mask[where])
            _, tile = cv2.threshold(tile, threshold, 0, cv2.THRESH_TOZERO, dst=tile)  # 0 outside the mask
        total += cv2.sumElems(tile)[0]
    pixels = int(np.count_nonzero(mask))
    return mask, bounding_box(mask), total / pixels if pixels else 0.0


def overlay(image: np.ndarray, mask: np.ndarray, *, color: tuple[int, int, int] = (255, 59, 92),
            opacity: float = 0.45, outline: bool = True) -> np.ndarray:
    """The photo (uint8 [H, W, 3] RGB) with the mask (bool [H, W]) tinted and outlined; a new array."""
    if mask.shape != image.shape[:2]:
        raise ValueError(f"expected a mask of {list(image.shape[:2])}, received {list(mask.shape)}")
    picture = image.copy()
    box = bounding_box(mask)
    if box is None:
        return picture
    x0, y0, x1, y1 = box
    levels = np.arange(256, dtype=np.uint8)[:, None]  # by grey level and channel, because there are few of both
    tinted = np.rint((1 - opacity) * levels + opacity * np.array(color, np.float32)).astype(np.uint8)
    inside = picture[y0:y1, x0:x1]
    cv2.copyTo(cv2.LUT(inside, tinted[None]), mask[y0:y1, x0:x1].astype(np.uint8), inside)
    if outline:
        width = max(2, round(max(mask.shape) / 320))
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A white rim under the coloured line keeps it visible on a background of its own colour.
        cv2.drawContours(picture, contours, -1, (255, 255, 255), width + 2, cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, color, width, cv2.LINE_AA)
    return picture
