"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import distributed, nn

from talent.losses import LossWeights, talent_losses
from talent.model import checkpointing
from talent.model.checkpointing import run, set_gradient_checkpointing
from talent.model.lora import LoraSettings, add_lora, select_trainable, set_training_mode
from talent.model.sync_batchnorm import synchronise_batchnorm
from tests.networks import CONFIGS, DENSE, TINY, add_trained_lora, inputs, network

DROPOUT = 0.3


def trained(config, *, tune: str = "lora+adapters", train_heads: bool = True):
    """A network in training mode with dropout in the decoder and in LoRA."""
    model = network(dataclasses.replace(config, dropout=DROPOUT))
    if "lora" in tune:
        add_trained_lora(model, LoraSettings(rank=2, dropout=DROPOUT), spread=0.05)
    select_trainable(model, tune=tune, train_heads=train_heads)
    set_training_mode(model)
    return model


def losses(model, config, *, seed: int = 0) -> torch.Tensor:
    """The weighted sum of all losses, dropout seeded."""
    image, tokens = inputs(config, 2, seed=seed)
    contrast = torch.stack([inputs(config, 2, seed=seed + number)[1] for number in (1, 2)], 1)
    mask = torch.zeros(2, 1, config.image_size, config.image_size)
    mask[:, :, 20:60, 30:80] = 1
    torch.manual_seed(7)
    output = model(image, tokens, contrast)
    return talent_losses(output, output.contrast, {"mask": mask, "valid": torch.ones(2, dtype=torch.bool)},
                         LossWeights()).total


def assert_same_training(model, other, config, *, steps: int = 2, autocast: bool = False) -> None:
    """Losses, gradients, weights and buffers over some steps of SGD."""
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-3) for m in (model, other)]
    for step in range(steps):
        values = []
        for one, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = losses(one, config, seed=step)
            loss.backward()
            values.append(loss.item())
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None) == (not one.requires_grad), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        for (name, one), (_, two) in zip(model.named_buffers(), other.named_buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tune", ["full", "adapters", "lora+adapters"])
def test_losses_gradients_and_statistics_stay(name, tune):
    config = CONFIGS[name]
    plain = trained(config, tune=tune)
    checkpointed = copy.deepcopy(plain)
    before = {key: buffer.clone() for key, buffer in plain.named_buffers()}
    set_gradient_checkpointing(checkpointed, True)
    assert_same_training(checkpointed, plain, config)
    moved = [key for key, buffer in checkpointed.named_buffers() if not torch.equal(buffer, before[key])]
    assert any("running_mean" in key for key in moved) and any("num_batches_tracked" in key for key in moved)
    counts = {int(buffer) for key, buffer in checkpointed.named_buffers() if "num_batches_tracked" in key}
    assert counts == {2}, "one update of BatchNorm per step"


def test_dropout_is_drawn():
    """Without it the comparison above would say nothing about dropout."""
    model = trained(TINY)
    torch.manual_seed(0)
    first = model(*inputs(TINY, 2)).logits
    assert not torch.equal(first, model(*inputs(TINY, 2)).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_autocast(name):
    plain = trained(CONFIGS[name])
    checkpointed = copy.deepcopy(plain)
    set_gradient_checkpointing(checkpointed, True)
    assert_same_training(checkpointed, plain, CONFIGS[name], steps=1, autocast=True)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("synchronised", [False, True])
def test_distributed_data_parallel(one_process, synchronised):
    plain = trained(DENSE)
    checkpointed = copy.deepcopy(plain)
    set_gradient_checkpointing(checkpointed, True)
    if synchronised:
        synchronise_batchnorm(checkpointed, gpu=False)
        synchronise_batchnorm(plain, gpu=False)
    parallel = nn.parallel.DistributedDataParallel(checkpointed, static_graph=not synchronised)
    for step in range(2):
        for model in (parallel, plain):
            model.zero_grad()
            losses(model, DENSE, seed=step).backward()
        for (name, one), (_, two) in zip(checkpointed.named_parameters(), plain.named_parameters(), strict=True):
            if one.requires_grad:
                torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    for (name, one), (_, two) in zip(checkpointed.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def saved_bytes(model, config, monkeypatch) -> int:
    """Bytes that stay until the backward pass: what autograd saves, and the inputs that checkpoints hold."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    real = checkpointing.checkpoint

    def counting(block, *arguments, **options):
        for argument in arguments:
            keep(argument)
        return real(block, *arguments, **options)

    monkeypatch.setattr(checkpointing, "checkpoint", counting)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = losses(model, config)
    monkeypatch.setattr(checkpointing, "checkpoint", real)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_less_is_kept(name, monkeypatch):
    config = CONFIGS[name]
    model = trained(config)
    plain = saved_bytes(model, config, monkeypatch)
    set_gradient_checkpointing(model, True)
    checkpointed = saved_bytes(model, config, monkeypatch)
    set_gradient_checkpointing(model, False)
    assert checkpointed < 0.4 * plain
    assert saved_bytes(model, config, monkeypatch) == plain


def checkpointed_blocks(model, config, monkeypatch, *, grad: bool = True) -> list[str]:
    """Names of what is checkpointed in one forward pass."""
    names = {module: name for name, module in model.named_modules()}
    seen = []
    real = checkpointing.checkpoint
    monkeypatch.setattr(checkpointing, "checkpoint",
                        lambda block, *rest, **options: seen.append(names[block]) or real(block, *rest, **options))
    with torch.set_grad_enabled(grad):
        model(*inputs(config, 2))
    return seen


def test_only_where_a_gradient_is_wanted(monkeypatch):
    model = trained(DENSE, tune="adapters")
    set_gradient_checkpointing(model, True)
    first = min(DENSE.vision_adapter_blocks)
    blocks = [f"text.blocks.{number}" for number in range(DENSE.text_layers)]
    blocks += [f"vision.blocks.{number}" for number in range(first, DENSE.vision_depth)]
    heads = [f"decoder.layers.{number}" for number in range(DENSE.decoder_layers)]
    heads += ["projector.conv1", "projector.conv2"]
    assert checkpointed_blocks(model, DENSE, monkeypatch) == blocks + heads
    assert checkpointed_blocks(model, DENSE, monkeypatch, grad=False) == []


def test_frozen_blocks_that_a_gradient_passes_are_checkpointed_too(monkeypatch):
    """LoRA in the text tower: its gradient comes through the frozen image tower and the frozen heads."""
    model = network(TINY)
    add_lora(model, LoraSettings(rank=2, vision=()))
    select_trainable(model, tune="lora", train_heads=False)
    set_training_mode(model)
    set_gradient_checkpointing(model, True)
    seen = checkpointed_blocks(model, TINY, monkeypatch)
    assert "vision.blocks.0" not in seen and {"vision.blocks.1", "vision.blocks.5", "projector.conv2"} <= set(seen)


def test_statistics_survive_an_error_in_the_second_computation():
    """The block's own buffers come back even where the backward pass breaks off."""
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.calls = nn.BatchNorm1d(3), 0

        def forward(self, x):
            self.calls += 1
            y = self.norm(x)
            if self.calls == 2:
                raise RuntimeError("second computation")
            return y * y

    block = Fails()
    held = {name: getattr(block.norm, name) for name in checkpointing.STATISTICS}
    output = run(block, torch.randn(4, 3, requires_grad=True), checkpointed=True)
    after = {name: value.clone() for name, value in held.items()}
    with pytest.raises(RuntimeError, match="second computation"):
        output.sum().backward()
    for name, buffer in held.items():
        assert getattr(block.norm, name) is buffer and torch.equal(buffer, after[name])
