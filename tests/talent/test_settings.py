"""Defaults, then the YAML file, then the command line; and what is unknown is refused with the nearest known name."""

from __future__ import annotations

import pytest

from talent.errors import UserError
from talent.losses import LossWeights
from talent.model.lora import LoraSettings
from talent.settings import TrainSettings, parse_settings
from talent.train import main


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
    ("lora.rank", "0", "at least 1")])
def test_values_that_no_run_can_have(name, value, message):
    refusal = refused(f"--{name}={value}")
    assert message in refusal and name in refusal


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
