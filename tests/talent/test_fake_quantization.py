"""Fake quantization computes what integers do, on the layers that the export has in INT8, and can be trained."""

from __future__ import annotations

import copy
import fnmatch
import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.fold import fold
from deploy.onnx_files import SPARED
from talent.config import preset
from talent.model import build_model
from talent.model.checkpointing import set_gradient_checkpointing
from talent.model.fake_quantization import (
    DECAY,
    LEVELS,
    MIN_CHANNELS,
    FakeQuantization,
    add_fake_quantization,
    remove_fake_quantization,
    round_input,
    round_weight,
)
from talent.model.fast_linear import FastLinear, set_fast_linear
from talent.model.lora import LoraSettings, merge_lora, select_trainable, set_training_mode
from tests.networks import CONFIGS, DENSE, SMALL, TINY, add_trained_lora, inputs, network

ALL = CONFIGS | {"smallest": SMALL}


def calibrated(model, config, *, seed: int = 5) -> FakeQuantization:
    """The model with ranges of two pictures."""
    quantization = add_fake_quantization(model)
    with quantization.observing(rounding=False):
        logits(model, config, seed=seed)
    quantization.update()
    return quantization


def with_lora(config, *, dropout: float = 0.0):
    """A network with LoRA factors far from zero."""
    model = network(config)
    add_trained_lora(model, LoraSettings(rank=2, dropout=dropout), spread=0.1)
    return model.eval()


@torch.no_grad()
def logits(model, config, *, seed: int = 0) -> Tensor:
    image, tokens = inputs(config, 2, seed=seed)
    return model(image.to(next(model.parameters()).dtype), tokens).logits


def integers(values: Tensor, scale: Tensor, lowest: int) -> np.ndarray:
    """INT8 as numpy makes it of these float32 numbers, kept in the int64 that sums cannot overflow."""
    steps = np.rint(values.detach().numpy() / scale.detach().numpy())
    return steps.clip(lowest, LEVELS).astype(np.int8).astype(np.int64)


def test_linear_layer_is_the_integer_arithmetic():
    model = network(SMALL)
    layer = model.vision.blocks[0].mlp.fc1
    quantization = calibrated(model, SMALL)
    largest = quantization.ranges["vision.blocks.0.mlp.fc1"]
    torch.manual_seed(0)
    x = torch.randn(3, 7, layer.in_features) * largest / 2  # some of it is cut off
    scale, scales = largest / LEVELS, layer.weight.abs().amax(1, keepdim=True) / LEVELS
    sums = integers(x, scale, -LEVELS - 1) @ integers(layer.weight, scales, -LEVELS).T
    expected = torch.from_numpy(sums * (scale * scales.T).detach().double().numpy()) + layer.bias
    assert (x.abs() > largest).any()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_convolution_is_the_integer_arithmetic():
    model = network(SMALL)
    layer = model.neck.coord_conv[1][0]
    largest = calibrated(model, SMALL).ranges["neck.coord_conv.1.0"]
    torch.manual_seed(0)
    x = torch.rand(2, layer.in_channels, 4, 4) * largest
    scale, scales = largest / LEVELS, layer.weight.abs().amax((1, 2, 3), keepdim=True) / LEVELS
    steps, weight = (torch.from_numpy(one).double() for one in (
        integers(x, scale, -LEVELS - 1), integers(layer.weight, scales, -LEVELS)))
    expected = F.conv2d(steps, weight, padding=1) * (scale * scales.view(1, -1, 1, 1)).double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)


