"""What is saved is what is loaded, to the bit; and every way a directory can be no checkpoint is explained."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch
import yaml

from talent.checkpoint import CONFIG, TOKENIZER, WEIGHTS, load_checkpoint, load_config, new_checkpoint, save_checkpoint
from talent.errors import UserError
from talent.model.lora import LoraSettings
from tests.networks import CONFIGS, TINY, checkpoint, inputs

LORA = LoraSettings(rank=2, alpha=6.0, dropout=0.25)


@pytest.mark.parametrize("lora", [None, LORA], ids=["plain", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_exact(tmp_path, name, lora):
    config = CONFIGS[name]
    saved = checkpoint(config, lora=lora)
    save_checkpoint(saved, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted([WEIGHTS, TOKENIZER, CONFIG])
    loaded = load_checkpoint(tmp_path / "one")
    assert not loaded.model.training
    assert (loaded.config, loaded.lora, loaded.training, loaded.metrics) == \
        (saved.config, lora, saved.training, saved.metrics)
    ours, wanted = loaded.model.state_dict(), saved.model.state_dict()
    assert ours.keys() == wanted.keys() and any(".lora_" in key for key in ours) == bool(lora)
    for key, value in wanted.items():
        assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key
    with torch.inference_mode():
        given = inputs(config, 2)
        assert torch.equal(loaded.model(*given).logits, saved.model.eval()(*given).logits)
    sentence = ["the red mug on the left"]
    np.testing.assert_array_equal(loaded.tokenizer(sentence), saved.tokenizer(sentence))


def test_where_it_came_from_lies_beside_it(tmp_path):
    save_checkpoint(checkpoint(), tmp_path / "one")
    content = yaml.safe_load((tmp_path / "one" / CONFIG).read_text())
    assert content["format"] == 1 and content["commit"]
    assert content["versions"]["torch"] == importlib.metadata.version("torch")
    assert content["model"]["preset"] == "tiny" and content["lora"] is None


def test_half(tmp_path):
    saved = checkpoint(lora=LORA)
    save_checkpoint(saved, tmp_path / "full")
    save_checkpoint(saved, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("full", "half")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    loaded = load_checkpoint(tmp_path / "half").model.state_dict()
    for key, value in saved.model.state_dict().items():
        wanted = value.half().float() if value.is_floating_point() else value
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], wanted), key


def test_extra_files_and_replacement(tmp_path):
    first, second = checkpoint(), checkpoint()
    with torch.no_grad():
        second.model.text.ln_final.bias += 1
    save_checkpoint(first, tmp_path / "one", extra={"state": lambda path: path.write_bytes(b"1")})
    assert (tmp_path / "one" / "state").read_bytes() == b"1"
    save_checkpoint(second, tmp_path / "one")
    assert not (tmp_path / "one" / "state").exists()
    assert torch.equal(load_checkpoint(tmp_path / "one").model.text.ln_final.bias, second.model.text.ln_final.bias)

    def fail(path):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_checkpoint(first, tmp_path / "one", extra={"state": fail})
    assert torch.equal(load_checkpoint(tmp_path / "one").model.text.ln_final.bias, second.model.text.ln_final.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_directory_of_somebody_else_is_kept(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="will not replace"):
        save_checkpoint(checkpoint(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_new_checkpoint_fits_its_tokenizer():
    fresh = new_checkpoint(TINY)
    assert fresh.tokenizer.vocab_size == TINY.vocab_size == fresh.model.text.token_embedding.num_embeddings
    assert fresh.tokenizer("a mug").shape == (1, TINY.context_length)


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(checkpoint(lora=LORA), tmp_path / "one")
    return tmp_path / "one"


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewrite(path, change) -> None:
    content = yaml.safe_load((path / CONFIG).read_text())
    change(content)
    (path / CONFIG).write_text(yaml.safe_dump(content))


def test_missing_directory(tmp_path):
    message = refused(tmp_path / "none")
    assert "no checkpoint at" in message and "talent-train or talent-import" in message


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER, CONFIG])
def test_missing_file(saved, name):
    (saved / name).unlink()
    assert f"{name} is missing" in refused(saved)


def test_the_config_alone_is_that_of_the_checkpoint_and_needs_no_weights(saved):
    wanted = load_checkpoint(saved).config
    (saved / WEIGHTS).write_bytes(b"no weights")
    assert load_config(saved) == wanted
    (saved / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{WEIGHTS} is missing"):
        load_config(saved)


def test_newer_format(saved):
    rewrite(saved, lambda content: content.update(format=2))
    assert "expected format 1, received 2" in refused(saved)


@pytest.mark.parametrize("part", ["header", "numbers", "nothing"])
def test_truncated_weights(saved, part):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:{"header": 100, "numbers": len(whole) - 1000, "nothing": 0}[part]])
    assert "does not hold the weights that config.yaml describes" in refused(saved)


def test_weights_of_another_network(saved):
    rewrite(saved, lambda content: content["model"].update(width=64))
    assert "does not hold the weights that config.yaml describes" in refused(saved)
    rewrite(saved, lambda content: content["model"].update(width=96))
    rewrite(saved, lambda content: content.update(lora=None))
    assert "does not hold the weights" in refused(saved)


def test_wrong_keys_suggest_the_nearest(saved):
    rewrite(saved, lambda content: content["model"].update(imagesize=168))
    assert "'imagesize'; did you mean 'image_size'?" in refused(saved)
    rewrite(saved, lambda content: content["model"].pop("imagesize"))
    rewrite(saved, lambda content: content["lora"].update(rnak=2))
    assert "'rnak'; did you mean 'rank'?" in refused(saved)


@pytest.mark.parametrize("text", ["model: [", "just words", "", "format: 1", "format: 1\nmodel: tiny\n",
                                  "format: 1\nmodel: {image_size: 168}\n"])
def test_config_that_is_none(saved, text):
    (saved / CONFIG).write_text(text)
    assert str(saved / CONFIG) in refused(saved)
