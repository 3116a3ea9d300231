"""A network for another input size has the same weights, the same memory, and everything else as if built for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from talent.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from talent.errors import UserError
from talent.image_size import SIZES, resized
from talent.model import TalentModel, build_model
from talent.model.lora import LoraSettings, add_lora, merge_lora
from tests.networks import CONFIGS, TINY, checkpoint, inputs

LORA = LoraSettings(rank=2, alpha=6.0, dropout=0.25)
KINDS = [(name, lora) for name in CONFIGS for lora in (None, LORA)]
IDS = [f"{name}{', LoRA' if lora else ''}" for name, lora in KINDS]


def logits(checkpoint: Checkpoint, batch: int = 2) -> torch.Tensor:
    with torch.inference_mode():
        return checkpoint.model(*inputs(checkpoint.config, batch)).logits


@pytest.mark.parametrize("name, lora", KINDS, ids=IDS)
def test_weights_are_the_same_and_shared(name, lora):
    ours = checkpoint(CONFIGS[name], lora)
    other = resized(ours, 224)
    assert other.config == dataclasses.replace(ours.config, image_size=224) and not other.model.training
    assert other.tokenizer is ours.tokenizer
    assert (other.lora, other.training, other.metrics) == (lora, ours.training, {}) and ours.metrics
    received, wanted = other.model.state_dict(), ours.model.state_dict()
    assert list(received) == list(wanted) and any(".lora_" in key for key in received) == bool(lora)
    for key, value in wanted.items():
        assert received[key].data_ptr() == value.data_ptr() and torch.equal(received[key], value), key
    trainable = {key for key, parameter in ours.model.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in other.model.named_parameters() if parameter.requires_grad} == trainable


def not_saved(model: TalentModel) -> dict[str, torch.Tensor]:
    """The buffers that no checkpoint holds, because they are computed when the network is built."""
    saved = model.state_dict()
    return {key: buffer for key, buffer in model.named_buffers() if key not in saved}


@pytest.mark.parametrize("name, lora", KINDS, ids=IDS)
def test_what_depends_on_the_size_is_as_if_built_for_it(name, lora):
    ours = checkpoint(CONFIGS[name], lora)
    other = resized(ours, 238)
    received, wanted, old = (not_saved(model) for model in (other.model, build_model(other.config), ours.model))
    assert received.keys() == wanted.keys()
    for key, buffer in received.items():
        assert not buffer.is_meta and torch.equal(buffer, wanted[key]), key
    changed = {key.split(".")[0] for key, buffer in received.items() if buffer.shape != old[key].shape}
    assert changed == {"neck", "decoder", "projector"}
    assert other.model.vision.positions().shape == (1, (238 // 14) ** 2, TINY.vision_width)


@pytest.mark.parametrize("name, lora", KINDS, ids=IDS)
def test_outputs_at_another_size(name, lora):
    ours = checkpoint(CONFIGS[name], lora)
    before = logits(ours)
    other = resized(ours, 224)
    received = logits(other, batch=1)
    assert received.shape == (1, 1, 64, 64) and received.isfinite().all()
    assert received.std() > 0.01  # the picture is seen
    built = build_model(other.config)
    if lora:
        add_lora(built, lora)
    built.load_state_dict(ours.model.state_dict())
    torch.testing.assert_close(received, logits(Checkpoint(built.eval(), other.config, other.tokenizer), batch=1),
                               rtol=0, atol=0)
    assert torch.equal(logits(ours), before)


@pytest.mark.parametrize("name, lora", KINDS, ids=IDS)
def test_there_and_back_changes_no_output(name, lora):
    ours = checkpoint(dataclasses.replace(CONFIGS[name], image_size=224), lora)
    back = resized(resized(ours, 238), 224)
    assert back.model is not ours.model and back.config == ours.config
    assert torch.equal(logits(back), logits(ours))


def test_lora_merges_and_saves_at_the_new_size(tmp_path):
    other = resized(checkpoint(TINY, LORA), 224)
    before = logits(other)
    save_checkpoint(other, tmp_path / "other")
    loaded = load_checkpoint(tmp_path / "other")
    assert loaded.config == other.config and torch.equal(logits(loaded), before)
    assert merge_lora(other.model) > 0
    torch.testing.assert_close(logits(other), before, rtol=1e-3, atol=1e-3)


def test_a_training_network_comes_back_in_eval_mode_and_stays_as_it_was():
    ours = checkpoint(TINY)
    ours.model.train()
    assert not resized(ours, 224).model.training and ours.model.training


@pytest.mark.parametrize("size", [TINY.image_size, 224, 448, 518])
def test_its_own_size_is_the_checkpoint_itself(size):
    ours = checkpoint(dataclasses.replace(TINY, image_size=size))
    assert resized(ours, size) is ours


@pytest.mark.parametrize("size, nearest", [(0, 224), (-224, 224), (112, 224), (210, 224), (225, 224), (416, 420),
                                           (447, 448), (519, 518), (532, 518), (1024, 518)])
def test_sizes_that_are_refused(size, nearest):
    with pytest.raises(UserError, match="224 to 518 pixels in steps of 14, or the checkpoint's own 168, "
                                        f"received {size}; {nearest} is nearest"):
        resized(checkpoint(TINY), size)


def test_every_size_that_is_offered_can_be_built():
    ours = checkpoint(TINY)
    assert list(SIZES) == [14 * side for side in range(16, 38)]
    for size in (SIZES[0], SIZES[1], SIZES[-2], SIZES[-1]):
        assert logits(resized(ours, size), batch=1).shape == (1, 1, size // 14 * 4, size // 14 * 4)
