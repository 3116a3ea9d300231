"""One segmenter for many sentences, many threads and whatever comes out of a camera, on a toy bundle."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from deploy import Segmenter
from deploy.runtime.segmenter import Prompt, Segmentation
from talent.errors import UserError

SENTENCES = ("r", "g", "b")


@pytest.fixture
def segmenter(toy_bundle):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        yield segmenter


def _same(one: Segmentation, other: Segmentation) -> bool:
    return (np.array_equal(one.mask, other.mask) and np.array_equal(one.logits, other.logits)
            and (one.box, one.score) == (other.box, other.score))


def test_a_sentence_is_encoded_once(segmenter, monkeypatch):
    encoded = []
    original = segmenter.backend.text
    monkeypatch.setattr(segmenter.backend, "text", lambda tokens: encoded.append(1) or original(tokens))
    first, again, shouted = (segmenter.encode(sentence) for sentence in ("r", "r", "  R "))
    assert len(encoded) == 1  # the same words: white space and capitals are no others
    assert first.tensors is again.tensors is shouted.tensors and shouted.sentence == "  R "
    segmenter.encode("g")
    stats = segmenter.stats()
    assert (stats.prompt_hits, stats.prompt_misses, stats.prompt_hit_rate) == (2, 2, 0.5)


def test_no_prompt_is_kept_without_room(toy_bundle):
    with Segmenter(toy_bundle, "onnxruntime", threads=1, prompts=0) as segmenter:
        assert segmenter.stats().prompt_hit_rate is None
        assert segmenter.encode("r").tensors is not segmenter.encode("r").tensors
    with pytest.raises(UserError, match="prompts to be at least 0, received -1"):
        Segmenter(toy_bundle, "onnxruntime", prompts=-1)


def test_many_sentences_about_one_picture(segmenter, picture):
    results = segmenter.segment_many(picture, [segmenter.encode("r"), *SENTENCES])
    alone = [segmenter(sentence, picture) for sentence in ("r", *SENTENCES)]
    assert len(results) == 4
    for one, other in zip(results, alone, strict=True):
        assert np.array_equal(one.mask, other.mask) and one.box == other.box
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_more_at_once_than_the_graph_takes(segmenter, picture, monkeypatch, most):
    sizes = []
    original = segmenter.backend.vision

    def vision(image, prompt):
        sizes.append(len(prompt["bias"]))
        assert len(image) == 1
        return original(image, prompt)

    monkeypatch.setattr(segmenter.backend, "most_expressions", most, raising=False)
    monkeypatch.setattr(segmenter.backend, "vision", vision)
    results = segmenter.segment_many(picture, SENTENCES)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 4: [3]}[most]
    assert [result.box for result in results] == [segmenter(sentence, picture).box for sentence in SENTENCES]
    assert segmenter.stats().expressions == 6


@pytest.mark.parametrize(("prompts", "received"), [([], "none"), ("the mug", "the sentence 'the mug'")])
def test_no_list_of_prompts(segmenter, picture, prompts, received):
    with pytest.raises(UserError, match=received):
        segmenter.segment_many(picture, prompts)


def test_frames_and_masks_are_counted(segmenter, picture):
    segmenter.warmup()
    assert segmenter.stats().frames == 0
    segmenter("r", picture)
    segmenter.segment_many(picture, SENTENCES)
    assert (segmenter.stats().frames, segmenter.stats().expressions) == (2, 4)


def test_eight_threads_give_what_one_gives(segmenter, picture):
    pictures = [np.roll(picture, shift, axis=1) for shift in range(0, 80, 10)]
    wanted = [[segmenter(sentence, one) for sentence in SENTENCES] for one in pictures]

    def work(index: int) -> list[Segmentation]:
        return [segmenter(sentence, pictures[index % 8]) for sentence in SENTENCES]

    with ThreadPoolExecutor(8) as pool:
        for index, results in enumerate(pool.map(work, range(64))):
            assert all(map(_same, results, wanted[index % 8]))
    stats = segmenter.stats()
    assert stats.frames == stats.expressions == 24 + 192 and stats.prompt_hits + stats.prompt_misses == 24 + 192


def test_closing_waits_for_the_frame_under_way(toy_bundle, picture, monkeypatch):
    segmenter = Segmenter(toy_bundle, "onnxruntime", threads=1)
    prompt = segmenter.encode("r")
    started, may_go_on = threading.Event(), threading.Event()
    original = segmenter.backend.vision

    def slow(image, tensors):
        started.set()
        assert may_go_on.wait(10)
        return original(image, tensors)

    monkeypatch.setattr(segmenter.backend, "vision", slow)
    with ThreadPoolExecutor(2) as pool:
        frame = pool.submit(segmenter.segment, picture, prompt)
        assert started.wait(10)
        closing = pool.submit(segmenter.close)
        assert not closing.done()
        may_go_on.set()
        assert frame.result(10).mask.any()
        closing.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        segmenter.segment(picture, prompt)


def _read_only(picture: np.ndarray) -> np.ndarray:
    picture = picture.copy()
    picture.flags.writeable = False
    return picture


@pytest.mark.parametrize("form", [
    pytest.param(Image.fromarray, id="PIL"),
    pytest.param(lambda picture: Image.fromarray(np.dstack([picture, picture[..., :1]]), "RGBA"), id="PIL with alpha"),
    pytest.param(lambda picture: np.ascontiguousarray(picture[:, ::-1])[:, ::-1], id="from right to left"),
    pytest.param(lambda picture: np.ascontiguousarray(picture[..., ::-1])[..., ::-1], id="BGR seen as RGB"),
    pytest.param(lambda picture: np.repeat(picture, 2, axis=0)[::2], id="every other row"),
    pytest.param(np.asfortranarray, id="Fortran order"),
    pytest.param(_read_only, id="read-only")])
def test_pictures_of_all_forms(segmenter, picture, form):
    assert _same(segmenter("r", form(picture)), segmenter("r", picture))


@pytest.mark.parametrize(("frame", "message"), [
    (np.zeros((4, 4, 3), np.float32), "received float32"), (np.full((4, 4, 3), np.nan), "received float64"),
    (np.zeros((0, 4, 3), np.uint8), "sides from 1"), (np.zeros((1, 40_000, 3), np.uint8), r"received \[1, 40000, 3\]"),
    (np.zeros((4, 4), np.uint8), r"received uint8 \[4, 4\]"), (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]"),
    (None, "received NoneType")], ids=str)
def test_a_frame_that_fails_does_not_hurt_the_next(segmenter, picture, frame, message):
    wanted = segmenter("r", picture)
    with pytest.raises(UserError, match=message):
        segmenter("r", frame)
    assert _same(segmenter("r", picture), wanted)


def test_a_precision_that_was_asked_for(toy_bundle):
    Segmenter(toy_bundle, "onnxruntime", precision=toy_bundle.precision).close()
    other = "int8" if toy_bundle.precision != "int8" else "fp16"
    with pytest.raises(UserError, match=f"expected an {other} bundle, received .* which is {toy_bundle.precision}"):
        Segmenter(toy_bundle, "onnxruntime", precision=other)
    with pytest.raises(UserError, match="unknown precision 'int4'"):
        Segmenter(toy_bundle, "onnxruntime", precision="int4")


def test_a_prompt_of_another_bundle_is_refused(segmenter, picture):
    wanted, bias = segmenter("r", picture), segmenter.encode("r").tensors["bias"]
    for strange in ({"bias": bias}, {"bias": bias, "colour": bias}, {"bias": bias, "colour": bias, "more": bias}):
        for prompts in ([Prompt("strange", strange)], [segmenter.encode("g"), Prompt("strange", strange)]):
            with pytest.raises(UserError, match="encode the sentence again, with this segmenter"):
                segmenter.segment_many(picture, prompts)
    assert _same(segmenter("r", picture), wanted)


def test_a_sentence_may_stand_for_its_prompt_and_nothing_else(segmenter, picture):
    assert _same(segmenter.segment(picture, "r"), segmenter("r", picture))
    with pytest.raises(UserError, match="expected a sentence, or a prompt .* received NoneType"):
        segmenter.segment(picture, None)
    with pytest.raises(UserError, match=r"float32 \[B, 3, 64, 64\], received float64 \[1, 3, 64, 64\]"):
        segmenter.infer(np.zeros((1, 3, 64, 64)), segmenter.encode("r"))


def test_a_pil_image_that_cannot_be_read(segmenter, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    closed = Image.open(tmp_path / "cut.jpg")
    closed.close()
    for image in (Image.open(tmp_path / "cut.jpg"), closed):
        with pytest.raises(UserError, match="expected a PIL image that can be read"):
            segmenter("r", image)


def test_stats_outlive_the_segmenter(segmenter, picture):
    segmenter("r", picture)
    stats = segmenter.stats()
    segmenter.close()
    assert segmenter.stats() == stats and stats.frames == 1
