"""Operations and arithmetic against numbers counted by hand, and what folding saves."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from deploy.cost import Cost, count, format_costs, network_cost
from deploy.fold import fold
from talent.config import preset
from talent.model import TalentModel, build_model
from talent.model.fast_linear import linear
from talent.model.lora import LoraSettings, add_lora, merge_lora
from talent.model.rca import rca_cost_aggregation
from tests.networks import CONFIGS, inputs, network

A, B = torch.ones(3, 5, 7), torch.ones(3, 7, 11)
SQUARE = torch.ones(6, 6)


@torch.library.custom_op("talent_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    # the bias of a linear layer is added by the product, and counts nothing as in PyTorch's own table
    layer = nn.Linear(7, 13, bias=bias)
    assert count(lambda: layer(A)) == Cost(1, 2 * 3 * 5 * 7 * 13)


def test_linear_by_onednn():
    weight = torch.ones(13, 7)
    assert count(lambda: linear(A, weight, torch.ones(13))).flop == 2 * 3 * 5 * 7 * 13


def test_convolution():
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert count(lambda: layer(torch.ones(2, 4, 8, 9))).flop == 2 * (2 * 6 * 8 * 9) * (4 // 2 * 3 * 3)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    """Two products per head; by one operation where there is a kernel for all of it, as on a CPU."""
    query, key = torch.ones(2, 3, 10, 8), torch.ones(2, 3, 17, 8)
    mask = torch.zeros(10, 17) if masked else None
    cost = count(lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask))
    assert cost == Cost(1, 2 * (2 * (2 * 3) * 10 * 17 * 8))


def test_rca():
    batch, tokens, words, width = 2, 9, 5, 16
    given = (torch.ones(batch, tokens, width), torch.ones(batch, words, width), torch.ones(width, words),
             torch.ones(width))
    product = 2 * batch * tokens * words * width
    assert count(lambda: rca_cost_aggregation(*given, "relu")) == Cost(1, 2 * product)


@pytest.mark.parametrize("run, flop", [
    (lambda: A @ B, 2 * 3 * 5 * 7 * 11),
    (lambda: torch.zeros(3, 5, 11).baddbmm_(A, B), 2 * 3 * 5 * 7 * 11),
    (lambda: torch.zeros(5, 11).addmm_(A[0], B[0]), 2 * 5 * 7 * 11),
    (lambda: A[0] @ torch.ones(7), 2 * 5 * 7),
    (lambda: torch.ones(7) @ torch.ones(7), 2 * 7),
    (lambda: torch.einsum("bij,bjk->bik", A, B), 2 * 3 * 5 * 7 * 11),
], ids=["matmul", "baddbmm_", "addmm_", "mv", "dot", "einsum"])
def test_products(run, flop):
    assert count(run).flop == flop


def test_views_and_memory_do_not_count():
    def views():
        SQUARE.view(3, 12).t().unsqueeze(0).expand(4, -1, -1)[1:, :, ::2].permute(2, 0, 1).detach()
        SQUARE.chunk(2)[0].unflatten(1, (2, 3)).squeeze(0).to(torch.float32).transpose_(0, 1).split(2)
        SQUARE.contiguous().reshape(4, 9).flatten().select(0, 1)
        F.dropout(SQUARE, training=False)
        torch.empty(5).new_empty(3)

    assert count(views) == Cost(0, 0)


@pytest.mark.parametrize("run, operations", [
    (lambda: SQUARE.t().contiguous(), 1),
    (lambda: SQUARE.t().reshape(-1), 1),
    (lambda: SQUARE.to(torch.float64), 1),
    (lambda: SQUARE.clone().add_(1).relu_(), 3),
    (lambda: torch.cat([SQUARE, SQUARE]).argmax(1), 2),
    (lambda: F.interpolate(SQUARE[None, None], scale_factor=2.1, mode="bicubic"), 1),
    (lambda: F.interpolate(SQUARE[None, None], scale_factor=2, mode="bilinear"), 1),
    (lambda: F.layer_norm(SQUARE, (6,)), 1),
], ids=["contiguous", "reshape", "to", "in place", "cat, argmax", "bicubic", "bilinear", "layer norm"])
def test_what_computes_or_copies_counts(run, operations):
    assert count(run) == Cost(operations, 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_mode_it_is_called_in_changes_nothing(mode):
    layer = nn.Linear(7, 13)
    with mode():
        given = A * 1  # made in that mode
        assert count(lambda: F.dropout(layer(given), training=False)) == Cost(1, 2 * 3 * 5 * 7 * 13)


@pytest.mark.parametrize("run, name", [
    (lambda: torch.cdist(A, A), "aten::_cdist_forward"),
    (lambda: torch.addmv(torch.ones(5), A[0], torch.ones(7)), "aten::addmv"),
    (lambda: torch._int_mm(torch.ones(32, 32, dtype=torch.int8), torch.ones(32, 32, dtype=torch.int8)),
     "aten::_int_mm"),
    (lambda: twice(A), "talent_tests::twice"),
], ids=["cdist", "addmv", "int8", "of somebody else"])
def test_an_unknown_product_is_refused(run, name):
    with pytest.raises(NotImplementedError, match=f"{name} is not known.*FORMULAS"):
        count(run)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval mode"):
        network_cost(network(CONFIGS["tiny"]).train(), *inputs(CONFIGS["tiny"], 1))


def computed_cost(model: TalentModel, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, Cost]:
    """As `network_cost`, by computing all numbers."""
    prompts = []
    text = count(lambda: prompts.append(model.prompt(model.text(tokens))))
    return {"text": text, "vision": count(lambda: model.segment(image, prompts[0]))}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_alone_say_what_computing_says(name, batch):
    model, given = network(CONFIGS[name]), inputs(CONFIGS[name], batch)
    ours, wanted = network_cost(model, *given), computed_cost(model, *given)
    for part in ("text", "vision"):
        assert ours[part].flop == wanted[part].flop
        # how a convolution lays out its result is the processor's choice: each of the dense adapters may copy once more
        assert abs(ours[part].operations - wanted[part].operations) <= len(CONFIGS[name].vision_adapter_blocks)


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_takes_operations_away(name):
    model, given = network(CONFIGS[name]), inputs(CONFIGS[name], 1)
    plain = network_cost(model, *given)
    add_lora(model, LoraSettings(rank=4))
    tuned = network_cost(model, *given)
    merge_lora(model)
    assert network_cost(model, *given) == plain
    fold(model)
    folded = network_cost(model, *given)
    assert folded["vision"].operations < plain["vision"].operations < tuned["vision"].operations
    # the text graph may have to do a little more, once an expression, for what the image graph need not do any more
    assert folded["text"].operations < tuned["text"].operations and plain["text"].operations < tuned["text"].operations
    assert folded["vision"].flop <= plain["vision"].flop < tuned["vision"].flop


def test_costs_grow_with_the_batch_in_arithmetic_only():
    model = network(CONFIGS["tiny"])
    one, three = (network_cost(model, *inputs(CONFIGS["tiny"], batch)) for batch in (1, 3))
    for part in ("text", "vision"):
        assert three[part].flop == 3 * one[part].flop
        assert three[part].operations < 1.1 * one[part].operations


def _enlarging_flop(side: int, channels_in: int, channels_out: int) -> int:
    """talent.model.upsampled: nine products on the small map, then the rows and then the columns enlarged."""
    products = 2 * 9 * side ** 2 * channels_in * channels_out
    tall = 3 * 2 * (2 * side) * side * (side * 3 * channels_out)
    wide = 2 * side * 2 * (2 * side) * (3 * side) * channels_out
    return products + tall + wide


def test_base_costs_what_the_design_says():
    """The GFLOP of the official form (the design's model.md) by part; the projector, which computes less, by hand."""
    config = preset("base")
    model, (image, tokens) = build_model(config).eval(), inputs(config, 1)
    parts = {"text": model.text, "image": model.vision, "neck": model.neck, "decoder": model.decoder,
             "projector": model.projector}
    received = {}
    for name, module in parts.items():
        module.register_forward_pre_hook(lambda _, given, name=name: received.update({name: given}))
    with FakeTensorMode(allow_non_fake_inputs=True):
        count(lambda: model(image, tokens))
        gflop = {name: count(functools.partial(module, *received[name])).flop / 1e9 for name, module in parts.items()}
    wanted = {"text": 1.3, "image": 217.9, "neck": 13.7, "decoder": 19.5}
    assert {name: gflop[name] for name in wanted} == pytest.approx(wanted, rel=0.01)
    # 60.2 in the official form, of which 58.0 are two convolutions of enlarged maps and 2.1 the 1x1 convolution
    dynamic = 2 * 9 * 256 * 128 ** 2
    by_hand = _enlarging_flop(32, 512, 512) + _enlarging_flop(64, 512, 256) + dynamic
    assert gflop["projector"] == pytest.approx(by_hand / 1e9, rel=0.001)
    whole = sum(cost.flop for cost in network_cost(model, image, tokens).values()) / 1e9
    assert whole == pytest.approx(sum(gflop.values()), rel=0.001)  # the rest is the prompt's linear layers


def test_format():
    before = {"text": Cost(412, 1_349_000_000), "vision": Cost(1210, 266_810_000_000)}
    after = {"text": Cost(301, 1_330_000_000), "vision": Cost(655, 262_100_000_000)}
    assert format_costs(before, after) == "\n".join([
        "          operations              GFLOP",
        "text      412 -> 301     1.35 ->   1.33",
        "vision   1210 -> 655   266.81 -> 262.10"])
    with pytest.raises(ValueError, match="same parts"):
        format_costs(before, {"text": after["text"]})
