"""Representative calls of the kernels for pictures for the tools of compute-sanitizer; as sanitize_rca.py for RCA.

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/csrc/sanitize_pictures.py
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before PyTorch is loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests are not installed

from deploy.runtime.picture_kernels import PictureKernels, installed_kernels  # noqa: E402
from talent.errors import UserError, command  # noqa: E402
from talent.image import Letterbox, mask_on_photo, preprocess  # noqa: E402
from talent.native import BUILD  # noqa: E402
from tests.deploy.picture_calls import TYPES, logits, photo, to_input, to_masks  # noqa: E402

PHOTOS = ((1, 1), (1, 150), (37, 53), (61, 40), (128, 96), (720, 1280))  # H, W
SIZES = (28, 126, 448)
INPUT_ERROR = 0.05  # of normalised values, which cover about four: some grey levels
MASK_ERROR = 2e-3  # share of the pixels
EXAMPLE = """example:
  compute-sanitizer --tool memcheck --error-exitcode 1 python tests/csrc/sanitize_pictures.py
"""


def check(kernels: PictureKernels, shape: tuple[int, int], size: int, dtype: np.dtype, spare: int) -> None:
    """A photo to the input, and logits of two expressions to masks. Raises UserError where a result is wrong."""
    image, letterbox = photo(*shape), Letterbox(*shape, size)
    values = logits(2, max(size // 4, 1), max(size // 4, 1), dtype)
    error = np.abs(to_input(kernels, image, size, dtype, spare=spare) - preprocess(image, size)[0][0]).mean()
    masks, _ = to_masks(kernels, values, letterbox, 0.35)
    wrong = max(np.mean((mask > 0) != mask_on_photo(own.astype(np.float32), letterbox, 0.35)[0])
                for mask, own in zip(masks, values, strict=True))
    if not (error <= INPUT_ERROR and wrong <= MASK_ERROR):
        raise UserError(f"wrong result for a photo of {shape} at {size} px, {dtype}: expected a mean error of the "
                        f"input of at most {INPUT_ERROR} and of {MASK_ERROR} of the pixels, received {error:.1e} and "
                        f"{wrong:.1e}; run: pytest -m gpu tests/deploy/test_picture_gpu.py")


@command("sanitize_pictures.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sanitize_pictures.py", description=__doc__.partition("\n")[0],
                                     epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("expected a GPU that PyTorch can use, received none; run this on a machine that has one")
    if (kernels := installed_kernels()) is None:
        raise UserError(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    calls = list(product(PHOTOS, SIZES, TYPES, (0, 3)))
    for call in tqdm(calls, desc="pictures", unit="call", leave=False, disable=None):
        check(kernels, *call)
    print(f"{len(calls)} calls were right")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
