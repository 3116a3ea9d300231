"""libtalent's Segmenter in ONNX Runtime against deploy.Segmenter: the same masks, boxes, scores and refusals.

Where libtalent is built without ONNX Runtime (ONNXRUNTIME_ROOT names a release of it), only what it refuses to load is
tested here; tests/cpp tests the rest of the segmenter over a backend of its own.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from deploy import Segmenter
from deploy.export import main as export
from deploy.runtime.segmenter import Segmentation
from talent.data.shapes import ShapesDataset
from talent.errors import UserError
from tests.deploy.cpp_programs import build_programs
from tests.networks import TINY, save_tiny

FORMATS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "RGBA": (0, 1, 2, 0), "BGRA": (2, 1, 0, 0)}  # in talent/image.h's order
MOST_PIXELS = 0.001  # share of a mask's pixels that may differ
MOST_KIB = 5 * 1024  # that 9,000 frames may add


@dataclass(frozen=True)
class Answer:
    """mask: bool [H, W]. probability: float32 [H, W]."""

    mask: np.ndarray
    probability: np.ndarray
    box: tuple[int, ...] | None
    score: float


@dataclass(frozen=True)
class Said:
    """What segment_photos said. answers: a text where a photo was refused. stats: frames, prompt hits and misses."""

    opened: list[str]
    answers: list[Answer | str]
    stats: tuple[int, int, int]
    memory: tuple[int, int]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return build_programs(tmp_path_factory) / "segment_photos"


@pytest.fixture
def ask(program, tmp_path) -> Callable[..., Said]:
    """ask(directory, questions, backend=, how=): the answers to (sentence, pixels uint8 [H, W, C], format) each.

    how: the number of rounds, or "together".

    Skips where libtalent was built without ONNX Runtime; raises UserError where the segmenter cannot be opened.
    """

    def ask_all(directory: Path, questions: Iterable[tuple[str, np.ndarray, int]], *, backend: str = "auto",
                how: int | str = 1) -> Said:
        content = b""
        for sentence, pixels, form in questions:
            height, width, stride = *pixels.shape[:2], pixels.strides[0]
            rows = np.lib.stride_tricks.as_strided(pixels, (height, stride), (stride, 1))  # with what lies beside it
            text = sentence.encode()
            content += struct.pack("5i", width, height, stride, form, len(text)) + text + rows.tobytes()
        (tmp_path / "photos").write_bytes(content)
        done = subprocess.run([program, directory, backend, tmp_path / "photos", tmp_path / "answers", str(how)],
                              capture_output=True, text=True, check=False)
        if "libtalent was built without onnxruntime" in done.stderr:
            pytest.skip(done.stderr.strip())
        if done.returncode == 2:
            raise UserError(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return _said(done.stdout, (tmp_path / "answers").read_bytes(), [pixels.shape for _, pixels, _ in questions])

    return ask_all


def _said(text: str, content: bytes, shapes: list[tuple[int, ...]]) -> Said:
    opened, *lines, stats, memory = text.splitlines()
    place, answers = 0, []
    for line, (height, width, *_) in zip(lines, shapes, strict=True):
        kind, *words = line.split("\t")
        if kind == "error":
            answers.append(words[0])
            continue
        area = height * width
        mask = np.frombuffer(content, np.uint8, area, place).reshape(height, width)
        probability = np.frombuffer(content, np.float32, area, place + area).reshape(height, width)
        place += 5 * area
        assert set(np.unique(mask)) <= {0, 255}
        box = tuple(map(int, words[:4]))
        answers.append(Answer(mask > 0, probability, None if box[0] < 0 else box, float(words[4])))
    assert place == len(content)
    return Said(opened.split("\t")[1:], answers, tuple(map(int, stats.split())), tuple(map(int, memory.split())))


def check_same(answer: Answer, expected: Segmentation, *, most: float) -> None:
    """most: how far apart the probabilities of a pixel may be, for a grey level of the network's input."""
    assert np.count_nonzero(answer.mask != expected.mask) <= MOST_PIXELS * answer.mask.size
    assert (answer.box is None) == (expected.box is None)
    if expected.box is not None:
        np.testing.assert_allclose(answer.box, expected.box, atol=1)
    assert answer.score == pytest.approx(expected.score, abs=1e-3)
    np.testing.assert_allclose(answer.probability, expected.probability, atol=most)


