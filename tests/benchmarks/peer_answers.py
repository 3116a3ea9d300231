"""What tests of the peers share: a peer of a checkpoint, opened, and its answers beside those of PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.contenders import Stages, checkpoint_contenders
from benchmarks.peers import peer_contenders
from talent.checkpoint import save_checkpoint
from talent.config import ModelConfig
from talent.model.lora import LoraSettings
from tests import networks

SENTENCES = ("the red mug on the left", "a cup")
PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
LORA = LoraSettings(rank=2)


def saved(directory: Path, config: ModelConfig, lora: LoraSettings | None = LORA) -> Path:
    """A checkpoint in a new directory; LoRA factors lie in it unmerged, far from zero."""
    save_checkpoint(networks.checkpoint(config, lora), directory / "checkpoint")
    return directory / "checkpoint"


def opened(checkpoint: Path, name: str, config: ModelConfig, cache: Path) -> Stages:
    """The peer of this name (of PEERS)."""
    contender, = peer_contenders(checkpoint, names=[name], cache=cache)
    return contender.open(image_size=config.image_size, threads=1)


def logits(stages: Stages, sentence: str) -> np.ndarray:
    """float32 [1, 1, h, w] about PHOTO, which also make a mask."""
    tensor, box = stages.preprocess(PHOTO)
    found = stages.infer(tensor, stages.encode(sentence))
    mask, *_ = stages.postprocess(found, box)
    assert mask.shape == PHOTO.shape[:2] and found.dtype == np.float32
    return found


def assert_same_network(stages: Stages, checkpoint: Path, config: ModelConfig) -> None:
    """As the checkpoint in PyTorch with LoRA unmerged, in logits, for several sentences."""
    eager = checkpoint_contenders(checkpoint)[0].open(image_size=config.image_size, threads=1)
    for sentence in SENTENCES:
        received, wanted = logits(stages, sentence), logits(eager, sentence)
        assert received.shape == wanted.shape and abs(wanted).max() > 0.1
        assert abs(received - wanted).max() < 1e-4
