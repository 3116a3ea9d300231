"""The network against the official code's own outputs, and the official checkpoints' keys and counts."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from talent.errors import UserError
from talent.model.lora import parameter_counts, select_trainable
from talent.official import KeyMismatch, convert_official, from_official, load_official_file
from tests.networks import relative_error

# float32 rounding through up to 12 blocks: measured 1e-6 to 3e-6 of the largest value; the rest is for processors that
# add up in another order
ROUNDING = 2e-5
UNUSED = {"base": 1 + 2 * 768, "large": 1 + 2 * 1024}  # logit_scale, mask_token, and a class position that is added in
TOTALS = {"base": 172_791_090, "large": 391_369_778}


@pytest.fixture(scope="module")
def outputs(official_base, parity, expected) -> dict[str, Tensor]:
    """Our logits of the three sentences, in one batch, and the inner results that the file has for the first."""
    images = np.concatenate([parity.image(number) for number in range(3)])
    taps = []
    handle = official_base.vision.register_forward_hook(lambda module, arguments, result: taps.extend(result))
    with torch.inference_mode():
        output = official_base(torch.from_numpy(images), torch.from_numpy(expected["token_ids"]))
    handle.remove()
    maps = {f"tap{i}_0": tap for i, tap in enumerate(taps)} | {"neck_0": output.neck.features}
    slices = {name: tokens[:1].transpose(1, 2).unflatten(2, (32, 32))[:, ::16, ::4, ::4]
              for name, tokens in maps.items()}
    return {"logits": output.logits, "words_0": output.text.words[:1], "state_0": output.text.state[:1], **slices}


def test_logits_equal_the_official_ones(outputs, expected):
    received = outputs["logits"].numpy()
    assert received.shape == expected["logits"].shape == (3, 1, 128, 128)
    for number, (ours, theirs) in enumerate(zip(received, expected["logits"], strict=True)):
        assert np.abs(ours - theirs).max() <= 1e-3, expected["sentences"][number]


@pytest.mark.parametrize("name", ["words_0", "state_0", "tap0_0", "tap1_0", "tap2_0", "neck_0"])
def test_inner_results_equal_the_official_ones(outputs, expected, name):
    theirs = torch.from_numpy(expected[name])
    assert outputs[name].shape == theirs.shape
    assert relative_error(outputs[name], theirs) <= ROUNDING


def test_position_table_is_cut_and_interpolated_as_in_dinov2(official_base, official_state):
    """The official table has 1 + 37 x 37 rows. DINOv2 interpolates by a scale of (32 + 0.1) / 37, not to a size."""
    table = official_state["dinov2.pos_embed"]
    assert table.shape == (1, 1370, 768)
    grid = table[:, 1:].reshape(1, 37, 37, 768).permute(0, 3, 1, 2)
    scale = (32 + 0.1) / 37
    wanted = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 1024, 768)
    vision = official_base.vision
    with torch.no_grad():
        torch.testing.assert_close(vision.positions(), wanted, rtol=0, atol=1e-7)
        torch.testing.assert_close(vision.cls_token, official_state["dinov2.cls_token"] + table[:, :1])
    by_size = F.interpolate(grid, size=(32, 32), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 1024, 768)
    assert (by_size - wanted).abs().max() > 1e-3


def shapes_only(parity, name: str, **changed: tuple[int, ...]) -> dict[str, Tensor]:
    """The official state dict `name` as shapes without numbers; changed: the end of a key (dots as `__`) -> shape."""
    spec = parity.load_spec(name)
    for end, shape in changed.items():
        spec |= {key: shape for key in spec if key.endswith(end.replace("__", "."))}
    return {key: torch.empty(shape, device="meta") for key, shape in spec.items()}


def convert_shapes(state: dict[str, Tensor], name: str):
    with torch.device("meta"):
        return convert_official(state, preset=name)


@pytest.mark.parametrize(("name", "trainable", "image_adapters", "neck"), [
    ("base", 22_774_833, 1_914_912, 7_753_728),
    ("large", 23_562_801, 2_309_664, 7_753_728 + 3 * 512 * (1024 - 768))])
def test_parameter_counts_are_the_published_ones(parity, name, trainable, image_adapters, neck):
    config, model = convert_shapes(shapes_only(parity, name), name)
    assert (config.preset, config.context_length) == (name, 17) and not model.training
    select_trainable(model, tune="adapters", train_heads=True)
    assert parameter_counts(model) == (trainable, TOTALS[name] - UNUSED[name])

    def count(start: str, part: str = "") -> int:
        return sum(p.numel() for n, p in model.named_parameters()
                   if n.startswith(start) and part in n and p.requires_grad)

    assert count("text.", ".adapter.") == count("text.") == 418_320
    assert count("vision.", ".adapter.") == count("vision.") == image_adapters
    assert count("vision.", ".rca.") == 605_952
    assert count("neck.") == neck
    assert count("decoder.") == 7_899_136
    assert count("projector.") == 4_788_737


def test_prefix_of_distributed_training_is_accepted(parity):
    plain = shapes_only(parity, "base")
    config, model = convert_shapes({f"module.{key}": value for key, value in plain.items()}, "base")
    assert model.state_dict().keys() == convert_shapes(plain, "base")[1].state_dict().keys()


def test_number_of_words_is_the_checkpoints(parity):
    config, model = convert_shapes(shapes_only(parity, "base", cross__cost_proj__weight=(128, 22)), "base")
    assert config.context_length == 22
    image, tokens = torch.empty(2, 3, 448, 448, device="meta"), torch.zeros(2, 22, dtype=torch.int64, device="meta")
    output = model(image, tokens)
    assert output.logits.shape == (2, 1, 128, 128) and output.text.words.shape == (2, 22, 512)


def test_wrong_keys_are_listed(parity):
    state = shapes_only(parity, "base")
    gone = ["neck.aggr.0.weight", "proj.txt.bias", "dinov2.blocks.3.adapter.cross.back_proj.bias"]
    for key in gone:
        del state[key]
    state["dinov2.head.weight"] = torch.empty(1000, 768)
    state["neck.txt_proj.weight"] = torch.empty(512, 7)
    with pytest.raises(KeyMismatch) as caught:
        convert_shapes(state, "base")
    message = str(caught.value)
    for part in ("neck.aggregation.linear.weight", "projector.txt.bias", "vision.blocks.3.adapter.rca.back_proj.bias",
                 "3 missing", "1 unexpected: dinov2.head.weight",
                 "neck.txt_proj.weight (gives (512, 7), expected (512, 512))"):
        assert part in message
    assert "and 2 more" in caught.value.message(most=1) and "projector.txt.bias" not in caught.value.message(most=1)


def test_other_size_and_unknown_preset_are_refused(parity):
    with pytest.raises(UserError, match=r"of another shape: .*dinov2\.cls_token \(gives \(1, 1, 1024\)"):
        convert_shapes(shapes_only(parity, "large"), "base")
    with pytest.raises(UserError, match="did you mean 'large'"):
        from_official({}, preset="larg")
    with pytest.raises(UserError, match="known: base, large"):
        from_official({}, preset="tiny")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_files_that_are_not_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pth"
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.arange(3.0)}}, good)
    torch.testing.assert_close(load_official_file(good)["module.a"], torch.arange(3.0))

    half = tmp_path / "half.pth"
    half.write_bytes(good.read_bytes()[:good.stat().st_size // 2])
    text = tmp_path / "text.pth"
    text.write_text("not found\n" * 50)
    hostile = tmp_path / "hostile.pth"
    torch.save({"state_dict": Hostile()}, hostile)
    numbers = tmp_path / "numbers.pth"
    torch.save({"state_dict": {"a": 3}}, numbers)
    for path, message in ((half, "is damaged"), (text, "something else"), (hostile, "would run on loading"),
                          (numbers, "expected a dict with 'state_dict'"),
                          (tmp_path / "none.pth", "no such checkpoint")):
        with pytest.raises(UserError, match=message) as caught:
            load_official_file(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "pwned").exists()
