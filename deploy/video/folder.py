"""A folder of pictures, one after the other."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.video.frames import DEFAULT_FPS, Frame
from talent.errors import UserError
from talent.image import check_photo, read_image

PICTURES = (".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Folder:
    """The pictures in a directory, by name: numbers in names count as numbers, so 2.png comes before 10.png.

    stride: take every so many-th. fps: how fast they follow each other. A picture that cannot be read or used is left
    out and noted. Raises UserError where there is no picture.
    """

    live = False

    def __init__(self, directory: str | Path, *, stride: int = 1, fps: float = DEFAULT_FPS) -> None:
        self.name = str(directory)
        self.fps = fps
        pictures = sorted((path for path in Path(directory).iterdir()
                           if path.suffix.lower() in PICTURES and path.is_file()), key=_natural)
        if not pictures:
            raise UserError(f"{directory}: expected a folder with pictures ({', '.join(PICTURES)}), received none")
        self._pictures = [(index, path) for index, path in enumerate(pictures) if index % stride == 0]
        self.notes: list[str] = []
        self.complete = True

    @property
    def length(self) -> int:
        return len(self._pictures)

    @property
    def names(self) -> list[str]:
        """The files that will be read, without those that `stride` passes over."""
        return [path.name for _, path in self._pictures]

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for index, path in self._pictures:
            if stop.is_set():
                return
            try:
                image = _read(path)
            except UserError as error:
                self.complete = False
                self.notes.append(f"left out: {error}")
                continue
            yield Frame(index=index, seconds=index / self.fps, image=image, name=path.name)

    def close(self) -> None:
        """Nothing is open between two pictures."""


def _read(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB. Raises UserError for what is no picture, and for one of a size that cannot be answered."""
    image = read_image(path)
    try:
        check_photo(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return image


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name.lower())  # text and numbers in turn, so like is compared with like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name
