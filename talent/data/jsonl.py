"""Referring expressions of one's own: a text file with a JSON object a line, pictures and masks beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from talent.data.annotations import decode_mask, read_mask
from talent.data.sample import Sample
from talent.errors import UserError, suggest
from talent.image import read_image

KEYS = ("image", "expression", "expressions", "mask", "split", "category", "others")


@dataclass(frozen=True)
class Line:
    """One object as its line says it, checked as far as the text goes.

    folder: what paths are relative to. image: path as written, without detours. mask: path of a PNG (str), run lengths
    (dict) or polygons (list), as in `others`. where: "path/data.jsonl:7".
    """

    folder: Path
    where: str
    image: str
    expressions: tuple[str, ...]
    mask: object
    split: str | None = None
    category: str | None = None
    others: tuple[object, ...] = ()

    def read_image(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3] RGB. Raises UserError with file and line."""
        try:
            return read_image(self.folder / self.image)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error

    def read_mask(self, mask: object, size: tuple[int, int] | None) -> np.ndarray | None:
        """`mask` (this line's or one of its others) as bool [H, W] of a picture of (height, width) = size.

        Without a size, because the picture cannot be read, mask files are read all the same and the rest is None.
        Raises UserError with file and line.
        """
        try:
            if isinstance(mask, str):
                return self._read_mask_file(self.folder / mask, size)
            return decode_mask(mask, *size) if size else None
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error

    def _read_mask_file(self, path: Path, size: tuple[int, int] | None) -> np.ndarray:
        pixels = read_mask(path)
        if size and pixels.shape != size:
            turned = pixels.shape == size[::-1]
            raise UserError(f"expected a mask of {size[1]} x {size[0]} pixels, as its picture has, received "
                            f"{pixels.shape[1]} x {pixels.shape[0]}: {path}"
                            + ("; the picture is turned by its EXIF orientation, the mask is not" if turned else ""))
        return pixels


class JsonlDataset:
    """One split of a .jsonl file; a sample is a line. docs/data.md describes the keys.

    negatives: the sentences of the other lines of the picture, in this split, without those that are said of the target
    too. others: the masks that the line lists, and those of lines of the picture that have its category. Lines with the
    same picture and the same mask are one object, so they are neither. In a file where no line has a split, the
    picture's path decides: 80 % of the pictures are train, 10 % val, 10 % test, and a picture keeps its split when
    others are added. Pictures and masks are read when a sample is asked for.
    Raises UserError, with file and line, for the first line that is wrong, and for a split that no line has.
    """

    def __init__(self, path: str | Path, *, split: str) -> None:
        lines, problems = read_lines(path)
        if problems:
            more = f" (and {len(problems) - 1} more; talent-data check {path} lists them)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more}")
        self.split = split
        self.lines = [line for line in lines if line.split == split]
        if not self.lines:
            raise UserError(f"{path}: no line has the split {split!r}{suggest(split, {line.split for line in lines})}"
                            + ("; lines without a split are shared out by picture, and here are too few: write "
                               "\"split\" in every line" if all(map(_is_shared_out, lines)) else ""))
        self._lines_of: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            self._lines_of[line.image].append(line)

    @property
    def expression_count(self) -> int:
        """Sentences in all samples together."""
        return sum(len(line.expressions) for line in self.lines)

    @property
    def picture_count(self) -> int:
        """Pictures that samples show."""
        return len(self._lines_of)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Sample:
        """The sample of this index (0 <= index < len). Raises UserError where its picture or masks cannot be had."""
        if not 0 <= index < len(self.lines):
            raise IndexError(f"index {index} is outside 0..{len(self.lines) - 1}")
        return load(self.lines[index], self._lines_of[self.lines[index].image])


