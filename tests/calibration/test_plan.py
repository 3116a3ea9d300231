"""The whole plan of INT8 on the toy network: what is kept and taken up again, and what a plan says and gives up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx
import pytest

from calibration.budget import RANKING_SAMPLES, Block, Choice, blocks_of
from calibration.emulation import EmulatedInt8
from calibration.plan import Int8Plan, format_plan, plan_int8
from calibration.quantize import quantizable
from calibration.ranges import Range
from calibration.sensitivity import HeldOut, Measured
from calibration.smooth import Smoothing
from deploy.onnx_run import deviation, run
from talent.errors import UserError
from talent.metrics import Score, score
from tests.deploy import toy

CALIBRATION = [toy.feeds(1, seed) for seed in range(4)]
IDENTITY = ("the network", "the samples")
EXCEPT = 4
"""So many layers of the toy can be INT8 in these tests: two tensors, one of which one layer reads."""


@pytest.fixture(scope="module")
def exclude(plain: onnx.ModelProto) -> list[str]:
    return quantizable(plain)[EXCEPT:]


@dataclass(frozen=True)
class Expressions:
    """The target is what FP32 takes for it. kills: at which reading of one the run ends, counted from 0."""

    model: onnx.ModelProto
    count: int = 3
    kills: int | None = None
    read: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[HeldOut]:
        for number in range(self.count):
            if len(self.read) == self.kills:
                raise KeyboardInterrupt
            self.read.append(number)
            feeds = partial(toy.feeds, 1, seed=100 + number)
            yield HeldOut(feeds, partial(judge, run(self.model, feeds=feeds())["logits"]), f"expression {number}")


def judge(target: np.ndarray, logits: np.ndarray) -> Score:
    return score(logits[0, 0], 0.0, target[0, 0] > 0)


@pytest.fixture
def runs(monkeypatch) -> list[tuple[str, ...]]:
    """The layers in INT8 of every emulated run."""
    done, emulated = [], EmulatedInt8.run

    def counted(self, feeds, int8):
        done.append(tuple(sorted(int8)))
        return emulated(self, feeds, int8)

    monkeypatch.setattr(EmulatedInt8, "run", counted)
    return done


@pytest.fixture
def measured_ranges(monkeypatch) -> list[str]:
    """The method of every measurement of ranges."""
    done = []

    def counted(model, names, *, calibration, method):
        done.append(method)
        readers = dict.fromkeys(node.input[0] for node in model.graph.node if node.name in set(names))
        return tuple(Range(tensor, 4.0 + len(done), 5.0, 99.9) for tensor in readers)

    monkeypatch.setattr("calibration.plan.find_ranges", counted)
    return done


def test_without_a_bound_every_layer_is_taken_and_no_expression_read(plain, exclude, tmp_path, runs) -> None:
    smoothed, plan = plan_int8(plain, calibration=CALIBRATION, identity=IDENTITY, method="percentile", exclude=exclude,
                               held_out=Expressions(plain, kills=0), cache=tmp_path)
    assert plan.layers == set(quantizable(plain)) - set(exclude) and plan.choice is None and not runs
    assert {node.input[0] for node in smoothed.graph.node if node.name in plan.layers} == plan.largest.keys()
    assert deviation(smoothed, plain, feeds=toy.feeds(2, seed=9))["logits"] < 1e-5
    assert format_plan(plan).splitlines()[0] == f"INT8: {EXCEPT} layers, all that can be"
    data = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert data["layers"] == sorted(plan.layers) and data["choice"] is None
    assert data["method"] == "percentile" and len(data["ranges"]) == len(plan.ranges) > 1
    assert [Range(**one) for one in data["ranges"]] == list(plan.ranges)


def test_a_plan_within_a_budget_is_measured_once(plain, exclude, tmp_path, runs, monkeypatch) -> None:
    # the toy's arithmetic is not what is tested here
    monkeypatch.setattr("calibration.plan.arithmetic", lambda model: dict.fromkeys(quantizable(model), 1))
    arguments = dict(calibration=CALIBRATION, identity=IDENTITY, method="percentile", exclude=exclude, cache=tmp_path)
    _, plan = plan_int8(plain, bound=1.0, held_out=Expressions(plain), **arguments)
    assert plan.layers == plan.choice.layers == set(quantizable(plain)) - set(exclude)
    assert plan.choice.reference.miou == 1 and 0 < plan.choice.drop < 0.5 and plan.choice.chosen.samples == 3
    assert set(Counter(filter(None, runs)).values()) == {3}, "something was run twice"
    before = list(runs)
    assert plan_int8(plain, bound=1.0, held_out=Expressions(plain), **arguments)[1] == plan and runs == before
    _, none = plan_int8(plain, bound=-1.0, held_out=Expressions(plain), **arguments)
    assert none.layers == frozenset() and none.choice.layers == frozenset() and none.ranges == plan.ranges
    assert not set(runs[len(before):]) & set(before) - {()}
    assert "INT8: nothing" in format_plan(none)
    json.dumps(none.to_dict(), allow_nan=False)


def test_a_plan_that_was_killed_goes_on_where_it_was(plain, exclude, tmp_path, runs, monkeypatch) -> None:
    monkeypatch.setattr("calibration.plan.arithmetic", lambda model: dict.fromkeys(quantizable(model), 1))
    arguments = dict(calibration=CALIBRATION, identity=IDENTITY, method="percentile", exclude=exclude, bound=1.0)
    with pytest.raises(KeyboardInterrupt):
        plan_int8(plain, held_out=Expressions(plain, kills=5), cache=tmp_path, **arguments)
    before = len(runs)
    _, plan = plan_int8(plain, held_out=Expressions(plain), cache=tmp_path, **arguments)
    assert before and any(runs[:before]) and len(runs) > before
    assert set(Counter(filter(None, runs)).values()) == {3}, "something was run twice"
    assert plan_int8(plain, held_out=Expressions(plain), **arguments)[1] == plan


def test_ranges_are_measured_once_for_one_network_on_one_set_by_one_method(plain, exclude, tmp_path, monkeypatch,
                                                                           measured_ranges) -> None:
    arguments = dict(calibration=CALIBRATION[:1], identity=IDENTITY, method="percentile", exclude=exclude)
    first = plan_int8(plain, cache=tmp_path, **arguments)[1]
    assert plan_int8(plain, cache=tmp_path, **arguments)[1] == first and measured_ranges == ["percentile"]
    for number, change in enumerate(({"identity": ("another network", "the samples")}, {"method": "max"},
                                     {"identity": ("the network", "other samples")}, {"exclude": exclude[1:]}), 2):
        other = plan_int8(plain, cache=tmp_path, **arguments | change)[1]
        assert len(measured_ranges) == number == len(list(tmp_path.iterdir())) and other.ranges[0].range == 4 + number
    plan_int8(plain, **arguments)
    plan_int8(plain, **arguments)
    assert len(measured_ranges) == 7, "without a directory nothing is kept"
    monkeypatch.setattr("calibration.plan.provenance.versions", lambda *names: {names[0]: "99.9"})
    plan_int8(plain, cache=tmp_path, **arguments)
    assert len(measured_ranges) == 8 and len(list(tmp_path.iterdir())) == 6, "another ONNX Runtime may round otherwise"


def test_nothing_to_quantize_is_an_error(plain, tmp_path) -> None:
    with pytest.raises(UserError, match="no linear layer or convolution is left to quantize; exclude fewer"):
        plan_int8(plain, calibration=CALIBRATION, identity=IDENTITY, method="max", exclude=quantizable(plain),
                  cache=tmp_path)
    assert not list(tmp_path.iterdir())


def plan_of(blocks: int) -> Int8Plan:
    """A plan of so many blocks of two layers, which joined in order of their number."""
    order = tuple(blocks_of(f"vision.blocks.{number}/{layer}" for number in range(blocks) for layer in "ab"))
    layers = frozenset().union(*(block.layers for block in order))
    reference, chosen = (Measured(found, 48, miou, 0.5, None, 0.0) for found, miou in ((frozenset(), 0.6),
                                                                                      (layers, 0.597)))
    choice = Choice(layers=layers, bound=0.005, reference=reference, chosen=chosen, ranking=(),
                    shares=dict.fromkeys(layers, 0.5 / len(layers)), ranking_samples=RANKING_SAMPLES, tried=(),
                    curve=(), order=order)
    ranges = (Range("seen", 2.0, 2.0, 100.0), Range("clipped", 1.0, 4.0, 99.9), Range("unknown", 3.0, None, None),
              Range("clipped little", 3.0, 4.0, 99.99))
    smoothing = (Smoothing("norm", ("a",), 0.5, 0.04, 0.02, 30.0), Smoothing("better", ("b",), 0.7, 0.04, 0.01, 90.0),
                 Smoothing("left", ("c",), 0.0, 0.01, 0.01, 2.0))
    return Int8Plan(layers, "percentile", ranges, smoothing, choice)


@pytest.mark.parametrize("blocks", [1, 2, 3, 10, 17, 60])
def test_smaller_plans_lose_what_joined_last_until_nothing_is_left(blocks: int) -> None:
    plan, steps = plan_of(blocks), 0
    while plan.layers:
        less, steps = plan.smaller(), steps + 1
        assert less.layers < plan.layers and less.choice.fewer > plan.choice.fewer
        assert less.layers == {f"vision.blocks.{number}/{layer}" for number in range(blocks - less.choice.fewer)
                               for layer in "ab"}
        assert less.choice.layers == less.layers and replace(less, layers=plan.layers, choice=plan.choice) == plan
        data = json.loads(json.dumps(less.to_dict()))
        assert data["layers"] == data["choice"]["layers"] == sorted(less.layers)
        assert data["choice"]["blocks_taken_out"] == less.choice.fewer
        plan = less
    assert plan.choice.fewer == blocks and steps <= 3 + 4 * np.log2(blocks)


def test_a_part_of_a_block_may_be_taken_out_alone() -> None:
    plan = plan_of(2)
    order = (plan.choice.order[0], Block("b", frozenset(["vision.blocks.1/b"])))
    plan = replace(plan, layers=plan.layers - {"vision.blocks.1/a"}, choice=replace(plan.choice, order=order))
    assert plan.smaller().layers == {"vision.blocks.0/a", "vision.blocks.0/b"}


def test_the_lines_for_people() -> None:
    plan = plan_of(10)
    lines = format_plan(plan).splitlines()
    assert lines[0].startswith("INT8: 20 layers, 50.0% of the arithmetic")
    assert lines[-2:] == [
        "  smoothed: 2 of 3 layer normalisations; most gained better (error of its products 4.00% -> 1.00%)",
        "  clipped: 2 of 4 activations; most clipped (4 -> 1)"]
    assert "taken out" not in format_plan(plan)
    lines = format_plan(plan.smaller()).splitlines()
    assert lines[0].startswith("INT8: 16 layers, 40.0% of the arithmetic (50.0% could be)")
    assert "  2 blocks were taken out again, because the finished bundle lost more" in lines
    bare = format_plan(replace(plan, smoothing=plan.smoothing[2:], ranges=plan.ranges[:1]))
    assert "smoothed" not in bare and "clipped" not in bare
