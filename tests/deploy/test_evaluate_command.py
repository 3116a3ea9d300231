"""talent-eval: its numbers are those of the library, a bundle needs no torch, bad input costs one line and no work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deploy.evaluate
from deploy import Segmenter
from deploy.evaluate import CONFIG, bundle_predictor, main, open_network
from talent import checkpoint, provenance
from talent.checkpoint import load_checkpoint
from talent.data.registry import open_dataset
from talent.data.sample import Sample
from talent.evaluate import evaluate, torch_predictor
from talent.image import read_image, save_image
from tests.networks import TINY, save_tiny

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys
forbidden = sys.argv[1].split(",")
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Forbidden())
from deploy.cli import evaluate
code = evaluate(sys.argv[2:])
assert not set(forbidden) & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", lora_rank=2)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def without_torch(*arguments, also: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The command where PyTorch, what comes with it, and the packages `also` cannot be imported."""
    forbidden = ",".join(("torch", "timm", "open_clip", "peft", "accelerate", "onnx", "yaml", *also))
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, forbidden, *map(str, arguments)],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def test_a_checkpoint_is_what_talent_checkpoint_writes():
    assert CONFIG == checkpoint.CONFIG


def test_checkpoint(tiny, tmp_path, capsys):
    assert run(tiny, "--data", "shapes", "--split", "val", "--samples", "3", "--batch-size", "4", "--threshold", "0.4",
               "--json", tmp_path / "n.json", "--per-expression", "--worst", tmp_path / "worst.png") == 0
    loaded = load_checkpoint(tiny)
    samples = open_dataset("shapes", split="val", size=TINY.image_size, length=3)
    expected = evaluate(torch_predictor(loaded.model), loaded.tokenizer, samples, image_size=TINY.image_size,
                        batch_size=4, threshold=0.4)
    record = json.loads((tmp_path / "n.json").read_text())
    assert record["metrics"] == pytest.approx(expected.result(), abs=1e-6)
    assert (record["data"], record["split"], record["samples"], record["threshold"]) == ("shapes", "val", 3, 0.4)
    network = record["network"]
    assert (network["kind"], network["name"], network["backend"], network["lora"]) == ("checkpoint", "tiny", "pytorch",
                                                                                       True)
    assert network["sha256"] == {"model.safetensors": provenance.sha256(tiny / "model.safetensors")}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] and record["commit"]
    assert len(record["expressions"]) == len(expected) == record["metrics"]["samples"]
    for one, score in zip(record["expressions"], expected.scores, strict=True):
        assert (one["sample"], one["sentence"], one["expression"]) == (*score.index, score.expression)
        assert one["iou"] == pytest.approx(score.iou) and one["covers_wrong_instance"] is score.covers_wrong_instance
        assert one["nta_activation"] == pytest.approx(score.nta_activation, abs=1e-6)
    printed = capsys.readouterr()
    lines = {name.strip(): value for name, _, value in (line.rpartition(" ") for line in printed.out.splitlines())}
    assert lines["mIoU"] == f"{expected.result()['mIoU']:.4f}" and lines["expressions"] == str(len(expected))
    assert lines["NTA ratio"] == f"{expected.result()['NTA ratio']:.4f}"
    last = printed.out.splitlines()[-1]
    assert f"{len(expected)} sentences about 3 samples of shapes, split val" in last
    assert f"wrote the numbers to {tmp_path / 'n.json'} and the worst" in last and str(tmp_path / "worst.png") in last
    assert read_image(tmp_path / "worst.png").shape[1] == 4 * 256


def test_the_networks_threshold_and_precision(tiny):
    with open_network(tiny) as plain, open_network(tiny, precision="bf16", threshold=0.7) as rough:
        assert (plain.threshold, rough.threshold) == (TINY.threshold, 0.7)
        assert (plain.origin["precision"], rough.origin["precision"]) == ("fp32", "bf16")
        image = np.zeros((1, 3, TINY.image_size, TINY.image_size), np.float32)
        tokens = plain.tokenizer(["the red star"])
        assert np.any(plain.predict(image, tokens) != rough.predict(image, tokens))


def rectangles(picture: np.ndarray) -> list[Sample]:
    """The picture of conftest.py: "r" about its red part; "b", and wrongly "r", about its blue one."""
    red, blue = picture[..., 0] > 0, picture[..., 2] > 0
    return [Sample(picture, red, ("r",), others=(blue,)), Sample(picture, blue, ("b", "r"), others=(red,))]


def test_bundle_by_what_is_known_of_it(toy_bundle, picture):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        for batch_size in (1, 2, 5):
            metrics = evaluate(bundle_predictor(segmenter), segmenter.tokenizer, rectangles(picture), image_size=64,
                               batch_size=batch_size, threshold=segmenter.threshold, progress=False)
            assert [one.iou > 0.8 for one in metrics.scores] == [True, True, False]
            assert [one.covers_wrong_instance for one in metrics.scores] == [False, False, True]
            assert metrics.scores[2].nta_activation > 0.8 and metrics.scores[2].target_activation < 0.1
            assert metrics.result()["NTA rate"] == pytest.approx(1 / 3)


def test_bundle_without_torch(toy_bundle, tmp_path):
    done = without_torch(toy_bundle.directory, "--samples", "2", "--backend", "onnxruntime", "--json",
                         tmp_path / "n.json", "--worst", tmp_path / "worst.png")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "n.json").read_text())
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        expected = evaluate(bundle_predictor(segmenter), segmenter.tokenizer,
                            open_dataset("shapes", split="test", size=64, length=2), image_size=64,
                            threshold=segmenter.threshold, progress=False)
    assert record["metrics"] == pytest.approx(expected.result(), abs=1e-5)
    network = record["network"]
    assert (network["kind"], network["backend"], network["device"]) == ("bundle", "onnxruntime", "cpu")
    assert network["sha256"] == dict(toy_bundle.files) and network["source"]["checkpoint"] == "toy.pt"
    assert network["name"] == "bundle" and network["precision"] == "fp32" and "expressions" not in record
    assert read_image(tmp_path / "worst.png").ndim == 3


