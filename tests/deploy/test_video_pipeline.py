"""The three threads: they overlap, keep the order, drop only what is live, stop, and pass errors on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from deploy.video.frames import Frame
from deploy.video.handover import HandOver
from deploy.video.pipeline import FramePipeline, Progress

PATIENCE = 20  # seconds until a gate that nobody opens fails the test


class FakeSource:
    """Frames 0, 1, 2, ... whose arrival the test can see and hold up."""

    name, fps, length = "fake", 10.0, None

    def __init__(self, count: int | None, *, live: bool = False) -> None:
        self.live, self._count = live, count
        self.notes: list[str] = []
        self.complete = True
        self.given = 0

    def before(self, index: int) -> None:
        """Called before frame `index` is given."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        numbers: Iterable[int] = itertools.count() if self._count is None else range(self._count)
        for index in numbers:
            self.before(index)
            if stop.is_set():
                return
            self.given += 1
            yield Frame(index=index, seconds=index / self.fps, image=np.zeros((2, 2, 3), np.uint8))

    def close(self) -> None:
        pass


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "nobody opened the gate"


def test_a_recording_comes_whole_and_in_order():
    delivered = []
    progress = FramePipeline(FakeSource(50), lambda frame: frame.index, delivered.append, stop=threading.Event()).run()
    assert delivered == list(range(50))
    assert (progress.read, progress.answered, progress.dropped, progress.written) == (50, 50, 0, 50)
    assert len(progress.waits) == len(progress.answering) == len(progress.delivering) == 50
    assert progress.fps == pytest.approx(50 / progress.seconds)


def test_reading_answering_and_writing_overlap():
    """Frame 2 is read, frame 1 answered and frame 0 written at the same time: each waits inside for the others."""
    together = threading.Barrier(3)
    source = FakeSource(3)
    source.before = lambda index: together.wait(PATIENCE) if index == 2 else None

    def answer(frame: Frame) -> int:
        if frame.index == 1:
            together.wait(PATIENCE)
        return frame.index

    def deliver(index: int) -> None:
        if index == 0:
            together.wait(PATIENCE)

    assert FramePipeline(source, answer, deliver, stop=threading.Event()).run().written == 3


def test_of_a_live_source_the_latest_frame_wins():
    """While frame 0 is answered, frames 1 to 5 arrive: 5 is the next that is answered, though nobody waited for it."""
    arrived, begun, answers = threading.Event(), threading.Event(), []
    source = FakeSource(6, live=True)

    def before(index: int) -> None:
        if index == 1:
            wait(begun)

    def frames(stop: threading.Event) -> Iterator[Frame]:
        yield from FakeSource.frames(source, stop)
        arrived.set()  # after frame 5 was put: the generator goes on only then

    source.before, source.frames = before, frames

    def answer(frame: Frame) -> int:
        begun.set()
        wait(arrived)
        return frame.index

    progress = FramePipeline(source, answer, answers.append, stop=threading.Event()).run()
    assert answers == [0, 5]
    assert (progress.read, progress.answered, progress.dropped, progress.written) == (6, 2, 4, 2)


def test_a_recording_is_not_read_ahead_without_bound():
    source, gate, seen = FakeSource(100), threading.Event(), []

    def deliver(index: int) -> None:
        if index == 0:
            wait(gate)

    source.before = lambda index: seen.append(index)
    pipeline = FramePipeline(source, lambda frame: frame.index, deliver, stop=threading.Event())
    ticks = itertools.count()

    def show(progress: Progress) -> None:
        if next(ticks) == 1:  # nothing moves any more: writing holds up answering, which holds up reading
            assert len(seen) <= 9
            gate.set()

    assert pipeline.run(show).written == 100


@pytest.mark.parametrize("live", [False, True])
def test_it_stops_after_so_many_answers(live):
    source, delivered = FakeSource(None, live=live), []
    progress = FramePipeline(source, lambda frame: frame.index, delivered.append, stop=threading.Event(), most=5).run()
    assert len(delivered) == 5 == progress.written and delivered == sorted(set(delivered))
    assert progress.read == progress.answered + progress.dropped
    if not live:
        assert delivered == [0, 1, 2, 3, 4] and source.given == 5


