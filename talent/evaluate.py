"""Accuracy on samples: every sentence scored on its photo as the runtime would answer it. Without torch, where the
network is a function on arrays; `talent-eval` (deploy.evaluate) is the command.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from talent.data.sample import Sample, Samples
from talent.errors import UserError
from talent.image import THRESHOLD, Letterbox, preprocess, probability_on_photo
from talent.metrics import SegmentationMetrics, score
from talent.require import require
from talent.tokenizer import Tokenizer

if TYPE_CHECKING:
    from talent.model import TalentModel

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images [B,3,S,S], tokens [B,L] -> logits [B,1,h,w]
PRECISIONS = ("fp32", "bf16", "fp16")


def torch_predictor(model: TalentModel, *, precision: str = "fp32") -> Predict:
    """The network as a function on arrays, on the device where its weights are; one of PRECISIONS, by autocast."""
    import torch

    device = next(model.parameters()).device
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def predict(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            output = model(torch.from_numpy(images).to(device), torch.from_numpy(tokens).to(device))
        return output.logits.float().cpu().numpy()

    return predict


@dataclass(frozen=True)
class Question:
    """A sentence about a picture. index: (number of the sample, number of its sentence). image: float32 [1, 3, S, S],
    shared by the sentences of a picture; box: where the photo lies in it.
    """

    index: tuple[int, int]
    sample: Sample
    image: np.ndarray
    box: Letterbox

    @property
    def expression(self) -> str:
        return self.sample.expressions[self.index[1]]


def questions(samples: Samples, indices: Iterable[int], *, image_size: int) -> Iterator[Question]:
    """Every sentence of the samples with these indices; each picture is read and prepared once, when its turn comes."""
    for index in indices:
        sample = samples[index]
        image, box = preprocess(sample.image, image_size)
        for number in range(len(sample.expressions)):
            yield Question((index, number), sample, image, box)


def probabilities(predict: Predict, tokenizer: Tokenizer, batch: Sequence[Question]) -> list[np.ndarray]:
    """The probability of each photo pixel, float32 [H, W], for each question of a batch.

    Raises UserError for logits that are not finite: an overflow must not pass for an empty mask.
    """
    logits = predict(np.concatenate([question.image for question in batch]),
                     tokenizer([question.expression for question in batch]))  # [B,1,h,w]
    for question, one in zip(batch, logits, strict=True):
        if not np.isfinite(one).all():
            where = question.sample.name or f"sample {question.index[0]}"
            raise UserError(f"the network gave logits that are not finite for {question.expression!r} ({where}), as an "
                            "FP16 overflow or training that diverged does; evaluate it in FP32 (a bundle: export it "
                            "again with talent-export --fp32)")
    return [probability_on_photo(one[0], question.box) for question, one in zip(batch, logits, strict=True)]


def evaluate(predict: Predict, tokenizer: Tokenizer, samples: Samples, *, image_size: int, batch_size: int = 16,
             threshold: float = THRESHOLD, label: str = "evaluate", indices: Sequence[int] | None = None,
             progress: bool = True) -> SegmentationMetrics:
    """mIoU, oIoU, Pr@X and NTA over every sentence of `samples`, masks at photo resolution.

    indices: score these samples only (a process's share; `SegmentationMetrics.from_scores` puts shares together). Holds
    one batch in memory, which may span pictures. Raises UserError for logits that are not finite.
    """
    tqdm = require("tqdm", extra="cpu").tqdm
    metrics = SegmentationMetrics()
    bar = tqdm(range(len(samples)) if indices is None else indices, desc=label, unit="sample", leave=False,
               disable=None if progress else True)
    stream = questions(samples, bar, image_size=image_size)
    while batch := list(itertools.islice(stream, batch_size)):
        for question, probability in zip(batch, probabilities(predict, tokenizer, batch), strict=True):
            metrics.add_score(score(probability, threshold, question.sample.mask, question.sample.others,
                                    index=question.index, name=question.sample.name, expression=question.expression))
    return metrics
