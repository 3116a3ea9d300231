"""Defaults, then the YAML file, then the command line; and what is unknown is refused with the nearest known name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import pytest
import yaml

from talent.errors import UserError
from talent.losses import LossWeights
from talent.model.lora import LoraSettings
from talent.settings import TrainSettings, parse_settings
from talent.train import main, starting_point


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("preset: tiny\nsteps: 7\nbatch_size: 3\nlora:\n  rank: 4\nlosses:\n  cpcl: 0.5\n")
    return path


def test_defaults():
    assert parse_settings(["-o", "run"]) == TrainSettings(output="run")


def test_yaml_over_defaults(recipe):
    wanted = TrainSettings(output="run", preset="tiny", steps=7, batch_size=3, lora=LoraSettings(rank=4),
                           losses=LossWeights(cpcl=0.5))
    assert parse_settings(["--config", str(recipe), "-o", "run"]) == wanted


@pytest.mark.parametrize("order", ["config first", "config last", "joined"])
def test_command_line_over_yaml(recipe, order):
    given = ["-o", "run", "--steps", "9", "--lora.alpha=2", "--losses.tccl", "0.25", "--learning_rate", "2e-3"]
    config = ["--config", str(recipe)]
    settings = parse_settings({"config first": config + given, "config last": given + config,
                               "joined": [*given, f"--config={recipe}"]}[order])
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (9, 3, 2e-3)
    assert settings.lora == LoraSettings(rank=4, alpha=2.0) and settings.losses == LossWeights(cpcl=0.5, tccl=0.25)


@pytest.mark.parametrize(("argv", "wanted"), [
    ([], False), (["--qat"], True), (["--qat", "true"], True), (["--qat=true"], True), (["--qat", "false"], False),
    (["--qat", "--steps", "3"], True), (["--steps", "3", "--qat"], True)])
def test_fake_quantization_needs_no_value(argv, wanted):
    assert parse_settings([*argv, "-o", "run"]).qat is wanted
    assert parse_settings(["-o", "run", *argv]).qat is wanted


def test_value_of_a_flag_is_checked():
    assert '"qat"' in refused("--qat", "perhaps")
    assert "stray" in refused("stray", "--qat")


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_settings(["-o", "run", *argv])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("given", "nearest"), [
    ("lerning_rate", "learning_rate"), ("stepz", "steps"), ("step", "steps"), ("lora.rnak", "lora.rank"),
    ("losses.cpl", "losses.cpcl")])
def test_unknown_keys_suggest_the_nearest(tmp_path, given, nearest):
    wanted = f"unknown setting {given!r}; did you mean {nearest!r}?"
    assert wanted in refused(f"--{given}", "3")
    assert wanted in refused(f"--{given}=3")
    group, _, name = given.rpartition(".")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{group}:\n  {name}: 3\n" if group else f"{name}: 3\n")
    assert wanted in refused("--config", str(path))


@pytest.mark.parametrize(("name", "value"), [("steps", "many"), ("lora.rank", "2.5"), ("cpu", "perhaps"),
                                             ("learning_rate", "fast"), ("seed", "null")])
def test_wrong_types(tmp_path, name, value):
    message = refused(f"--{name}", value)
    assert f'"{name}"' in message and value.replace("null", "None") in message
    group, _, last = name.rpartition(".")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{group}:\n  {last}: {value}\n" if group else f"{name}: {value}\n")
    assert last in refused("--config", str(path))


def test_null_of_a_group(tmp_path):
    (tmp_path / "recipe.yaml").write_text("lora: null\n")
    assert "lora: expected a value, received null" in refused("--config", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(("name", "value", "message"), [
    ("preset", "tinny", "did you mean 'tiny'"), ("tune", "lorra", "did you mean 'lora'"),
    ("data", "shape", "did you mean 'shapes'"), ("precision", "bfloat16", "did you mean 'bf16'"),
    ("steps", "0", "at least 1, received 0"), ("batch_size", "-2", "at least 1, received -2"),
    ("validate_every", "0", "at least 1"), ("train_samples", "0", "at least 1"), ("val_samples", "0", "at least 1"),
    ("lora.rank", "0", "at least 1"), ("lora.dropout", "1", "below 1"), ("accumulate", "0", "at least 1"),
    ("save_every", "0", "at least 1"), ("log_every", "-1", "at least 1"), ("warmup_steps", "-1", "at least 0"),
    ("workers", "-1", "at least 0"), ("weight_decay", "-0.1", "at least 0"), ("weight_decay", ".nan", "at least 0"),
    ("seed", "-1", "at least 0"), ("seed", "4294967296", "at most 4294967295"),
    ("learning_rate", "0", "above 0, received 0"), ("learning_rate", ".nan", "above 0, received nan"),
    ("learning_rate", ".inf", "above 0"), ("clip", "0", "above 0"), ("gamma", "-1", "above 0"),
    ("epochs", "0", "above 0"), ("ema", "1", "below 1, such as 0.999, received 1"), ("ema", "-0.1", "from 0"),
    ("schedule", "cosin", "did you mean 'cosine'"), ("losses.tlm", "oficial", "did you mean 'official'"),
    ("milestones", "[0.5,0.2]", "in rising order"), ("milestones", "[35,55]", "shares of the run between 0 and 1"),
    ("milestones", "[0.0]", "between 0 and 1")])
def test_values_that_no_run_can_have(name, value, message):
    refusal = refused(f"--{name}={value}")
    assert message in refusal and name in refusal


@pytest.mark.parametrize(("group", "cls"), [("", TrainSettings), ("lora.", LoraSettings), ("losses.", LossWeights)])
def test_every_setting_is_explained(capsys, group, cls):
    """In --help, which takes the words from the docstring of the class."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    explained = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(cls), re.MULTILINE))
    assert list(explained) == [field.name for field in dataclasses.fields(cls)]
    for name, words in explained.items():
        assert f"--{group}{name} " in shown and (words[:40] in shown or name == "output"), f"{group}{name}"


