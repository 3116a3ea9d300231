"""Folding leaves the outputs as they are, and the two graphs together are the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploy.fold import FOLDS, fold
from deploy.folded import FoldedBlock, FoldedCoordConv
from deploy.graphs import TextGraph, VisionGraph, flatten_prompt, unflatten_prompt
from talent.checkpoint import load_checkpoint
from talent.config import ModelConfig, preset
from talent.model import TalentModel
from talent.model.lora import LoraSettings, add_lora, merge_lora
from tests.networks import CONFIGS, DENSE, TINY, inputs, network, relative_error

# float32 rounding only: products are taken in another order, and measured errors are about 1e-6
EXACT = 1e-4
NEEDS = {"coordinates": "BatchNorm", "shared inputs": "LayerScale and gates", "enlarging convolution": "BatchNorm"}
WEIGHTS = Path(__file__).parents[2] / "weights"


def results(model: TalentModel, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        output = model(image, tokens)
    return {"logits": output.logits, "words": output.text.words, "state": output.text.state,
            "features": output.neck.features, **{f"scale {i}": scale for i, scale in enumerate(output.neck.scales)}}


def with_lora(config: ModelConfig) -> TalentModel:
    """A network whose LoRA factors are far from zero, and merged by none yet."""
    model = network(config)
    add_lora(model, LoraSettings(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def check_outputs_stay(model: TalentModel, folding: Callable[[TalentModel], object], *given: Tensor) -> None:
    wanted = results(model, *given)
    folding(model)
    for part, value in results(model, *given).items():
        assert relative_error(value, wanted[part]) < EXACT, part


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", FOLDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_stay(name, kind, batch):
    model = network(CONFIGS[name])
    if kind == "position table" and name == "tiny":
        assert torch.equal(model.vision.positions(), model.vision.pos_embed)  # its table has the size of its pictures
        return
    if kind in NEEDS:
        assert FOLDS[NEEDS[kind]](model) > 0
    check_outputs_stay(model, FOLDS[kind], *inputs(CONFIGS[name], batch))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [*CONFIGS.values(), preset("small")], ids=lambda config: config.preset)
def test_all_folds_after_merging_lora(config, batch):
    model = with_lora(config)
    given = inputs(config, batch)
    wanted = results(model, *given)["logits"]
    assert merge_lora(model) == 4 * (config.text_layers + len(model.vision.blocks))
    fold(model)
    assert relative_error(results(model, *given)["logits"], wanted) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["official", "lora"])
@pytest.mark.parametrize("name", ["base", "large"])
def test_all_folds_of_the_real_sizes(name, tuning):
    config = preset(name)
    model = with_lora(config) if tuning == "lora" else network(config)
    image, tokens = inputs(config, 3)
    wanted = [results(model, image[:batch], tokens[:batch])["logits"] for batch in (1, 3)]
    merge_lora(model)
    fold(model)
    for batch, expected in zip((1, 3), wanted, strict=True):
        assert relative_error(results(model, image[:batch], tokens[:batch])["logits"], expected) < EXACT


@pytest.mark.parametrize("batch", [1, 3])
def test_tiny_as_it_was_trained(batch):
    checkpoint = load_checkpoint(WEIGHTS / "tiny")
    merge_lora(checkpoint.model)
    check_outputs_stay(checkpoint.model, fold, *inputs(checkpoint.config, batch))


def modules(model: nn.Module, *types: type) -> int:
    return sum(isinstance(module, types) for module in model.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_left_to_fold(name):
    model, config = network(CONFIGS[name]), CONFIGS[name]
    norms = modules(model, nn.BatchNorm1d, nn.BatchNorm2d)
    # 3 projections, 3 gates, the aggregation, 2 coordinate convolutions, 2 of the projector; 5 an adapter with branches
    assert norms == 11 + (5 * 4 if name == "dense" else 0)
    adapters, layers = len(config.vision_adapter_blocks), config.decoder_layers
    assert fold(model) == {
        "BatchNorm": norms, "LayerScale and gates": 2 * 6 + adapters + len(config.text_adapter_blocks),
        "attention scale": 6 + config.text_layers, "position table": 1, "coordinates": 1,
        "decoder self-attention": layers, "decoder cross-attention": layers, "shared inputs": adapters,
        "dynamic kernel": 1, "enlarging convolution": 2}
    assert modules(model, nn.BatchNorm1d, nn.BatchNorm2d) == 0
    names = [key for key, _ in model.named_parameters()]
    assert not [key for key in names if key.endswith((".gamma", "ls_gate")) or "conv3" in key]
    assert model.vision.pos_embed.shape[1] == config.grid ** 2
    assert torch.equal(model.vision.positions(), model.vision.pos_embed)


@pytest.mark.parametrize(("kind", "touched"), [
    ("BatchNorm", {"text", "vision", "neck", "projector"}), ("LayerScale and gates", {"text", "vision"}),
    ("attention scale", {"text", "vision"})])
def test_a_fold_moves_something(kind, touched):
    """Weights that would make a fold do nothing would make these tests prove nothing."""
    model = network(DENSE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    FOLDS[kind](model)
    after = model.state_dict()
    moved = [key for key in before.keys() & after.keys() if not torch.equal(before[key], after[key])]
    assert {key.split(".")[0] for key in moved} == touched


def test_a_fold_that_needs_another_says_so():
    model = network(DENSE)
    with pytest.raises(RuntimeError, match="scales first"):
        FoldedBlock(model.vision.adapted()[0])
    with pytest.raises(RuntimeError, match="BatchNorm first"):
        FoldedCoordConv(model.neck.coord_conv[0])
    with pytest.raises(RuntimeError, match="LoRA first"):
        fold(with_lora(TINY))


def test_networks_without_adapters_fold():
    config = dataclasses.replace(TINY, vision_adapter="none")
    check_outputs_stay(network(config), fold, *inputs(config, 2))


def test_one_picture_meets_many_expressions():
    for folded in (False, True):
        model = network(DENSE)
        if folded:
            fold(model)
        image, tokens = inputs(DENSE, 3)
        with torch.inference_mode():
            prompt = model.prompt(model.text(tokens))
            wanted, _ = model.segment(image[:1].expand(3, -1, -1, -1), prompt)
            received, _ = model.segment(image[:1], prompt)
        assert relative_error(received, wanted) < EXACT


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_two_graphs_are_the_network(name, folded):
    model, given = network(CONFIGS[name]), inputs(CONFIGS[name], 3)
    wanted = results(model, *given)["logits"]
    if folded:
        fold(model)
    image, tokens = given
    with torch.inference_mode():
        names = tuple(flatten_prompt(model.prompt(model.text(tokens))))
        prompt = TextGraph(model)(tokens)
        assert len(prompt) == len(names) and all(tensor.shape[0] == 3 for tensor in prompt)
        logits = VisionGraph(model, names)(image, *prompt)
    assert relative_error(logits, wanted) < EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_flatten_and_unflatten_are_inverse(name):
    config = CONFIGS[name]
    model = network(config)
    with torch.inference_mode():
        prompt = model.prompt(model.text(inputs(config, 2)[1]))
    flat = flatten_prompt(prompt)
    adapters, layers = len(config.vision_adapter_blocks), config.decoder_layers
    assert list(flat) == [*(f"adapter_{i}" for i in range(adapters)), *(f"neck_{i}" for i in range(3)),
                          *(f"attention_{i}_{j}" for i in range(layers) for j in range(2)), "kernel", "kernel_bias"]
    again = unflatten_prompt(flat)
    for field in dataclasses.fields(prompt):
        one, other = getattr(prompt, field.name), getattr(again, field.name)
        assert type(one) is type(other), field.name
    for one, other in zip(flat.values(), flatten_prompt(again).values(), strict=True):
        assert one is other
    assert flatten_prompt(again).keys() == flat.keys()


def test_more_than_ten_of_a_kind_keep_their_order():
    tensors = {f"{kind}_{i}": torch.tensor([i]) for kind in ("adapter", "neck") for i in range(12)}
    tensors |= {f"attention_{i}_{j}": torch.tensor([i, j]) for i in range(12) for j in range(3)}
    prompt = unflatten_prompt({**tensors, "kernel": torch.zeros(1), "kernel_bias": torch.ones(1)})
    assert [int(tensor) for tensor in prompt.adapters] == list(range(12))
    assert [[tensor.tolist() for tensor in layer] for layer in prompt.attention] == [
        [[i, j] for j in range(3)] for i in range(12)]
