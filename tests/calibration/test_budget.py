"""The choice of INT8 layers where it is known what every set of layers loses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from calibration.arithmetic import share
from calibration.budget import (
    CURVE,
    MORE_TRIES,
    RANKING_SAMPLES,
    Block,
    Choice,
    blocks_of,
    choose_layers,
    format_choice,
    parts_of,
)
from calibration.sensitivity import Layers, Measured

SAMPLES, MIOU = 40, 0.7


class Known:
    """A Sensitivity that knows what sets of layers lose. asked: sets by how many expressions they were asked on."""

    def __init__(self, drop: Callable[[Layers], float], error: Callable[[Layers], float] | None = None) -> None:
        self._drop, self._error = drop, error or drop
        self.asked: dict[int | None, list[Layers]] = {None: [], RANKING_SAMPLES: []}

    def measure(self, sets: Sequence[Collection[str]], *, samples: int | None = None, title: str) -> list[Measured]:
        assert title
        wanted = [frozenset(layers) for layers in sets]
        self.asked[samples] += wanted
        return [Measured(layers, samples or SAMPLES, MIOU - self._drop(layers), MIOU / 2, None, self._error(layers))
                for layers in wanted]


def additive(prices: dict[str, float], errors: dict[str, float] | None = None) -> Known:
    """mIoU lost adds up, and so do squared errors."""
    errors = errors or prices
    return Known(lambda layers: sum(prices[name] for name in layers),
                 lambda layers: math.sqrt(sum(errors[name] ** 2 for name in layers)))


def graph_of(layers: dict[str, str]) -> onnx.ModelProto:
    """A graph of MatMul nodes by name, each with the tensor that it reads."""
    nodes = [helper.make_node("MatMul", [tensor, "w"], [f"{name}:0"], name=name) for name, tensor in layers.items()]
    return helper.make_model(helper.make_graph(nodes, "graph", [], []))


def network(blocks: int, *, parts: int = 3, readers: int = 1) -> tuple[onnx.ModelProto, list[str]]:
    """Blocks of `parts` tensors that `readers` layers each read."""
    layers = {f"vision.blocks.{block}.{part}{reader}/MatMul": f"tensor {block} {part}"
              for block in range(blocks) for part in range(parts) for reader in range(readers)}
    return graph_of(layers), list(layers)


def one_by_one(model: onnx.ModelProto, layers: list[str], prices: dict[str, float], errors: dict[str, float],
               flop: dict[str, int], bound: float) -> set[str]:
    """What choose_layers says that it does, without its bisection, where drops add up."""
    def cheapest_first(groups: list[Block]) -> list[Block]:
        return sorted(groups, key=lambda group: sum(errors[name] ** 2 for name in group.layers)
                      / share(flop, group.layers))

    def fits(names: Collection[str]) -> bool:
        return MIOU - (MIOU - sum(prices[name] for name in names)) <= bound

    chosen: set[str] = set()

    def extend(groups: list[Block]) -> None:
        while groups and fits(chosen | groups[0].layers):
            chosen.update(groups.pop(0).layers)
        for group in groups[1:1 + MORE_TRIES]:
            chosen.update(group.layers if fits(chosen | group.layers) else ())

    extend(cheapest_first(blocks_of(layers)))
    extend(cheapest_first([part for block in blocks_of(layers) if not block.layers <= chosen
                           for part in parts_of(model, block.layers)]))
    return chosen


def test_blocks_are_those_of_the_network() -> None:
    names = ["vision.blocks.1.qkv/MatMul", "neck.0/Conv", "vision.blocks.10/MatMul", "decoder.layers.0.ffn/MatMul",
             "vision.blocks.1.fc2/MatMul", "projector/Conv", "neck/Conv", "vision.norm/MatMul", "node_MatMul_5",
             "/MatMul", "/MatMul_1"]
    assert blocks_of(names) == [
        Block("vision.blocks.1", frozenset((names[0], names[4]))), Block("neck", frozenset((names[1], names[6]))),
        Block("vision.blocks.10", frozenset(names[2:3])), Block("decoder.layers.0", frozenset(names[3:4])),
        Block("projector", frozenset(names[5:6])), Block("vision", frozenset(names[7:8])),
        Block("node_MatMul_5", frozenset(names[8:9])), Block("/MatMul", frozenset(names[9:10])),
        Block("/MatMul_1", frozenset(names[10:]))]


def test_layers_that_read_one_tensor_are_one_part() -> None:
    model = graph_of({"q": "normed", "k": "normed", "proj": "attended", "v": "normed", "fc1": "mlp"})
    assert parts_of(model, ["v", "q", "fc1"]) == [Block("q", frozenset("qv")), Block("fc1", frozenset(["fc1"]))]
    assert parts_of(model, []) == []


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_documented_one_where_drops_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, layers = network(blocks=int(rng.integers(1, 18)), readers=int(rng.integers(1, 3)))
    prices = dict(zip(layers, rng.exponential(1e-3, len(layers)), strict=True))
    errors = {name: price * rng.uniform(0.5, 2) for name, price in prices.items()}
    flop = {name: int(rng.integers(1, 1000)) for name in [*layers, "never INT8"]}
    bound = float(rng.uniform(0, 1) * sum(prices.values()))
    choice = choose_layers(model, layers, additive(prices, errors), bound=bound, flop=flop)
    assert choice.layers == one_by_one(model, layers, prices, errors, flop, bound)
    assert choice.drop == pytest.approx(sum(prices[name] for name in choice.layers)) and choice.drop <= bound
    assert choice.share(choice.layers) == pytest.approx(share(flop, choice.layers))
    assert choice.share() == pytest.approx(share(flop, layers)) and choice.share() < 1 and choice.share([]) == 0
    orders = [layers, layers[::-1], [layers[index] for index in rng.permutation(len(layers))]]
    assert {choice.share(order) for order in orders} == {choice.share()}  # a set has no order: no digit depends on it
    assert choice.chosen.layers == choice.layers and choice.chosen.samples == choice.reference.samples == SAMPLES
    assert frozenset().union(*(block.layers for block in choice.order)) == choice.layers
    assert sum(len(block.layers) for block in choice.order) == len(choice.layers)


def test_layers_of_a_block_that_is_left_out_join_alone() -> None:
    """Of the second block one layer costs all; of a tensor's two readers one does, so that both stay."""
    model = graph_of({"a/1": "s", "b/bad": "t", "b/1": "u", "b/2": "v", "c/bad": "w", "c/beside": "w", "c/1": "x"})
    prices = {"a/1": 0.001, "b/bad": 0.5, "b/1": 0.001, "b/2": 0.001, "c/bad": 0.6, "c/beside": 0.0001, "c/1": 0.001}
    choice = choose_layers(model, list(prices), additive(prices), bound=0.01, flop=dict.fromkeys(prices, 1))
    assert choice.layers == {"a/1", "b/1", "b/2", "c/1"}
    assert [(one.block.name, choice.taken(one.block)) for one in choice.ranking] == [
        ("c", "partly"), ("b", "partly"), ("a", "yes")]
    assert [one.drop for one in choice.ranking] == pytest.approx([0.6011, 0.502, 0.001])
    assert choice.ranking_samples == RANKING_SAMPLES