def test_pictures_of_ones_own_need_a_runner_only(toy_bundle, picture, tmp_path):
    save_image(tmp_path / "photo.png", picture)
    lines = []
    for channel, name in enumerate("rgb"):
        save_image(tmp_path / f"{name}.png", np.where(picture[..., channel] > 0, 255, 0).astype(np.uint8))
    for name, others in (("r", ["g.png", "b.png"]), ("b", []), ("g", ["r.png"])):
        lines.append({"image": "photo.png", "expression": name, "mask": f"{name}.png", "others": others,
                      "split": "test"})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = without_torch(toy_bundle.directory, "--data", tmp_path / "mine.jsonl", "--backend", "onnxruntime", "--json",
                         tmp_path / "n.json", "--per-expression", also=("skimage", "scipy", "pycocotools"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "n.json").read_text())
    assert record["data"] == "mine.jsonl" and record["metrics"]["mIoU"] > 0.8
    assert (record["metrics"]["samples"], record["metrics"]["NTA samples"]) == (3, 2)
    assert [one["expression"] for one in record["expressions"]] == ["r", "b", "g"]
    assert str(tmp_path) not in json.dumps(record)


def test_checkpoint_without_torch_names_the_extra(tiny):
    done = without_torch(tiny, "--samples", "2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install 'talent-edge[train]'" in done.stderr


def test_500_samples_of_shapes_and_all_of_a_file(toy_bundle, monkeypatch):
    asked = []

    def opened(name, **options):
        asked.append((name, options["split"], options["length"], options["root"]))
        return open_dataset("shapes", split="test", size=64, length=1)

    monkeypatch.setattr(deploy.evaluate, "open_dataset", opened)
    for arguments in ([], ["--data", "shapes-shifted", "--split", "val"], ["--data", "mine.jsonl", "--samples", "7"],
                      ["--data", "mine.jsonl"], ["--data", "refcoco", "--data_root", "coco"],
                      ["--data", "refcoco", "--data-root", "coco"]):
        assert run(toy_bundle.directory, *arguments, "--backend", "onnxruntime") == 0
    assert asked == [("shapes", "test", 500, None), ("shapes-shifted", "val", 500, None),
                     ("mine.jsonl", "test", 7, None), ("mine.jsonl", "test", None, None),
                     *2 * [("refcoco", "test", None, Path("coco"))]]


def test_nothing_but_finite_numbers_reach_json(toy_bundle, picture, tmp_path, monkeypatch):
    silent = Sample(picture, np.zeros(picture.shape[:2], bool), ("r",), others=(picture[..., 0] > 0,))
    monkeypatch.setattr(deploy.evaluate, "open_dataset", lambda name, **options: [silent])
    assert run(toy_bundle.directory, "--backend", "onnxruntime", "--json", tmp_path / "n.json") == 0
    metrics = json.loads((tmp_path / "n.json").read_text())["metrics"]
    assert metrics["NTA ratio"] is None and metrics["NTA rate"] == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--samples", "0"], "--samples: expected at least 1, received 0"),
    (["--batch-size", "-1"], "--batch-size: expected at least 1"),
    (["--threshold", "0"], "--threshold: expected a probability between 0 and 1, received 0.0"),
    (["--threshold", "1"], "--threshold: expected a probability between 0 and 1, received 1.0"),
    (["--threshold", "nan"], "--threshold: expected a probability between 0 and 1, received nan"),
    (["--data", "refcocoo"], "did you mean 'refcoco'"),
    (["--per-expression"], "add --json"),
    (["--json", "no-such-folder/n.json"], "the folder no-such-folder does not exist"),
    (["--json", "."], "it is a directory"),
    (["--worst", "no-such-folder/w.png"], "the folder no-such-folder does not exist"),
    (["--worst", "worst.txt"], "unknown picture type '.txt'"),
    (["--json", "same.png", "--worst", "./same.png"], "two files"),
])
def test_bad_options_are_told_before_the_work(arguments, message, tmp_path, capsys, monkeypatch):
    def opened(*arguments, **options):
        raise AssertionError("the network was opened")

    monkeypatch.setattr(deploy.evaluate, "open_network", opened)
    monkeypatch.chdir(tmp_path)
    assert run("somewhere", *arguments) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("talent-eval: error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_what_is_neither_a_checkpoint_nor_a_bundle(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name, received in (("none", "nothing there"), ("", "a directory without either"), ("file", "a file")):
        assert run(tmp_path / name) == 2
        line, = capsys.readouterr().err.splitlines()
        assert "config.yaml" in line and "bundle.json" in line and line.endswith(f"received {received}")


def test_options_of_the_other_kind(tiny, toy_bundle, capsys):
    assert run(tiny, "--backend", "onnxruntime") == 2
    assert "is a checkpoint, which PyTorch runs" in capsys.readouterr().err
    assert run(toy_bundle.directory, "--precision", "bf16") == 2
    assert "whose precision was chosen when it was exported" in capsys.readouterr().err


def test_unknown_split(toy_bundle, capsys):
    assert run(toy_bundle.directory, "--split", "tset", "--backend", "onnxruntime") == 2
    assert "did you mean 'test'" in capsys.readouterr().err
