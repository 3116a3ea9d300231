"""The calibration set of INT8: pictures and sentences that cover what the network will see, chosen and written down.

A set is a list of places in its source, with the digest of every picture; the pictures are read when their turn comes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.candidates import Candidates, Source
from calibration.coverage import FEATURES, Space, covering, distances, features, gaps, spread_lengths
from talent.data.sample import evenly
from talent.errors import UserError
from talent.files import atomic_write
from talent.image import preprocess
from talent.require import require
from talent.tokenizer import Tokenizer

FORMAT = 1
COUNT, POOL = 128, 1024
FEWEST = 32  # pictures; ranges of fewer hang on what single pictures happen to show
FAR = 1.4
"""Beyond this ratio of distances an evaluation set is not what was calibrated on.

Measured with 32, 64 and 128 samples of shapes' train, three seeds each: its val and test give 1.04 to 1.12 (and 1.34
in the worst of 900 drawings of eight pictures of val); shapes-shifted gives 2.2 to 2.4, inverted colours 1.6 to 1.7,
half the brightness 1.7 to 1.9, a blur of 4 % of the side 2.4 to 2.7, grain 3.9, noise 5. A blur of 1 % is where it
begins: 1.3 to 1.4.
"""
_AGAIN = "choose the calibration set again"


@dataclass(frozen=True)
class Entry:
    """One sample. index, name: the picture's place in its source. sha256: of the picture, see `picture_digest`."""

    index: int
    name: str
    expression: str
    sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """What was chosen: iterate it for the network's inputs, any number of times, one sample in memory at a time.

    pool: candidates that were looked at. space: the scale of their features. normal: distance of the usual candidate
    that was not chosen from the nearest that was (median). candidates, tokenizer: what the samples are read with.
    """

    entries: tuple[Entry, ...]
    source: Source
    seed: int
    pool: int
    space: Space
    normal: float
    candidates: Candidates = field(repr=False, compare=False)
    tokenizer: Tokenizer = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """image float32 [1, 3, S, S] and tokens int64 [1, L] of each sample in turn.

        Raises UserError where a picture is not the one that was chosen.
        """
        for entry in self.entries:
            yield preprocess(self.picture(entry), self.source.size)[0], self.tokenizer([entry.expression])

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the pictures and expressions in order; names and places do not count."""
        content = [[entry.sha256, entry.expression] for entry in self.entries]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Digest of what the network is fed: pictures, tokens and the side of its input."""
        tokens = self.tokenizer([entry.expression for entry in self.entries])
        return hashlib.sha256(f"{self.digest} {self.source.size}".encode() + tokens.tobytes()).hexdigest()

    def thinned(self, count: int) -> CalibrationSet:
        """At most `count` of the samples, taken evenly."""
        count = min(count, len(self))
        return replace(self, entries=tuple(self.entries[number] for number in evenly(len(self), count)))

    @property
    def pictures(self) -> list[Entry]:
        """One entry of each picture."""
        return list({entry.sha256: entry for entry in self.entries}.values())

    def picture(self, entry: Entry) -> np.ndarray:
        """The picture of an entry, uint8 [H, W, 3] RGB. Raises UserError where its source has another one there."""
        place = f"{entry.name} (picture {entry.index} of {self.source.data})"
        if entry.index >= len(self.candidates):
            raise UserError(f"{place}: expected at least {entry.index + 1} pictures in the source, received "
                            f"{len(self.candidates)}; bring back what is missing, or {_AGAIN}")
        candidate = self.candidates[entry.index]
        received = picture_digest(candidate.image)
        if received != entry.sha256:
            raise UserError(f"{place}: expected the picture with SHA-256 {entry.sha256}, received {received} "
                            f"({candidate.name}): the source has changed since the set was chosen; bring back the "
                            f"picture, or {_AGAIN}")
        return candidate.image

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it, without the pictures."""
        return {"format": FORMAT, "digest": self.digest, "source": asdict(self.source), "seed": self.seed,
                "pool": self.pool, "normal": self.normal, "space": asdict(self.space),
                "samples": [asdict(entry) for entry in self.entries]}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all. Raises UserError where the file cannot be written."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, candidates: Candidates, tokenizer: Tokenizer) -> CalibrationSet:
        """Read what `save` wrote; `candidates` is the same source again, and its pictures are compared when read.

        Raises UserError for a missing or damaged file, and for candidates of another size.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"no such calibration set: {path}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected a calibration set as JSON, received something else ({error}); "
                            f"{_AGAIN}") from error
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise UserError(f"{path}: expected a calibration set of format {FORMAT}, received "
                            f"{content.get('format')!r}; {_AGAIN}")
        try:
            loaded = cls(tuple(_record(Entry, entry) for entry in content["samples"]),
                         _record(Source, content["source"]), int(content["seed"]), int(content["pool"]),
                         Space(*(tuple(map(float, content["space"][name])) for name in ("mean", "spread"))),
                         float(content["normal"]), candidates, tokenizer)
            whole = loaded.digest == content["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a calibration set ({type(error).__name__}: {error}); {_AGAIN}") from error
        if not whole or not loaded.entries or {len(loaded.space.mean), len(loaded.space.spread)} != {FEATURES}:
            raise UserError(f"{path}: expected samples with the digest {content['digest']} and {FEATURES} features, "
                            f"received {len(loaded)} samples with {loaded.digest} and {len(loaded.space.mean)} "
                            f"features: the file was changed; {_AGAIN}")
        if loaded.source.size != candidates.source.size:
            raise UserError(f"{path}: expected candidates for an image size of {loaded.source.size}, received "
                            f"{candidates.source.size}; open them with that size, or {_AGAIN}")
        return loaded


