"""A video, written frame by frame through OpenCV, whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from deploy.video.captures import quiet
from talent.errors import UserError
from talent.files import atomic_write, check_writable

CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}  # what every build of OpenCV with FFmpeg can write


def is_video_path(path: str | Path) -> bool:
    return Path(path).suffix.lower() in CODECS


def check_video(path: str | Path, codec: str | None = None) -> None:
    """Raise UserError where `video_file(path, ...)` would: ask before the work, not after it.

    codec: four letters, None for that of the suffix. OpenCV is asked by beginning a small video.
    """
    suffix = Path(path).suffix
    if not is_video_path(path):
        raise UserError(f"cannot write {path}: unknown video type {suffix!r}; expected one of {', '.join(CODECS)}")
    if codec is not None and len(codec) != 4:
        raise UserError(f"--codec: expected four letters, such as mp4v, received {codec!r}")
    check_writable(path)
    with tempfile.TemporaryDirectory() as directory:
        writer = _open(Path(directory) / f"probe{suffix}", codec, fps=30.0, size=(64, 64))
        if writer is None:
            raise UserError(f"cannot write {path}: this OpenCV {cv2.__version__} cannot write {suffix} with the codec "
                            f"{codec or CODECS[suffix.lower()]}; leave --codec out, or name another file, such as "
                            f"{Path(path).with_suffix('.avi')}")
        writer.release()


def _open(path: Path, codec: str | None, *, fps: float, size: tuple[int, int]) -> cv2.VideoWriter | None:
    with quiet():
        letters = codec or CODECS[path.suffix.lower()]
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*letters), fps, size)
    return writer if writer.isOpened() else None


class VideoFile:
    """Frames of one size, that of the first. See `video_file`."""

    def __init__(self, path: Path, *, name: Path, fps: float, codec: str | None, live: bool) -> None:
        self._path, self._name, self._fps, self._codec, self._live = path, name, fps, codec, live
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # width, height
        self._start = 0.0  # second of the first frame
        self.written = 0
        self.fitted = 0  # frames that had another size

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Append uint8 [H, W, 3] RGB that was taken at a time. Raises UserError where the codec refuses its size."""
        if self._writer is None:
            self._begin(image)
            self._start = seconds
        if image.shape[1::-1] != self._size:
            image = fit(image, self._size)
            self.fitted += 1
        frame = cv2.cvtColor(_even(image), cv2.COLOR_RGB2BGR)
        # A live source gives frames when it can: each is shown until the next one, so that a second takes a second.
        times = round((seconds - self._start) * self._fps) + 1 - self.written if self._live else 1
        for _ in range(times):
            self._writer.write(frame)
            self.written += 1

    def _begin(self, image: np.ndarray) -> None:
        self._size = image.shape[1::-1]
        height, width = _even(image).shape[:2]
        self._writer = _open(self._path, self._codec, fps=self._fps, size=(width, height))
        if self._writer is None:
            raise UserError(f"cannot write {self._name}: the codec {self._codec or CODECS[self._path.suffix.lower()]} "
                            f"refuses {width} x {height} pixels at {self._fps:g} frames per second; name a file that "
                            "ends in .avi, or say --fps 30")

    def finish(self) -> None:
        """OpenCV does not tell when the disk is full: read back whether the video is there. Raises UserError."""
        self.release()
        reader = cv2.VideoCapture(str(self._path))
        there = reader.isOpened() and reader.read()[0]
        count = reader.get(cv2.CAP_PROP_FRAME_COUNT)
        reader.release()
        if not there or count < 0.98 * self.written - 2:
            raise UserError(f"cannot write {self._name}: {self.written} frames were written and "
                            f"{count if there else 0:.0f} are in the file; is the disk full? see: df -h .")

    def release(self) -> None:
        if self._writer is not None:
            self._writer.release()


@contextlib.contextmanager
def video_file(path: str | Path, *, fps: float, codec: str | None = None, live: bool = False) -> Iterator[VideoFile]:
    """A video to write frames to; it becomes `path` when the block ends well and vanishes when it raises.

    Frames of another size than the first are fitted into it, on black. live: repeat and leave out frames so that the
    video runs at the speed of the world, whenever the frames came. Raises UserError where it cannot be written.
    """
    with atomic_write(path) as temporary:
        file = VideoFile(temporary, name=Path(path), fps=fps, codec=codec, live=live)
        try:
            yield file
            file.finish()
        finally:
            file.release()


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [H, W, 3] for size (W, H): scaled, not distorted, centred on black."""
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    width, height = (max(1, round(scale * side)) for side in image.shape[1::-1])
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[y:y + height, x:x + width] = cv2.resize(image, (width, height), interpolation=shrinks)
    return canvas


def _even(image: np.ndarray) -> np.ndarray:
    """With the last row and column again where their number is odd: codecs take even sizes, and OpenCV would cut."""
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
