"""The real size: the official base network on deterministic weights, exported to FP16, engines included."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from deploy.bundle import Bundle
from deploy.export import main
from talent.checkpoint import Checkpoint, save_checkpoint
from talent.config import preset
from talent.official import from_official
from talent.tokenizer import build_clip_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")]


def test_base_exports_to_fp16_and_its_engines_build(parity, tmp_path):
    state = {key: torch.as_tensor(value) for key, value in parity.random_state_dict("base", 0).items()}
    config = preset("base")
    tokenizer = build_clip_tokenizer(context_length=config.context_length)
    save_checkpoint(Checkpoint(from_official(state, preset="base"), config, tokenizer), tmp_path / "base")
    del state
    arguments = ["--fp16", "--data", "shapes", "--calibration", "2", "--parity", "1", "--allow-drop"]
    assert main([str(tmp_path / "base"), *arguments, "-o", str(tmp_path / "bundle")]) == 0
    bundle = Bundle.load(tmp_path / "bundle", verify=True)
    print(json.dumps([vars(engine) for engine in bundle.engines], indent=1))
    sizes = {engine.graph: engine.bytes for engine in bundle.engines if engine.runtime == "tensorrt_rtx"}
    # Half precision: two bytes a weight, with 64.1 million parameters in the text graph and 108.6 in the vision graph.
    assert sizes.keys() == {"text", "vision"}
    assert 100e6 < sizes["text"] < 300e6 and 200e6 < sizes["vision"] < 450e6
    # Random weights amplify rounding: logits reach 33, and two runs were seen to differ by 0.2.
    assert bundle.parity["logits_max_abs"] < 0.6
    assert bundle.parity["mask_agreement"] > 0.95