def int8_modules(folded, config) -> dict[str, nn.Module]:
    """Of a folded network, the layers that calibration.quantize takes: constant weights that are wide enough, called
    for the picture; not the patch embedding, what is spared, or an RCA's own products, which are no modules."""
    called = {}

    def note(name: str, module: nn.Module, args: tuple) -> None:
        called[name] = module

    hooks = [module.register_forward_pre_hook(functools.partial(note, name))
             for name, module in folded.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    image, tokens = inputs(config, 1)
    with torch.no_grad():
        prompt = folded.prompt(folded.text(tokens))
        called.clear()
        folded.segment(image.to(prompt.kernel.dtype), prompt)
    for hook in hooks:
        hook.remove()
    return {name: module for name, module in called.items()
            if min(module.weight.shape[:2]) >= MIN_CHANNELS and name != "vision.patch_embed"
            and not any(fnmatch.fnmatch(name, pattern) for pattern in SPARED)}


def layer_of(name: str) -> set[str]:
    """The layers of the network in training that a layer of the folded one was made of."""
    for old, new in ((".inner", ".mlp.fc1"), (".outer", ".mlp.fc2"), ("self_attn.qkv", "self_attn"),
                     ("coord_conv.0.convolution", "coord_conv.0")):
        if name.endswith(old):
            block = name.removesuffix(old)
            return {block + new} | ({f"{block}.adapter.fc1"} if old == ".inner" else set())
    name = name.partition(".rows.")[0]
    return {f"{name}.linear" if name.startswith(("neck.projections", "neck.aggregation")) else name}


@pytest.mark.parametrize("name", ALL)
def test_rounded_are_the_layers_that_the_export_has_in_int8(name):
    config = ALL[name]
    folded = network(config)
    rounded = set(add_fake_quantization(copy.deepcopy(folded)).layers)
    fold(folded)
    assert rounded == set().union(*(layer_of(one) for one in int8_modules(folded, config)))


@pytest.mark.parametrize(("name", "count"), [("tiny", 51), ("small", 91), ("base", 97), ("large", 145)])
def test_how_many_layers_a_preset_rounds(name, count):
    with torch.device("meta"):
        model = build_model(preset(name))
    layers = add_fake_quantization(model).layers
    assert len(layers) == count
    branches = {layer.partition(".branches.")[2] for layer in layers if ".branches." in layer}
    assert branches <= {"branch1.0"}, "the others squeeze into 8 channels"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "LoRA"])
def test_folding_and_merging_come_to_the_same(name, lora):
    """The network as it is exported, its layers rounded one by one, against fake quantization of what it was made of.

    In float64, because rounding makes a whole step out of a difference in the last bit. The bound is a part of what
    quantization itself makes: rounded positions or coordinates, or a wrong scale, would make as much.
    """
    config = ALL[name]
    model = (with_lora(config) if lora else network(config)).double()
    folded, exact = copy.deepcopy(model), logits(model, config)
    ranges = calibrated(model, config).ranges
    merge_lora(folded)
    fold(folded)
    for own, module in int8_modules(folded, config).items():
        largest = max(ranges[layer] for layer in layer_of(own))
        with torch.no_grad():
            module.weight.copy_(round_weight(module.weight, tuple(range(1, module.weight.dim()))))
        module.register_forward_pre_hook(lambda module, args, largest=largest: (round_input(args[0], largest),))
    received, expected = logits(model, config), logits(folded, config)
    made = (expected - exact).square().mean().sqrt()
    assert made > 1e-3 * exact.abs().max(), "quantization changes something"
    assert (received - expected).square().mean().sqrt() < 1e-3 * made


def test_gradient_passes_inside_the_range_and_not_outside():
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.004, 0.99, 1.2], requires_grad=True)
    received = round_input(x, torch.tensor(1.0))
    torch.testing.assert_close(received * LEVELS, torch.tensor([-128.0, -127, -38, 0, 1, 126, 127]), rtol=0, atol=1e-4)
    received.backward(torch.arange(1.0, 8.0))
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]


def test_gradient_of_a_weight_is_that_of_what_it_was_rounded_to():
    torch.manual_seed(0)
    weight = torch.randn(4, 5, requires_grad=True)
    rounded = round_weight(weight, (1,))
    scale = weight.detach().abs().amax(1, keepdim=True) / LEVELS
    assert torch.equal(rounded, (weight / scale).round() * scale), "to the bit, what the export stores"
    rounded.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * rounded.detach())


def test_zeros_stay_zeros():
    assert not round_input(torch.zeros(3), torch.tensor(0.0)).any()
    assert not round_weight(torch.zeros(3, 2), (1,)).any()


