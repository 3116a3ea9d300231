"""benchmarks/qat.py: the hard case answers as before and is hard; the runs are compared on the same terms."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import qat
from benchmarks.qat import CASES, FIGURES, ROOT, harden, main, make_hard, points
from talent.checkpoint import load_checkpoint
from talent.errors import UserError
from talent.image import read_image
from talent.model.fake_quantization import add_fake_quantization
from talent.settings import parse_settings
from tests.networks import DENSE, SMALL, TINY, inputs, network, relative_error, save_network


@torch.no_grad()
def answers(model, config, *, rounded: bool) -> torch.Tensor:
    """Logits, in FP32 or through fake quantization with the ranges of the same pictures."""
    given = inputs(config, 2)
    if rounded:
        model = copy.deepcopy(model)
        quantization = add_fake_quantization(model)
        with quantization.observing(rounding=False):
            model(*given)
        quantization.update()
    return model(*given).logits


@pytest.mark.parametrize("factor", [16.0, 100.0])
def test_hard_network_answers_as_before_and_loses_more_in_int8(factor):
    plain = network(TINY)
    hard = copy.deepcopy(plain)
    # six blocks' attention, two decoder layers', three adapters, the neck's convolutions
    assert harden(hard, factor=factor, share=0.05, seed=0) == 12
    changed = {name for (name, one), other in zip(hard.named_parameters(), plain.parameters(), strict=True)
               if not torch.equal(one, other)}
    assert changed and not [name for name in changed if "norm" in name], "smoothing finds nothing in a LayerNorm"
    expected = answers(plain, TINY, rounded=False)
    assert relative_error(answers(hard, TINY, rounded=False), expected) < 1e-5
    lost, before = (relative_error(answers(model, TINY, rounded=True), expected) for model in (hard, plain))
    assert lost > 2 * before


def test_how_many_channels_are_loud():
    generator = torch.Generator().manual_seed(0)
    factors = qat.loud(40, share=0.1, factor=9.0, generator=generator)
    assert sorted(factors.tolist()) == [1.0] * 36 + [9.0] * 4
    assert qat.loud(4, share=0.01, factor=9.0, generator=generator).sum() == 12, "one at least"


def test_hard_checkpoint(tmp_path):
    plain = save_network(tmp_path / "plain", SMALL)
    made = make_hard(plain, tmp_path / "hard", factor=64.0, share=0.1, seed=0)
    assert made["places"] == 6 and made["largest_change"] <= qat.TOLERANCE * made["largest_logit"]
    hard, before = load_checkpoint(tmp_path / "hard"), load_checkpoint(plain)
    ratio = hard.model.neck.coord_conv[0][1].weight / before.model.neck.coord_conv[0][1].weight
    assert np.unique(ratio.detach().numpy().round(3)).tolist() == [1.0, 64.0]


def test_networks_that_cannot_be_made_hard(tmp_path):
    with pytest.raises(UserError, match="expected a network with rca adapters .* received dense adapters"):
        make_hard(save_network(tmp_path / "dense", DENSE), tmp_path / "hard", factor=8.0, share=0.1, seed=0)
    small = save_network(tmp_path / "small", SMALL)
    with pytest.raises(UserError, match="changed a logit by .*; take a smaller --factor"):
        make_hard(small, tmp_path / "hard", factor=3e38, share=0.1, seed=0)
    assert not (tmp_path / "hard").exists()


@pytest.fixture
def pretended(monkeypatch, tmp_path) -> list[list[str]]:
    """Trainings, exports and evaluations that only note that they were asked for. Metrics tell which network it was."""
    calls, really = [], subprocess.run

    def run(argv, **options):
        if argv[0] != sys.executable:  # git, for the commit
            return really(argv, **options)
        calls.append(["train", *argv[3:]])
        Path(argv[-1], "last").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(argv, 0)

    def export(checkpoint, bundle, options):
        calls.append(["export", str(checkpoint), options.precision, str(options.allow_drop), str(options.engines)])
        bundle.mkdir()

    def measure(path, samples):
        calls.append(["measure", path.name if path.name != "last" else path.parent.name, str(samples)])
        miou = {"hard": 0.65, "hard-bundle": 0.55, "lora-bundle": 0.56, "qat-bundle": 0.62}.get(calls[-1][1], 0.6)
        return dict.fromkeys(FIGURES, 0.1) | {"mIoU": miou}

    monkeypatch.setattr(qat.subprocess, "run", run)
    monkeypatch.setattr(qat, "export_bundle", export)
    monkeypatch.setattr(qat, "measure", measure)
    return calls


def test_all_networks_are_measured_alike_and_once(tmp_path, pretended, capsys):
    weights = save_network(tmp_path / "small", SMALL)
    argv = ["--weights", str(weights), "--work", str(tmp_path / "work"), "--steps", "7", "--samples", "5",
            "-o", str(tmp_path / "qat.json")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "| hard, INT8 | 0.5500 | 0.1000 | 0.1000 | 0.1000 |" in out
    assert "lost 10.0 points, recovered by lora 1.0 points, recovered by qat 7.0 points" in out
    measured = [call[1:] for call in pretended if call[0] == "measure"]
    assert measured == [[name, "5"] for name in ("hard", "hard-bundle", "lora", "lora-bundle", "qat", "qat-bundle")]
    exported = [call[1:] for call in pretended if call[0] == "export"]
    assert [Path(one[0]).parts[-2:] for one in exported][1:] == [("lora", "last"), ("qat", "last")]
    assert all(one[1:] == ["int8", "True", "False"] for one in exported) and len(exported) == 3
    one, other = (parse_settings(call[1:]) for call in pretended if call[0] == "train")
    assert (one.qat, other.qat) == (False, True) and one.steps == other.steps == 7
    assert one.differences(other.to_dict()) == ["qat: expected True, received False"], "nothing else differs"
    content = json.loads((tmp_path / "qat.json").read_text())
    assert [result["case"] for result in content["results"]] == list(CASES) and content["settings"]["steps"] == 7
    assert min(read_image(tmp_path / "qat.png").shape[:2]) > 300

    pretended.clear()
    assert main(argv) == 0
    assert not pretended, "everything was kept"


@pytest.mark.parametrize(("argv", "message"), [
    (["--steps", "0"], "--steps: expected at least 1"), (["--share", "1"], "--share: expected a part"),
    (["--factor", "1"], "--factor: expected a number above 1"), (["--factor", "inf"], "at most 1e+06, received inf"),
    (["-o", "none/qat.json"], "none")])
def test_bad_input(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(["-o", "qat.json", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks/qat.py: error: ") and message in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_shipped_shows_it():
    """At least 4 points lost, at least 3 of them recovered, and more than training on without --qat gives back."""
    content = json.loads((ROOT / "benchmarks" / "results" / "qat.json").read_text())
    results = {result["case"]: result for result in content["results"]}
    assert points(results) == pytest.approx(content["points"])
    assert content["points"]["lost"] >= 4 and content["points"]["recovered by qat"] >= 3
    assert content["points"]["recovered by qat"] - content["points"]["recovered by lora"] >= 2
    assert content["recipe"] == qat.RECIPE
    defaults = qat.parser().parse_args(["-o", "qat.json"])
    assert content["settings"] == {name: getattr(defaults, name) for name in qat.SETTINGS}