@pytest.mark.parametrize("live", [False, True])
def test_stopping_delivers_what_was_read(live):
    source, stop, delivered = FakeSource(None, live=live), threading.Event(), []

    def deliver(index: int) -> None:
        delivered.append(index)
        if len(delivered) == 3:
            stop.set()

    progress = FramePipeline(source, lambda frame: frame.index, deliver, stop=stop).run()
    assert len(delivered) == progress.written == progress.answered >= 3
    assert progress.read == progress.answered + progress.dropped
    if not live:
        assert delivered == list(range(progress.read)) and progress.read <= 10


def test_stopping_does_not_wait_for_a_silent_camera_before_it_delivers():
    source, asked, over, delivered = FakeSource(None, live=True), threading.Event(), threading.Event(), []

    def before(index: int) -> None:
        if index == 1:
            asked.set()
            wait(over)  # the camera is silent until everything else is over

    def show(progress: Progress) -> None:
        if all(thread.name != "draw" for thread in threading.enumerate()):
            over.set()

    def answer(frame: Frame) -> int:
        wait(asked)
        return frame.index

    source.before = before
    pipeline = FramePipeline(source, answer, delivered.append, stop=threading.Event())
    assert pipeline.run(show, stopped=asked.is_set).written == 1
    assert delivered == [0]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("where", ["read", "answer", "deliver"])
def test_an_error_in_a_thread_ends_all_three(where, live):
    """Where it came in reading or answering, what was answered before is delivered; it is raised for delivering."""
    source, delivered = FakeSource(None, live=live), []

    def fail(place: str, index: int) -> None:
        if place == where and index == 4:
            raise ZeroDivisionError(place)

    answered = []

    def answer(frame: Frame) -> int:
        fail("answer", len(answered))
        answered.append(frame.index)
        return frame.index

    def deliver(index: int) -> None:
        fail("deliver", len(delivered))
        delivered.append(index)

    source.before = lambda index: fail("read", index)
    before = threading.active_count()
    pipeline = FramePipeline(source, answer, deliver, stop=threading.Event())
    if where == "deliver":
        with pytest.raises(ZeroDivisionError, match=where):
            pipeline.run()
        assert len(delivered) == 4
    else:
        progress = pipeline.run()
        assert isinstance(progress.failure, ZeroDivisionError) and str(progress.failure) == where
        assert delivered == answered and progress.written == len(delivered)
        assert len(delivered) == 4 or live and where == "read" and delivered[-1] == 3
    assert threading.active_count() == before


def test_an_error_in_the_main_thread_ends_the_others():
    def show(progress: Progress) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        FramePipeline(FakeSource(None), lambda frame: frame.index, lambda index: None, stop=threading.Event()).run(show)
    assert threading.active_count() == before


def test_handing_over():
    latest: HandOver[int] = HandOver(2, latest=True)
    assert all(latest.put(number) for number in range(5))
    assert latest.dropped == 3 and latest.get() == 3
    latest.finish()
    assert not latest.put(9) and latest.get() == 4 and latest.get() is None
    full: HandOver[int] = HandOver(1, latest=True)
    assert full.put(1)
    full.finish()
    assert not full.put(2) and full.dropped == 0 and full.get() == 1
    left: HandOver[int] = HandOver(2)
    assert left.put(1)
    left.abandon()
    assert left.get() is None and left.dropped == 1 and not left.put(2)
    with pytest.raises(ValueError, match="room for at least 1"):
        HandOver(0)


def test_the_summary_says_what_was_measured():
    progress = Progress(read=12, answered=10, dropped=2, written=10, seconds=4.0)
    progress.waits.extend([0.001, 0.002, 0.003])
    progress.answering.extend([0.010])
    progress.delivering.extend([0.004, 0.004])
    assert progress.summary() == [
        "frames: 12 read, 10 answered, 2 dropped", "end to end: 2.5 FPS (10 frames in 4.00 s)",
        "milliseconds (p50 / p90): capture wait 2.0 / 2.8  inference 10.0 / 10.0  drawing and writing 4.0 / 4.0"]
