"""The frozen part before the first trained block runs without autograd, and nobody's gradient notices."""

from __future__ import annotations

import copy

import pytest
import torch

from talent.model import text as text_module
from talent.model import vision as vision_module
from talent.model.lora import LoraSettings, select_trainable, set_training_mode
from talent.model.recording import frozen_prefix, recorded
from tests.networks import CONFIGS, TINY, add_trained_lora, inputs, network

TUNINGS = ("full", "adapters", "lora", "lora+adapters")
LAST_ONLY = "lora in the last blocks"
TEXT_ONLY = "lora in the text tower"


def trained(config, tune: str):
    """A network in training mode. LAST_ONLY and TEXT_ONLY: LoRA there and nothing else."""
    model = network(config)
    if "lora" in tune:
        add_trained_lora(model, LoraSettings(rank=2, vision=() if tune == TEXT_ONLY else ("qkv", "fc2")), spread=0.05)
    special = tune in (LAST_ONLY, TEXT_ONLY)
    select_trainable(model, tune="lora" if special else tune, train_heads=not special)
    if tune == LAST_ONLY:
        for tower in (model.text, model.vision):
            for block in tower.blocks[:-1]:
                block.requires_grad_(False)
    set_training_mode(model)
    return model


def gradients(model, config) -> dict[str, torch.Tensor]:
    image, tokens = inputs(config, 2)
    _, contrast = inputs(config, 2, seed=1)
    output = model(image, tokens, contrast[:, None])
    (output.logits.square().mean() + output.contrast.square().mean() + output.neck.features.mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def recordings(model, config) -> dict[str, list[tuple[bool, bool]]]:
    """Of the blocks of both towers: (autograd was on while it ran, its output carries a graph)."""
    seen: dict[str, list[tuple[bool, bool]]] = {"text": [], "vision": []}
    handles = [block.register_forward_hook(
        lambda module, arguments, output, tower=tower: seen[tower].append((torch.is_grad_enabled(),
                                                                          output.grad_fn is not None)))
               for tower in seen for block in getattr(model, tower).blocks]
    model(*inputs(config, 2))
    for handle in handles:
        handle.remove()
    return seen


def test_frozen_prefix_counts_leading_stages():
    frozen, other = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert frozen_prefix([]) == 0
    assert frozen_prefix([[frozen], [], [frozen, frozen], [frozen, other], [frozen]]) == 3
    assert frozen_prefix([[other], [frozen]]) == 0


def test_recorded_only_ever_switches_off():
    with torch.no_grad(), recorded(True):
        assert not torch.is_grad_enabled()
    with recorded(False):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "tune", "text", "vision"), [
    ("tiny", "adapters", 3, 1), ("dense", "adapters", 0, 1), ("dense", "full", 0, 0), ("dense", "lora", 0, 0),
    # the words carry a gradient to the image tower's first adapter, frozen as it is
    ("dense", LAST_ONLY, 2, 1), ("tiny", LAST_ONLY, 2, 1), ("tiny", TEXT_ONLY, 0, 1)])
def test_no_graph_before_the_first_trained_block(name, tune, text, vision):
    """text, vision: the first block that is recorded."""
    config = CONFIGS[name]
    model = trained(config, tune)
    seen = recordings(model, config)
    for tower, first in (("text", text), ("vision", vision)):
        wanted = [number >= first for number in range(len(seen[tower]))]
        assert [graph for _, graph in seen[tower]] == wanted, tower
        if getattr(model, tower).training:  # a tower frozen as a whole is in eval mode, where nothing is switched
            assert [on for on, _ in seen[tower]] == wanted, tower


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tune", [*TUNINGS, LAST_ONLY, TEXT_ONLY])
def test_gradients_are_those_of_plain_autograd(name, tune, monkeypatch):
    """To the bit, and there for all that is trained."""
    config = CONFIGS[name]
    model = trained(config, tune)
    plain = copy.deepcopy(model)
    received = gradients(model, config)
    for module in (text_module, vision_module):
        monkeypatch.setattr(module, "frozen_prefix", lambda stages: 0)
    wanted = gradients(plain, config)
    for parameter_name, parameter in model.named_parameters():
        gradient = received[parameter_name]
        assert (gradient is not None) == parameter.requires_grad, parameter_name
        if gradient is not None:
            assert torch.equal(gradient, wanted[parameter_name]), parameter_name


def test_embeddings_are_trained_in_full():
    model = trained(TINY, "full")
    received = gradients(model, TINY)
    for name in ("vision.patch_embed.weight", "vision.cls_token", "vision.reg_token", "vision.pos_embed",
                 "text.token_embedding.weight", "text.positional_embedding"):
        assert received[name].abs().sum() > 0, name


def test_text_lora_learns_through_the_frozen_image_tower():
    model = trained(TINY, TEXT_ONLY)
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained_names and all(name.startswith("text.") for name in trained_names)
    model(*inputs(TINY, 2)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_picture_may_ask_for_its_gradient():
    model = trained(TINY, "adapters")
    image, tokens = inputs(TINY, 1)
    model(image.requires_grad_(), tokens).logits.sum().backward()
    assert image.grad.abs().sum() > 0


def test_nothing_is_switched_in_evaluation():
    """Export and saliency work on models in eval mode: they see autograd as it was set."""
    model = trained(TINY, "adapters").eval()
    assert all(on for tower in recordings(model, TINY).values() for on, _ in tower)
    with torch.inference_mode():
        assert not any(on for tower in recordings(model, TINY).values() for on, _ in tower)

