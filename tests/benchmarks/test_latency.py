"""benchmarks/latency.py on a small random network: which rows there are, what is reported, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks import latency
from benchmarks.latency import EAGER, FRAME, MERGED, ONNX_RUNTIME, STAGES, WHOLE, Row, main, measure
from deploy import export
from deploy.bundle import Bundle
from talent.data.shapes import ShapesDataset
from tests.networks import save_tiny

FEW = ["--samples", "2", "--rounds", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "lora", lora_rank=2)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "half"
    assert export.main([str(checkpoint), "--fp16", "--no-engine", "--allow-drop", "--data", "shapes",
                        "--calibration", "2", "--parity", "1", "-o", str(path)]) == 0
    return path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """The same rows on every machine."""
    monkeypatch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def run(bundle, checkpoint, tmp_path_factory):
    """(the JSON, the PNG) of one run of the command."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert main([str(bundle), "--checkpoint", str(checkpoint), *FEW, "--json", str(directory / "latency.json"),
                     "--png", str(directory / "latency.png")]) == 0
    return json.loads((directory / "latency.json").read_text()), (directory / "latency.png").read_bytes()


def test_every_row_has_every_stage_with_ordered_percentiles(run):
    records = run[0]["latency"]
    rows = [(EAGER, "fp32"), (MERGED, "fp32"), (ONNX_RUNTIME, "fp16")]
    assert [(r["backend"], r["precision"], r["stage"]) for r in records] == [
        (*row, stage) for row, stage in product(rows, (*STAGES, FRAME, WHOLE))]
    for record in records:
        assert 0 < record["p50_ms"] <= record["p90_ms"] <= record["p99_ms"]


def test_the_whole_is_no_shorter_than_a_stage(run):
    rows = latency.by_row(run[0])
    shares = latency.of_eager(rows)
    assert shares.keys() == rows.keys() and [shares[row] for row in rows if row.backend == EAGER] == [1.0]
    for row, stages in rows.items():
        eager, = (other[FRAME]["p50_ms"] for one, other in rows.items() if one.backend == EAGER)
        assert stages[FRAME]["p50_ms"] < stages[WHOLE]["p50_ms"] and 0 < shares[row] == stages[FRAME]["p50_ms"] / eager
        assert all(stages[WHOLE]["p99_ms"] >= stages[stage]["p50_ms"] for stage in STAGES)


def test_fp16_on_a_cpu_is_marked_as_emulated(run):
    emulated = {(r["backend"], r["precision"]) for r in run[0]["latency"] if r["emulated"]}
    assert emulated == {(ONNX_RUNTIME, "fp16")}
    text = latency.table(run[0])
    assert "ONNX Runtime FP16 (emulated)" in text and "casting to FP32" in text and "FP32 (emulated)" not in text


def test_a_tensorrt_that_cannot_run_says_why(run):
    not_run = run[0]["not_run"]
    assert [entry["backend"] for entry in not_run] == ["TensorRT", "TensorRT-RTX"]
    assert {entry["precision"] for entry in not_run} == {"fp16"}
    assert all("needs an NVIDIA GPU" in entry["reason"] for entry in not_run)
    assert "not run: TensorRT-RTX FP16: tensorrt_rtx needs an NVIDIA GPU" in latency.table(run[0])


def test_the_json_says_how_it_was_measured(run, bundle):
    report = run[0]
    assert (report["samples"], report["rounds"], report["threads"], report["data"]) == (2, 2, 1, "shapes")
    assert report["device"]["cpu"] and report["device"]["cores"] >= 1
    assert report["commit"] and report["versions"]["python"]
    assert [entry["name"] for entry in report["bundles"]] == [str(bundle)]
    assert report["bundles"][0]["precision"] == "fp16" and report["bundles"][0]["source"]["sha256"]


def test_the_chart_is_a_picture(run):
    assert run[1].startswith(b"\x89PNG") and len(run[1]) > 10_000


def test_without_a_checkpoint_pytorch_is_named_all_the_same(bundle):
    report = latency.benchmark([Bundle.load(bundle)], samples=1, rounds=1, threads=1)
    assert {record["backend"] for record in report["latency"]} == {ONNX_RUNTIME}
    text = latency.table(report)
    for backend in (EAGER, MERGED):
        assert f"not run: {backend} FP32: pass --checkpoint" in text


def test_a_checkpoint_without_lora_has_nothing_to_merge(bundle, tmp_path):
    plain = save_tiny(tmp_path / "plain", lora_rank=None)
    report = latency.benchmark([bundle], checkpoint=plain, samples=1, rounds=1, threads=1)
    assert {record["backend"] for record in report["latency"]} == {EAGER, ONNX_RUNTIME}
    assert "not run: PyTorch merged FP32: this checkpoint has no LoRA factors to merge" in latency.table(report)


class Recorder:
    """Stages that do nothing but write down who was asked what."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log

    def preprocess(self, image):
        return image, None

    def encode(self, sentence):
        self.log.append((self.name, sentence))

    def infer(self, tensor, prompt):
        return np.zeros((1, 1, 2, 2))

    def postprocess(self, logits, letterbox):
        return None


def passes(log: Sequence[tuple[str, str]], samples: int) -> list[str]:
    """Who was asked, pass by pass; each pass is one row's alone."""
    groups = [log[start:start + samples] for start in range(0, len(log), samples)]
    assert all(len({name for name, _ in group}) == 1 for group in groups)
    return [group[0][0] for group in groups]


def test_rounds_are_interleaved_and_rotated_after_a_warm_up():
    log: list[tuple[str, str]] = []
    rows = {Row(name, "fp32", "cpu", ""): Recorder(name, log) for name in "abc"}
    samples = ShapesDataset(split="test", size=64, length=2)
    records = measure(rows, [samples[0], samples[1]], rounds=3)
    assert passes(log, 2) == [*"abc", *"abc", *"bca", *"cab"]
    assert {sentence for _, sentence in log} == {samples[0].expressions[0], samples[1].expressions[0]}
    assert len(records) == 3 * (len(STAGES) + 2)


@pytest.mark.parametrize(("arguments", "message"), [
    (["none"], "no such bundle"), (["{bundle}", "--samples", "0"], "--samples: expected at least 1"),
    (["{bundle}", "--rounds", "0"], "--rounds: expected at least 1"),
    (["{bundle}", "--threads", "0"], "--threads: expected at least 1"),
    (["{bundle}", "--data", "shape"], "did you mean 'shapes'?"),
    (["{bundle}", "--checkpoint", "none"], "no checkpoint at none"),
    (["{bundle}", "--json", "none/latency.json"], "mkdir -p none"),
    (["{bundle}", "--png", "latency.xyz"], "unknown picture type")])
def test_bad_input(bundle, arguments, message, capsys):
    assert main([argument.format(bundle=bundle) for argument in arguments]) == 2
    printed = capsys.readouterr()
    line, = [line for line in printed.err.splitlines() if line]
    assert line.startswith("latency.py: error: ") and message in line
    assert printed.out == ""


def test_a_bundle_that_runs_nowhere(bundle, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bundle.iterdir():
        (broken / file.name).write_bytes(file.read_bytes() if file.suffix != ".onnx" else bytes(file.stat().st_size))
    assert main([str(broken)]) == 2
    assert "no bundle runs here" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python benchmarks/latency.py bundle-fp16/ bundle-int8/ --checkpoint" in capsys.readouterr().out
