"""The RCA operator against its formula, its gradient against autograd, and PyTorch's own check of the registration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from talent.model.rca import RectifiedCostAggregator, rca_cost_aggregation, rca_reference

# batch, image tokens, words, channels, activation: the block adapters, the neck, and sizes that nothing divides
SIZES = [(1, 1029, 17, 128, "none"), (2, 64, 1, 96, "relu"), (3, 13, 17, 7, "none"), (3, 11, 1, 5, "relu"),
         (1, 1, 1, 1, "relu"), (2, 5, 22, 3, "relu")]
NAMES = ("visual", "text", "weight", "bias")


def arguments(batch: int, tokens: int, words: int, width: int, *, dtype=torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, tokens, width), (batch, words, width), (width, words), (width,))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(("batch", "tokens", "words", "width", "activation"), SIZES)
def test_result_is_the_formula(batch, tokens, words, width, activation):
    given = arguments(batch, tokens, words, width)
    visual, text, weight, bias = (x.numpy() for x in given)
    gate = np.einsum("bnk,ck->bnc", np.einsum("bnd,bkd->bnk", visual, text), weight) + bias
    wanted = (np.maximum(gate, 0) if activation == "relu" else gate) * visual
    for operator in (rca_cost_aggregation, rca_reference):
        np.testing.assert_allclose(operator(*given, activation).numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("batch", "tokens", "words", "width", "activation"), SIZES[1:])
def test_registration(batch, tokens, words, width, activation):
    given = [x.requires_grad_() for x in arguments(batch, tokens, words, width, dtype=torch.float32)]
    results = torch.library.opcheck(rca_cost_aggregation, (*given, activation))
    assert set(results.values()) == {"SUCCESS"} and "test_aot_dispatch_dynamic" in results


@pytest.mark.parametrize(("batch", "tokens", "words", "width", "activation"), SIZES)
def test_gradient_is_that_of_the_reference(batch, tokens, words, width, activation):
    given = [x.requires_grad_() for x in arguments(batch, tokens, words, width)]
    upstream = torch.randn(batch, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(rca_cost_aggregation(*given, activation), given, upstream)
    wanted = torch.autograd.grad(rca_reference(*given, activation), given, upstream)
    for name, one, other in zip(NAMES, ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_one_type_and_trains(dtype):
    module = RectifiedCostAggregator(text_width=12, words=5, width=8)
    image, words = torch.randn(2, 9, 8), torch.randn(2, 5, 12)
    wanted = module(image, module.prompt(words))
    with torch.autocast("cpu", dtype):
        received = module(image, module.prompt(words))
    assert received.dtype == dtype
    torch.testing.assert_close(received.float(), wanted, rtol=0.1, atol=0.05)  # bfloat16 has 8 bits, and four products
    received.float().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().sum() > 0, name


BAD = {
    "visual without a batch": (0, (6, 4)),
    "text of another width": (1, (2, 3, 5)),
    "text of another batch": (1, (1, 3, 4)),
    "weight for other words": (2, (4, 2)),
    "weight that would broadcast": (2, (1, 3)),
    "bias that would broadcast": (3, (1,)),
    "bias with two dimensions": (3, (1, 4)),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("fault", BAD)
def test_wrong_shapes_raise(fault, device):
    given = [x.float().to(device) for x in arguments(2, 6, 3, 4)]
    position, shape = BAD[fault]
    given[position] = torch.zeros(shape, device=device)
    with pytest.raises(ValueError, match=r"expected visual \[B,N,D\]"):
        rca_cost_aggregation(*given, "none")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_activation_raises(device):
    given = [x.to(device) for x in arguments(2, 6, 3, 4)]
    with pytest.raises(ValueError, match="activation: expected one of .*'relu'.* received 'gelu'"):
        rca_cost_aggregation(*given, "gelu")


def test_exports_with_a_dynamic_batch():
    class Neck(torch.nn.Module):
        def forward(self, visual, text, weight, bias):
            return rca_cost_aggregation(visual, text, weight, bias, "relu")

    given = arguments(2, 6, 1, 4, dtype=torch.float32)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Neck(), tuple(given), dynamic_shapes=({0: batch}, {0: batch}, None, None))
    assert sum(node.target is torch.ops.talent.rca_cost_aggregation.default for node in program.graph.nodes) == 1
    other = arguments(5, 6, 1, 4, dtype=torch.float32, seed=3)
    torch.testing.assert_close(program.module()(*other), rca_reference(*other, "relu"))
