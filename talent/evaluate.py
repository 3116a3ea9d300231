"""Accuracy of a network on samples: every sentence is scored on its photo, as the runtime would answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from tqdm import tqdm

from talent.data.sample import Sample
from talent.image import THRESHOLD, binarise, preprocess, probability_on_photo
from talent.metrics import SegmentationMetrics
from talent.model import TalentModel
from talent.tokenizer import Tokenizer

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images [B,3,S,S], tokens [B,L] -> logits [B,1,h,w]


def torch_predictor(model: TalentModel) -> Predict:
    """The network as a function on arrays, on the device where its weights are."""
    device = next(model.parameters()).device

    def predict(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = model(torch.from_numpy(images).to(device), torch.from_numpy(tokens).to(device))
        return output.logits.float().cpu().numpy()

    return predict


def evaluate(predict: Predict, tokenizer: Tokenizer, samples: Iterable[Sample], *, image_size: int,
             batch_size: int = 16, threshold: float = THRESHOLD, label: str = "evaluate") -> SegmentationMetrics:
    """mIoU, oIoU and Pr@X over every sentence of `samples`, masks at photo resolution."""
    metrics = SegmentationMetrics()
    questions = [(sample, text) for sample in samples for text in sample.expressions]
    for start in tqdm(range(0, len(questions), batch_size), desc=label, unit="batch", leave=False):
        group = questions[start:start + batch_size]
        prepared = [preprocess(sample.image, image_size) for sample, _ in group]
        logits = predict(np.concatenate([image for image, _ in prepared]), tokenizer([text for _, text in group]))
        for (sample, _), (_, box), answer in zip(group, prepared, logits, strict=True):
            metrics.add(binarise(probability_on_photo(answer[0], box), threshold), sample.mask)
    return metrics
