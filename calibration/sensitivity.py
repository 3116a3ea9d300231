"""What a set of INT8 layers costs: error at the logits and mIoU on held-out expressions, emulated on the CPU."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from calibration.emulation import EmulatedInt8
from calibration.records import Records, digest
from deploy.onnx_run import Feeds
from deploy.runtime.interface import LOGITS
from talent.errors import UserError
from talent.metrics import Score, SegmentationMetrics

Layers = frozenset[str]


@dataclass(frozen=True)
class HeldOut:
    """An expression about a picture that calibration did not see.

    feeds: makes the inputs of the vision graph for one picture and one expression. judge: logits float32 [1, 1, h, w]
    to a score. digest: of all that the score depends on but the network.
    """

    feeds: Callable[[], Feeds]
    judge: Callable[[np.ndarray], Score]
    digest: str


@dataclass(frozen=True)
class Measured:
    """A set of INT8 layers, on `samples` expressions. miou, oiou: fractions. nta_rate: None where no picture had other
    instances (talent.metrics). error: root mean square of the logits' difference from FP32 over that of FP32's logits.
    """

    layers: Layers
    samples: int
    miou: float
    oiou: float
    nta_rate: float | None
    error: float


class Sensitivity:
    """Measures sets of layers on the same held-out expressions, and keeps what it measured in `records`.

    held_out: expressions that can be read again and again, one in memory at a time.
    """

    def __init__(self, network: EmulatedInt8, held_out: Iterable[HeldOut], records: Records) -> None:
        self._network, self._held_out, self._records = network, held_out, records
        self._expected: dict[str, np.ndarray] = {}  # FP32 logits by expression, which every error is taken from

    def measure(self, sets: Sequence[Collection[str]], *, samples: int | None = None, title: str) -> list[Measured]:
        """One Measured per set, on the first `samples` expressions (None: all). title: of the progress bar."""
        wanted = list(dict.fromkeys(frozenset(layers) for layers in sets))
        found: dict[Layers, list[_Answer]] = {layers: [] for layers in wanted}
        names = {layers: digest(sorted(layers)) for layers in wanted}
        count = operator.length_hint(self._held_out, 0) if samples is None else samples
        with tqdm(total=count * len(wanted) or None, desc=title, unit="run", leave=False, disable=None) as bar:
            for held in itertools.islice(self._held_out, samples):
                keys = {layers: f"{held.digest} {names[layers]}" for layers in wanted}
                missing = [layers for layers in wanted if keys[layers] not in self._records]
                bar.update(len(wanted) - len(missing))
                feeds = held.feeds() if missing else {}
                expected = self._fp32(held, feeds) if missing else None
                for layers in missing:
                    logits = self._network.run(feeds, layers)[LOGITS] if layers else expected
                    self._records.put(keys[layers], _Answer.of(held.judge(logits), logits, expected).to_list())
                    bar.update()
                for layers in wanted:
                    found[layers].append(_Answer.from_list(self._records[keys[layers]]))
        result = {layers: _summary(layers, answers) for layers, answers in found.items()}
        return [result[frozenset(layers)] for layers in sets]

    def _fp32(self, held: HeldOut, feeds: Feeds) -> np.ndarray:
        """Raises UserError for logits that are not finite."""
        if held.digest not in self._expected:
            logits = self._network.run(feeds, ())[LOGITS]
            if not np.isfinite(logits).all():
                raise UserError("the network itself gave logits that are not finite on a held-out expression, as "
                                "training that diverged does; export another checkpoint")
            self._expected[held.digest] = logits
        return self._expected[held.digest]


@dataclass(frozen=True)
class _Answer:
    """What is kept of one run. difference, reference: sums of squares, of the logits' difference and of FP32's."""

    intersection: int
    union: int
    covers_wrong_instance: bool | None
    difference: float
    reference: float

    @classmethod
    def of(cls, score: Score, logits: np.ndarray, expected: np.ndarray) -> _Answer:
        difference, reference = (float(np.square(values, dtype=np.float64).sum())
                                 for values in (logits - expected, expected))
        return cls(score.intersection, score.union, score.covers_wrong_instance,
                   difference if math.isfinite(difference) else math.inf, reference)

    def to_list(self) -> list:
        return [self.intersection, self.union, self.covers_wrong_instance,
                self.difference if math.isfinite(self.difference) else None, self.reference]

    @classmethod
    def from_list(cls, values: list) -> _Answer:
        intersection, union, covers, difference, reference = values
        return cls(intersection, union, covers, math.inf if difference is None else difference, reference)


def _summary(layers: Layers, answers: Sequence[_Answer]) -> Measured:
    metrics = SegmentationMetrics()
    for answer in answers:
        metrics.add_score(Score(answer.intersection, answer.union))
    result = metrics.result()
    asked = [answer.covers_wrong_instance for answer in answers if answer.covers_wrong_instance is not None]
    reference = math.fsum(answer.reference for answer in answers)
    difference = math.fsum(answer.difference for answer in answers)
    return Measured(layers, len(answers), result["mIoU"], result["oIoU"], sum(asked) / len(asked) if asked else None,
                    math.sqrt(difference / reference) if reference else math.inf if difference else 0.0)
