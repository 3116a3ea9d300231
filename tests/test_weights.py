"""The tiny weights that ship: small enough for the repository, and good enough to be worth adapting."""

from __future__ import annotations

from pathlib import Path

from talent.checkpoint import load_checkpoint
from talent.data.registry import open_dataset
from talent.evaluate import evaluate, torch_predictor

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "tiny"


def test_the_shipped_weights_are_at_most_8_megabytes():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 8_000_000


def test_the_shipped_weights_segment_the_test_split():
    checkpoint = load_checkpoint(WEIGHTS)
    size = checkpoint.config.image_size
    test = open_dataset("shapes", split="test", size=size, length=150)
    result = evaluate(torch_predictor(checkpoint.model), checkpoint.tokenizer, test, image_size=size,
                      threshold=checkpoint.config.threshold).result()
    assert result["mIoU"] >= 0.60, result