def _record(kind: type, content: dict[str, Any]) -> Any:
    """An Entry or Source from JSON. Raises TypeError for missing and unknown fields, and for a wrong type."""
    allowed = {"int": int, "str": str, "str | None": (str, type(None))}
    record = kind(**content)
    for each in fields(kind):
        value = getattr(record, each.name)
        if not isinstance(value, allowed[each.type]) or isinstance(value, int) and value < 0:
            raise TypeError(f"{each.name} is {value!r}")
    return record


def picture_digest(image: np.ndarray) -> str:
    """Hexadecimal SHA-256 of a picture's shape and pixels (uint8 [H, W, 3])."""
    return hashlib.sha256(f"{list(image.shape)}".encode() + image.tobytes()).hexdigest()


@dataclass
class _Picture:
    """A picture of the pool. places: (index, name, expressions) wherever the source has it."""

    sha256: str
    features: np.ndarray
    places: list[tuple[int, str, tuple[str, ...]]] = field(default_factory=list)

    def entries(self) -> list[Entry]:
        """All that may be asked of it, each expression once."""
        found: dict[str, Entry] = {}
        for index, name, expressions in self.places:
            for text in expressions:
                found.setdefault(text, Entry(index, name, text, self.sha256))
        return list(found.values())


def choose(candidates: Candidates, *, tokenizer: Tokenizer, count: int = COUNT, seed: int = 0,
           pool: int = POOL) -> CalibrationSet:
    """`count` samples that cover the candidates: different pictures, and sentences from the shortest to the longest.

    pool: at most so many candidates are looked at (or `count`, if that is more), at even distances; one picture is in
    memory at a time. Where there are fewer pictures than `count`, they come again with other sentences, and where there
    are fewer pairs of picture and sentence, each comes once. The same candidates, count, seed and pool give the same
    set. Raises UserError for candidates that cannot be read, and for a count or pool out of range.
    """
    for name, value, least in (("count", count, 1), ("pool", pool, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, received {value}")
    if not len(candidates):
        raise UserError(f"expected pictures to calibrate on, received none: {candidates.source.data} is empty")
    size = min(max(pool, count), len(candidates))
    pictures, said = _read_pool(candidates, evenly(len(candidates), size))
    measured = np.array([picture.features for picture in pictures])  # [N, D]
    space = Space.of(measured)
    points = space.points(measured)
    times = _times(points, [len({text for *_, texts in picture.places for text in texts}) for picture in pictures],
                   count, seed)
    chosen = np.flatnonzero(times)  # [K]

    texts = dict.fromkeys(text for expressions in said for text in expressions)
    lengths = {text: int(tokenizer([text])[0].argmax()) + 1 for text in texts}  # the end token has the largest id

    def histogram(expressions: Iterable[str]) -> np.ndarray:
        return np.bincount([lengths[text] for text in expressions], minlength=tokenizer.context_length + 1)

    possible = [pictures[number].entries() for number in chosen]
    available = np.array([histogram(entry.expression for entry in entries) for entries in possible])
    among = sum(times_said * histogram(expressions) for expressions, times_said in said.items())
    entries: list[Entry] = []
    used: Counter[str] = Counter()
    for row, length in spread_lengths(available, times[chosen], among):
        fitting = (entry for entry in possible[row] if lengths[entry.expression] == length)
        entry = min(fitting, key=lambda entry: used[entry.expression])
        possible[row].remove(entry)
        used[entry.expression] += 1
        entries.append(entry)
    return CalibrationSet(tuple(sorted(entries, key=lambda entry: entry.index)), candidates.source, seed, size, space,
                          _normal(points, chosen), candidates, tokenizer)


def _read_pool(candidates: Candidates, indices: Sequence[int]) -> tuple[list[_Picture], Counter[tuple[str, ...]]]:
    """The different pictures at these places, and how often each tuple of expressions stands there."""
    pictures: dict[str, _Picture] = {}
    said: Counter[tuple[str, ...]] = Counter()
    for index in _progress(indices, "calibration pool"):
        candidate = candidates[index]
        digest = picture_digest(candidate.image)
        if digest not in pictures:
            pictures[digest] = _Picture(digest, features(candidate.image))
        pictures[digest].places.append((index, candidate.name, candidate.expressions))
        said[candidate.expressions] += 1
    return list(pictures.values()), said


def _times(points: np.ndarray, capacity: Sequence[int], count: int, seed: int) -> np.ndarray:
    """How often each picture is taken, int [N]: all equally often while they have sentences left, the rest covering."""
    times = np.zeros(len(points), int)
    while count > 0 and (free := np.flatnonzero(times < capacity)).size:
        if free.size > count:
            free = free[covering(points[free], count, seed=seed)]
        times[free] += 1
        count -= free.size
    return times


def _normal(points: np.ndarray, chosen: np.ndarray) -> float:
    """What is normal between a picture and the nearest chosen one; between chosen ones, where all were chosen."""
    if len(chosen) < len(points):
        return float(np.median(distances(np.delete(points, chosen, 0), points[chosen])))
    return float(np.median(gaps(points))) if len(points) > 1 else 0.0


def _progress(items: Sequence, name: str) -> Iterable:
    return require("tqdm", extra="export").tqdm(items, desc=name, unit="picture", leave=False, disable=None)


def few_warning(samples: CalibrationSet) -> str | None:
    """What to tell the user where the set shows fewer than 32 pictures, else None."""
    shown = len(samples.pictures)
    if shown >= FEWEST:
        return None
    return (f"INT8 is calibrated on {len(samples)} samples of {shown} pictures, expected at least {FEWEST} "
            "pictures: ranges of so few hang on what single pictures happen to show; add pictures or choose more")


def far_ratio(samples: CalibrationSet, evaluation: Candidates, *, pictures: int = 128) -> float | None:
    """How far evaluation pictures lie from the calibration set, over what is normal within its own source.

    Compares medians of the distance from the nearest picture of the set. pictures: at most so many are read, at even
    distances. About 1 for the same kind of pictures. None where the set's source has only one picture, or copies of
    one: then nothing tells what is normal. Raises UserError where pictures cannot be read or have changed.
    """
    if not samples.normal:
        return None
    chosen = np.array([features(samples.picture(entry)) for entry in _progress(samples.pictures, "calibration set")])
    indices = evenly(len(evaluation), min(pictures, len(evaluation)))
    measured = np.array([features(evaluation[index].image) for index in _progress(indices, "evaluation set")])
    away = distances(samples.space.points(measured), samples.space.points(chosen))
    return float(np.median(away)) / samples.normal


def far_warning(samples: CalibrationSet, evaluation: Candidates, *, pictures: int = 128) -> str | None:
    """What to tell the user where `far_ratio` passes FAR, else None."""
    ratio = far_ratio(samples, evaluation, pictures=pictures)
    if ratio is None or ratio <= FAR:
        return None
    return (f"pictures of {evaluation.source.data} lie {ratio:.1f} times as far from the calibration set as "
            f"pictures of its own source, {samples.source.data}, do (expected at most {FAR}): INT8 ranges may not fit "
            "them; calibrate on pictures such as the network will see")
