"""Only the newest picture waits: shown with gates, so that what happens when is not left to chance."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from deploy.ros.health import Level
from deploy.ros.pipeline import Pipeline
from deploy.ros.worker import RateLimit, Worker
from deploy.runtime.segmenter import Prompt
from talent.errors import UserError
from tests.deploy.ros_recordings import image

SECONDS = 10  # until a test gives up
PICTURE = np.zeros((2, 2, 3), np.uint8)


class GatedSegmenter:
    """Answers a picture with its first pixel, after `go_on` was released once for it; `started` says it has begun."""

    bundle = SimpleNamespace(precision="fp32")
    backend = SimpleNamespace(name="gated")

    def __init__(self) -> None:
        self.started, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def encode(self, sentence):
        if sentence == "bad":
            raise UserError("expected a sentence that names an object")
        return Prompt(sentence, {})

    def segment(self, picture, prompt):
        self.started.release()
        assert self.go_on.acquire(timeout=SECONDS)
        if picture[0, 0, 0] == 255:
            raise MemoryError("no room for it")
        return int(picture[0, 0, 0])

    def stats(self):
        return SimpleNamespace(prompt_hit_rate=None)


class Bench:
    """A worker on a gated segmenter, and what it published and told."""

    def __init__(self, **options) -> None:
        self.segmenter = GatedSegmenter()
        self.pipeline = Pipeline(self.segmenter, sentence="first")
        self.published, self.told = [], []
        self.news, self.finished = threading.Semaphore(0), threading.Semaphore(0)
        self.broken = False
        original = self.pipeline.answer

        def answer(message):
            try:
                return original(message)
            finally:
                self.finished.release()

        self.pipeline.answer = answer
        self.worker = Worker(self.pipeline, publish=self._publish, tell=self._tell, **options)
        self.worker.start()

    def _publish(self, answer) -> None:
        if self.broken:
            raise RuntimeError("the publisher is gone")
        self.published.append((answer.sentence, answer.result))
        self.news.release()

    def _tell(self, problem: str) -> None:
        self.told.append(problem)
        self.news.release()

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.worker.offer(image(PICTURE + number))

    def begun(self) -> None:
        assert self.segmenter.started.acquire(timeout=SECONDS)

    def heard(self) -> None:
        """Wait until something was published or told."""
        assert self.news.acquire(timeout=SECONDS)

    def counts(self) -> dict[str, int]:
        return {fate: self.pipeline.health.count(fate) for fate in ("answered", "dropped", "paused", "refused")}


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.segmenter.go_on.release(100)
    bench.worker.stop()


def test_a_newer_picture_takes_the_place_of_the_one_that_waits(bench):
    bench.offer(1)
    bench.begun()
    bench.offer(2, 3, 4)  # while the first is computed
    bench.segmenter.go_on.release(2)
    bench.heard()
    bench.heard()
    assert bench.published == [("first", 1), ("first", 4)]
    assert bench.counts() == {"answered": 2, "dropped": 2, "paused": 0, "refused": 0}


def test_a_sentence_holds_from_the_next_picture_on(bench):
    bench.offer(1)
    bench.begun()
    bench.worker.change_sentence("second")
    bench.offer(2)
    bench.segmenter.go_on.release(2)
    bench.heard()
    bench.heard()
    assert bench.published == [("first", 1), ("second", 2)]


def test_the_newest_of_several_sentences_counts(bench):
    bench.offer(1)
    bench.begun()
    for sentence in ("second", "bad", "third"):
        bench.worker.change_sentence(sentence)
    bench.offer(2)
    bench.segmenter.go_on.release(2)
    bench.heard()
    bench.heard()
    assert bench.published[-1] == ("third", 2) and bench.told == []


def test_a_bad_sentence_is_told_and_the_old_one_stays(bench):
    bench.worker.change_sentence("bad")
    bench.heard()
    assert bench.told == ["the sentence was refused: expected a sentence that names an object"]
    bench.segmenter.go_on.release()
    bench.offer(1)
    bench.heard()
    assert bench.published == [("first", 1)]
    assert bench.pipeline.report().values["refused sentence"] == "expected a sentence that names an object"


def test_an_empty_sentence_pauses(bench):
    bench.offer(1)
    bench.begun()
    bench.worker.change_sentence("")
    bench.offer(2)
    bench.segmenter.go_on.release(100)
    for _ in range(2):
        assert bench.finished.acquire(timeout=SECONDS)
    assert bench.counts() == {"answered": 1, "dropped": 0, "paused": 1, "refused": 0}
    bench.worker.change_sentence("again")
    bench.heard()
    bench.offer(3)
    bench.heard()
    assert bench.published == [("first", 1), ("again", 3)]


def test_a_picture_that_fails_does_not_stop_it(bench):
    bench.segmenter.go_on.release(100)
    bench.offer(255)
    bench.heard()
    bench.worker.offer(image(PICTURE, encoding="16UC1"))
    bench.heard()
    bench.worker.offer("no message at all")
    bench.heard()
    bench.offer(7)
    bench.heard()
    assert bench.published == [("first", 7)]
    assert bench.counts() == {"answered": 1, "dropped": 0, "paused": 0, "refused": 3}
    assert bench.told[0] == "a picture was not answered: MemoryError: no room for it"
    assert "received '16UC1'" in bench.told[1] and "AttributeError" in bench.told[2]


def test_an_answer_that_cannot_be_published_is_told(bench):
    bench.segmenter.go_on.release(100)
    bench.broken = True
    bench.offer(1)
    bench.heard()
    bench.broken = False
    bench.offer(2)
    bench.heard()
    assert bench.told == ["a picture was not answered: RuntimeError: the publisher is gone"]
    assert bench.published == [("first", 2)]


def test_stopping_waits_for_the_picture_under_way_and_drops_the_one_that_waits():
    bench = Bench()
    bench.offer(1)
    bench.begun()
    bench.offer(2)
    bench.worker.change_sentence("kept")
    stopping = threading.Thread(target=bench.worker.stop)
    stopping.start()
    bench.segmenter.go_on.release()
    stopping.join(SECONDS)
    assert not stopping.is_alive()
    bench.offer(3)
    assert bench.published == [("first", 1)] and bench.pipeline.sentence == "kept"
    assert bench.counts() == {"answered": 1, "dropped": 2, "paused": 0, "refused": 0}


def test_pictures_are_expected_from_the_start_on():
    seconds = [0.0]
    pipeline = Pipeline(GatedSegmenter(), clock=lambda: seconds[0])
    seconds[0] = 60  # between configuring and activating
    worker = Worker(pipeline, publish=print, tell=print)
    worker.start()
    assert pipeline.report().level is Level.OK
    seconds[0] += 2
    assert pipeline.report().level is Level.STALE
    worker.stop()


def test_pictures_that_come_too_soon_are_dropped():
    bench = Bench(rate=10, clock=iter([5.0, 5.05, 5.1]).__next__)
    bench.segmenter.go_on.release(100)
    for number in (1, 2, 3):
        bench.offer(number)
        if number != 2:
            bench.heard()
    bench.worker.stop()
    assert bench.published == [("first", 1), ("first", 3)] and bench.counts()["dropped"] == 1


def test_a_network_that_hangs_is_reported_and_one_that_waits_for_its_rate_is_not():
    seconds = [0.0]
    for rate, level in ((0, Level.ERROR), (0.1, Level.OK)):
        segmenter = GatedSegmenter()
        worker = Worker(pipeline := Pipeline(segmenter, sentence="first", clock=lambda: seconds[0]), publish=print,
                        tell=print, rate=rate, clock=lambda: seconds[0])
        worker.start()
        worker.offer(image(PICTURE))
        assert segmenter.started.acquire(timeout=SECONDS)
        for _ in range(60):
            worker.offer(image(PICTURE))
            seconds[0] += 0.1
        assert pipeline.report().level is level
        segmenter.go_on.release(100)
        worker.stop()


@pytest.mark.parametrize(("rate", "most"), [(0, 90), (100, 90), (20, 60), (10, 30), (0.5, 2)])
def test_the_rate_of_a_camera_is_limited_on_average(rate, most):
    limit = RateLimit(rate)
    times = np.arange(90) / 30 + np.random.default_rng(0).uniform(-0.004, 0.004, 90)  # three seconds
    taken = times[[limit.allows(now) for now in times]]
    assert most - 1 <= len(taken) <= most
    if 0 < rate < 30:
        assert np.diff(taken).min() > 0.5 / rate


def test_silence_saves_up_no_pictures():
    limit = RateLimit(10)
    assert [limit.allows(now) for now in (0, 60, 60.01, 60.09, 60.11, 60.15)] == [True, True, False, False, True, False]
