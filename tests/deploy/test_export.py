"""talent-export end to end on a small network with unmerged LoRA: what is written, how near it is, what is refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest

from calibration.quantize import quantized_nodes
from deploy import Segmenter
from deploy.bundle import Bundle
from deploy.export import main
from deploy.graphs import EXPRESSIONS, PICTURES
from talent.checkpoint import load_checkpoint
from talent.data.shapes import ShapesDataset
from talent.evaluate import torch_predictor
from tests.networks import TINY, save_tiny

FEW = ["--calibration", "4", "--parity", "2", "--data", "shapes"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with LoRA factors that are far from zero, on the disk."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", lora_rank=4)


@pytest.fixture(scope="module")
def bundles(checkpoint, tmp_path_factory):
    """One bundle a precision, without engines; the network is random, so that what it loses means nothing."""
    directory = tmp_path_factory.mktemp("bundles")
    for precision in ("fp32", "fp16", "int8"):
        arguments = [str(checkpoint), f"--{precision}", "--no-engine", "--allow-drop", *FEW]
        assert main([*arguments, "-o", str(directory / precision)]) == 0
    return directory


def largest_logit_error(bundle, checkpoint) -> float:
    """In units of the largest logit, over a few sentences, prompts of the bundle's own text graph."""
    reference = torch_predictor(load_checkpoint(checkpoint).model)
    samples = ShapesDataset(split="test", size=TINY.image_size, length=3)
    errors = []
    with Segmenter(bundle, backend="onnxruntime") as segmenter:
        for sample in samples:
            tensor, _ = segmenter.preprocess(sample.image)
            text = sample.expressions[0]
            expected = reference(tensor, segmenter.tokenizer([text]))
            errors.append(np.abs(segmenter.infer(tensor, segmenter.encode(text)) - expected).max()
                          / np.abs(expected).max())
    return max(errors)


# FP32 differs by the order of sums; FP16 rounds to 11 bits at some hundred places; INT8 to 8 bits at some tens.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 3e-3), ("int8", 0.3)])
def test_a_bundle_answers_as_the_unmerged_network_does(bundles, checkpoint, precision, tolerance):
    assert largest_logit_error(bundles / precision, checkpoint) < tolerance


def test_a_bundle_says_where_it_came_from(bundles, checkpoint):
    bundle = Bundle.load(bundles / "int8", verify=True)
    assert bundle.source["checkpoint"] == checkpoint.name
    assert bundle.source["lora_layers_merged"] == 4 * (TINY.vision_depth + TINY.text_layers)
    assert 0 < bundle.source["merge_max_abs"] <= 1e-4
    assert bundle.parity["samples"] > 0 and bundle.parity["data"] == "shapes"
    assert {"torch", "onnx", "tensorrt_rtx"} <= bundle.versions.keys()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rca_is_one_node_at_every_place(bundles, precision):
    graph = onnx.load(bundles / precision / "vision.onnx").graph
    rca = [node for node in graph.node if node.op_type == "RcaCostAggregation"]
    assert len(rca) == len(TINY.vision_adapter_blocks) + 3
    assert {node.domain for node in rca} == {"talent"}


def test_the_batch_is_dynamic_in_both_graphs(bundles):
    for name in ("text", "vision"):
        graph = onnx.load(bundles / "fp16" / f"{name}.onnx").graph
        for value in (*graph.input, *graph.output):
            expected = PICTURES if value.name == "image" else EXPRESSIONS
            assert value.type.tensor_type.shape.dim[0].dim_param == expected, f"{name}: {value.name}"


def test_a_batch_gives_what_its_samples_give_alone(bundles):
    with Segmenter(bundles / "fp32", backend="onnxruntime") as segmenter:
        sentences = ["the red circle", "the small star on the left", "square"]
        rng = np.random.default_rng(0)
        images = rng.standard_normal((3, 3, TINY.image_size, TINY.image_size), dtype=np.float32)
        together = segmenter.backend.vision(images, segmenter.backend.text(segmenter.tokenizer(sentences)))
        alone = [segmenter.infer(image[None], segmenter.encode(text))
                 for image, text in zip(images, sentences, strict=True)]
        one_picture = segmenter.backend.vision(images[:1], segmenter.backend.text(segmenter.tokenizer(sentences)))
        one_by_one = [segmenter.infer(images[:1], segmenter.encode(text)) for text in sentences]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4 * np.abs(together).max())
    np.testing.assert_allclose(one_picture, np.concatenate(one_by_one), atol=1e-4 * np.abs(one_picture).max())


def test_int8_is_on_linear_layers_and_convolutions_of_the_vision_graph_only(bundles):
    vision = onnx.load(bundles / "int8" / "vision.onnx")
    kinds = {node.op_type for node in vision.graph.node if node.name in quantized_nodes(vision)}
    assert kinds <= {"MatMul", "Gemm", "Conv"} and "MatMul" in kinds
    for weight in ("patch_embed.weight", "projector.shifts"):
        reader, = (node for node in vision.graph.node if any(weight in name for name in node.input))
        assert reader.op_type == "Conv" and reader.name not in quantized_nodes(vision)
    assert not quantized_nodes(onnx.load(bundles / "int8" / "text.onnx"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_engines_are_built_and_recorded(checkpoint, tmp_path):
    assert main([str(checkpoint), "--int8", "--allow-drop", *FEW, "-o", str(tmp_path / "bundle")]) == 0
    bundle = Bundle.load(tmp_path / "bundle", verify=True)
    built = [engine for engine in bundle.engines if engine.runtime == "tensorrt_rtx"]
    assert [(engine.graph, engine.precision) for engine in built] == [("text", "fp16"), ("vision", "int8")]
    for engine in built:
        assert (bundle.directory / engine.path).stat().st_size == engine.bytes > 0 and engine.seconds > 0


def one_error_line(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("talent-export: error:")]
    assert len(lines) == 1, error
    return lines[0]


def test_a_missing_checkpoint_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--no-engine", "-o", str(tmp_path / "bundle")]) == 2
    assert "no checkpoint" in one_error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_is_refused_with_the_nearest(checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), "--no-engine", "--data", "shape", "-o", str(tmp_path / "bundle")]) == 2
    assert "did you mean 'shapes'?" in one_error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_loses_too_much_is_not_written(checkpoint, tmp_path, capsys):
    arguments = [str(checkpoint), "--fp32", "--no-engine", *FEW, "--max-miou-drop", "-1"]
    assert main([*arguments, "-o", str(tmp_path / "bundle")]) == 2
    assert "--allow-drop" in one_error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_no_bundle_is_not_replaced(checkpoint, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"a cat")
    assert main([str(checkpoint), "--no-engine", *FEW, "-o", str(tmp_path / "pictures")]) == 2
    assert "will not replace" in one_error_line(capsys)
    assert (tmp_path / "pictures" / "cat.png").read_bytes() == b"a cat"
