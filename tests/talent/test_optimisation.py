"""Learning rates of each step, what decays, and the moving average by its formula."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from talent.optimisation import MovingAverage, build_optimizer, learning_rate
from talent.settings import TrainSettings
from tests.networks import TINY, network


def rates(steps: int, **changed) -> list[float]:
    settings = TrainSettings(**{"output": "run", "learning_rate": 0.5, "warmup_steps": 10, **changed})
    return [learning_rate(step, settings, steps) for step in range(steps + 1)]


def test_warm_up_and_cosine():
    found = rates(100)
    assert found[0] == pytest.approx(0.05) and found[9] == found[10] == 0.5 and found[100] == pytest.approx(0)
    assert found[:10] == sorted(found[:10]) and found[10:] == sorted(found[10:], reverse=True)
    assert found[55] == pytest.approx(0.25)
    assert found[32] == pytest.approx(0.25 * (1 + math.cos(math.pi * 22 / 90)))


def test_the_whole_run_may_warm_up():
    assert rates(10, warmup_steps=100)[9] == pytest.approx(0.05)
    assert rates(10, warmup_steps=10)[10] == 0.5
    assert rates(3, warmup_steps=0)[0] == 0.5


def test_constant():
    assert rates(50, schedule="constant")[10:] == [0.5] * 41


@pytest.mark.parametrize("steps", [65, 650, 130, 6500])
def test_step_schedule_falls_at_the_milestones_of_the_paper(steps):
    """After epochs 35 and 55 of 65: at those steps exactly, not one later for the rounding of a fraction."""
    found = rates(steps, schedule="step", warmup_steps=0)
    first, second = steps * 35 // 65, steps * 55 // 65
    assert found[:first] == [0.5] * first
    assert found[first:second] == pytest.approx([0.05] * (second - first))
    assert found[second:] == pytest.approx([0.005] * (steps + 1 - second))


def test_milestones_and_gamma():
    found = rates(10, schedule="step", warmup_steps=2, milestones=(0.3, 0.5, 0.99), gamma=0.5)
    assert found == pytest.approx([0.25, 0.5, 0.5, *[0.25] * 2, *[0.125] * 5, 0.0625])


def test_shares_that_fall_between_steps():
    """0.29 x 100 is 28.999999999999996, 0.57 x 100 is 56.99999999999999, 0.07 x 100 is 7.000000000000001."""
    found = rates(100, schedule="step", warmup_steps=0, milestones=(0.07, 0.29, 0.57), gamma=0.5)
    assert [step for step in range(1, 101) if found[step] != found[step - 1]] == [7, 29, 57]


def test_weight_decay_is_for_matrices():
    model = network(TINY)
    model.text.requires_grad_(False)
    decayed, plain = build_optimizer(model, TrainSettings(output="run", weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in plain["params"]} == {1} and min(p.ndim for p in decayed["params"]) == 2
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for group in (decayed, plain) for p in group["params"]) == sorted(trained)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    return model


def moved(model: nn.Module, times: int = 1) -> list[dict[str, torch.Tensor]]:
    """The weights after each of some arbitrary changes."""
    history = []
    for _ in range(times):
        with torch.no_grad():
            model(torch.randn(8, 3))  # BatchNorm's statistics
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
        history.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return history


def test_average_by_its_formula():
    """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ..., BatchNorm included."""
    model = small()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = MovingAverage(model, 0.25)
    for n in range(6):
        weights, = moved(model)
        average.update(model)
        decay = min(0.25, (1 + n) / (10 + n))
        for name in expected.keys() - {"1.num_batches_tracked"}:
            expected[name] = decay * expected[name] + (1 - decay) * weights[name]
    assert [min(0.25, (1 + n) / (10 + n)) for n in (0, 1, 2, 3)] == [0.1, 2 / 11, 0.25, 0.25], "both cases are there"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied(model):
        for name in expected.keys() - {"1.num_batches_tracked"}:
            torch.testing.assert_close(model.state_dict()[name], expected[name], msg=name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the weights are back"


def test_weights_come_back_after_an_error():
    model = small()
    average = MovingAverage(model, 0.5)
    weights, = moved(model)
    average.update(model)
    kept = copy.deepcopy(average.state_dict())
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(average.average[name], tensor) for name, tensor in kept["average"].items())


def test_average_goes_on_to_the_bit():
    model = small()
    average = MovingAverage(model, 0.9)
    moved(model, 3)
    average.update(model)
    state = copy.deepcopy(average.state_dict())
    other = small()
    other.load_state_dict(model.state_dict())
    again = MovingAverage(other, 0.9)
    again.load_state_dict(state)
    for one, each in ((model, average), (other, again)):
        torch.manual_seed(3)
        for _ in range(3):
            moved(one)
            each.update(one)
    assert again.updates == average.updates == 4
    assert all(torch.equal(tensor, average.average[name]) for name, tensor in again.average.items())


def test_what_is_frozen_is_not_averaged():
    """It would cost memory; running statistics are followed wherever they are."""
    names = MovingAverage(small(), 0.5).average.keys()
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias", "1.running_mean", "1.running_var"}