def test_what_is_cheap_by_its_error_and_dear_by_miou_is_passed_over() -> None:
    """The first of the order breaks the budget: only trying one by one finds the others, twice so many as MORE_TRIES:
    first as blocks, then as layers of blocks that were left out."""
    layers = [f"{letter}/1" for letter in "abcdefghijklmnopqrst"]
    prices = dict.fromkeys(layers, 0.0001) | {"a/1": 0.5}
    errors = {name: 0.01 * number for number, name in enumerate(layers, 1)}
    known = additive(prices, errors)
    choice = choose_layers(graph_of({name: name for name in layers}), layers, known, bound=0.01,
                           flop=dict.fromkeys(layers, 1))
    assert choice.layers == set(layers[1:1 + 2 * MORE_TRIES])
    assert len(layers) > 1 + 2 * MORE_TRIES


@pytest.mark.parametrize("bound", [0.06, 1.0])
def test_a_budget_for_all_takes_all_at_the_first_try(bound: float) -> None:
    model, layers = network(blocks=6)
    known = additive(dict.fromkeys(layers, 0.003))
    choice = choose_layers(model, layers, known, bound=bound, flop=dict.fromkeys(layers, 7))
    assert choice.layers == set(layers) and choice.share(layers) == choice.share() == pytest.approx(1)
    assert known.asked[None] == [frozenset(), frozenset(layers)]
    assert [len(one.layers) for _, one in choice.tried] == [18]


