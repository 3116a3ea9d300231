"""talent-import: an official file becomes a checkpoint directory, and bad input leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from talent.checkpoint import load_checkpoint
from talent.import_official import main


@pytest.fixture(scope="module")
def official_file(parity, tmp_path_factory):
    """A file with official keys and shapes for 22 words, behind `module.`: one number a tensor, so that it is small."""
    state = {}
    for number, (key, shape) in enumerate(parity.load_spec("base").items()):
        shape = (128, 22) if key.endswith("cost_proj.weight") else shape
        value = torch.tensor(0) if key.endswith("num_batches_tracked") else torch.tensor(number / 1000)
        state[f"module.{key}"] = value.expand(shape)
    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save({"epoch": 60, "state_dict": state}, path)
    assert path.stat().st_size < 5e6
    return path, state


def test_import(official_file, tmp_path, capsys):
    path, state = official_file
    output = tmp_path / "base"
    assert main([str(path), "-o", str(output)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"base with 172,793,393 parameters for sentences of 22 tokens: checkpoint {output}"
    checkpoint = load_checkpoint(output)
    assert checkpoint.config.preset == "base" and checkpoint.config.context_length == 22
    assert checkpoint.tokenizer("the red mug").shape == (1, 22) and checkpoint.training == {"official": "official.pth"}
    ours = checkpoint.model.state_dict()
    pairs = {
        "text.blocks.3.adapter.fc2.bias": "txt_backbone.transformer.resblocks.3.adapter.D_fc2.bias",
        "vision.blocks.11.adapter.rca.cost_proj.weight": "dinov2.blocks.11.adapter.cross.cost_proj.weight",
        "projector.txt.weight": "proj.txt.weight",
        "decoder.norm.bias": "decoder.norm.bias",
    }
    for name, key in pairs.items():
        assert torch.equal(ours[name], state[f"module.{key}"]), name


def refused(capsys, *argv: str) -> str:
    assert main([*argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("talent-import: error: ")
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_bad_input_leaves_nothing(official_file, tmp_path, capsys):
    path, _ = official_file
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    work.mkdir()
    (given / "half.pth").write_bytes(path.read_bytes()[:5000])
    torch.save({"state_dict": {f"module.layer{i}.weight": torch.zeros(1) for i in range(50)}}, given / "other.pth")
    output = ["-o", str(work / "out")]
    assert "unknown preset 'bsae'; did you mean 'base'?" in refused(capsys, str(path), "--preset", "bsae", *output)
    assert "known: base, large" in refused(capsys, str(path), "--preset", "tiny", *output)
    assert "no such checkpoint" in refused(capsys, str(given / "none.pth"), *output)
    assert "is damaged" in refused(capsys, str(given / "half.pth"), *output)
    other = refused(capsys, str(given / "other.pth"), *output)
    assert "50 unexpected: layer0.weight, layer1.weight, layer10.weight, and 47 more" in other and len(other) < 1000
    assert " missing: " in other and "is --preset base the network that was trained?" in other
    assert list(work.iterdir()) == []


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "talent-import TALENT_base_refcoco.pth --preset base -o" in capsys.readouterr().out