def test_checkpoints_know_nothing_of_it_and_it_can_be_taken_away():
    model = with_lora(DENSE)
    set_fast_linear(model, True)
    types = {name: type(module) for name, module in model.named_modules()}
    names = [name for name, _ in model.named_parameters()]
    state, before = {key: value.clone() for key, value in model.state_dict().items()}, logits(model, DENSE)
    quantization = calibrated(model, DENSE)
    assert list(model.state_dict()) == list(state) and [name for name, _ in model.named_parameters()] == names
    assert not torch.equal(logits(model, DENSE), before)
    assert remove_fake_quantization(model) == len(quantization.layers)
    assert {name: type(module) for name, module in model.named_modules()} == types
    assert FastLinear in types.values()
    assert torch.equal(logits(model, DENSE), before)


def test_ranges_follow_what_was_observed():
    model = network(SMALL)
    layer = model.vision.blocks[0].mlp.fc1
    quantization = add_fake_quantization(model)
    assert not quantization.calibrated
    name = "vision.blocks.0.mlp.fc1"

    def seen(*magnitudes: float, update: bool = True) -> float:
        with quantization.observing():
            for one in magnitudes:
                layer(torch.tensor([[-one] + [one / 3] * (layer.in_features - 1)]))
        if update:
            quantization.update()
        return float(quantization.ranges[name])

    assert seen(2.0, 4.0, 3.0) == 4.0 and quantization.calibrated
    assert seen(9.0, update=False) == 4.0, "within a step nothing moves"
    quantization.update()
    layer(torch.full((1, layer.in_features), 50.0))
    quantization.update()
    assert float(quantization.ranges[name]) == pytest.approx(9.0 * DECAY), "not observed"
    assert seen(1.0) == pytest.approx(9.0 * DECAY ** 2), "forgets"
    state = quantization.state_dict()
    seen(100.0)
    quantization.load_state_dict(state)
    assert float(quantization.ranges[name]) == pytest.approx(9.0 * DECAY ** 2)


def gradients(model, config, *, seed: int = 0) -> tuple[FakeQuantization, dict[str, Tensor]]:
    """Of one step with two batches, and what was seen in it."""
    quantization = calibrated(model, config)
    select_trainable(model, tune="lora", train_heads=True)
    set_training_mode(model)
    for number in range(2):
        torch.manual_seed(number)
        with quantization.observing():
            output = model(*inputs(config, 2, seed=number))
        output.logits.square().mean().backward()
    return quantization, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_gradient_checkpointing_changes_nothing():
    results = []
    for enabled in (False, True):
        model = with_lora(SMALL, dropout=0.2)
        set_gradient_checkpointing(model, enabled)
        quantization, grads = gradients(model, SMALL)
        quantization.update()
        results.append((grads, quantization.ranges))
    (expected, ranges), (received, same) = results
    assert all(torch.equal(ranges[name], same[name]) for name in ranges)
    assert any(bool(grad.any()) for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(received[name], grad, rtol=1e-5, atol=1e-8)


def test_every_factor_and_every_head_learns():
    """Through all rounding; the text tower's too, by way of the words."""
    _, grads = gradients(with_lora(TINY), TINY)
    assert not [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]


def test_dropout_of_lora_is_zero_on_average_and_off_in_evaluation():
    config = SMALL
    model = with_lora(config, dropout=0.5)
    layer = model.vision.blocks[0].attn.qkv
    calibrated(model, config)
    torch.manual_seed(0)
    x = torch.randn(4, layer.in_features)
    expected = layer(x)
    assert torch.equal(layer(x), expected)
    layer.train()
    drawn = torch.stack([layer(x) for _ in range(2000)])
    spread = drawn.std(0)
    assert (spread > 0).all()
    assert ((drawn.mean(0) - expected).abs() < 5 * spread / 2000 ** 0.5).all()


def test_autocast_rounds_the_same_weights():
    """bfloat16 holds the integers exactly and their sums to 2^-8; merging LoRA stays in float32."""
    model = with_lora(TINY)
    calibrated(model, TINY)
    exact = logits(model, TINY)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, TINY).float()
    assert 0 < (rough - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()
