"""BatchNorm of two processes, each with half a batch, against PyTorch's BatchNorm on the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from talent.model.sync_batchnorm import GlobalBatchNorm, synchronise_batchnorm
from tests.networks import SMALL, network
from tests.talent import processes

SHAPES = {"[B, C]": (6, 5), "[B, C, L]": (4, 5, 7), "[B, C, H, W]": (4, 5, 3, 4)}


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Inputs far from mean 0 and variance 1, and what each output counts for in a loss."""
    torch.manual_seed(0)
    channels = torch.arange(1.0, shape[1] + 1).view(1, -1, *(1,) * (len(shape) - 2))
    return torch.randn(shape) * channels + 100 * channels, torch.randn(shape)


def norm(shape: tuple[int, ...]) -> nn.Module:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](shape[1], eps=1e-4, momentum=0.3)
    torch.manual_seed(1)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


def measure(model: nn.Module, x: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Two training steps' worth of statistics, outputs and gradients; then the output in evaluation."""
    x = x.clone().requires_grad_()
    model(x.detach() + 1)
    y = model(x)
    (y * counts).mean().backward()
    layer, = model.modules() if not list(model.children()) else model.children()
    found = {"y": y.detach(), "x.grad": x.grad, "weight.grad": layer.weight.grad, "bias.grad": layer.bias.grad}
    found |= {name: tensor.clone() for name, tensor in layer.named_buffers()}
    return found | {"evaluated": model.eval()(x).detach()}


def _process(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name, shape in SHAPES.items():
        model = synchronise_batchnorm(nn.Sequential(norm(shape)), gpu=False)
        assert isinstance(model[0], GlobalBatchNorm)
        halves = [tensor.chunk(2)[rank] for tensor in batch(shape)]
        torch.save(measure(model, *halves), Path(folder) / f"{name}.{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> dict[str, list[dict[str, Tensor]]]:
    """What both processes measured."""
    folder = tmp_path_factory.mktemp("halves")
    address = f"tcp://127.0.0.1:{processes.free_port()}"
    started = [processes.start_function(_process, rank, address, str(folder)) for rank in range(2)]
    for process in started:
        process.join(processes.LIMIT)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0
    return {name: [torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in range(2)] for name in SHAPES}


@pytest.mark.parametrize("name", SHAPES)
def test_as_the_whole_batch(halves, name):
    """To rounding: inputs of up to 500 with a spread of 1 to 5 leave four decimals."""
    expected, (first, second) = measure(norm(SHAPES[name]), *batch(SHAPES[name])), halves[name]
    for key in ("y", "evaluated"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), expected[key], rtol=1e-4, atol=1e-4)
    # Each process has a loss of its own; the loss of the whole batch is their mean.
    torch.testing.assert_close(torch.cat([first["x.grad"], second["x.grad"]]) / 2, expected["x.grad"],
                               rtol=1e-4, atol=1e-6)
    for key in ("weight.grad", "bias.grad"):
        torch.testing.assert_close((first[key] + second[key]) / 2, expected[key], rtol=1e-4, atol=1e-5)
    for key in ("running_mean", "running_var"):
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], expected[key], rtol=1e-5, atol=1e-5)
    assert first["num_batches_tracked"] == expected["num_batches_tracked"] == 2


def test_replaced_in_place_with_its_parameters():
    model = network(SMALL)
    before = model.state_dict(keep_vars=True)
    frozen = {name for name, parameter in model.named_parameters() if name.startswith("neck")}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.neck.train()
    training = {name: module.training for name, module in model.named_modules()}
    assert synchronise_batchnorm(model, gpu=False) is model
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert kinds and set(kinds) == {GlobalBatchNorm}
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} >= frozen
    assert {name: module.training for name, module in model.named_modules()} == training


def test_synchronise_for_a_gpu():
    model = synchronise_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), gpu=True)
    assert isinstance(model[0], nn.SyncBatchNorm)


def test_evaluation_needs_no_other_process():
    x, _ = batch((4, 5, 3, 4))
    plain = norm(x.shape)
    plain(x)
    expected = plain.eval()(x)
    assert torch.equal(synchronise_batchnorm(nn.Sequential(plain), gpu=False)(x), expected)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"expected \[B, C, \.\.\.\], received \(3,\)"):
        GlobalBatchNorm(3)(torch.zeros(3))
