"""Pictures in, masks out: everything between a photo and the network's tensors, for training and runtime alike.

NumPy and OpenCV only. Letters: H, W photo; S square input of the network; h, w grid of the logits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talent.errors import UserError
from talent.files import atomic_write

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB; the published checkpoints were trained with these,
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)  # not with ImageNet's
THRESHOLD = 0.35  # probability above which a pixel belongs to the object
BICUBIC_A = -0.75  # Keys' coefficient as PyTorch and OpenCV set it
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


def _check_photo(image: np.ndarray) -> None:
    expected = "expected a picture as uint8 [H, W, 3] RGB"
    if not isinstance(image, np.ndarray):
        raise UserError(f"{expected}, received {type(image).__name__}; read a file with talent.image.read_image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{expected}, received {image.dtype} {list(image.shape)}")
    if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) <= _MAX_SIDE:
        raise UserError(f"{expected} with sides from 1 to {_MAX_SIDE} pixels, received {list(image.shape)}")


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Fit a photo (uint8 [H, W, 3] RGB) into a square: (uint8 [S, S, 3], where it lies). Raises UserError."""
    _check_photo(image)
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
    planes = np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32)  # [3, S, S]
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    planes *= 1 / (255 * std)
    planes -= mean / std
    return planes


def preprocess(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """A photo (uint8 [H, W, 3] RGB) -> the network's input (float32 [1, 3, S, S]) and where the photo lies in it.

    Raises UserError for a wrong type, number of dimensions or size.
    """
    canvas, box = letterbox(image, size)
    return normalise(canvas)[None], box


@functools.lru_cache(maxsize=16)
def _bicubic_matrix(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: `M @ x` is PyTorch's bicubic interpolation of x with align_corners=True."""
    matrix = np.zeros((target, source))
    position = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    first = np.floor(position).astype(int)
    for tap in range(-1, 3):
        distance = np.abs(position - (first + tap))
        near = ((BICUBIC_A + 2) * distance - (BICUBIC_A + 3)) * distance**2 + 1
        far = ((BICUBIC_A * distance - 5 * BICUBIC_A) * distance + 8 * BICUBIC_A) * distance - 4 * BICUBIC_A
        weight = np.where(distance <= 1, near, far)
        # Taps beyond the edge repeat the edge, so one source pixel may collect several weights.
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), weight)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def upsample_bicubic(grid: np.ndarray, size: int) -> np.ndarray:
    """float32 [h, w] -> float32 [S, S], bicubic with corners aligned, equal to PyTorch's to rounding."""
    h, w = grid.shape
    return _bicubic_matrix(h, size) @ grid @ _bicubic_matrix(w, size).T


def probability_on_photo(logits: np.ndarray, box: Letterbox) -> np.ndarray:
    """The network's logits (float32 [h, w]) -> the probability of each photo pixel, float32 [H, W] in [0, 1]."""
    if logits.ndim != 2:
        raise ValueError(f"expected logits as [h, w], received {list(logits.shape)}")
    # The logistic function by tanh, which does not overflow for very negative logits.
    probability = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float32, copy=False))  # [h, w]
    canvas = upsample_bicubic(probability, box.size)  # [S, S]
    photo = cv2.warpAffine(canvas, box.matrix, (box.width, box.height),
                           flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderValue=0)  # [H, W]
    return np.clip(photo, 0, 1, out=photo)  # cubic interpolation overshoots


def binarise(probability: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """float32 [H, W] -> bool [H, W]."""
    return probability > threshold


def overlay(image: np.ndarray, mask: np.ndarray, *, color: tuple[int, int, int] = (255, 59, 92),
            opacity: float = 0.45, outline: bool = True) -> np.ndarray:
    """The photo (uint8 [H, W, 3] RGB) with the mask (bool [H, W]) tinted and outlined; a new array."""
    if mask.shape != image.shape[:2]:
        raise ValueError(f"expected a mask of {list(image.shape[:2])}, received {list(mask.shape)}")
    picture = image.copy()
    tint = np.array(color, np.float32)
    picture[mask] = np.rint((1 - opacity) * image[mask] + opacity * tint).astype(np.uint8)
    if outline:
        width = max(2, round(max(mask.shape) / 320))
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A white rim under the coloured line keeps it visible on a background of its own colour.
        cv2.drawContours(picture, contours, -1, (255, 255, 255), width + 2, cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, color, width, cv2.LINE_AA)
    return picture
