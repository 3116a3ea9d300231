"""LoRA merges without a trace, and each way of tuning trains what it says and nothing else."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import yaml
from torch import nn

from talent.errors import UserError
from talent.model.lora import (
    TARGETS,
    LoraSettings,
    add_lora,
    merge_lora,
    parameter_counts,
    select_trainable,
    set_training_mode,
)
from talent.settings import parse_settings
from tests.networks import CONFIGS, DENSE, TINY, inputs, network, relative_error

RANK = 4
# rank * (in + out) of qkv, proj, fc1 and fc2, in 3 text blocks of width 96 and 6 image blocks of width 128
LORA_PARAMETERS = RANK * (3 * 16 * 96 + 6 * 16 * 128)
LINEARS = 4 * (3 + 6)
BLOCKS = {"text": 3, "vision": 6}


def with_lora(config, *, random: bool):
    model = network(config)
    add_lora(model, LoraSettings(rank=RANK, alpha=8.0))
    if random:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(0, 0.1)
    return model.eval()


def results(model, config) -> list[torch.Tensor]:
    with torch.inference_mode():
        output = model(*inputs(config, 2))
    return [output.logits, output.text.words, output.neck.features]


@pytest.mark.parametrize("name", CONFIGS)
def test_start_changes_nothing(name):
    plain, fresh = network(CONFIGS[name]), with_lora(CONFIGS[name], random=False)
    for one, other in zip(results(plain, CONFIGS[name]), results(fresh, CONFIGS[name]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_equals_unmerged(name):
    config = CONFIGS[name]
    model = with_lora(config, random=True)
    unmerged, plain = results(model, config), results(network(config), config)
    assert min(relative_error(a, b) for a, b in zip(unmerged, plain, strict=True)) > 0.01, "the factors do nothing"
    assert merge_lora(model) == LINEARS
    for received, wanted in zip(results(model, config), unmerged, strict=True):
        assert relative_error(received, wanted) < 1e-4


def test_merged_network_is_a_plain_one():
    model, plain = with_lora(TINY, random=True), network(TINY)
    kept = copy.deepcopy(model.vision.blocks[1].adapter.state_dict())
    merge_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for (name, ours), (_, wanted) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert type(ours) is type(wanted), name
    assert type(model.text.blocks[0].attn.qkv) is nn.Linear and type(model.vision.blocks[1].mlp.fc2) is nn.Linear
    for name, value in model.vision.blocks[1].adapter.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert merge_lora(model) == 0


def lora_layers(model) -> set[str]:
    """Full names of the layers that have LoRA factors."""
    return {name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}


@pytest.mark.parametrize(("text", "vision"), [
    (("qkv", "proj", "fc1", "fc2"), ("qkv", "proj", "fc1", "fc2")), ((), ("qkv", "proj")), (("fc1",), ()),
    (("proj", "fc2"), ("fc1",))])
def test_each_tower_has_its_own_layers(text, vision):
    model = network(TINY)
    add_lora(model, LoraSettings(rank=2, text=text, vision=vision))
    wanted = {f"{tower}.blocks.{block}.{TARGETS[name]}" for tower, names in (("text", text), ("vision", vision))
              for block in range(BLOCKS[tower]) for name in names}
    assert lora_layers(model) == wanted
    select_trainable(model, tune="lora", train_heads=False)
    assert {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert merge_lora(model) == len(wanted)


@pytest.mark.parametrize(("values", "message"), [
    ({"text": ("qvk",)}, "lora.text: .*received 'qvk'; did you mean 'qkv'"),
    ({"vision": ("qkv", "mlp")}, "lora.vision: .*received 'mlp'"),
    ({"vision": ("qkv", "qkv")}, "lora.vision: expected every layer once, received qkv, qkv"),
    ({"text": (), "vision": ()}, "received none; use --tune adapters"),
    ({"rank": 0}, "lora.rank: expected at least 1, received 0"),
    ({"alpha": 0.0}, "lora.alpha: expected a number above 0, received 0.0"),
    ({"alpha": float("nan")}, "lora.alpha"),
    ({"dropout": 1.0}, "lora.dropout: .*received 1.0"), ({"dropout": -0.1}, "lora.dropout: .*received -0.1")])
def test_settings_that_no_lora_can_have(values, message):
    with pytest.raises(UserError, match=message):
        LoraSettings(**values)


@pytest.mark.parametrize("settings", [LoraSettings(), LoraSettings(rank=3, text=(), vision=("fc2", "qkv"))])
def test_settings_travel_through_yaml(settings):
    for plain in (settings.to_dict(), dataclasses.asdict(settings)):
        assert LoraSettings.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == settings


def test_old_settings_mean_all_layers():
    assert LoraSettings.from_dict({"rank": 4, "alpha": 8.0, "dropout": 0.1}) == LoraSettings(
        rank=4, alpha=8.0, dropout=0.1, text=tuple(TARGETS), vision=tuple(TARGETS))
    with pytest.raises(UserError, match="did you mean 'vision'"):
        LoraSettings.from_dict({"visoin": ["qkv"]})


def test_layers_on_the_command_line():
    settings = parse_settings(["-o", "run", "--lora.vision", '["qkv","proj"]', "--lora.text", "[]"])
    assert settings.lora == LoraSettings(text=(), vision=("qkv", "proj"))
    with pytest.raises(UserError, match="did you mean 'qkv'"):
        parse_settings(["-o", "run", "--lora.vision", '["qvk"]'])


def kinds(config) -> dict[str, set[str]]:
    """The parameters of a network with LoRA, by what they belong to."""
    names = [name for name, _ in with_lora(config, random=False).named_parameters()]
    return {
        "lora": {n for n in names if "lora_A" in n or "lora_B" in n},
        "adapters": {n for n in names if ".adapter." in n},
        "heads": {n for n in names if n.split(".")[0] in ("neck", "decoder", "projector")},
        "gates": {n for n in names if n.endswith("ls_gate")},
        "all": set(names),
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("train_heads", [True, False])
@pytest.mark.parametrize("tune", ["full", "adapters", "lora", "lora+adapters"])
def test_what_is_trained(name, tune, train_heads):
    config = CONFIGS[name]
    model, kind = with_lora(config, random=False), kinds(config)
    assert len(kind["gates"]) == len(config.vision_adapter_blocks) and len(kind["lora"]) == 2 * LINEARS
    select_trainable(model, tune=tune, train_heads=train_heads)
    wanted = set().union(*(kind[part] for part in tune.split("+"))) if tune != "full" else kind["all"] - kind["gates"]
    if train_heads:
        wanted = wanted | kind["heads"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted
    if tune == "lora" and not train_heads:
        assert parameter_counts(model)[0] == LORA_PARAMETERS
    total = sum(p.numel() for p in network(config).parameters()) + LORA_PARAMETERS
    assert parameter_counts(model) == (sum(p.numel() for p in model.parameters() if p.requires_grad), total)


def test_unknown_tuning():
    with pytest.raises(UserError, match="did you mean 'lora'"):
        select_trainable(network(TINY), tune="lorra", train_heads=True)


def statistics(model) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}


@pytest.mark.parametrize(("tune", "train_heads", "moving"), [
    ("lora", False, ()), ("lora", True, ("neck", "projector")), ("adapters", False, ("text", "vision")),
    ("lora+adapters", True, ("text", "vision", "neck", "projector"))])
def test_frozen_batchnorm_keeps_its_statistics(tune, train_heads, moving):
    model = with_lora(DENSE, random=True)
    select_trainable(model, tune=tune, train_heads=train_heads)
    set_training_mode(model)
    before = statistics(model)
    assert {name.split(".")[0] for name in before} == {"text", "vision", "neck", "projector"}
    for seed in range(2):
        model(*inputs(DENSE, 2, seed=seed))
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name]) != (name.split(".")[0] in moving), name


@pytest.mark.parametrize("tune", ["full", "lora", "lora+adapters"])
def test_gradients_reach_all_that_is_trained(tune):
    model = with_lora(DENSE, random=True)
    select_trainable(model, tune=tune, train_heads=True)
    set_training_mode(model)
    model(*inputs(DENSE, 2)).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_frozen_decoder_drops_nothing():
    model = network(CONFIGS["tiny"])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    select_trainable(model, tune="adapters", train_heads=False)
    set_training_mode(model)
    first, second = (model(*inputs(TINY, 2)).logits for _ in range(2))
    assert torch.equal(first, second)