def test_the_toy_bundle_is_answered_alike(toy_bundle, picture, ask):
    dark = np.zeros((30, 40, 3), np.uint8)
    tall = np.ascontiguousarray(picture.transpose(1, 0, 2))
    photos = [(sentence, photo) for photo in (picture, tall, dark) for sentence in ("r", "g", "  B ", "r g")]
    said = ask(toy_bundle.directory, [(sentence, photo, 0) for sentence, photo in photos])
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        for (sentence, photo), answer in zip(photos, said.answers, strict=True):
            check_same(answer, segmenter(sentence, photo), most=0.03)  # 20 logits from black to white
        stats = segmenter.stats()
    assert said.stats == (stats.frames, stats.prompt_hits, stats.prompt_misses) == (12, 8, 4)
    assert sum(answer.mask.any() for answer in said.answers) == 8


def test_several_sentences_at_once(toy_bundle, picture, ask):
    sentences = ("r", "b", "r", "g")
    said = ask(toy_bundle.directory, [(sentence, picture, 0) for sentence in sentences], how="together")
    alone = ask(toy_bundle.directory, [(sentence, picture, 0) for sentence in sentences])
    assert said.stats[0] == 1 and alone.stats[0] == 4
    for one, other in zip(said.answers, alone.answers, strict=True):
        assert np.array_equal(one.mask, other.mask) and one.mask.any()
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-5)


@pytest.mark.slow
def test_a_tiny_network_is_answered_alike(ask, toy_bundle, tmp_path):
    """Of random weights, whose probabilities say more than the masks."""
    ask(toy_bundle.directory, [])  # skips before the export
    checkpoint = save_tiny(tmp_path / "checkpoint", lora_rank=4)
    few = ["--calibration", "4", "--parity", "2", "--data", "shapes", "--no-engine", "--allow-drop"]
    assert export([str(checkpoint), "--fp16", *few, "-o", str(tmp_path / "bundle")]) == 0
    samples = list(ShapesDataset(split="test", size=TINY.image_size, length=3))
    said = ask(tmp_path / "bundle", [(sample.expressions[0], sample.image, 0) for sample in samples])
    together = ask(tmp_path / "bundle", [(sample.expressions[0], samples[0].image, 0) for sample in samples],
                   how="together")
    with Segmenter(tmp_path / "bundle", "onnxruntime", threads=1) as segmenter:
        expected = [segmenter(sample.expressions[0], sample.image) for sample in samples]
        many = segmenter.segment_many(samples[0].image, [sample.expressions[0] for sample in samples])
    assert min(np.ptp(one.probability) for one in [*expected, *many]) > 0.02
    for answer, one in zip([*said.answers, *together.answers], [*expected, *many], strict=True):
        check_same(answer, one, most=1e-3)


def test_pixels_in_any_order_and_rows_apart(toy_bundle, picture, ask):
    questions = [("r", picture, 0)]
    for index, order in enumerate(FORMATS.values()):
        wide = np.full((90, 163, len(order)), 200, np.uint8)
        wide[:, :150] = picture[..., list(order)]
        questions.append(("r", wide[:, :150], index))
    grey = np.ascontiguousarray(picture[..., :1])
    questions += [("r", np.repeat(grey, 3, axis=2), 0), ("r", grey, 4)]
    plain, *others, as_colours, as_grey = ask(toy_bundle.directory, questions).answers
    assert plain.mask.any()
    for one, other in [*((plain, answer) for answer in others), (as_colours, as_grey)]:
        assert np.array_equal(one.mask, other.mask) and (one.box, one.score) == (other.box, other.score)