def test_lists_from_the_command_line_and_from_yaml(tmp_path):
    (tmp_path / "recipe.yaml").write_text("milestones: [0.25, 0.5]\nlora:\n  text: []\n  vision: [qkv, fc1]\n")
    for argv in (["--config", str(tmp_path / "recipe.yaml")],
                 ["--milestones", "[0.25, 0.5]", "--lora.text", "[]", "--lora.vision", "[qkv, fc1]"]):
        settings = parse_settings(["-o", "run", *argv])
        assert settings.milestones == (0.25, 0.5)
        assert settings.lora == LoraSettings(text=(), vision=("qkv", "fc1"))


def test_what_is_written_down_is_what_was_set(tmp_path):
    """run.json and config.yaml hold plain values, and a recipe made of them is the same run."""
    settings = TrainSettings(output="run", preset="tiny", milestones=(0.25, 0.5), lora=LoraSettings(rank=2, text=()),
                             losses=LossWeights(tlm="rectified", tccl=0.5), epochs=1.5)
    written = json.loads(json.dumps(settings.to_dict()))
    assert written == settings.to_dict() and yaml.safe_load(yaml.safe_dump(written)) == written
    del written["output"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
    assert parse_settings(["--config", str(tmp_path / "recipe.yaml"), "-o", "run"]) == settings


def test_differences_of_a_run_that_goes_on():
    settings = TrainSettings(output="run", seed=1, lora=LoraSettings(rank=4))
    assert settings.differences(settings.to_dict()) == []
    other = dataclasses.replace(settings, output="elsewhere", resume=True, workers=3, cpu=True, batch_size=1,
                                accumulate=16, checkpointing=True)
    assert other.differences(settings.to_dict()) == []
    other = dataclasses.replace(settings, seed=2, lora=LoraSettings(rank=8), milestones=(0.5,), qat=True)
    first, second = TrainSettings(output="run").milestones
    assert sorted(other.differences(settings.to_dict())) == [
        "lora.rank: expected 4, received 8", f"milestones: expected [{first}, {second}], received [0.5]",
        "qat: expected False, received True", "seed: expected 1, received 2"]


def test_settings_of_another_version_do_not_matter():
    """A run of an older version lacks settings that came later, and may have some that went."""
    settings = TrainSettings(output="run")
    begun = settings.to_dict() | {"gone": 3}
    del begun["gamma"]
    assert settings.differences(begun) == []


def test_recipe_that_is_missing_or_broken(tmp_path):
    assert "none.yaml" in refused("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("preset: [tiny\n")
    assert "pars" in refused("--config", str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("argv", [["--preset", "tinny"], ["--stepz", "3"], ["--steps", "many"],
                                  ["--config", "none.yaml"], ["--init", "none"], ["stray"], ["--resume", "true"]])
def test_bad_input_of_the_command(tmp_path, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    assert main(["-o", "run", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("talent-train: error: ") and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_output_is_required(capsys):
    assert main(["--preset", "tiny"]) == 2
    assert "output" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "talent-train --config recipes/tiny.yaml -o runs/tiny" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--context_length", "2"], ["--context_length", "78"],
                                  ["--context_length", "22", "--init", "weights/tiny"]])
def test_context_length_that_no_run_can_have(argv):
    assert "context_length: expected 3 to 77 tokens and no --init" in refused(*argv)


def test_context_length_of_a_new_network():
    checkpoint = starting_point(parse_settings(["-o", "run", "--preset", "tiny", "--context_length", "15"]))
    assert checkpoint.config.context_length == checkpoint.tokenizer(["the red mug"]).shape[1] == 15
