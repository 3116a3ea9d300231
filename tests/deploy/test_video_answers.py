"""The average over frames, the sentence that changes, and both of them on a bundle."""

from __future__ import annotations

import math
import os
import threading

import numpy as np
import pytest

from deploy.runtime.segmenter import Prompt, Segmenter
from deploy.video.answering import Answerer
from deploy.video.frames import Frame
from deploy.video.sentences import Sentences, check_listening, listening, read_script
from deploy.video.smoothing import Smoother
from talent.errors import UserError

PATIENCE = 20  # seconds until an answer that does not come fails the test


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def random_logits(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(7).normal(0, 3, (count, 1, 1, 8, 8)).astype(np.float32))


def test_the_average_is_the_equation_on_probabilities():
    frames, smoother = random_logits(6), Smoother(0.7)
    expected = sigmoid(frames[0])
    for number, logits in enumerate(frames):
        smoothed = smoother(logits, about="r")
        expected = 0.7 * expected + 0.3 * sigmoid(logits) if number else expected
        assert smoothed.dtype == np.float32 and smoothed.shape == (1, 1, 8, 8)
        np.testing.assert_allclose(sigmoid(smoothed), expected, atol=2e-6)  # float32


def test_one_frame_counts_the_same_however_sure_it_is():
    for sure in (8.0, 80.0):
        smoother = Smoother(0.8)
        smoother(np.full((1, 1, 2, 2), -8, np.float32), about=0)
        once = sigmoid(smoother(np.full((1, 1, 2, 2), sure, np.float32), about=0))
        np.testing.assert_allclose(once, 0.2, atol=1e-3)
        later = [sigmoid(smoother(np.full((1, 1, 2, 2), -8, np.float32), about=0)).max() for _ in range(3)]
        np.testing.assert_allclose(later, 0.2 * 0.8 ** np.arange(1, 4), atol=1e-3)


def test_saturated_logits_stay_finite():
    smoother = Smoother(0.5)
    for _ in range(3):
        smoothed = smoother(np.array([[[[1e4, -1e4]]]], np.float32), about=0)
    assert np.isfinite(smoothed).all() and smoothed[0, 0, 0, 0] > 10 and smoothed[0, 0, 0, 1] < -10


def test_another_subject_or_a_reset_starts_anew_to_the_bit():
    first, second, third = random_logits(3)
    smoother = Smoother(0.9)
    smoother(first, about=("r", 1))
    assert np.array_equal(smoother(second, about=("g", 1)), second)
    assert not np.array_equal(smoother(third, about=("g", 1)), third)
    smoother.reset()
    assert np.array_equal(smoother(third, about=("g", 1)), third)


def test_the_average_does_not_hide_what_is_not_finite():
    first, second, _ = random_logits(3)
    smoother, twin = Smoother(0.5), Smoother(0.5)
    for bad in (math.inf, -math.inf, math.nan):
        smoother(first, about=0)
        broken = first.copy()
        broken[0, 0, 3, 3] = bad
        assert not np.isfinite(smoother(broken, about=0)).all()
        twin(first, about=0)
        assert np.array_equal(smoother(second, about=0), twin(second, about=0))  # and it leaves nothing behind


@pytest.mark.parametrize("amount", [-0.1, 1.0, math.nan])
def test_amounts_that_are_refused(amount):
    with pytest.raises(UserError, match="--smooth: expected a number from 0"):
        Smoother(amount)


@pytest.fixture
def segmenter(toy_bundle):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        yield segmenter


def frames_of(*pictures: np.ndarray) -> list[Frame]:
    return [Frame(index=index, seconds=index / 10, image=picture) for index, picture in enumerate(pictures)]


def test_without_smoothing_answers_are_those_of_segment(segmenter, picture):
    answer = Answerer(segmenter, Sentences(segmenter.encode, "r"), Smoother(0))
    for frame in frames_of(picture, picture[:, ::-1].copy(), picture[:50]):
        got, expected = answer(frame).result, segmenter.segment(frame.image, segmenter.encode("r"))
        assert np.array_equal(got.mask, expected.mask) and np.array_equal(got.logits, expected.logits)
        assert (got.box, got.score) == (expected.box, expected.score)


def test_with_smoothing_an_object_that_has_gone_lingers_as_long_as_the_equation_says(segmenter, picture):
    black = np.zeros_like(picture)
    answer = Answerer(segmenter, Sentences(segmenter.encode, "r"), Smoother(0.6))
    found = [bool(answer(frame).result.mask.any()) for frame in frames_of(picture, *[black] * 6)]
    lingers = math.ceil(math.log(segmenter.threshold) / math.log(0.6)) - 1
    assert lingers == 2 and found == [True] * (1 + lingers) + [False] * (6 - lingers)


@pytest.mark.parametrize("change", ["size", "sentence", "pause"])
def test_smoothing_starts_anew(segmenter, picture, change):
    """After a red frame, a black one has no trace of red where something changed in between."""
    sentences = Sentences(segmenter.encode, "r", [(0.1, "")] if change == "pause" else [])
    answer = Answerer(segmenter, sentences, Smoother(0.9))
    black = np.zeros((90, 150 + 10 * (change == "size"), 3), np.uint8)
    first, second, third = frames_of(picture, picture, black)
    assert answer(first).result.mask.any()
    if change == "pause":
        paused = answer(second)
        assert paused.sentence is None and paused.result is None
        sentences.change("r")
    if change == "sentence":
        sentences.change("g")
        assert answer(Frame(index=1, seconds=0.1, image=black)).result.mask.any() is np.False_
        sentences.change("r")
    assert not answer(third).result.mask.any()


