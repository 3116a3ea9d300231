"""What each network answers to the same sentences, and how far that is from what the first of them answers.

Networks are asked one after the other, so that one at a time is in memory; of every answer its mask is kept, packed.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from deploy.evaluate import Network
from talent.data.sample import Samples
from talent.errors import UserError
from talent.evaluate import Question, probabilities, questions
from talent.metrics import PRECISION_AT, Score, SegmentationMetrics, iou, score

QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # per cent, of the changes of IoU
STEPS = (0.01, 0.05, 0.1)  # changes of IoU that are counted


@dataclass(frozen=True)
class PackedMask:
    """A mask as some kilobytes."""

    shape: tuple[int, int]
    data: bytes

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """mask: bool [H, W]."""
        return cls(mask.shape, zlib.compress(np.packbits(mask).tobytes(), level=1))

    def unpacked(self) -> np.ndarray:
        """bool [H, W]."""
        bits = np.unpackbits(np.frombuffer(zlib.decompress(self.data), np.uint8), count=math.prod(self.shape))
        return bits.astype(bool).reshape(self.shape)


@dataclass(frozen=True)
class Answer:
    """What a network answered to one sentence."""

    score: Score
    mask: PackedMask


@dataclass(frozen=True)
class Difference:
    """An answer beside the first network's. change: of IoU, below 0 where it is worse. agreement: IoU of the masks."""

    answer: Answer
    reference: Answer
    agreement: float

    @property
    def change(self) -> float:
        return self.answer.score.iou - self.reference.score.iou


def answers(network: Network, samples: Samples, *, label: str) -> list[Answer]:
    """The network's answer to every sentence, in the order of the samples. label: of the progress bar.

    Raises UserError for logits that are not finite.
    """
    return [Answer(score(probability, network.threshold, question.sample.mask, question.sample.others,
                         index=question.index, name=question.sample.name, expression=question.expression),
                   PackedMask.of(probability > network.threshold))
            for question, probability in _asked(network, samples, label)]


def _asked(network: Network, samples: Samples, label: str) -> Iterator[tuple[Question, np.ndarray]]:
    """Every sentence with the probability of each photo pixel, float32 [H, W]."""
    bar = tqdm(range(len(samples)), desc=label, unit="sample", leave=False, disable=None)
    stream = questions(samples, bar, image_size=network.image_size)
    while batch := list(itertools.islice(stream, network.batch_size)):
        yield from zip(batch, probabilities(network.predict, network.tokenizer, batch), strict=True)


def compared(found: Sequence[Answer], reference: Sequence[Answer]) -> list[Difference]:
    """Answer by answer. Raises UserError where they are not about the same sentences."""
    if [one.score.index for one in found] != [one.score.index for one in reference]:
        raise UserError(f"expected answers to the same sentences, received {len(found)} and {len(reference)}; does the "
                        "data set change while it is read?")
    return [Difference(one, other, iou(one.mask.unpacked(), other.mask.unpacked()))
            for one, other in zip(found, reference, strict=True)]


def facts(differences: Sequence[Difference]) -> dict[str, Any]:
    """A row's numbers: what talent.metrics says of its answers, and how far they are from the first row's.

    miou, oiou, pr@0.5 ...: fractions. nta: mean probability on other instances over that on the target; nta_rate: share
    of the sentences whose mask covers a wrong instance; nta_samples: sentences with other instances; None and 0 where
    no picture had any, nta also where it is infinite: nothing lay on the targets. masks_agree, masks_agree_min: mean
    and smallest IoU with the first row's masks. worst_delta and delta: changes of IoU, as `distribution` says.
    """
    metrics = SegmentationMetrics.from_scores(one.answer.score for one in differences)
    numbers = metrics.result()
    agreement = [one.agreement for one in differences]
    changes = distribution([one.change for one in differences])
    ratio = numbers.get("NTA ratio")
    return {"miou": numbers["mIoU"], "oiou": numbers["oIoU"],
            **{f"pr@{at}": numbers[f"Pr@{at}"] for at in PRECISION_AT},
            "nta": ratio if ratio is not None and math.isfinite(ratio) else None,  # JSON has no word for infinite
            "nta_rate": numbers.get("NTA rate"), "nta_samples": numbers.get("NTA samples", 0),
            "expressions": len(differences), "masks_agree": float(np.mean(agreement)),
            "masks_agree_min": min(agreement), "worst_delta": changes["p0"], "delta": changes}


def distribution(changes: Sequence[float]) -> dict[str, float]:
    """Of changes of IoU: {"mean", "p0" (the worst) ... "p100", "worse_0.01": share of those that lost more than 0.01,
    "better_0.01": that gained more, ...}."""
    values = np.asarray(changes)
    quantiles = np.percentile(values, QUANTILES)
    return {"mean": float(values.mean()),
            **{f"p{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            **{f"worse_{step}": float(np.mean(values < -step)) for step in STEPS},
            **{f"better_{step}": float(np.mean(values > step)) for step in STEPS}}


def records(differences: Sequence[Difference], *, named: bool) -> list[dict[str, Any]]:
    """Each sentence as JSON takes it: numbers of the sample and of its sentence, "iou", "delta" (how it changed) and
    "agreement". named: also the picture's name and the words, which are the same in all rows."""
    found = []
    for one in differences:
        score = one.answer.score
        sample, sentence = score.index
        words = {"name": score.name, "expression": score.expression} if named else {}
        found.append({"sample": sample, "sentence": sentence, **words, "iou": score.iou, "delta": one.change,
                      "agreement": one.agreement})
    return found
