"""What talent-export records, repeats, takes as wishes and refuses, on the smallest network."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from calibration.quantize import quantized_nodes
from deploy import Segmenter, export, pipeline
from deploy.build import BuildOptions
from deploy.bundle import REPORT, TEXT, TOKENIZER, VISION, Bundle
from deploy.export import main
from deploy.onnx_files import PrecisionOptions, requested, save_graph
from deploy.onnx_run import run
from talent.checkpoint import load_checkpoint, save_checkpoint
from talent.errors import UserError
from talent.native import BUILD, LIBRARIES
from tests.networks import SMALL, loud, save_network

FEW = ["--no-engine", "--data", "shapes", "--calibration", "2", "--parity", "2"]
SIZE = 238  # not the checkpoint's 70; odd in patches


DENSE = dataclasses.replace(SMALL, vision_adapter="dense", text_adapter="dense", text_adapter_blocks=(0,),
                            text_adapter_width=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("checkpoint") / "small", DENSE)


@pytest.fixture(scope="module")
def resized(checkpoint, tmp_path_factory) -> tuple[Path, str]:
    """An FP16 bundle for another image size that was let through a gate which nothing passes, and what was printed."""
    path = tmp_path_factory.mktemp("bundles") / "resized"
    done = subprocess.run(command(checkpoint, path, "--image-size", str(SIZE), "--max-miou-drop", "-1", "--allow-drop"),
                          capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    return path, done.stdout


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "deploy.export", str(checkpoint), *FEW, *more, "-o", str(output)]


def test_the_image_size_is_chosen_at_export(resized):
    bundle = Bundle.load(resized[0], verify=True)
    assert bundle.image_size == SIZE
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        photo = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
        tensor, _ = segmenter.preprocess(photo)
        side = 4 * SIZE // 14
        assert segmenter.infer(tensor, segmenter.encode("the red circle")).shape == (1, 1, side, side)
        assert segmenter("the red circle", photo).mask.shape == (120, 200)


def test_sixteen_expressions_about_one_picture_or_sixteen(resized):
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((16, 3, SIZE, SIZE), dtype=np.float32)
    sentences = [f"the {colour} {shape}" for colour in ("red", "blue", "big", "left") for shape in
                 ("circle", "star", "square", "thing")]
    with Segmenter(resized[0], backend="onnxruntime") as segmenter:
        prompts = segmenter.backend.text(segmenter.tokenizer(sentences))
        about_one = segmenter.backend.vision(pictures[:1], prompts)
        about_each = segmenter.backend.vision(pictures, prompts)
        for number in (0, 7, 15):
            prompt = segmenter.encode(sentences[number])
            for received, picture in ((about_one, 0), (about_each, number)):
                alone = segmenter.infer(pictures[picture:picture + 1], prompt)
                # FP16 rounds to 11 bits, and products of another size add up in another order
                assert np.abs(received[number] - alone[0]).max() < 2e-3 * np.abs(alone).max()
    assert about_one.shape == about_each.shape == (16, 1, 4 * SIZE // 14, 4 * SIZE // 14)
    assert np.abs(about_one[0] - about_one[1]).max() > 0.01, "the words do not matter"


def test_a_size_that_does_not_fit_is_refused(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), *FEW, "--image-size", "230", "-o", str(tmp_path / "bundle")]) == 2
    assert "in steps of 14" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_two_exports_give_the_same_bytes(checkpoint, tmp_path, precision):
    for number in ("1", "2"):  # hashes, and so the order of sets, differ
        subprocess.run(command(checkpoint, tmp_path / number, f"--{precision}", "--allow-drop"), check=True,
                       capture_output=True, env={**os.environ, "PYTHONHASHSEED": number})
    for name in (TEXT, VISION, TOKENIZER, REPORT):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_what_was_measured_is_printed_and_recorded(resized):
    directory, printed = resized
    assert "operations" in printed and "GFLOP" in printed and "folded: BatchNorm" in printed
    assert "vision.onnx: " in printed and "LayerNormalization" in printed and "FP32 because of" in printed
    report = json.loads((directory / REPORT).read_text())
    assert report["folds"]["BatchNorm"] == 11 + 2 * 5 and report["folds"]["LoRA"] == 0
    before, after = (report["cost"][when]["vision"] for when in ("before", "after"))
    assert after["operations"] < before["operations"] and after["flop"] < before["flop"]
    vision = onnx.load(directory / VISION)
    nodes = {node["name"]: node for node in report["precisions"]["vision"]["nodes"]}
    kept = {node.name for node in vision.graph.node if node.op_type in ("LayerNormalization", "Softmax")}
    assert kept and all(nodes[name]["precision"] == "fp32" for name in kept)
    assert any(name.startswith("vision.blocks.1.inner/MatMul") for name in nodes), "nodes are named after modules"
    parity = Bundle.load(directory).parity
    assert parity["allowed_drop"] is True and parity["bound"] == -1 and parity["samples"] == 2
    assert {"nta_rate", "nta_rate_reference", "mask_agreement_min", "oiou"} <= parity.keys()
    assert "--allow-drop let it through" in printed


def test_the_plugin_that_is_asked_for_is_missed_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(LIBRARIES, str(tmp_path))
    assert main([str(tmp_path), "--plugin", "on", "-o", str(tmp_path / "bundle")]) == 2
    assert BUILD in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "plugin"), [([], "auto"), (["--plugin", "on"], "on"),
                                                   (["--plugin", "off"], "off")])
def test_the_plugin_is_passed_on_to_the_engines(tmp_path, monkeypatch, capsys, arguments, plugin):
    received = []

    def build_engines(bundle, options):
        received.append(options)
        raise UserError("no further")

    monkeypatch.setattr(export, "choose_runtime", lambda: None)
    monkeypatch.setattr(export, "check_library", lambda: None)
    monkeypatch.setattr(pipeline, "_export", lambda *_: SimpleNamespace(bundle=None))
    monkeypatch.setattr(pipeline, "build_engines", build_engines)
    assert main([str(tmp_path), *arguments, "--batch", "2", "-o", str(tmp_path / "bundle")]) == 2
    assert "no further" in capsys.readouterr().err and received == [BuildOptions(batch=2, plugin=plugin)]


def test_the_gate_names_the_layers_that_lost_most(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), *FEW, "--max-miou-drop", "-1", "-o", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "expected at most -1" in error and "own error" in error and "/MatMul" in error
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Path:
    """A network whose residual stream passes 65504, which changes nothing in FP32."""
    path = save_network(tmp_path_factory.mktemp("checkpoint") / "loud", SMALL)
    checkpoint = load_checkpoint(path)
    loud(checkpoint.model)
    save_checkpoint(checkpoint, path)
    return path


def test_a_residual_stream_beyond_fp16_comes_out_right(overflowing, tmp_path, capsys):
    assert main([str(overflowing), *FEW, "-o", str(tmp_path / "bundle")]) == 0
    assert "by range" in capsys.readouterr().out
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.parity["logits_max_relative"] < 2e-3 and bundle.parity["mask_agreement"] > 0.99


def test_an_overflow_that_was_asked_for_is_refused(overflowing, tmp_path, capsys):
    assert main([str(overflowing), *FEW, "--fp16-nodes", "*", "-o", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and "vision.blocks.0" in error
    assert not list(tmp_path.iterdir())


def test_wishes_go_to_the_graphs_that_have_the_nodes():
    graphs = {"text": {"text.blocks.0/MatMul": "MatMul", "proj/Add": "Add"},
              "vision": {"vision.blocks.0/MatMul": "MatMul", "proj/Add": "Add"}}
    options = PrecisionOptions("fp16", fp32_ops=(), fp32_nodes=("text.*", "proj/Add"),
                               fp16_nodes=("*/MatMul", "nowhere"))
    assert requested(options, graphs) == {
        "text": {"fp32_ops": (), "fp32_nodes": ["text.*", "proj/Add"], "fp16_nodes": ["*/MatMul"]},
        "vision": {"fp32_ops": (), "fp32_nodes": ["proj/Add"], "fp16_nodes": ["*/MatMul", "nowhere"]}}


def test_a_wish_for_no_node_is_refused_with_the_nearest(checkpoint, tmp_path, capsys):
    wish = ["--fp32-nodes", "vision.blocks.1.iner/MatMul"]
    assert main([str(checkpoint), *FEW, *wish, "-o", str(tmp_path / "bundle")]) == 2
    assert "did you mean 'vision.blocks.1.inner/MatMul'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wish_for_no_operator_is_refused_with_the_nearest():
    graphs = {"text": {"a": "Add"}, "vision": {"b": "Relu"}}
    with pytest.raises(UserError, match="did you mean 'Relu'"):
        requested(PrecisionOptions("fp16", fp32_ops=("ReLU",)), graphs)
    assert requested(PrecisionOptions("fp16", fp32_ops=("Relu",)), graphs)["vision"]["fp32_ops"] == ("Relu",)


def test_wishes_beside_fp32_are_refused(checkpoint, tmp_path, capsys):
    for wish in (["--fp16-nodes", "*"], ["--fp32-ops"]):
        assert main([str(checkpoint), *FEW, "--fp32", *wish, "-o", str(tmp_path / "bundle")]) == 2
        assert "leave them out" in capsys.readouterr().err


def test_a_layer_that_was_asked_for_is_not_quantized(checkpoint, tmp_path, capsys):
    wish = ["--int8", "--allow-drop", "--fp32-nodes", "vision.blocks.0.*", "--fp16-nodes", "vision.blocks.2.mlp.fc1/*"]
    assert main([str(checkpoint), *FEW, *wish, "-o", str(tmp_path / "bundle")]) == 0
    assert "nodes in INT8" in capsys.readouterr().out
    nodes = json.loads((tmp_path / "bundle" / REPORT).read_text())["precisions"]["vision"]["nodes"]
    found = {(node["name"].rpartition("/")[0], node["precision"]) for node in nodes if node["op_type"] == "MatMul"}
    assert {("vision.blocks.0.mlp.fc1", "fp32"), ("vision.blocks.2.mlp.fc1", "fp16"),
            ("vision.blocks.2.mlp.fc2", "int8")} <= found
    quantized = quantized_nodes(onnx.load(tmp_path / "bundle" / VISION))
    assert quantized == {node["name"] for node in nodes if node["precision"] == "int8"}
    assert not any(name.startswith("vision.blocks.0.") for name in quantized)


def test_large_weights_lie_beside_the_file(resized, tmp_path, monkeypatch):
    model = onnx.load(resized[0] / TEXT)
    feeds = {"tokens": np.array([[4094, 5, 4095, *[0] * (SMALL.context_length - 3)]])}
    for limit, files in ((1_000_000_000, [TEXT]), (1_000, [TEXT, f"{TEXT}.data"])):
        directory = tmp_path / str(limit)
        directory.mkdir()
        monkeypatch.setattr("deploy.onnx_files.EXTERNAL_DATA_BYTES", limit)
        save_graph(onnx.load(resized[0] / TEXT), directory / TEXT)
        assert sorted(path.name for path in directory.iterdir()) == files
        for name, value in run(onnx.load(directory / TEXT), feeds=feeds).items():
            assert np.array_equal(value, run(model, feeds=feeds)[name])


def test_a_graph_that_is_written_again_leaves_nothing_of_the_old_one(resized, tmp_path, monkeypatch):
    """As the vision graph is, where the gate takes layers out of INT8."""
    path, weights = tmp_path / TEXT, tmp_path / f"{TEXT}.data"
    monkeypatch.setattr("deploy.onnx_files.EXTERNAL_DATA_BYTES", 1_000)
    save_graph(onnx.load(resized[0] / TEXT), path)
    files = {file.name: file.read_bytes() for file in (path, weights)}
    save_graph(onnx.load(resized[0] / TEXT), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    monkeypatch.setattr("deploy.onnx_files.EXTERNAL_DATA_BYTES", 1_000_000_000)
    save_graph(onnx.load(resized[0] / TEXT), path)
    assert list(tmp_path.iterdir()) == [path]