def encode(sentence: str) -> Prompt:
    if "bad" in sentence:
        raise UserError("a bad sentence")
    return Prompt(sentence=sentence, tensors={})


def at(sentences: Sentences, seconds: float) -> str | None:
    prompt = sentences.prompt_at(seconds)
    return prompt and prompt.sentence


def test_sentences_by_script_and_by_hand():
    sentences = Sentences(encode, "the mug", [(1.0, "the plate"), (2.0, ""), (2.0, "the cup"), (5.0, "")])
    assert [at(sentences, seconds) for seconds in (0, 0.9, 1.0, 1.5)] == ["the mug"] * 2 + ["the plate"] * 2
    assert sentences.change("  the spoon ").sentence == "the spoon"
    assert at(sentences, 1.9) == "the spoon"
    with pytest.raises(UserError, match="a bad sentence"):
        sentences.change("bad")
    assert at(sentences, 1.9) == "the spoon"
    assert sentences.change(" ") is None and at(sentences, 1.9) is None
    assert at(sentences, 3) == "the cup" and at(sentences, 6) is None


def test_reading_a_script(tmp_path):
    script = tmp_path / "script.txt"
    script.write_text("# seconds, then a sentence\n\n0.5 the red mug\n 12.5  the plate on the left \n20\n", "utf-8")
    assert read_script(script) == [(0.5, "the red mug"), (12.5, "the plate on the left"), (20.0, "")]
    script.write_bytes("\ufeff0.5\tthe red mug\n1   \tthe  plate\t\n2\t\n".encode())  # as editors and tables write it
    assert read_script(script) == [(0.5, "the red mug"), (1.0, "the  plate"), (2.0, "")]
    for line, message in [("the red mug", "script.txt:1: expected seconds and a sentence"),
                          ("-1 mug", "received '-1 mug'"), ("nan mug", "expected seconds"), ("inf mug", "expected"),
                          ("3 a\n2 b", "script.txt:2: expected a time of at least 3")]:
        script.write_text(line)
        with pytest.raises(UserError, match=message):
            read_script(script)
    script.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not UTF-8 text"):
        read_script(script)
    with pytest.raises(UserError, match="cannot read the script .*No such file"):
        read_script(tmp_path / "none.txt")


class Told:
    """What a listener told, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.lines) >= count, PATIENCE), self.lines


def test_lines_from_a_fifo_change_the_sentence_and_writers_may_come_and_go(tmp_path):
    fifo, sentences, told = tmp_path / "fifo", Sentences(encode, "the mug"), Told()
    os.mkfifo(fifo)
    with listening(str(fifo), sentences, tell=told):
        line = "the gr\u00fcne cup\n".encode()
        fifo.write_bytes(line[:7])  # to the middle of a letter
        fifo.write_bytes(line[7:] + b"this is bad\n")
        told.wait_for(2)
        assert at(sentences, 0) == "the gr\u00fcne cup"
        fifo.write_text("\n")
        told.wait_for(3)
        assert at(sentences, 0) is None
        fifo.write_text("the plate\n")
        told.wait_for(4)
        assert at(sentences, 0) == "the plate"
    assert told.lines == ["now looking for: the gr\u00fcne cup", "a bad sentence; the sentence stays as it was",
                          "paused; a sentence goes on", "now looking for: the plate"]
    assert "sentences" not in [thread.name for thread in threading.enumerate()]


def test_typed_lines_are_heard_in_a_terminal_and_only_there(monkeypatch):
    sentences, told = Sentences(encode, "the mug"), Told()
    master, slave = os.openpty()
    with open(slave, closefd=True) as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", terminal)
        patch.setattr("os.tcgetpgrp", lambda descriptor: os.getpgrp())
        with listening(None, sentences, tell=told):
            os.write(master, b"the plate\n")
            told.wait_for(1)
    os.close(master)
    assert at(sentences, 0) == "the plate"
    reading, writing = os.pipe()
    with open(reading) as pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", pipe)
        with listening(None, sentences, tell=told):
            assert "sentences" not in [thread.name for thread in threading.enumerate()]
        os.write(writing, b"the cup\nthe spoon")  # whose line has no end
        os.close(writing)
        with listening("-", sentences, tell=told):
            told.wait_for(3)
    assert told.lines[1:] == ["now looking for: the cup", "now looking for: the spoon"]
    assert at(sentences, 0) == "the spoon"


def test_what_cannot_be_listened_to(tmp_path):
    (tmp_path / "file").write_text("the mug\n")
    with pytest.raises(UserError, match=r"expected a FIFO .* read by --script FILE"):
        check_listening(str(tmp_path / "file"))
    with pytest.raises(UserError, match="make a FIFO: mkfifo"):
        check_listening(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "fifo")
    check_listening(str(tmp_path / "fifo"))
