"""The real size: the official base network on deterministic weights, exported to FP16 and INT8, engines included."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import torch

from calibration.quantize import quantized_nodes
from deploy.bundle import VISION, Bundle
from deploy.export import main
from talent.checkpoint import Checkpoint, save_checkpoint
from talent.config import preset
from talent.official import from_official
from talent.tokenizer import build_clip_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")]


FEW = ["--data", "shapes", "--calibration", "2", "--parity", "1", "--allow-drop"]


@pytest.fixture(scope="module")
def checkpoint(parity, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "base"
    state = {key: torch.as_tensor(value) for key, value in parity.random_state_dict("base", 0).items()}
    config = preset("base")
    tokenizer = build_clip_tokenizer(context_length=config.context_length)
    save_checkpoint(Checkpoint(from_official(state, preset="base"), config, tokenizer), path)
    return path


@pytest.fixture(scope="module")
def fp16(checkpoint, tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "fp16"
    assert main([str(checkpoint), "--fp16", *FEW, "-o", str(path)]) == 0
    return Bundle.load(path, verify=True)


def engine_sizes(bundle: Bundle) -> dict[str, int]:
    print(json.dumps([vars(engine) for engine in bundle.engines], indent=1))
    return {engine.graph: engine.bytes for engine in bundle.engines if engine.runtime == "tensorrt_rtx"}


def test_base_exports_to_fp16_and_its_engines_build(fp16):
    sizes = engine_sizes(fp16)
    # Half precision: two bytes a weight, with 64.1 million parameters in the text graph and 108.6 in the vision graph.
    assert sizes.keys() == {"text", "vision"}
    assert 100e6 < sizes["text"] < 300e6 and 200e6 < sizes["vision"] < 450e6
    # Random weights amplify rounding: logits reach 33, and two runs were seen to differ by 0.2.
    assert fp16.parity["logits_max_abs"] < 0.6
    assert fp16.parity["mask_agreement"] > 0.95


def test_base_exports_to_int8_and_its_vision_engine_is_smaller(checkpoint, fp16, tmp_path):
    assert main([str(checkpoint), "--int8", *FEW, "-o", str(tmp_path / "int8")]) == 0
    bundle = Bundle.load(tmp_path / "int8", verify=True)
    assert engine_sizes(bundle)["vision"] <= 0.62 * engine_sizes(fp16)["vision"]
    vision = onnx.load(tmp_path / "int8" / VISION)
    quantized = [node for node in vision.graph.node if node.name in quantized_nodes(vision)]
    modules = {node.name.rpartition("/")[0] for node in quantized}
    assert {node.op_type for node in quantized} == {"MatMul", "Conv"} and len(quantized) == len(modules) == 93
    for block in range(12):  # of each block all linear layers, and none of attention's two products
        expected = {"attn.qkv", "attn.proj", *(("inner", "outer") if block % 2 else ("mlp.fc1", "mlp.fc2"))}
        inside = {name.removeprefix(f"vision.blocks.{block}.") for name in modules
                  if name.startswith(f"vision.blocks.{block}.")}
        assert expected == {name for name in inside if not name.startswith("adapter.")}
    assert not {"vision.patch_embed", "projector.conv2", "projector"} & {name.split(".rows")[0] for name in modules}
