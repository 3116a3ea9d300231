"""talent-export --int8 within a budget, end to end on the smallest network: what is written, repeated, taken back and
refused.

PyTorch's export, which takes most of the time, is made once; that it repeats is tested in test_pipeline.py. The network
is random, so that its mIoU means little: where a loss is needed it is put in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from calibration.chart import NO, PARTLY, YES
from calibration.emulation import EmulatedInt8
from calibration.quantize import quantized_nodes
from calibration.records import cache_directory
from calibration.sensitivity import Measured, Sensitivity
from deploy import onnx_files, pipeline
from deploy.bundle import CALIBRATION_LIST, CHART, REPORT, VISION, Bundle
from deploy.export import main
from deploy.runtime.segmenter import Segmenter
from talent.image import save_image
from tests.networks import SMALL, save_network

FEW = ["--int8", "--no-engine", "--data", "shapes", "--parity", "2", "--held-out", "3"]
SAMPLES = ["--calibration", "2"]


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """The graphs of the checkpoint as PyTorch exported them the first time."""
    made, export = {}, onnx_files._export

    def kept(name, model, image, tokens):
        if name not in made:
            plain, names = export(name, model, image, tokens)
            made[name] = plain.SerializeToString(), names
        content, names = made[name]
        return onnx.load_from_string(content), names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "_export", kept)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("checkpoint") / "small", SMALL)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALENT_EDGE_CACHE", str(path.parent / "measurements"))
        assert main([str(checkpoint), *FEW, *SAMPLES, "-o", str(path)]) == 0
    return path


def report(path: Path) -> dict:
    return json.loads((path / REPORT).read_text())["int8"]


def matrix_products(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path / VISION).graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}


def test_a_bundle_says_how_its_layers_were_chosen(bundle) -> None:
    written = Bundle.load(bundle, verify=True)
    assert written.precision == "int8" and written.parity["allowed_drop"] is False
    assert cv2.imread(str(bundle / CHART)).shape[1] > 1000
    assert {CHART, REPORT, CALIBRATION_LIST} <= {path.name for path in bundle.iterdir()}
    int8 = report(bundle)
    assert set(int8["layers"]) == quantized_nodes(onnx.load(bundle / VISION)) != set()
    assert int8["choice"]["layers"] == int8["layers"] and int8["choice"]["blocks_taken_out"] == 0
    ranking = int8["choice"]["ranking"]
    assert {"vision.blocks.0", "vision.blocks.2", "neck", "projector", "decoder.layers.0"} <= {
        one["block"] for one in ranking}
    assert [one["error"] for one in ranking] == sorted((one["error"] for one in ranking), reverse=True)
    assert 0 < int8["choice"]["share"] <= int8["choice"]["possible"] < 1
    assert sum(one["share"] for one in ranking) == pytest.approx(int8["choice"]["possible"])
    assert int8["choice"]["samples"] == 3
    samples = json.loads((bundle / CALIBRATION_LIST).read_text())["samples"]
    assert len(samples) == 2 == written.source["calibration_samples"]


def test_the_convolution_before_the_dynamic_one_is_never_quantized(bundle) -> None:
    spared = {name for name in matrix_products(bundle) if name.startswith("projector.conv2.")}
    int8 = report(bundle)
    ranked = {layer for one in int8["choice"]["ranking"] for layer in one["layers"]}
    assert spared and not spared & (set(int8["layers"]) | ranked)
    assert any(layer.startswith("projector.") for layer in ranked), "its neighbours are"


def test_a_second_export_from_the_list_of_the_first_measures_nothing_and_gives_the_same(
        bundle, checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TALENT_EDGE_CACHE", str(bundle.parent / "measurements"))
    kept, = cache_directory().rglob("*.jsonl")
    before = kept.read_bytes()

    def forbidden(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(EmulatedInt8, "run", forbidden)
    monkeypatch.setattr("calibration.plan.find_ranges", forbidden)
    listed = ["--calibration-list", str(bundle / CALIBRATION_LIST)]
    assert main([str(checkpoint), *FEW, *listed, "-o", str(tmp_path / "again")]) == 0
    for name in (VISION, REPORT, CALIBRATION_LIST, CHART):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name
    assert kept.read_bytes() == before
    printed = capsys.readouterr().out
    assert "INT8: " in printed and "  block alone in INT8 " in printed and "wrote the int8 bundle" in printed


def losing(drop: Callable[[frozenset[str]], float]) -> Callable[..., list[Measured]]:
    """`Sensitivity.measure` where it is known what a set of layers loses."""
    def measure(self, sets, *, samples=None, title):
        wanted = [frozenset(layers) for layers in sets]
        return [Measured(layers, samples or 3, 0.5 - drop(layers), 0.5, None, drop(layers)) for layers in wanted]

    return measure


def test_where_no_layer_is_within_the_budget_fp16_ships(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Sensitivity, "measure", losing(lambda layers: 0.1 * bool(layers)))
    path = tmp_path / "bundle"
    assert main([str(checkpoint), *FEW, *SAMPLES, "-o", str(path)]) == 0
    assert Bundle.load(path, verify=True).precision == "fp16"
    vision = onnx.load(path / VISION)
    assert not quantized_nodes(vision) and not any("Quantize" in node.op_type for node in vision.graph.node)
    assert report(path)["layers"] == [] and len(report(path)["choice"]["tried"]) > 1 and (path / CHART).is_file()
    printed = capsys.readouterr().out
    assert "INT8: nothing\n  no set of layers that was tried stays within the budget of 0.005 mIoU" in printed
    assert "INT8 was asked for, but no set of layers stayed within 0.005 mIoU: this bundle is FP16" in printed
    assert printed.splitlines()[-1] == f"wrote the fp16 bundle {path}"


def test_a_bound_that_nothing_meets_is_held_against_fp16_too(checkpoint, tmp_path, capsys) -> None:
    assert main([str(checkpoint), *FEW, *SAMPLES, "--max-miou-drop", "-1", "-o", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "fp16 loses " in error and "expected at most -1; no bundle was written" in error
    assert not list(tmp_path.iterdir())


def two_blocks() -> Callable[..., list[Measured]]:
    """`Sensitivity.measure` where neck and projector lose nothing and every other block loses too much."""
    return losing(lambda layers: 0.1 * any(not layer.startswith(("neck.", "projector.")) for layer in layers))


def pixels(picture: np.ndarray, colour: str) -> int:
    """How many there are of a colour in a picture [H, W, 3] BGR."""
    return int((picture == [int(colour[start:start + 2], 16) for start in (5, 3, 1)]).all(2).sum())


@pytest.mark.parametrize("closed", [1, 99])
def test_a_bundle_that_loses_more_in_the_end_is_made_again_with_fewer_layers(checkpoint, tmp_path, monkeypatch, capsys,
                                                                             closed) -> None:
    """Two blocks are chosen; the gate is closed once, or for any layer in INT8."""
    measured, layers = pipeline.measure_parity, []

    def parity(segmenter, *arguments, **options):
        found = measured(segmenter, *arguments, **options)
        layers.append(quantized_nodes(onnx.load(segmenter.bundle.directory / VISION)))
        lost = 0.1 if len(layers) <= closed and layers[-1] else 0.0
        return dataclasses.replace(found, miou=found.miou_reference - lost)

    monkeypatch.setattr(pipeline, "measure_parity", parity)
    monkeypatch.setattr(Sensitivity, "measure", two_blocks())
    path = tmp_path / "bundle"
    assert main([str(checkpoint), *FEW, *SAMPLES, "-o", str(path)]) == 0
    assert all(fewer < more for more, fewer in zip(layers, layers[1:], strict=False))
    int8, taken_out = report(path), min(closed, 2)
    assert quantized_nodes(onnx.load(path / VISION)) == layers[-1] == set(int8["layers"])
    choice = int8["choice"]
    assert choice["blocks_taken_out"] == taken_out and len(layers) == 1 + taken_out
    assert choice["measured_layers"] == len(layers[0]) > len(layers[-1]) and choice["layers"] == int8["layers"]
    for one in choice["ranking"]:
        left = set(one["layers"]) & layers[-1]
        assert one["in_int8"] == ("yes" if left else "no") and left in (set(), set(one["layers"]))
    assert [one["in_int8"] for one in choice["ranking"]].count("yes") == 2 - taken_out
    bars = cv2.imread(str(path / CHART))[:, 660:]
    assert {colour for colour in (YES, PARTLY, NO) if pixels(bars, colour) > 60} == (
        {YES, NO} if closed == 1 else {NO})
    output = capsys.readouterr()
    assert output.err.count("it is made again with fewer") == len(layers) - 1
    assert f"{taken_out} blocks were taken out again" in output.out
    assert Bundle.load(path, verify=True).precision == ("int8" if closed == 1 else "fp16")
    assert ("this bundle is FP16" in output.out) == (closed == 99) == (not layers[-1])


@pytest.mark.parametrize("broken", [1, 99])
def test_int8_whose_logits_are_not_finite_is_made_again_with_fewer_layers(checkpoint, tmp_path, monkeypatch, capsys,
                                                                          broken) -> None:
    """Where FP16 is not finite either, no bundle is written."""
    infer, layers = Segmenter.infer, []

    def infinite(self, *arguments):
        logits = infer(self, *arguments)
        found = quantized_nodes(onnx.load(self.bundle.directory / VISION))
        if not layers or found != layers[-1]:
            layers.append(found)
        return np.full_like(logits, np.inf) if len(layers) <= broken else logits

    monkeypatch.setattr(Segmenter, "infer", infinite)
    monkeypatch.setattr(Sensitivity, "measure", two_blocks())
    path = tmp_path / "bundle"
    code = main([str(checkpoint), *FEW, *SAMPLES, "-o", str(path)])
    error = capsys.readouterr().err
    assert error.count("the finished bundle gives logits that are not finite with ") == min(broken, 2)
    assert len(layers) == 1 + min(broken, 2)
    assert all(fewer < more for more, fewer in zip(layers, layers[1:], strict=False))
    if broken == 1:
        written = Bundle.load(path, verify=True)
        assert code == 0 and written.precision == "int8" and report(path)["choice"]["blocks_taken_out"] == 1
        assert set(report(path)["layers"]) == quantized_nodes(onnx.load(path / VISION)) == layers[-1] != set()
    else:
        assert code == 2 and layers[-1] == set() and not list(tmp_path.iterdir())
        assert "not finite" in error_line(error) and "no bundle was written" in error_line(error)


def photos(folder: Path) -> Path:
    """Pictures of several sizes, without sentences."""
    folder.mkdir()
    for number in range(4):
        picture = np.random.default_rng(number).integers(0, 256, (50 + number, 70, 3), np.uint8)
        save_image(folder / f"{number}.png", picture)
    return folder


def test_a_folder_with_sentences_calibrates_and_max_clips_nothing(checkpoint, tmp_path, capsys) -> None:
    folder, sentences = photos(tmp_path / "kitchen"), tmp_path / "asked.txt"
    said = {"the red mug", "the box on the left", "lid"}
    sentences.write_text("\n".join(said), encoding="utf-8")
    more = ["--allow-drop", "--calibration", "9", "--calibration-data", str(folder), "--sentences", str(sentences),
            "--int8-ranges", "max"]
    path = tmp_path / "bundle"
    assert main([str(checkpoint), *FEW, *more, "-o", str(path)]) == 0
    listed = json.loads((path / CALIBRATION_LIST).read_text())
    assert listed["source"] == {"data": "kitchen", "split": None, "size": SMALL.image_size}
    assert {entry["name"] for entry in listed["samples"]} == {f"{number}.png" for number in range(4)}
    assert {entry["expression"] for entry in listed["samples"]} == said
    assert len(listed["samples"]) == Bundle.load(path, verify=True).source["calibration_samples"] == 9
    precisions = json.loads((path / REPORT).read_text())["precisions"]
    assert {name: one["samples"] for name, one in precisions.items()} == {"text": 8, "vision": 8}, "of FP16 beside INT8"
    int8 = report(path)
    assert int8["method"] == "max" and int8["choice"] is None and not (path / CHART).exists()
    assert {(one["percentile"], one["range"] == one["largest"]) for one in int8["ranges"]} == {(100.0, True)}
    assert set(int8["layers"]) == quantized_nodes(onnx.load(path / VISION)) != set()
    assert "pictures of shapes lie " in capsys.readouterr().err, "noise is no kitchen"


def test_all_samples_that_were_asked_for_set_ranges_of_fp16(checkpoint, tmp_path) -> None:
    path = tmp_path / "bundle"
    assert main([str(checkpoint), "--fp16", "--no-engine", "--data", "shapes", "--parity", "1", "--calibration", "16",
                 "--allow-drop", "-o", str(path)]) == 0
    precisions = json.loads((path / REPORT).read_text())["precisions"]
    assert {name: one["samples"] for name, one in precisions.items()} == {"text": 16, "vision": 16}
    assert Bundle.load(path).source["calibration_samples"] == 16


def error_line(error: str) -> str:
    """The only error in what was printed."""
    line, = (line for line in error.replace("\r", "\n").splitlines() if line.startswith("talent-export: error:"))
    return line


@pytest.mark.parametrize(("flags", "said"), [
    (["--int8", "--held-out", "0"], "--held-out: expected at least 1, received 0"),
    (["--fp16", "--held-out", "8"], "--held-out is for --int8, received --fp16: leave it out"),
    (["--int8-ranges", "max"], "--int8-ranges is for --int8, received --fp16: leave it out"),
    (["--int8", "--calibration", "1"], "--calibration: expected at least 2, received 1"),
    (["--int8", "--calibration", "8", "--calibration-list", "set.json"],
     "expected --calibration or --calibration-list, received both; set.json says how many"),
    (["--int8", "--sentences", "mine.txt"], "received mine.txt beside shapes, which has its own sentences"),
    (["--int8", "--calibration-data", "shape"], "expected a folder of pictures, a .jsonl file or a data set, received "
                                                "'shape', which is none of them; did you mean 'shapes'?"),
    (["--int8", "--calibration-data", "none.jsonl"], "none.jsonl"),
    (["--int8", "--calibration-data", "kitchen"], "no such file: kitchen/sentences.txt; expected a text file"),
    (["--int8", "--calibration-list", "none.json"], "no such calibration set: none.json"),
    (["--int8", "--calibration-list", "damaged.json"], "damaged.json: expected a calibration set as JSON"),
    (["--int8", "--calibration-list", "changed.json"], "changed.json: expected samples with the digest "),
])
def test_bad_input_is_one_line_and_nothing_is_written(bundle, checkpoint, tmp_path, monkeypatch, capsys, flags,
                                                      said) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "kitchen")
    content = (bundle / CALIBRATION_LIST).read_text()
    (tmp_path / "damaged.json").write_text(content[:-20])
    changed = json.loads(content)
    changed["samples"][0]["expression"] = "something else"
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    before = sorted(tmp_path.rglob("*"))
    assert main([str(checkpoint), "--no-engine", "--data", "shapes", *flags, "-o", "bundle"]) == 2
    output = capsys.readouterr()
    assert said in error_line(output.err) and output.out == ""
    assert sorted(tmp_path.rglob("*")) == before
