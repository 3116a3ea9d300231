"""oneDNN's linear layers compute what PyTorch's do, keep no more, and step aside where they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from talent.model import fast_linear
from talent.model.fast_linear import FastLinear, linear, set_fast_linear
from talent.model.lora import LoraSettings, merge_lora, select_trainable, set_training_mode
from tests.networks import DENSE, TINY, add_trained_lora, inputs, network, relative_error


def tensors(shape: tuple[int, ...], out: int, *, bias: bool, frozen: bool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(out, shape[-1], generator=generator, requires_grad=not frozen)
    return x, weight, torch.randn(out, generator=generator, requires_grad=not frozen) if bias else None


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 33), (2, 3, 4, 1), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_values_and_gradients_are_those_of_pytorch(shape, bias, frozen):
    results = []
    for function in (F.linear, linear):
        x, weight, offset = tensors(shape, 9, bias=bias, frozen=frozen)
        y = function(x, weight, offset)
        y.backward(torch.sin(torch.arange(y.numel(), dtype=torch.float32)).view_as(y))
        results.append([y, x.grad, weight.grad, None if offset is None else offset.grad])
    for wanted, received in zip(*results, strict=True):
        assert (wanted is None) == (received is None)
        if wanted is not None:
            torch.testing.assert_close(received, wanted, rtol=1e-5, atol=1e-5)


def test_memory_that_is_not_contiguous():
    x = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0)).transpose(1, 2)[:, 2:]  # [4, 8, 6]
    weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).t()[:, ::2]  # [5, 6]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    linear(x, weight).sum().backward()  # a gradient of one number, expanded
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_keeps_no_input():
    kept = []
    for frozen in (True, False):
        x, weight, _ = tensors((8, 16), 4, bias=False, frozen=frozen)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.data_ptr()) or t,
                                                      lambda t: t):
            linear(x, weight)
        kept.append(x.data_ptr() in saved)
    assert kept == [False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_to_pytorch(dtype, monkeypatch):
    monkeypatch.setattr(fast_linear, "_product", None)
    x, weight = torch.randn(2, 3).to(dtype), torch.randn(4, 3).to(dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_autocast_goes_to_pytorch():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_without_onednn_it_is_pytorchs(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(fast_linear, "_product", None)
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def types(model) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


def test_a_model_with_lora_switches_there_and_back():
    model = network(DENSE)
    add_trained_lora(model, LoraSettings(rank=2), spread=0.05)
    keys, image_and_tokens = list(model.state_dict()), inputs(DENSE, 2)
    with torch.inference_mode():
        plain = model(*image_and_tokens).logits
        set_fast_linear(model, True)
        assert types(model) == {FastLinear} and list(model.state_dict()) == keys
        assert relative_error(model(*image_and_tokens).logits, plain) < 1e-5
        set_fast_linear(model, False)
        assert types(model) == {nn.Linear}
        assert torch.equal(model(*image_and_tokens).logits, plain)
    set_fast_linear(model, True)
    assert merge_lora(model) > 0
    with torch.inference_mode():
        assert relative_error(model(*image_and_tokens).logits, plain) < 1e-4


def test_gradients_of_a_network():
    received = []
    for fast in (False, True):
        model = network(TINY)
        select_trainable(model, tune="adapters", train_heads=True)
        set_training_mode(model)
        set_fast_linear(model, fast)
        model(*inputs(TINY, 2)).logits.square().mean().backward()
        received.append({name: parameter.grad for name, parameter in model.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in received[0].values() if gradient is not None)
    for name, wanted in received[0].items():
        assert (wanted is None) == (received[1][name] is None), name
        if wanted is not None:
            torch.testing.assert_close(received[1][name], wanted, rtol=1e-3, atol=1e-5 * largest)


def test_export_sees_a_plain_linear_layer():
    layer = nn.Sequential(nn.Linear(4, 3))
    set_fast_linear(layer, True)
    program = torch.export.export(layer.eval(), (torch.randn(2, 4),))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.linear.default]
