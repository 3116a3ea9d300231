"""How far a bundle's answers are from the network's: logits, masks and mIoU on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from deploy.runtime.segmenter import Segmenter
from talent.data.sample import Sample
from talent.evaluate import Predict
from talent.image import binarise
from talent.metrics import SegmentationMetrics, iou


@dataclass(frozen=True)
class Parity:
    """Differences on `samples` expressions.

    logits_max_abs: largest difference of a logit. mask_agreement: mean IoU of the two masks. miou_reference and miou:
    against the ground truth, of the PyTorch FP32 network and of the bundle, as fractions.
    """

    samples: int
    backend: str
    logits_max_abs: float
    mask_agreement: float
    miou_reference: float
    miou: float

    @property
    def miou_drop(self) -> float:
        """mIoU lost; negative when the bundle does better."""
        return self.miou_reference - self.miou

    def to_dict(self) -> dict:
        return {**asdict(self), "miou_drop": self.miou_drop}


def measure_parity(segmenter: Segmenter, reference: Predict, samples: Sequence[Sample]) -> Parity:
    """Compare a bundle with the network it came from, on every sentence of `samples`, at photo resolution."""
    ours, theirs = SegmentationMetrics(), SegmentationMetrics()
    worst, agreement = 0.0, []
    questions = [(sample, text) for sample in samples for text in sample.expressions]
    for sample, text in tqdm(questions, desc="parity", unit="expression", leave=False, disable=None):
        tensor, box = segmenter.preprocess(sample.image)
        logits = segmenter.infer(tensor, segmenter.encode(text))
        expected = reference(tensor, segmenter.tokenizer([text]))
        worst = max(worst, float(np.abs(logits - expected).max()))
        answer = segmenter.postprocess(logits, box).mask
        truth = binarise(segmenter.postprocess(expected, box).probability, segmenter.threshold)
        agreement.append(iou(answer, truth))
        ours.add(answer, sample.mask)
        theirs.add(truth, sample.mask)
    return Parity(samples=len(questions), backend=segmenter.backend.name, logits_max_abs=worst,
                  mask_agreement=float(np.mean(agreement)), miou_reference=theirs.result()["mIoU"],
                  miou=ours.result()["mIoU"])
