"""Find what a sentence means in a picture, from the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtime.segmenter import BACKENDS, Segmenter
from talent.errors import UserError, command
from talent.image import check_image_path, overlay, read_image, save_image

EXAMPLE = """\
example:
  talent-predict bundle/ kitchen.jpg "the red mug on the left" -o overlay.png --mask mask.png
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="talent-predict", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="directory that talent-export wrote")
    parser.add_argument("image", type=Path, help="picture to look in")
    parser.add_argument("sentence", help="what to look for")
    parser.add_argument("-o", "--output", type=Path, metavar="PICTURE", help="write the picture with the object marked")
    parser.add_argument("--mask", type=Path, metavar="PNG", help="write the mask: 255 on the object, 0 elsewhere")
    parser.add_argument("--threshold", type=float, help="probability above which a pixel belongs to the object "
                                                        "(default: the bundle's)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto",
                        help="what runs the network (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for onnxruntime (default: one per core)")
    return parser


class Stopwatch:
    """Runs steps and keeps how long each took."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def __call__(self, stage: str, step: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = step(*arguments)
        self.milliseconds[stage] = 1000 * (time.perf_counter() - start)
        return result

    def __str__(self) -> str:
        return "  ".join(f"{stage} {value:.1f}" for stage, value in self.milliseconds.items())


@command("talent-predict")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.sentence.strip():
        raise UserError('expected a sentence that names an object, received an empty one; for example "the red mug"')
    _check_outputs(arguments.output, arguments.mask, arguments.image)
    image = read_image(arguments.image)
    with Segmenter(arguments.bundle, arguments.backend, threads=arguments.threads,
                   threshold=arguments.threshold) as segmenter:
        watch = Stopwatch()
        prompt = watch("text", segmenter.encode, arguments.sentence)
        tensor, letterbox = watch("preprocess", segmenter.preprocess, image)
        logits = watch("vision", segmenter.infer, tensor, prompt)
        result = watch("postprocess", segmenter.postprocess, logits, letterbox)
        reasons = f" ({'; '.join(segmenter.auto_report)})" if segmenter.auto_report else ""
        print(f"backend: {segmenter.backend.name}{reasons}")
    print(f"box: {'none' if result.box is None else '{} {} {} {}'.format(*result.box)}")
    print(f"score: {result.score:.3f}")
    print(f"milliseconds (first run): {watch}")

    written = []
    if arguments.output:
        save_image(arguments.output, overlay(image, result.mask))
        written.append(f"the overlay to {arguments.output}")
    if arguments.mask:
        save_image(arguments.mask, result.mask.astype(np.uint8) * 255)
        written.append(f"the mask to {arguments.mask}")
    print(f"wrote {' and '.join(written)}" if written else "wrote nothing; add -o overlay.png to see the answer")
    return 0


def _check_outputs(output: Path | None, mask: Path | None, image: Path) -> None:
    for path in filter(None, (output, mask)):
        check_image_path(path)
        if path.resolve() == image.resolve():
            raise UserError(f"will not overwrite the picture {image} with the answer; name another file")
    if mask is not None and mask.suffix.lower() != ".png":
        raise UserError(f"expected --mask to end in .png, received {mask}: a mask needs a format without losses")
    if output is not None and mask is not None and output.resolve() == mask.resolve():
        raise UserError(f"expected --output and --mask to be two files, received {output} for both")


if __name__ == "__main__":
    raise SystemExit(main())
