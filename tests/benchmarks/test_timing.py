"""benchmarks/timing.py with stages that only write down what they were asked: the order of things, and what counts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks.contenders import Stages
from benchmarks.timing import FRAME, ON_GPU, TIMED, WHOLE, Question, batched, measure, run_once, several_prompts
from talent.errors import UserError

SENTENCES = ("the left cup", "the right cup")


@pytest.fixture
def questions(tmp_path):
    generator = np.random.default_rng(0)
    made = []
    for number, sentence in enumerate(SENTENCES):
        path = tmp_path / f"{number}.jpg"
        cv2.imwrite(str(path), generator.integers(0, 256, (24, 32, 3), np.uint8))
        made.append(Question(path, sentence))
    return made


class Clock:
    """Stands still but for what the stages say that they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("benchmarks.timing.time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


class Recorder(Stages):
    """Writes down who was asked what. clock: which goes on by the seconds that each stage takes."""

    together = True

    def __init__(self, name: str = "", log: list | None = None, clock: Clock | None = None, **seconds: float) -> None:
        self.name, self.log, self.clock, self.seconds = name, [] if log is None else log, clock, seconds

    def _does(self, what: str, entry: object = None) -> None:
        self.log.append((self.name, what, entry))
        if self.clock is not None:
            self.clock.now += self.seconds.get(what, 0)

    def preprocess(self, image):
        self._does("preprocess", image.shape)
        return np.zeros((1, 3, 4, 4), np.float32), None

    def encode(self, sentence):
        self._does("text", sentence)
        return sentence

    def infer(self, tensor, prompt):
        self._does("vision", prompt)
        return np.zeros((1, 1, 2, 2), np.float32)

    def postprocess(self, logits, letterbox):
        self._does("postprocess", logits.shape)

    def infer_batch(self, tensor, prompts):
        self._does("batch", (len(tensor), len(prompts)))


def passes(log: Sequence[tuple[str, str, object]], samples: int) -> list[str]:
    """Who was asked for its text, pass by pass; each pass is one row's alone."""
    asked = [name for name, what, _ in log if what == "text"]
    groups = [asked[start:start + samples] for start in range(0, len(asked), samples)]
    assert all(len(set(group)) == 1 for group in groups)
    return [group[0] for group in groups]


def test_rounds_are_interleaved_and_rotated_after_a_warm_up(questions):
    log: list[tuple[str, str, object]] = []
    rows = {name: Recorder(name, log) for name in "abc"}
    found = measure(rows, questions, rounds=3, most_warm_up=2)
    assert passes(log, 2) == [*"abc", *"abc", *"bca", *"cab"]
    assert {entry for _, what, entry in log if what == "text"} == set(SENTENCES)
    assert {entry for _, what, entry in log if what == "preprocess"} == {(24, 32, 3)}
    for times in found.values():
        assert list(times.stages) == list(TIMED) and times.frames == 0 and not times.spans
        assert all([len(samples) for samples in rounds] == [2, 2, 2] for rounds in times.stages.values())
        assert times.warm_up.runs == 2 and not times.warm_up.stable


def test_time_is_counted_where_it_is_spent(questions, monkeypatch, clock):
    """Reading a file is part of the whole, and of a frame neither that nor the text."""
    spent = {"preprocess": 2.0, "text": 4.0, "vision": 8.0, "postprocess": 16.0}

    def read(path):
        clock.now += 1
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr("benchmarks.timing.read_image", read)
    seconds = run_once(Recorder(clock=clock, **spent), questions[0])
    assert seconds == {"read": 1.0, **spent, FRAME: 26.0, WHOLE: 31.0} and tuple(seconds) == TIMED


def test_spans_for_meters_hold_frames_and_not_what_else_is_measured(questions, clock):
    row = Recorder(clock=clock, vision=0.005, batch=0.05, text=0.5)
    times = measure({"a": row}, questions, rounds=2, batches=[2], most_warm_up=1, metered=True)["a"]
    assert times.frames == 4
    assert [end - start for start, end in times.spans] == pytest.approx([0.01, 0.01])
    assert np.ravel(times.stages[batched(2)]) == pytest.approx([50] * 4)
    assert np.ravel(times.stages["vision"]) == pytest.approx([5] * 4)


def test_several_prompts_and_pictures_together(questions):
    row = Recorder()
    times = measure({"a": row}, questions, rounds=2, prompts=[1, 3], batches=[1, 4], most_warm_up=1)["a"]
    assert list(times.stages) == [*TIMED, several_prompts(3), batched(4)]
    assert [len(samples) for samples in times.stages[batched(4)]] == [2, 2]
    assert {entry for _, what, entry in row.log if what == "batch"} == {(4, 4)}
    last = [(what, entry) for _, what, entry in row.log if what in ("text", "vision", "postprocess")][-6:]
    assert last == [(what, entry) for sentence in (SENTENCES[0], SENTENCES[1], SENTENCES[0])
                    for what, entry in (("vision", sentence), ("postprocess", (1, 1, 2, 2)))]  # no text: it is cached


def test_who_takes_one_picture_at_a_time_has_no_batch(questions):
    row = Recorder()
    row.together = False
    times = measure({"a": row}, questions, rounds=1, batches=[2], most_warm_up=1)["a"]
    assert batched(2) not in times.stages and times.not_run == {batched(2): "this row takes one picture at a time"}


@pytest.mark.parametrize(("error", "reason"), [
    (UserError("takes 1 picture at once, received 2"), "takes 1 picture at once, received 2"),
    (RuntimeError("CUDA out of memory\nTried to allocate"), "CUDA out of memory"), (MemoryError(), "MemoryError")])
def test_a_stage_that_refuses_is_left_out_with_its_reason(questions, error, reason):
    class Small(Recorder):
        def infer_batch(self, tensor, prompts):
            raise error

    times = measure({"a": Small()}, questions, rounds=1, batches=[2], most_warm_up=1)["a"]
    assert times.not_run == {batched(2): reason} and batched(2) not in times.stages and times.stages[WHOLE]


def test_the_way_on_the_gpu_is_measured_where_there_is_one(questions, clock):
    class OnGpu(Recorder):
        takes_pictures = True

        def segment(self, image, prompt):
            self._does("segment", (image.shape, prompt))

    row = OnGpu(clock=clock, segment=0.01)
    times = measure({"a": row}, questions, rounds=2, most_warm_up=1)["a"]
    assert np.ravel(times.stages[ON_GPU]) == pytest.approx([10] * 4)
    assert {entry for _, what, entry in row.log if what == "segment"} == {((24, 32, 3), SENTENCES[0])}
