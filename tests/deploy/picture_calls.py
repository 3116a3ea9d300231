"""The kernels for pictures on a real GPU, called with arrays of the host; torch is the memory."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from deploy.runtime.device_array import DevicePicture
from deploy.runtime.picture_kernels import TOTALS, PictureKernels
from talent.image import Letterbox

TYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], with edges as soft as a lens makes them."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def logits(batch: int, h: int, w: int, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Smooth, as a network gives them: [B, h, w]."""
    coarse = np.random.default_rng(seed).normal(-2, 4, (batch, h // 12 + 2, w // 12 + 2)).astype(np.float32)
    return np.stack([cv2.resize(one, (w, h), interpolation=cv2.INTER_CUBIC) for one in coarse]).astype(dtype)


def to_input(kernels: PictureKernels, image: np.ndarray, size: int, dtype: np.dtype, *, spare: int = 0) -> np.ndarray:
    """uint8 [H, W, 3] -> [3, S, S]; on the GPU rows lie `spare` pixels further apart."""
    height, width = image.shape[:2]
    wide = torch.full((height, width + spare, 3), 201, dtype=torch.uint8, device="cuda")
    wide[:, :width] = torch.from_numpy(image).cuda()
    output = torch.full((3, size, size), torch.nan, dtype=TYPES[dtype], device="cuda")
    picture = DevicePicture(address=wide.data_ptr(), height=height, width=width, stride=wide.stride(0), channels=3,
                            keep=wide, device=wide.device.index)
    kernels.to_input(picture, output=output.data_ptr(), size=size, dtype=dtype, stream=_stream())
    return output.cpu().numpy()


def to_masks(kernels: PictureKernels, values: np.ndarray, letterbox: Letterbox,
             threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, h, w] -> (masks uint8 [B, H, W], TOTALS [B])."""
    given = torch.from_numpy(values).cuda()
    masks = torch.full((len(values), letterbox.height, letterbox.width), 77, dtype=torch.uint8, device="cuda")
    totals = torch.full((len(values) * TOTALS.itemsize,), 255, dtype=torch.uint8, device="cuda")
    kernels.to_masks(given.data_ptr(), dtype=values.dtype, shape=values.shape, letterbox=letterbox,
                     threshold=threshold, masks=masks.data_ptr(), totals=totals.data_ptr(), stream=_stream())
    return masks.cpu().numpy(), totals.cpu().numpy().view(TOTALS)


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream
