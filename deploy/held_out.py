"""Expressions for the choice of INT8 layers, apart from those of the parity gate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibration.sensitivity import HeldOut
from deploy.graphs import vision_inputs
from deploy.parity import chosen_questions
from talent.data.sample import Samples, Subset, evenly
from talent.evaluate import Question
from talent.image import probability_on_photo
from talent.metrics import Score, score
from talent.model import TalentModel
from talent.tokenizer import Tokenizer


def divide(samples: Samples, first: int, second: int) -> tuple[Samples, Samples]:
    """`samples` in two, evenly mixed, in the ratio first : second, at least one sample each; one sample is in both."""
    total = len(samples)
    if total < 2:
        return samples, samples
    count = min(max(round(total * first / (first + second)), 1), total - 1)
    chosen = {(2 * number + 1) * total // (2 * count) for number in range(count)}
    return (Subset(samples, sorted(chosen)), Subset(samples, [index for index in range(total) if index not in chosen]))


def spread(samples: Samples) -> Samples:
    """`samples` in an order of which every beginning lies evenly in the whole: multiples of the golden ratio do."""
    golden = (5**0.5 - 1) / 2
    return Subset(samples, sorted(range(len(samples)), key=lambda index: index * golden % 1))


@dataclass(frozen=True)
class HeldOutExpressions:
    """Expressions of `samples`, at most `expressions` of them, read anew each time; the first ones lie as evenly in the
    data set as all of them do.

    model: the folded network, which gives the prompt tensors.
    """

    model: TalentModel
    tokenizer: Tokenizer
    samples: Samples
    expressions: int
    image_size: int
    threshold: float

    def __len__(self) -> int:
        """At most so many."""
        return self.expressions

    def __iter__(self) -> Iterator[HeldOut]:
        total, taken = len(self.samples), min(self.expressions, len(self.samples))
        samples = spread(Subset(self.samples, evenly(total, taken)))
        for question in chosen_questions(samples, self.expressions, image_size=self.image_size):
            tokens = self.tokenizer([question.expression])
            yield HeldOut(partial(vision_inputs, self.model, question.image, tokens),
                          partial(_judge, question, self.threshold), _digest(question, tokens, self.threshold))


def _judge(question: Question, threshold: float, logits: np.ndarray) -> Score:
    sample = question.sample
    return score(probability_on_photo(logits[0, 0], question.box), threshold, sample.mask, sample.others)


def _digest(question: Question, tokens: np.ndarray, threshold: float) -> str:
    sha = hashlib.sha256(f"{threshold} {question.box}".encode())
    for array in (question.image, tokens, question.sample.mask, *question.sample.others):
        sha.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
