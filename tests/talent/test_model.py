"""The network's parts against their formulas, and the whole at every preset."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from talent.config import PRESETS, ModelConfig, preset
from talent.errors import UserError
from talent.model import build_model
from talent.model.adapters import DenseImageAdapter, RcaImageAdapter, TextAdapter
from talent.model.decoder import sine_positions, sine_positions_2d
from talent.model.projector import dynamic_convolution, tap_shifts
from talent.model.talent import Prompt
from tests.networks import CONFIGS, DENSE, TINY, inputs, network, relative_error


@pytest.mark.parametrize(("batch", "channels", "side"), [(3, 5, 7), (1, 48, 1), (2, 1, 12)])
def test_dynamic_convolution_is_the_grouped_one(batch, channels, side):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)
    kernel = torch.randn(batch, channels, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(batch, generator=generator, dtype=torch.float64)
    wanted = F.conv2d(x.flatten(0, 1)[None], kernel, bias, padding=1, groups=batch).transpose(0, 1)
    by_tap = F.pad(bias[:, None, None], (4, 4))  # the centre tap never meets the padding
    received = dynamic_convolution(x.flatten(2).transpose(1, 2), kernel.flatten(2), by_tap, tap_shifts())
    assert received.shape == (batch, 1, side, side)
    torch.testing.assert_close(received, wanted, rtol=1e-10, atol=1e-10)


def test_kernel_of_the_projector_is_laid_out_channel_by_channel():
    """Official layout: M x 3 x 3 numbers, then the bias; seen through a 1x1 convolution that changes nothing."""
    model = network(TINY)
    state = torch.randn(2, TINY.text_embed, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.projector.conv3.weight.copy_(torch.eye(TINY.mask_width)[:, :, None, None])
        model.projector.conv3.bias.zero_()
        kernel, bias = model.projector.prompt(state)
        numbers = model.projector.txt(state)
    assert torch.equal(kernel.unflatten(2, (3, 3)), numbers[:, :-1].reshape(2, TINY.mask_width, 3, 3))
    assert torch.equal(bias[:, 0, 4], numbers[:, -1]) and bias.count_nonzero() == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_prompt_first_equals_forward(name):
    model, config = network(CONFIGS[name]), CONFIGS[name]
    image, tokens = inputs(config, 3)
    with torch.inference_mode():
        whole = model(image, tokens)
        prompt = model.prompt(model.text(tokens))
        logits, neck = model.segment(image, prompt)
        assert torch.equal(logits, whole.logits) and torch.equal(neck.features, whole.neck.features)
        # one at a time, as a robot asks, is the same up to the order of additions
        for row in range(3):
            single, _ = model.segment(image[row:row + 1], model.prompt(model.text(tokens[row:row + 1])))
            assert relative_error(single[0], whole.logits[row]) < 1e-4
        other, _ = model.segment(image, model.prompt(model.text(tokens.roll(1, 0))))
        repeated, _ = model.segment(image[:1].expand(3, -1, -1, -1), prompt)
        broadcast, _ = model.segment(image[:1], prompt)
    assert relative_error(other, whole.logits) > 0.01, "the words do not matter"
    assert relative_error(broadcast, repeated) < 1e-4, "one picture, three expressions"
    side = 4 * config.grid
    assert whole.logits.shape == (3, 1, side, side) and isinstance(prompt, Prompt)
    assert len(prompt.adapters) == len(config.vision_adapter_blocks) and len(prompt.attention) == config.decoder_layers


def test_contrast_sentences_get_the_states_of_the_tower():
    model = network(DENSE)
    image, tokens = inputs(DENSE, 2)
    _, first = inputs(DENSE, 2, seed=1)
    _, second = inputs(DENSE, 2, seed=2)
    with torch.inference_mode():
        contrast = model(image, tokens, torch.stack([first, second], 1)).contrast
        torch.testing.assert_close(contrast[:, 0], model.text(first).state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(contrast[:, 1], model.text(second).state, rtol=1e-4, atol=1e-5)
        assert model(image, tokens).contrast is None


def test_contrast_sentences_are_as_wide_as_the_neck():
    """As in the preset small, whose states are wider than its neck."""
    config = dataclasses.replace(TINY, text_embed=2 * TINY.width)
    model = network(config)
    image, tokens = inputs(config, 2)
    with torch.inference_mode():
        output = model(image, tokens, tokens[:, None])
    assert output.text.state.shape == (2, 2 * TINY.width) and output.contrast.shape == (2, 1, TINY.width)
    torch.testing.assert_close(output.contrast[:, 0], output.sentence, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_autocast(name):
    model, config = network(CONFIGS[name]), CONFIGS[name]
    image, tokens = inputs(config, 2)
    with torch.inference_mode():
        wanted = model(image, tokens).logits
        with torch.autocast("cpu", torch.bfloat16):
            received = model(image, tokens).logits
    assert received.isfinite().all()
    both = torch.stack([wanted.flatten(), received.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_what_they_say(name):
    config = preset(name)
    assert config.preset == name and ModelConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):  # shapes without memory
        model = build_model(config)
        image = torch.empty(2, 3, config.image_size, config.image_size)
        tokens = torch.zeros(2, config.context_length, dtype=torch.int64)
        output = model(image, tokens)
    side = 4 * (config.image_size // 14)
    assert output.logits.shape == (2, 1, side, side)
    assert output.text.words.shape == (2, config.context_length, config.text_width)
    assert output.sentence.shape == (2, config.width) and output.text.state.shape == (2, config.text_embed)
    assert [i for i, block in enumerate(model.vision.blocks) if hasattr(block, "adapter")] \
        == list(config.vision_adapter_blocks)
    kind = {"dense": DenseImageAdapter, "rca": RcaImageAdapter}[config.vision_adapter]
    assert all(type(block.adapter) is kind for block in model.vision.adapted())
    assert [i for i, block in enumerate(model.text.blocks) if block.adapter is not None] \
        == list(config.text_adapter_blocks)


def test_network_without_adapters():
    config = dataclasses.replace(TINY, vision_adapter="none")
    model = network(config)
    assert model.vision.adapted() == [] and model.prompt(model.text(inputs(config, 1)[1])).adapters == ()
    assert model(*inputs(config, 1)).logits.isfinite().all()


@pytest.mark.parametrize("size", [100, 169, 0, 42, -448])
def test_image_size_that_does_not_fit(size):
    with pytest.raises(UserError, match=f"expected a multiple of 14 of at least 56, received {size}"):
        build_model(dataclasses.replace(TINY, image_size=size))


def test_unknown_preset_and_setting():
    with pytest.raises(UserError, match="did you mean 'small'"):
        preset("smal")
    with pytest.raises(UserError, match="did you mean 'image_size'"):
        ModelConfig.from_dict({**TINY.to_dict(), "imagesize": 3})


def test_no_random_start_in_the_place_of_pretrained_weights(monkeypatch):
    with pytest.raises(UserError, match="no pretrained text tower"):
        build_model(TINY, pretrained=True)
    monkeypatch.setattr("talent.model.build.load_clip", lambda text, config: None)
    with pytest.raises(UserError, match="no pretrained backbone"):
        build_model(TINY, pretrained=True)


def test_text_adapter_is_its_formula():
    """z = relu(fc1 x); the first token gives 2 z[0], the others [b1, b2, b3] + z; no skip."""
    torch.manual_seed(0)
    adapter = TextAdapter(width=12, adapter_width=32).eval()
    norms = [m for m in adapter.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 5 and all(norm.eps == 1e-3 for norm in norms)
    for norm in norms:
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 7, 12)

    def stage(block, y):
        """Convolution by explicit windows, then BatchNorm by its definition."""
        conv, norm, _ = block
        half = conv.kernel_size[0] // 2
        windows = F.pad(y, (half, half)).unfold(2, conv.kernel_size[0], 1)  # [B, C, L, k]
        y = torch.einsum("bclk,ock->bol", windows, conv.weight) + conv.bias[:, None]
        y = (y - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
        return (y * norm.weight[:, None] + norm.bias[:, None]).clamp(min=0)

    with torch.no_grad():
        z = adapter.fc1(x).clamp(min=0)
        s = z[:, 1:].transpose(1, 2)
        branches = adapter.branches
        b1 = stage(branches.branch1, s)
        b2 = stage(branches.branch2[1], stage(branches.branch2[0], torch.cat([s, b1], 1)))
        b3 = stage(branches.branch3[1], stage(branches.branch3[0], torch.cat([s, b1, b2], 1)))
        assert (b1.shape[1], b2.shape[1], b3.shape[1]) == (16, 8, 8)
        rest = torch.cat([b1, b2, b3], 1).transpose(1, 2) + z[:, 1:]
        wanted = adapter.fc2(torch.cat([2 * z[:, :1], rest], 1))
        torch.testing.assert_close(adapter(x), wanted, rtol=1e-4, atol=1e-5)


def test_light_image_adapter_is_its_formula():
    torch.manual_seed(0)
    adapter = RcaImageAdapter(width=10, adapter_width=6, text_width=8, words=4)
    x, words = torch.randn(2, 9, 10), torch.randn(2, 4, 8)
    rca = adapter.rca
    with torch.no_grad():
        z = adapter.fc1(x).clamp(min=0)
        p, t = rca.image_proj(z), rca.text_proj(words)
        cost = torch.einsum("bnd,bkd->bnk", p, t)
        wanted = adapter.fc2(z + rca.back_proj(rca.cost_proj(cost) * p))
        torch.testing.assert_close(adapter(x, rca.prompt(words)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_follows_the_end_of_a_sentence(name):
    """CLIP's tower is causal, so that the state does not see the padding; the text adapters' convolutions do."""
    model, config = network(CONFIGS[name]), CONFIGS[name]
    _, tokens = inputs(config, 2)
    other = torch.where(tokens == 0, 5, tokens)
    assert not torch.equal(other, tokens)
    with torch.inference_mode():
        error = relative_error(model.text(other).state, model.text(tokens).state)
    assert error > 1e-3 if config.text_adapter == "dense" else error < 1e-5


def test_state_is_read_at_the_end_token():
    model = network(TINY)
    _, tokens = inputs(TINY, 2)
    with torch.inference_mode():
        text = model.text(tokens)
        for row in range(2):
            end = tokens[row].tolist().index(TINY.vocab_size - 1)
            wanted = text.words[row, end] @ model.text.text_projection
            torch.testing.assert_close(text.state[row], wanted, rtol=1e-4, atol=1e-5)


def test_position_table_of_the_same_size_is_taken_as_it_is():
    model = network(TINY)
    assert torch.equal(model.vision.positions(), model.vision.pos_embed)
    interpolated = network(DENSE).vision
    assert interpolated.pos_embed.shape[1] == 121 and interpolated.positions().shape == (1, 64, 128)


@pytest.mark.parametrize(("length", "width"), [(17, 512), (1, 2), (7, 6)])
def test_sine_positions(length, width):
    wanted = np.zeros((length, width))
    for position in range(length):
        for channel in range(width):
            angle = position * 10000 ** (-2 * (channel // 2) / width)
            wanted[position, channel] = np.cos(angle) if channel % 2 else np.sin(angle)
    np.testing.assert_allclose(sine_positions(length, width).numpy(), wanted, atol=2e-6)


def test_sine_positions_2d_say_x_then_y():
    grid, width = 5, 12
    table = sine_positions_2d(grid, width)
    line = sine_positions(grid, width // 2)
    assert table.shape == (grid * grid, width)
    for y in range(grid):
        for x in range(grid):
            assert torch.equal(table[y * grid + x], torch.cat([line[x], line[y]]))
