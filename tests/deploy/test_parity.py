"""The parity gate: what is measured between a network and its bundle, on how many sentences, and what may ship."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy import Segmenter
from deploy.bundle import Bundle
from deploy.evaluate import bundle_predictor, open_network
from deploy.export import main
from deploy.parity import NotFiniteError, Parity, check_drop, measure_parity
from talent.checkpoint import load_checkpoint
from talent.data.sample import Sample
from talent.data.shapes import ShapesDataset
from talent.errors import UserError
from talent.evaluate import evaluate, torch_predictor
from tests.recorded import Recorded

WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "tiny"


def changed(bundle: Bundle, directory: Path, tensor: str, change) -> Bundle:
    """A copy of `bundle` whose vision graph has `change(value)` in place of a constant."""
    shutil.copytree(bundle.directory, directory)
    model = onnx.load(directory / "vision.onnx")
    constant, = (entry for entry in model.graph.initializer if entry.name == tensor)
    constant.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(constant)), tensor))
    onnx.save(model, directory / "vision.onnx")
    return Bundle.write_manifest(directory, preset=bundle.preset, precision=bundle.precision, source=bundle.source,
                                 image_size=bundle.image_size, context_length=bundle.context_length,
                                 threshold=bundle.threshold)


# The network with weights that ship, on shapes

@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(WEIGHTS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    directory = tmp_path_factory.mktemp("parity") / "bundle"
    assert main([str(WEIGHTS), "--fp32", "--no-engine", "--allow-drop", "--calibration", "2", "--parity", "1",
                 "--data", "shapes", "-o", str(directory)]) == 0
    return Bundle.load(directory)


@pytest.fixture(scope="module")
def shapes(checkpoint) -> ShapesDataset:
    return ShapesDataset(split="val", size=checkpoint.config.image_size, length=12)


def test_a_bundle_that_is_the_network_loses_nothing(bundle, shapes):
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        parity = measure_parity(segmenter, bundle_predictor(segmenter), shapes)
    assert parity.samples == sum(len(shapes[i].expressions) for i in range(len(shapes))) and parity.pictures == 12
    assert (parity.logits_max_abs, parity.logits_max_relative, parity.logits_rms_relative) == (0, 0, 0)
    assert (parity.mask_agreement, parity.mask_agreement_min, parity.miou_drop) == (1, 1, 0)
    assert parity.oiou == parity.oiou_reference > 0 and parity.backend == "onnxruntime"
    assert parity.nta_ratio == parity.nta_ratio_reference > 0 and parity.nta_rate == parity.nta_rate_reference


def test_numbers_of_both_sides_are_those_of_talent_eval(bundle, checkpoint, shapes, tmp_path):
    damaged = changed(bundle, tmp_path / "damaged", "model.vision.patch_embed.weight", lambda weight: 0.5 * weight)
    with Segmenter(damaged, backend="onnxruntime") as segmenter:
        parity = measure_parity(segmenter, torch_predictor(checkpoint.model), shapes)
    results = []
    for path in (WEIGHTS, damaged.directory):
        with open_network(path) as network:
            results.append(evaluate(network.predict, network.tokenizer, shapes, image_size=network.image_size,
                                    batch_size=1, threshold=network.threshold).result())
    received = [(parity.miou_reference, parity.oiou_reference, parity.nta_ratio_reference, parity.nta_rate_reference),
                (parity.miou, parity.oiou, parity.nta_ratio, parity.nta_rate)]
    assert received == [tuple(result[name] for name in ("mIoU", "oIoU", "NTA ratio", "NTA rate"))
                        for result in results]
    assert parity.miou_drop == results[0]["mIoU"] - results[1]["mIoU"] > 0.02
    assert parity.mask_agreement_min < parity.mask_agreement < 0.98
    assert parity.logits_max_abs > parity.logits_rms_relative > 0.1


def test_the_bundle_of_a_network_agrees_with_it(bundle, checkpoint, shapes):
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        parity = measure_parity(segmenter, torch_predictor(checkpoint.model), [shapes[0], shapes[1]])
    assert 0 < parity.logits_max_relative < 1e-4 and 0 < parity.logits_rms_relative < 1e-5
    assert parity.mask_agreement_min > 0.999 and abs(parity.miou_drop) < 1e-3


# Toy networks: "r", "g", "b" segment what is red, green, blue

def sample(picture: np.ndarray, *expressions: str, name: str = "") -> Sample:
    """The object is what is red; the other one what is green."""
    return Sample(image=picture, mask=picture[..., 0] > 0, expressions=expressions, others=(picture[..., 1] > 0,),
                  name=name)


def test_the_drop_of_a_bundle_that_takes_everything_else(toy_bundle, picture, tmp_path):
    inverse = changed(toy_bundle, tmp_path / "inverse", "scale", np.negative)
    with Segmenter(toy_bundle) as right, Segmenter(inverse) as wrong:
        parity = measure_parity(wrong, bundle_predictor(right), [sample(picture, "r"), sample(picture, "r")])
    assert parity.miou_reference > 0.85 and parity.miou < 0.05 and parity.mask_agreement < 0.05
    assert parity.miou_drop == parity.miou_reference - parity.miou > 0.85
    assert parity.logits_max_relative == pytest.approx(2) and parity.logits_rms_relative == pytest.approx(2)
    assert parity.logits_max_abs == pytest.approx(20, rel=0.05)
    assert (parity.nta_rate_reference, parity.nta_rate) == (0, 1)
    assert parity.nta_ratio_reference < 0.05 and parity.nta_ratio > 10


def test_the_sentence_that_agrees_least_is_named(toy_bundle, picture):
    with Segmenter(toy_bundle) as segmenter:
        same = bundle_predictor(segmenter)
        green = segmenter.tokenizer(["g"])
        parity = measure_parity(segmenter, lambda image, tokens: same(image, tokens) * (-1 if (tokens == green).all()
                                                                                       else 1),
                                [sample(picture, "r", "b"), sample(picture, "b", "r", "g")])
    assert parity.worst == (1, 2) and parity.mask_agreement_min < 0.05 < 0.8 < parity.mask_agreement


@pytest.mark.parametrize(("expressions", "expected"), [
    (None, {0: "rgb", 1: "g", 2: "br", 3: "rg"}), (1, {0: "r"}), (2, {0: "r", 2: "b"}), (3, {0: "r", 1: "g", 2: "b"}),
    (4, {0: "r", 1: "g", 2: "b", 3: "r"}), (6, {0: "r", 1: "g", 2: "br", 3: "rg"}),
    (8, {0: "rg", 1: "g", 2: "br", 3: "rg"}), (100, {0: "rgb", 1: "g", 2: "br", 3: "rg"})])
def test_sentences_are_taken_evenly_and_each_picture_read_once(toy_bundle, picture, expressions, expected):
    said = ["rgb", "g", "br", "rg"]
    samples = Recorded([sample(picture, *words) for words in said])
    with Segmenter(toy_bundle) as segmenter:
        words = {segmenter.tokenizer([word]).tobytes(): word for word in "rgb"}
        asked: dict[int, str] = {}
        same = bundle_predictor(segmenter)

        def reference(image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            asked[samples.read[-1]] = asked.get(samples.read[-1], "") + words[tokens.tobytes()]
            return same(image, tokens)

        parity = measure_parity(segmenter, reference, samples, expressions=expressions)
    assert asked == expected and samples.read == list(expected)
    assert (parity.samples, parity.pictures) == (sum(map(len, expected.values())), len(expected))


@pytest.mark.parametrize(("samples", "expressions", "message"), [
    ([], None, "no expressions were evaluated"), (["r"], 0, "expected at least one expression to compare, received 0")])
def test_nothing_to_compare_is_refused(toy_bundle, picture, samples, expressions, message):
    with Segmenter(toy_bundle) as segmenter, pytest.raises(UserError, match=message):
        measure_parity(segmenter, bundle_predictor(segmenter), [sample(picture, *words) for words in samples],
                       expressions=expressions)


def test_logits_that_are_not_finite_say_what_was_asked(toy_bundle, picture, tmp_path):
    broken = changed(toy_bundle, tmp_path / "broken", "scale", lambda scale: np.full_like(scale, np.inf))
    samples = [sample(picture, "g", name="kitchen.jpg, line 7")]
    with Segmenter(toy_bundle) as right, Segmenter(broken) as wrong:
        with pytest.raises(NotFiniteError, match=r"'g' \(kitchen.jpg, line 7\): the fp32 network gave") as caught:
            measure_parity(wrong, bundle_predictor(right), samples)
        tensor, _ = wrong.preprocess(picture)
        np.testing.assert_array_equal(caught.value.image, tensor)
        np.testing.assert_array_equal(caught.value.tokens, wrong.tokenizer(["g"]))
        with pytest.raises(UserError, match="the PyTorch network itself gave") as caught:
            measure_parity(right, bundle_predictor(wrong), samples)
        assert not isinstance(caught.value, NotFiniteError)


def test_an_infinite_ratio_is_strict_json(toy_bundle, picture):
    target = dataclasses.replace(sample(picture, "g"), mask=np.zeros(picture.shape[:2], bool))
    with Segmenter(toy_bundle) as segmenter:
        parity = measure_parity(segmenter, bundle_predictor(segmenter), [target])
    assert parity.nta_ratio == float("inf")
    record = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert record["nta_ratio"] is None and record["nta_rate"] == 1 and record["worst"] == [0, 0]
    assert record.keys() == {field.name for field in dataclasses.fields(Parity)} | {"miou_drop"}


def test_without_other_instances_there_is_no_nta(toy_bundle, picture):
    with Segmenter(toy_bundle) as segmenter:
        parity = measure_parity(segmenter, bundle_predictor(segmenter),
                                [dataclasses.replace(sample(picture, "r"), others=())])
    assert {parity.nta_ratio, parity.nta_ratio_reference, parity.nta_rate, parity.nta_rate_reference} == {None}
    assert parity.to_dict()["nta_ratio"] is None


# The gate

@pytest.fixture
def lossy(toy_bundle, picture) -> Parity:
    """0.8 -> 0.75 mIoU on two expressions."""
    with Segmenter(toy_bundle) as segmenter:
        parity = measure_parity(segmenter, bundle_predictor(segmenter), [sample(picture, "r", "b")])
    return dataclasses.replace(parity, miou_reference=0.8, miou=0.75)


def test_what_stays_below_the_bound_ships(lossy):
    for allowed in (False, True):
        record = check_drop(lossy, precision="int8", bound=0.06, allowed=allowed, data="shapes")
        assert record == {**lossy.to_dict(), "data": "shapes", "bound": 0.06, "allowed_drop": False}


def test_what_passes_the_bound_does_not_and_says_why(lossy):
    with pytest.raises(UserError) as caught:
        check_drop(lossy, precision="int8", bound=0.01, allowed=False, data="shapes", layers=lambda: "layer  own error")
    message, table = str(caught.value).split("\n")
    assert table == "layer  own error"
    for wanted in ("int8 loses 0.0500 mIoU (0.8000 -> 0.7500 on 2 expressions of shapes)", "expected at most 0.01;",
                   "no bundle was written; add --allow-drop to ship it all the same"):
        assert wanted in message
    with pytest.raises(UserError, match="export with --fp32, or export with --fp16 and --allow-drop to ship it all"):
        check_drop(lossy, precision="fp16", bound=0.005, allowed=False, data="shapes", fallback=True)
    with pytest.raises(UserError, match="export with --fp32, or add --allow-drop"):
        check_drop(lossy, precision="fp16", bound=0.002, allowed=False, data="shapes")
    with pytest.raises(UserError, match="no bundle was written; add --allow-drop"):
        check_drop(lossy, precision="fp32", bound=0.0005, allowed=False, data="shapes")


def test_what_passes_the_bound_ships_when_allowed_and_is_recorded(lossy):
    record = check_drop(lossy, precision="int8", bound=0.01, allowed=True, data="shapes", layers=pytest.fail)
    assert record["allowed_drop"] is True and record["bound"] == 0.01
    assert record["miou_drop"] == pytest.approx(0.05)


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_bound_that_is_no_number_is_refused(lossy, bound):
    with pytest.raises(UserError, match="--max-miou-drop: expected a number"):
        check_drop(lossy, precision="int8", bound=bound, allowed=True, data="shapes")
