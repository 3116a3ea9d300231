"""benchmarks/parity.py on a small random network: the rows, numbers as talent-eval's, what is refused, what not run."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import parity, results_file
from benchmarks.contenders import EAGER, ONNX_RUNTIME
from benchmarks.parity import main
from benchmarks.parity_table import table
from deploy import evaluate, export
from talent.checkpoint import save_checkpoint
from talent.errors import UserError
from talent.model.lora import LoraSettings
from tests import networks
from tests.benchmarks.toy_bundles import toy_bundle

FEW = ["--samples", "3"]
CPU, EAGER_ROW, BUNDLE_ROW = "cpu", f"{EAGER} FP32", f"{ONNX_RUNTIME} FP32"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "lora"
    save_checkpoint(networks.checkpoint(networks.SMALL, LoraSettings(rank=2)), path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    """Of another network, so that there is something to see."""
    return toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", checkpoint).directory


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """The same rows on every machine."""
    monkeypatch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda device=0: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def run(bundle, checkpoint, tmp_path_factory):
    """(the result file, the picture's bytes or None) of one run of the command."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda device=0: None)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert main([str(bundle), "--checkpoint", str(checkpoint), *FEW, "--json", str(directory / "parity.json"),
                     "--worst", str(directory / "worst.png")]) == 0
    return results_file.read(directory / "parity.json"), (directory / "worst.png").read_bytes()


def test_pytorch_is_the_first_row(run):
    rows = run[0]["rows"]
    assert [(row["name"], row["device"], row["emulated"]) for row in rows] == [
        (EAGER_ROW, CPU, False), (BUNDLE_ROW, CPU, False)]
    assert run[0]["settings"]["reference"] == EAGER_ROW
    assert rows[0]["facts"]["worst_delta"] == 0 and rows[0]["facts"]["masks_agree_min"] == 1
    assert {one["delta"] for one in rows[0]["samples"]} == {0}


def test_another_network_has_other_masks(run):
    first, other = (row["facts"] for row in run[0]["rows"])
    assert other["masks_agree"] < 0.9 and other["miou"] != first["miou"] and other["worst_delta"] < -0.01


@pytest.mark.slow
def test_an_exported_bundle_is_near_and_not_the_same(checkpoint, tmp_path):
    assert export.main([str(checkpoint), "--fp16", "--no-engine", "--allow-drop", "--data", "shapes",
                        "--calibration", "2", "--parity", "1", "-o", str(tmp_path / "half")]) == 0
    result = parity.benchmark([tmp_path / "half"], checkpoint=checkpoint, samples=3).result
    first, half = (row["facts"] for row in result["rows"])
    assert half["masks_agree"] > 0.98 and abs(half["miou"] - first["miou"]) < 0.01
    assert half["masks_agree_min"] < 1 or half["worst_delta"] != 0, "FP16 rounds"
    assert result["rows"][1]["emulated"] and "emulated: a CPU" in table(result)


def test_numbers_are_those_of_talent_eval(run, bundle, checkpoint, tmp_path):
    for network, row in zip((checkpoint, bundle), run[0]["rows"], strict=True):
        assert evaluate.main([str(network), *FEW, "--json", str(tmp_path / "numbers.json")]) == 0
        numbers = json.loads((tmp_path / "numbers.json").read_text())["metrics"]
        facts = row["facts"]
        assert facts["miou"] == pytest.approx(numbers["mIoU"]) and facts["oiou"] == pytest.approx(numbers["oIoU"])
        assert facts["pr@0.5"] == numbers["Pr@0.5"] and facts["expressions"] == numbers["samples"]
        assert facts["nta"] == pytest.approx(numbers.get("NTA ratio"))


def test_every_sentence_has_its_line(run):
    first, other = (row["samples"] for row in run[0]["rows"])
    assert [(one["sample"], one["sentence"]) for one in first] == [(one["sample"], one["sentence"]) for one in other]
    assert len(first) == run[0]["settings"]["expressions"] > 3 == run[0]["settings"]["samples"]
    assert all(one["expression"] for one in first)
    for before, after in zip(first, other, strict=True):
        assert after["delta"] == pytest.approx(after["iou"] - before["iou"], abs=1e-12)


def test_the_worst_are_a_picture(run):
    assert run[1].startswith(b"\x89PNG") and len(run[1]) > 10_000


def test_the_table_says_it_all(run):
    text = table(run[0])
    assert f"{run[0]['rows'][0]['facts']['miou']:.4f}" in text and "masks agree" in text
    assert f"IoU less that of {EAGER_ROW}" in text
    assert "emulated" not in text and "not run: TensorRT FP32: tensorrt needs an NVIDIA GPU" in text


def test_without_a_checkpoint_the_first_bundle_is_the_reference(bundle):
    result = parity.benchmark([bundle], samples=1).result
    assert result["settings"]["reference"] == BUNDLE_ROW == result["rows"][0]["name"] and len(result["rows"]) == 1


def broken(opened, name: str):
    """`opened`, where the network of this name gives no numbers."""
    @contextlib.contextmanager
    def opening(contender, threshold):
        with opened(contender, threshold) as network:
            if contender.name == name:
                nothing = lambda images, tokens: np.full((len(images), 1, 4, 4), np.nan, np.float32)  # noqa: E731
                network = dataclasses.replace(network, predict=nothing)
            yield network

    return opening


def test_a_bundle_that_overflows_is_not_run(bundle, checkpoint, monkeypatch):
    monkeypatch.setattr(parity, "opened", broken(parity.opened, BUNDLE_ROW))
    result = parity.benchmark([bundle], checkpoint=checkpoint, samples=1).result
    assert [row["name"] for row in result["rows"]] == [EAGER_ROW]
    reasons = {entry["name"]: entry["reason"] for entry in result["not_run"]}
    assert "logits that are not finite" in reasons[BUNDLE_ROW]


def test_a_checkpoint_that_overflows_is_an_error(bundle, checkpoint, monkeypatch):
    monkeypatch.setattr(parity, "opened", broken(parity.opened, EAGER_ROW))
    with pytest.raises(UserError, match="logits that are not finite"):
        parity.benchmark([bundle], checkpoint=checkpoint, samples=1)


def test_equal_masks_make_no_picture(bundle, tmp_path, capsys):
    assert main([str(bundle), "--samples", "1", "--worst", str(tmp_path / "worst.png")]) == 0
    assert "no sentence lost against ONNX Runtime FP32" in capsys.readouterr().out
    assert not (tmp_path / "worst.png").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["none"], "no such bundle"), (["{bundle}", "--samples", "0"], "--samples: expected at least 1"),
    (["{bundle}", "--threshold", "1"], "--threshold: expected a probability"),
    (["{bundle}", "--data", "shape"], "did you mean 'shapes'?"),
    (["{bundle}", "--checkpoint", "none"], "none"),
    (["{bundle}", "--json", "none/parity.json"], "mkdir -p none"),
    (["{bundle}", "--worst", "worst.xyz"], "unknown picture type")])
def test_bad_input(bundle, arguments, message, capsys):
    assert main([argument.format(bundle=bundle) for argument in arguments]) == 2
    printed = capsys.readouterr()
    line, = [line for line in printed.err.splitlines() if line]
    assert line.startswith("parity.py: error: ") and message in line
    assert printed.out == ""


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python benchmarks/parity.py bundle-fp32/ bundle-int8/ --checkpoint" in capsys.readouterr().out
