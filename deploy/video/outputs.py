"""What is written besides a video: pictures in a folder, and answers as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from deploy.video.answering import Answer
from talent.errors import UserError
from talent.files import atomic_directory, atomic_write


class PictureFolder:
    """Pictures, each in a file of its own. See `picture_folder`."""

    def __init__(self, directory: Path, *, name: Path) -> None:
        self._directory, self._name = directory, name
        self.written = 0

    def write(self, name: str, image: np.ndarray) -> None:
        """uint8 [H, W, 3] RGB or [H, W] grey; the suffix chooses the format. Raises UserError where it refuses."""
        suffix = Path(name).suffix
        bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(suffix, bgr)
        if not done:
            raise UserError(f"cannot write {self._name / name}: OpenCV could not encode {list(image.shape)} as "
                            f"{suffix}")
        with writing(self._name / name):
            (self._directory / name).write_bytes(encoded)
        self.written += 1


class AnswerLines:
    """Answers as JSON, a line each. See `answer_lines`."""

    def __init__(self, file: TextIO, *, name: Path) -> None:
        self._file, self._name = file, name

    def write(self, answer: Answer) -> None:
        self.write_record(answer_record(answer))

    def write_record(self, record: Mapping[str, Any]) -> None:
        with writing(self._name):
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def answer_record(answer: Answer) -> dict[str, Any]:
    """One answer as JSON takes it. box: x0, y0, x1, y1 in pixels, null where nothing was found; sentence, box and score
    are null while nothing is looked for; picture is there where the source is a folder.
    """
    result, frame = answer.result, answer.frame
    record = {"frame": frame.index, "seconds": round(frame.seconds, 6), "sentence": answer.sentence,
              "box": list(result.box) if result is not None and result.box is not None else None,
              "score": round(result.score, 6) if result is not None else None}
    return {**record, "picture": frame.name} if frame.name else record


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Meanwhile an OSError, such as a full disk, becomes a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}") from error


@contextlib.contextmanager
def picture_folder(directory: str | Path) -> Iterator[PictureFolder]:
    """A folder to write pictures to; it becomes `directory` when the block ends well and vanishes when it raises.

    Raises UserError, before anything is written, where `directory` has something in it.
    """
    with atomic_directory(directory) as temporary:
        yield PictureFolder(temporary, name=Path(directory))


@contextlib.contextmanager
def answer_lines(path: str | Path, header: Mapping[str, Any]) -> Iterator[AnswerLines]:
    """A file to write answers to, after a line with `header`; it becomes `path` when the block ends well."""
    with atomic_write(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            lines = AnswerLines(file, name=Path(path))
            lines.write_record(header)
            yield lines
            with writing(Path(path)):
                file.flush()