def load(line: Line, same_picture: list[Line]) -> Sample:
    """A line as a sample. same_picture: all lines of its picture in its split. Raises UserError with file and line."""
    image = line.read_image()
    own = {text.casefold() for text in line.expressions}
    different = [other for other in same_picture if other.mask != line.mask]
    negatives = (text for other in different for text in other.expressions if text.casefold() not in own)
    alike = [other.mask for other in different if line.category is not None and other.category == line.category]
    others: list[object] = []
    for mask in (*line.others, *alike):
        if mask != line.mask and mask not in others:
            others.append(mask)
    return Sample(image=image, mask=line.read_mask(line.mask, image.shape[:2]), expressions=line.expressions,
                  negatives=tuple(dict.fromkeys(negatives)),
                  others=tuple(line.read_mask(mask, image.shape[:2]) for mask in others),
                  name=os.path.basename(line.where))


def read_lines(path: str | Path) -> tuple[list[Line], list[str]]:
    """All lines that make sense, each with its split, and what is wrong with the others ("data.jsonl:7: ...").

    Empty lines are passed over. Raises UserError when the file is missing or holds no line at all.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines: list[Line] = []
    problems: list[str] = []
    for number, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if text.strip():
            try:
                lines.append(_parse(text, folder=path.parent, where=f"{path}:{number}"))
            except UserError as error:
                problems.append(str(error))
    if not lines and not problems:
        raise UserError(f"{path} is empty; expected a JSON object a line, as docs/data.md describes")
    return _with_splits(lines, problems), problems


def _is_shared_out(line: Line) -> bool:
    return line.split == split_of(line.image)


def _with_splits(lines: list[Line], problems: list[str]) -> list[Line]:
    """Give every line a split where none has one; where some have, the others are problems."""
    lacking = [line for line in lines if line.split is None]
    having = [line for line in lines if line.split is not None]
    if not having:
        return [replace(line, split=split_of(line.image)) for line in lines]
    problems += [f"{line.where}: expected 'split' in every line or in none, received none here and "
                 f"{having[0].split!r} in line {having[0].where.rpartition(':')[2]}" for line in lacking]
    return having


def split_of(image: str) -> str:
    """train, val or test by a hash of the picture's path, as it is written in the file."""
    place = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") % 100
    return "train" if place < 80 else "val" if place < 90 else "test"


def _parse(text: bytes, *, folder: Path, where: str) -> Line:
    try:
        values = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected text in UTF-8, received the byte {text[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected a JSON object on one line, received something else ({error.msg} at column "
                        f"{error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: expected a JSON object on one line, received one too deep or with a number too "
                        "long") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object {{\"image\": ...}}, received {type(values).__name__}")
    for key in values:
        if key not in KEYS:
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, KEYS)}")
    values = {key: value for key, value in values.items() if value is not None}  # tables are often exported with nulls
    return Line(folder=folder, where=where, image=_path(_text(values, "image", where), where),
                expressions=_expressions(values, where), mask=_mask(values.get("mask"), "mask", where),
                split=_text(values, "split", where) if "split" in values else None,
                category=_text(values, "category", where) if "category" in values else None,
                others=_others(values, where))


def _text(values: dict, key: str, where: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected {key!r} as text, received {_shown(value)}")
    return value.strip()


def _path(text: str, where: str) -> str:
    """A path without detours, so that one file has one name."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: expected a path, received {text!r}")
    return os.path.normpath(text)


def _expressions(values: dict, where: str) -> tuple[str, ...]:
    if ("expression" in values) == ("expressions" in values):
        count = "both" if "expression" in values else "none"
        raise UserError(f"{where}: expected either 'expression' (text) or 'expressions' (a list), received {count}")
    texts = [values["expression"]] if "expression" in values else values["expressions"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{where}: expected an expression that has words, or a list of such, received "
                        f"{_shown(values.get('expression', texts))}")
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _mask(value: object, key: str, where: str) -> object:
    """The mask as it is, a path without detours."""
    if isinstance(value, str) and value.strip():
        return _path(value.strip(), where)
    if not isinstance(value, (dict, list)) or not value:
        raise UserError(f"{where}: expected {key!r} as the path of a PNG file, COCO polygons or COCO run lengths, "
                        f"received {_shown(value)}")
    return value


def _others(values: dict, where: str) -> tuple[object, ...]:
    others = values.get("others", [])
    if not isinstance(others, list):
        raise UserError(f"{where}: expected 'others' as a list of masks, received {_shown(others)}")
    return tuple(_mask(mask, "others", where) for mask in others)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
