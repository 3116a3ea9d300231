"""benchmarks/random_checkpoint.py: the same seed, the same weights; what it writes is a checkpoint like any other."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_checkpoint import main
from talent.checkpoint import load_checkpoint


def weights(path):
    return load_checkpoint(path).model.state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_seed_decides(tmp_path, capsys):
    for name, more in (("first", []), ("again", ["--seed", "0"]), ("other", ["--seed", "1"])):
        assert main(["tiny", "-o", str(tmp_path / name), *more]) == 0
    first = weights(tmp_path / "first")
    assert same(first, weights(tmp_path / "again")) and not same(first, weights(tmp_path / "other"))
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'first'}: tiny with random weights, seed 0\n")
    assert load_checkpoint(tmp_path / "other").training == {"seed": 1, "data": "none: random weights"}


def test_lora_factors_are_there_and_change_something(tmp_path):
    assert main(["tiny", "--lora", "-o", str(tmp_path / "lora")]) == 0
    checkpoint = load_checkpoint(tmp_path / "lora")
    assert checkpoint.lora
    factors = [value for name, value in checkpoint.model.named_parameters() if ".lora_B." in name]
    assert factors and all(value.abs().max() > 0 for value in factors)


@pytest.mark.parametrize(("arguments", "message"), [
    (["tyni", "-o", "new"], "did you mean 'tiny'"), (["tiny", "-o", "taken"], "will not replace the directory"),
    (["tiny", "-o", "none/new"], "none")])
def test_bad_input_leaves_everything_as_it_was(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.jpg").write_text("mine")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "photo.jpg"]


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/random_checkpoint.py base" in capsys.readouterr().out
