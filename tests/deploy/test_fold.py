"""Folding leaves the outputs as they are, and the two graphs together are the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from deploy.fold import fold, fold_batchnorm, fold_positions, fold_scales
from deploy.graphs import TextGraph, VisionGraph, flatten_prompt, unflatten_prompt
from talent.model import TalentModel
from tests.networks import CONFIGS, DENSE, TINY, inputs, network, relative_error

# float32 rounding only: products are taken in another order, and measured errors are about 1e-6
EXACT = 1e-4
FOLDS = {"batchnorm": fold_batchnorm, "scales": fold_scales, "positions": fold_positions, "all": fold}


def results(model: TalentModel, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        output = model(image, tokens)
    return {"logits": output.logits, "words": output.text.words, "state": output.text.state,
            "features": output.neck.features, **{f"scale {i}": scale for i, scale in enumerate(output.neck.scales)}}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", FOLDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_stay(name, kind, batch):
    model = network(CONFIGS[name])
    given = inputs(CONFIGS[name], batch)
    wanted = results(model, *given)
    FOLDS[kind](model)
    for part, value in results(model, *given).items():
        assert relative_error(value, wanted[part]) < EXACT, part


def modules(model: nn.Module, *types: type) -> int:
    return sum(isinstance(module, types) for module in model.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_left_to_fold(name):
    model = network(CONFIGS[name])
    norms = modules(model, nn.BatchNorm1d, nn.BatchNorm2d)
    # 3 projections, 3 gates, the aggregation, 2 coordinate convolutions, 2 of the projector; 5 an adapter with branches
    assert norms == 11 + (5 * 4 if name == "dense" else 0)
    assert fold_batchnorm(model) == norms and modules(model, nn.BatchNorm1d, nn.BatchNorm2d) == 0

    config = CONFIGS[name]
    assert fold_scales(model) == 2 * 6 + len(config.vision_adapter_blocks) + len(config.text_adapter_blocks)
    names = [key for key, _ in model.named_parameters()]
    assert not [key for key in names if key.endswith((".gamma", "ls_gate"))]

    fold_positions(model)
    assert model.vision.pos_embed.shape[1] == config.grid ** 2
    assert torch.equal(model.vision.positions(), model.vision.pos_embed)


def test_each_fold_moves_something():
    """Weights that would make a fold do nothing would make these tests prove nothing."""
    for part, touched in (("batchnorm", {"text", "vision", "neck", "projector"}), ("scales", {"text", "vision"})):
        model = network(DENSE)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        FOLDS[part](model)
        after = model.state_dict()
        moved = [key for key in before.keys() & after.keys() if not torch.equal(before[key], after[key])]
        assert {key.split(".")[0] for key in moved} == touched


def test_networks_without_adapters_fold():
    config = dataclasses.replace(TINY, vision_adapter="none")
    model, given = network(config), inputs(config, 2)
    wanted = results(model, *given)
    fold(model)
    assert relative_error(results(model, *given)["logits"], wanted["logits"]) < EXACT


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
                          *(f"key_{i}" for i in range(layers)), *(f"value_{i}" for i in range(layers)),
                          "kernel", "kernel_bias"]
    again = unflatten_prompt(flat)
    for field in dataclasses.fields(prompt):
        one, other = getattr(prompt, field.name), getattr(again, field.name)
        assert type(one) is type(other), field.name
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        assert all(a is b for a, b in pairs), field.name
    assert flatten_prompt(again).keys() == flat.keys()


def test_more_than_ten_of_a_kind_keep_their_order():
    tensors = {f"{kind}_{i}": torch.tensor([i]) for kind in ("adapter", "neck", "key", "value") for i in range(12)}
    prompt = unflatten_prompt({**tensors, "kernel": torch.zeros(1), "kernel_bias": torch.ones(1)})
    assert [int(tensor) for tensor in prompt.adapters] == list(range(12))