@pytest.mark.parametrize("bound", [0.0, -1.0, 0.002])
def test_a_budget_for_nothing_takes_nothing(bound: float) -> None:
    model, layers = network(blocks=6)
    choice = choose_layers(model, layers, additive(dict.fromkeys(layers, 0.003)), bound=bound,
                           flop=dict.fromkeys(layers, 7))
    assert choice.layers == frozenset() and choice.order == () and choice.share(choice.layers) == 0 == choice.drop
    assert choice.chosen == choice.reference and {choice.taken(one.block) for one in choice.ranking} == {"no"}
    assert format_choice(choice).splitlines()[:2] == [
        "INT8: nothing",
        f"  no set of layers that was tried stays within the budget of {bound:g} mIoU (0.7000 in FP32) on 40 held-out "
        "expressions, INT8 emulated"]


def test_a_block_that_gains_is_within_any_budget_of_zero() -> None:
    model, layers = network(blocks=2, parts=1)
    choice = choose_layers(model, layers, additive(dict(zip(layers, (-0.01, 0.02), strict=True))), bound=0.0,
                           flop=dict.fromkeys(layers, 1))
    assert choice.layers == {layers[0]} and choice.drop == pytest.approx(-0.01)


@pytest.mark.parametrize("seed", range(12))
def test_any_loss_whatever_stays_within_the_budget(seed: int) -> None:
    """What a set loses has nothing to do with what its parts lose."""
    def drop(layers: Layers) -> float:
        content = hashlib.sha256(f"{seed} {sorted(layers)}".encode()).digest()
        return content[0] / 255 * 0.02 if layers else 0.0

    model, layers = network(blocks=9, readers=2)
    known, bound = Known(drop), 0.004
    choice = choose_layers(model, layers, known, bound=bound, flop=dict.fromkeys(layers, 1))
    assert choice.drop == pytest.approx(drop(choice.layers)) and drop(choice.layers) <= bound
    assert choice.chosen.layers == choice.layers and choice.layers in known.asked[None]
    for block in parts_of(model, layers):
        assert block.layers <= choice.layers or not block.layers & choice.layers
    assert [one.layers for _, one in choice.tried] == known.asked[None][1:]


@pytest.mark.parametrize("fitting", [0, 1, 16, 50])
def test_measurements_are_few(fitting: int) -> None:
    """Bisection: 6 full measurements for 17 blocks and 7 for their 51 tensors, and not one for each."""
    model, layers = network(blocks=17)
    known = additive(dict.fromkeys(layers, 0.001))
    choice = choose_layers(model, layers, known, bound=(fitting + 0.5) / 1000, flop=dict.fromkeys(layers, 1))
    assert len(choice.layers) == fitting
    assert len(known.asked[None]) <= 1 + 6 + 7 + 2 * MORE_TRIES
    assert len(known.asked[RANKING_SAMPLES]) <= 1 + 17 + 1 + len(CURVE) + 1 + 51


def test_the_curve_goes_from_nothing_to_all_in_the_order_of_blocks() -> None:
    model, layers = network(blocks=8, parts=1)
    prices = {name: 0.001 * 2**number for number, name in enumerate(reversed(layers))}
    choice = choose_layers(model, layers, additive(prices), bound=0.0, flop=dict.fromkeys([*layers, "never INT8"], 1))
    assert [part for part, _ in choice.curve] == pytest.approx([part * 8 / 9 for part in (0, *CURVE)])
    lost = [sum(sorted(prices.values())[:round(8 * part)]) for part in (0, *CURVE)]
    assert [drop for _, drop in choice.curve] == pytest.approx(lost)
    assert choice.to_dict()["curve"][-1] == {"share": pytest.approx(choice.share()), "drop": pytest.approx(0.255)}


@pytest.fixture(scope="module")
def choice() -> Choice:
    """Three blocks: whole, partly and not in INT8; half of the arithmetic can be INT8."""
    model = graph_of({"a/1": "s", "b/bad": "t", "b/1": "u", "c/bad": "v"})
    prices = {"a/1": 0.0005, "b/bad": 0.04, "b/1": 0.001, "c/bad": 0.05}
    return choose_layers(model, list(prices), additive(prices), bound=0.005,
                         flop=dict.fromkeys(prices, 10) | {"attention": 40})