def test_photos_and_sentences_are_refused_and_the_next_one_answered(toy_bundle, picture, ask):
    questions = [("r", picture, 0), ("", picture, 0), ("&nbsp;", picture, 0),
                 ("r", np.zeros((1, 40_000, 3), np.uint8), 0), ("r", picture, 7), ("r", picture, 0)]
    first, empty, blank, wide, unknown, last = ask(toy_bundle.directory, questions).answers
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        for sentence, received in (("", empty), ("&nbsp;", blank)):
            with pytest.raises(UserError) as caught:
                segmenter.encode(sentence)
            assert received == str(caught.value)
    assert wide == "expected a picture with sides from 1 to 32766 pixels, received 40000 x 1"
    assert unknown == "expected a pixel format of RGB, BGR, RGBA, BGRA or grey, received 7"
    assert np.array_equal(first.probability, last.probability) and first.mask.any()


def test_logits_that_overflowed_are_refused_alike(make_bundle, picture, ask):
    bundle = make_bundle(scale=float("inf"))
    received, = ask(bundle.directory, [("r", picture, 0)]).answers
    with Segmenter(bundle, "onnxruntime", threads=1) as segmenter, pytest.raises(UserError) as caught:
        segmenter("r", picture)
    assert received == str(caught.value)


@pytest.mark.parametrize("fault", [{"colour_name": "color"}, {"prompt_type": TensorProto.FLOAT16}], ids=str)
def test_graphs_that_do_not_fit_are_refused_alike(make_bundle, ask, fault):
    bundle = make_bundle(**fault)
    with pytest.raises(UserError) as ours:
        ask(bundle.directory, [])
    with pytest.raises(UserError) as python:
        Segmenter(bundle, "onnxruntime", threads=1)
    assert str(ours.value) == str(python.value)


def test_a_graph_that_is_none_is_refused(toy_bundle, ask):
    (toy_bundle.directory / "vision.onnx").write_bytes(b"not a graph")
    type(toy_bundle).write_manifest(
        toy_bundle.directory, preset="toy", precision="fp32", image_size=64, context_length=8,
        source={"checkpoint": "toy.pt"}, parity={})
    with pytest.raises(UserError, match=r"^ONNX Runtime cannot load .*/vision\.onnx: .*; copy the bundle") as caught:
        ask(toy_bundle.directory, [])
    assert "\n" not in str(caught.value)


def test_auto_says_why_it_took_onnx_runtime(toy_bundle, ask):
    backend, *reasons = ask(toy_bundle.directory, []).opened
    assert backend == "onnxruntime" and len(reasons) == 2 and "tensorrt" in reasons[0] and "tensorrt_rtx" in reasons[1]
    assert ask(toy_bundle.directory, [], backend="onnxruntime").opened == ["onnxruntime"]


def test_memory_stays_flat_over_ten_thousand_frames(toy_bundle, picture, ask):
    said = ask(toy_bundle.directory, [("r", picture[::2, ::2].copy(), 0)], how=10_000)
    assert said.stats == (10_000, 9_999, 1)
    before, after = said.memory
    assert 0 < before and after - before < MOST_KIB


def test_what_cannot_be_loaded_is_refused_alike(program, toy_bundle, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(toy_bundle.directory, cut)
    (cut / "text.onnx").write_bytes(b"x")
    for directory, backend in ((tmp_path / "none", "auto"), (cut, "auto"), (toy_bundle.directory, "onnxruntim"),
                               (toy_bundle.directory, "TensorRT")):
        done = subprocess.run([program, directory, backend, "no photos", "no answers"], capture_output=True, text=True,
                              check=False)
        with pytest.raises(UserError) as caught:
            Segmenter(directory, backend)
        assert (done.returncode, done.stderr) == (2, f"{caught.value}\n")
