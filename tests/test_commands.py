"""Every command explains itself with an example, and every shipped recipe is one that talent-train takes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from talent.settings import parse_settings

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {name: (module, function) for name, module, function in
           re.findall(r'"(talent-[a-z]+) = ([a-z_.]+):([a-z_]+)"', (ROOT / "setup.py").read_text())}
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), ROOT / "demo" / "recipe.yaml"])


def script(name):
    """What the console script `name` calls."""
    module, function = SCRIPTS[name]
    return getattr(importlib.import_module(module), function)


def test_the_commands_of_the_readme_are_installed():
    mentioned = set(re.findall(r"^(talent-[a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert mentioned and mentioned <= SCRIPTS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        script(name)(["--help"])
    assert stop.value.code == 0
    assert re.search(rf"examples?:\s+{name} ", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "arguments"), [
    ("talent-train", ["--preset", "tinny", "-o", "out"]),
    ("talent-eval", ["no-such-checkpoint"]),
    ("talent-data", ["check", "no-such-file.jsonl"]),
    ("talent-pack", ["no-such-checkpoint", "-o", "out"]),
    ("talent-import", ["no-such-file.pth", "-o", "out"]),
    ("talent-export", ["no-such-checkpoint", "--no-engine", "-o", "out"]),
    ("talent-build", ["no-such-bundle"]),
    ("talent-inspect", ["no-such-bundle", "--verify"]),
    ("talent-predict", ["no-such-bundle", "photo.jpg", "the red mug", "-o", "out.png"]),
    ("talent-bag", ["no-such.mcap", "the red mug", "-o", "out.mcap"]),
    ("talent-doctor", ["no-such-bundle"]),
])
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(name, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script(name)(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"{name}: error: ") and "\n" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_is_read(recipe):
    settings = parse_settings(["--config", str(recipe), "-o", "out"])
    assert settings.steps > 0
