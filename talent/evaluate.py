"""talent-eval: accuracy of a network on samples, every sentence scored on its photo as the runtime would answer it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from talent import provenance
from talent.checkpoint import load_checkpoint
from talent.data.registry import DATASETS, open_dataset
from talent.data.sample import Sample
from talent.data.shapes import SPLITS
from talent.errors import UserError, command
from talent.files import atomic_write
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
             batch_size: int = 16, threshold: float = THRESHOLD,
             label: str = "evaluate") -> SegmentationMetrics:
    """mIoU, oIoU and Pr@X over every sentence of `samples`, masks at photo resolution."""
    metrics = SegmentationMetrics()
    questions = [(sample, text) for sample in samples for text in sample.expressions]
    for start in tqdm(range(0, len(questions), batch_size), desc=label, unit="batch", leave=False,
                      disable=None):
        group = questions[start:start + batch_size]
        prepared = [preprocess(sample.image, image_size) for sample, _ in group]
        logits = predict(np.concatenate([image for image, _ in prepared]), tokenizer([text for _, text in group]))
        for (sample, _), (_, box), answer in zip(group, prepared, logits, strict=True):
            metrics.add(binarise(probability_on_photo(answer[0], box), threshold), sample.mask)
    return metrics


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="talent-eval", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  talent-eval weights/tiny --data shapes --split test --samples 500")
    result.add_argument("checkpoint", type=Path, help="checkpoint directory")
    result.add_argument("--data", default="shapes", help=f"{' or '.join(DATASETS)} (default: shapes)")
    result.add_argument("--split", default="test", help=f"{', '.join(SPLITS)} (default: test)")
    result.add_argument("--samples", type=int, default=500, help="pictures (default: 500)")
    result.add_argument("--json", type=Path, help="also write the numbers to this file")
    return result


@command("talent-eval")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.samples < 1:
        raise UserError(f"--samples: expected at least 1, received {arguments.samples}")
    checkpoint = load_checkpoint(arguments.checkpoint)
    size = checkpoint.config.image_size
    samples = open_dataset(arguments.data, split=arguments.split, size=size, length=arguments.samples)
    model = checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(torch_predictor(model), checkpoint.tokenizer, samples, image_size=size,
                      threshold=checkpoint.config.threshold).result()
    for name, value in result.items():
        print(f"{name:10} {value:.4f}" if isinstance(value, float) else f"{name:10} {value}")
    if arguments.json:
        content = {**result, "checkpoint": arguments.checkpoint.name, "data": arguments.data, "split": arguments.split,
                   "pictures": arguments.samples, "commit": provenance.commit(),
                   "versions": provenance.versions("torch", "timm", "numpy")}
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
    print(f"evaluated {arguments.checkpoint} on {arguments.samples} pictures of {arguments.data}, split "
          f"{arguments.split}" + (f"; wrote {arguments.json}" if arguments.json else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