def test_the_table_for_people(choice: Choice) -> None:
    assert format_choice(choice).splitlines() == [
        "INT8: 2 layers, 25.0% of the arithmetic (50.0% could be)",
        "  2 layers are within the budget of 0.005: mIoU 0.7000 -> 0.6985 on 40 held-out expressions, INT8 emulated",
        "  block alone in INT8    layers  arithmetic  error at logits  mIoU drop  INT8 (alone: 8 expressions)",
        "  c                           1       12.5%            5.00%     0.0500  no",
        "  b                           2       25.0%            4.00%     0.0410  partly",
        "  a                           1       12.5%            0.05%     0.0005  yes"]


def test_the_plain_data_is_valid_json(choice: Choice) -> None:
    data = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert data["layers"] == ["a/1", "b/1"] and (data["share"], data["possible"], data["samples"]) == (0.25, 0.5, 40)
    assert (data["bound"], data["miou_reference"], data["nta_rate"]) == (0.005, 0.7, None)
    assert data["miou_reference"] - data["miou"] == pytest.approx(0.0015)
    assert data["ranking"][1] == {"block": "b", "layers": ["b/1", "b/bad"], "share": 0.25,
                                  "drop": pytest.approx(0.041), "error": pytest.approx(0.04, rel=1e-3),
                                  "in_int8": "partly"}
    assert [one["in_int8"] for one in data["ranking"]] == ["no", "partly", "yes"]
    assert (data["measured_layers"], data["blocks_taken_out"]) == (2, 0)
    assert data["ranking_samples"] == RANKING_SAMPLES and len(data["tried"]) == len(choice.tried) >= 3
    assert {"share": 0.25, "layers": 2, "drop": pytest.approx(0.0015), "error": choice.chosen.error} in data["tried"]


def test_what_is_taken_out_again_is_said_and_what_was_measured_stays(choice: Choice) -> None:
    """The smaller choice was not measured: its numbers are those of the larger one, which says how large it was."""
    before, less = choice.to_dict(), choice.smaller()
    assert less.layers == choice.order[0].layers == {"a/1"} and less.fewer == 1 and choice.fewer == 0
    data = less.to_dict()
    assert (data["layers"], data["share"], data["blocks_taken_out"], data["measured_layers"]) == (["a/1"], 0.125, 1, 2)
    assert [one["in_int8"] for one in data["ranking"]] == ["no", "no", "yes"]
    assert {name for name in data if data[name] != before[name]} == {"layers", "share", "blocks_taken_out", "ranking"}
    assert format_choice(less).splitlines()[:3] == [
        "INT8: 1 layers, 12.5% of the arithmetic (50.0% could be)", format_choice(choice).splitlines()[1],
        "  1 blocks were taken out again, because the finished bundle lost more"]
    none = less.smaller()
    assert none.layers == frozenset() and none.fewer == 2 and format_choice(none).splitlines()[0] == "INT8: nothing"
    assert {none.taken(one.block) for one in none.ranking} == {"no"} and none.drop == choice.drop


def test_a_block_that_breaks_the_network_is_left_out_and_can_be_written() -> None:
    """Its logits are not finite, so that its error is infinite."""
    model, layers = network(blocks=3, parts=1)
    known = Known(lambda layers_: 0.5 if layers[0] in layers_ else 0.0,
                  lambda layers_: math.inf if layers[0] in layers_ else 0.01 * len(layers_))
    choice = choose_layers(model, layers, known, bound=0.01, flop=dict.fromkeys(layers, 1))
    assert choice.layers == set(layers[1:])
    assert json.dumps(choice.to_dict(), allow_nan=False)
    assert "inf" in format_choice(choice)


def test_a_set_whose_logits_are_not_finite_is_never_chosen() -> None:
    """An empty mask, which logits that are not numbers give, may lose nothing where the target is empty or missed."""
    model, layers = network(blocks=2, parts=1)
    known = Known(lambda _: 0.0, lambda layers_: math.inf if layers[0] in layers_ else 0.01 * len(layers_))
    choice = choose_layers(model, layers, known, bound=0.01, flop=dict.fromkeys(layers, 1))
    assert choice.layers == {layers[1]}
