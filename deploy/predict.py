"""Find what a sentence means in a picture, a video, a folder or before a camera, from the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.backend_options import add_backend_options, open_segmenter
from deploy.video.frames import DEFAULT_FPS
from deploy.video.sources import is_picture
from deploy.video.stream import predict_stream
from deploy.video.video_file import CODECS, is_video_path
from talent.errors import UserError, command
from talent.files import check_writable
from talent.image import check_image_path, overlay, read_image, save_image

EXAMPLE = """\
example:
  talent-predict bundle/ kitchen.jpg "the red mug on the left" -o overlay.png --mask mask.png
  talent-predict bundle/ kitchen.mp4 "the red mug on the left" -o out.mp4 --smooth 0.6
  talent-predict bundle/ 0 "the red mug on the left" -o out.mp4     (type another sentence meanwhile)
"""
STREAM_ONLY = ("json", "smooth", "script", "sentences_from", "max_frames", "stride", "fps", "codec")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="talent-predict", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="directory that talent-export wrote")
    parser.add_argument("source", help="picture, video, folder of pictures, number of a camera (0) or address "
                                       "(rtsp://, http://) to look in")
    parser.add_argument("sentence", help="what to look for")
    parser.add_argument("-o", "--output", type=Path, metavar="PICTURE|VIDEO|DIR",
                        help="write what was looked in with the object marked: a picture, a video "
                             f"({', '.join(CODECS)}), or a folder for a folder")
    parser.add_argument("--mask", type=Path, metavar="PNG|DIR",
                        help="write the mask: 255 on the object, 0 elsewhere; of a video or folder one for each "
                             "picture, into a folder")
    add_backend_options(parser)
    stream = parser.add_argument_group(
        "videos, folders, cameras and addresses",
        "Every frame of a file is answered, in order. Of a camera, and of an address whose length is not known,\n"
        "the latest frame is answered and what came before it is dropped. Ctrl-C stops: what is written is whole.\n"
        "A line typed in the terminal is the next sentence, an empty one pauses.")
    stream.add_argument("--json", type=Path, metavar="FILE",
                        help="write a line of JSON for each frame, after one about the run")
    stream.add_argument("--smooth", type=float, default=0.0, metavar="A",
                        help="average the probability over the frames so far, each A times the weight of the next, "
                             "from 0 to below 1 (default: 0, off)")
    stream.add_argument("--script", type=Path, metavar="FILE",
                        help="other sentences with times: lines such as `12.5 the red mug`, seconds first")
    stream.add_argument("--sentences-from", metavar="FIFO|-",
                        help="read other sentences from a FIFO, or from standard input, while it runs")
    stream.add_argument("--max-frames", type=int, metavar="N", help="stop after so many answers")
    stream.add_argument("--stride", type=int, default=1, metavar="N",
                        help="answer every N-th frame of a file or folder (default: %(default)s)")
    stream.add_argument("--fps", type=float, metavar="X",
                        help=f"frames per second of the video that is written, and of a folder (default: the source's, "
                             f"{DEFAULT_FPS:g} where it does not say)")
    stream.add_argument("--codec", metavar="FOURCC", help="of the video, such as avc1 (default: by its suffix)")
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
    return predict_picture(arguments) if is_picture(arguments.source) else predict_stream(arguments)


def predict_picture(arguments: argparse.Namespace) -> int:
    """Answer one picture as the arguments say. Returns the exit code."""
    _refuse_stream_options(arguments)
    path = Path(arguments.source)
    _check_outputs(arguments.output, arguments.mask, path)
    image = read_image(path)
    with open_segmenter(arguments.bundle, arguments) as segmenter:
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


def _refuse_stream_options(arguments: argparse.Namespace) -> None:
    defaults = parser()
    for name in STREAM_ONLY:
        if getattr(arguments, name) != defaults.get_default(name):
            raise UserError(f"--{name.replace('_', '-')}: expected a video, a folder, a camera or an address to look "
                            f"in, received the picture {arguments.source}; leave it out")


def _check_outputs(output: Path | None, mask: Path | None, image: Path) -> None:
    if output is not None and is_video_path(output):
        raise UserError(f"cannot write {output}: {image} was taken for one picture, expected .png or .jpg; of an "
                        f"animation make a video first: ffmpeg -i {image} in.mp4")
    for path in filter(None, (output, mask)):
        check_image_path(path)
        check_writable(path)
        if path.resolve() == image.resolve():
            raise UserError(f"will not overwrite the picture {image} with the answer; name another file")
    if mask is not None and mask.suffix.lower() != ".png":
        raise UserError(f"expected --mask to end in .png, received {mask}: a mask needs a format without losses")
    if output is not None and mask is not None and output.resolve() == mask.resolve():
        raise UserError(f"expected --output and --mask to be two files, received {output} for both")


if __name__ == "__main__":
    raise SystemExit(main())
