"""Where a calibration set is chosen from: the samples of a data set, or a folder of pictures with sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from talent.data.registry import DATASETS, open_dataset
from talent.data.sample import Samples
from talent.errors import UserError, suggest
from talent.image import read_image

SENTENCES = "sentences.txt"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Source:
    """Where candidates come from. data: a data set, or the name of a file or folder without its path. split: None for
    a folder. size: side S of the network's input, and of the pictures that shapes draws.
    """

    data: str
    split: str | None
    size: int


@dataclass(frozen=True)
class Candidate:
    """image: uint8 [H, W, 3] RGB. expressions: what may be asked of it (at least one). name: its place in the source,
    for messages, without the path of this machine.
    """

    image: np.ndarray
    expressions: tuple[str, ...]
    name: str


class Candidates(Protocol):
    """Pictures to choose from: `candidates[i]` for 0 <= i < len(candidates) reads or makes one Candidate."""

    source: Source

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Candidate: ...


class DatasetCandidates:
    """The samples of a data set."""

    def __init__(self, samples: Samples, source: Source) -> None:
        self.samples, self.source = samples, source

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Candidate:
        """Raises UserError where the sample cannot be had."""
        sample = self.samples[index]
        name = sample.name or f"{self.source.data} {self.source.split} {index}"
        return Candidate(sample.image, sample.expressions, name)


class FolderCandidates:
    """The pictures of a folder (not of the folders in it), by name; each may be asked every sentence of a text file.

    sentences: the file, one sentence a line, UTF-8, empty lines passed over; None for sentences.txt in the folder.
    Raises UserError for a missing folder, one without pictures, and a file that is missing, empty or not UTF-8.
    """

    def __init__(self, folder: str | Path, sentences: str | Path | None = None, *, size: int) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"expected a folder of pictures, received {self.folder}, which is none")
        self.source = Source(self.folder.resolve().name, None, size)
        try:
            self.names = sorted(path.name for path in self.folder.iterdir()
                                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file())
        except OSError as error:
            raise UserError(f"cannot list the pictures of {self.folder}: {error.strerror}") from error
        if not self.names:
            raise UserError(f"{self.folder} has no pictures; expected files that end with {', '.join(SUFFIXES)}")
        self.sentences = _read_sentences(self.folder / SENTENCES if sentences is None else Path(sentences))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Candidate:
        """Raises UserError, with the path, where the picture cannot be read."""
        if not 0 <= index < len(self.names):
            raise IndexError(f"index {index} is outside 0..{len(self.names) - 1}")
        return Candidate(read_image(self.folder / self.names[index]), self.sentences, self.names[index])


def _read_sentences(path: Path) -> tuple[str, ...]:
    """The sentences of a text file in order, without repetitions. Raises UserError."""
    expected = "expected a text file with the sentences that the pictures may be asked, one a line"
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}; {expected}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {expected}") from error
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: expected text in UTF-8, received the byte {content[error.start]:#04x}; save "
                        "the file as UTF-8") from error
    sentences = tuple(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
    if not sentences:
        raise UserError(f"{path} holds no sentence; {expected}")
    return sentences


def open_candidates(source: str | Path, *, size: int, sentences: str | Path | None = None, split: str = "train",
                    root: str | Path | None = None) -> Candidates:
    """The pictures of a data set (talent.data.registry.DATASETS, a .jsonl file) or of a folder.

    size: side S of the network's input. sentences: a folder's text file (FolderCandidates). split, root: of a data set.
    A folder that is called like a data set needs a path (./shapes). Raises UserError for an unknown source and as
    `open_dataset` and `FolderCandidates` do.
    """
    if size < 1:
        raise UserError(f"expected a positive image size, received {size}")
    name = str(source)
    if name not in DATASETS and not name.endswith(".jsonl"):
        if not Path(source).is_dir():
            raise UserError(f"expected a folder of pictures, a .jsonl file or a data set, received {name!r}, which is "
                            f"none of them{suggest(name, DATASETS)}")
        return FolderCandidates(source, sentences, size=size)
    if sentences is not None:
        raise UserError(f"expected a file of sentences beside a folder of pictures only, received {sentences} beside "
                        f"{name}, which has its own sentences; leave it out")
    samples = open_dataset(name, split=split, size=size, root=root)
    return DatasetCandidates(samples, Source(Path(name).name, split, size))
