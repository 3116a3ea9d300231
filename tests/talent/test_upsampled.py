"""The convolution of an enlarged map, computed on the small one, and the projector that is made of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploy.fold import fold_batchnorm
from talent.model.projector import Projector, dynamic_convolution, tap_shifts
from talent.model.upsampled import enlarging_taps, upsampled_convolution
from tests.networks import relative_error


def enlarged(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("batch", "channels_in", "channels_out", "size"), [(3, 5, 7, 9), (1, 1, 1, 1), (2, 4, 3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_of_the_enlarged_map(batch, channels_in, channels_out, size, bias):
    generator = torch.Generator().manual_seed(0)
    options = dict(generator=generator, dtype=torch.float64)
    x = torch.randn(batch, channels_in, size, size, **options, requires_grad=True)
    weight = torch.randn(channels_out, channels_in, 3, 3, **options, requires_grad=True)
    offset = torch.randn(channels_out, **options) if bias else None
    received = upsampled_convolution(x.flatten(2).transpose(1, 2), weight, offset, enlarging_taps(size).double())
    received = received.permute(0, 3, 1, 2)
    wanted = F.conv2d(enlarged(x), weight, offset, padding=1)
    torch.testing.assert_close(received, wanted, rtol=1e-10, atol=1e-10)
    direction = torch.randn(wanted.shape, **options)
    for one, other in zip(torch.autograd.grad(received, (x, weight), direction),
                          torch.autograd.grad(wanted, (x, weight), direction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def projector() -> Projector:
    torch.manual_seed(0)
    return Projector(width=12, mask_width=6, sentence_width=10, grid=5)


def by_the_book(model: Projector, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Enlarge, convolve, normalise, twice; 1x1 convolution; one 3x3 kernel and bias per sentence."""
    maps = x.transpose(1, 2).unflatten(2, (5, 5))
    for block in (model.conv1, model.conv2):
        maps = nn.Sequential.forward(block, enlarged(maps))
    numbers = model.txt(state)
    return torch.cat([F.conv2d(one[None], row[:-1].view(1, 6, 3, 3), row[-1:], padding=1)
                      for one, row in zip(model.conv3(maps), numbers, strict=True)])


@pytest.mark.parametrize("training", [True, False])
def test_projector_is_its_formula(training):
    model = projector().train(training)
    generator = torch.Generator().manual_seed(1)
    x, state = torch.randn(3, 25, 12, generator=generator), torch.randn(3, 10, generator=generator)
    with torch.no_grad():
        received = model(x, *model.prompt(state))
        wanted = by_the_book(model, x, state)
    assert received.shape == (3, 1, 20, 20) and relative_error(received, wanted) < 1e-5


def test_folded_projector():
    model = projector().eval()
    for norm in (model.conv1[1], model.conv2[1]):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    x, state = torch.randn(2, 25, 12), torch.randn(2, 10)
    with torch.no_grad():
        wanted = model(x, *model.prompt(state))
        assert fold_batchnorm(model) == 2
        assert relative_error(model(x, *model.prompt(state)), wanted) < 1e-5


def test_the_table_of_taps_is_no_weight():
    assert not any("taps" in key for key in projector().state_dict())


def test_a_tap_s_bias_ends_at_the_border():
    """It belongs to the map under the kernel, which is padded with zeros."""
    received = dynamic_convolution(torch.zeros(1, 16, 2), torch.zeros(1, 2, 9), torch.ones(1, 1, 9), tap_shifts())
    assert received[0, 0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
