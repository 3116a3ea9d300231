"""From a picture's CDR to the CDR of its mask, box and diagnostics, on a toy bundle, against the segmenter itself."""

from __future__ import annotations

import numpy as np
import pytest

from deploy import Segmenter
from deploy.ros.health import Health, Level
from deploy.ros.messages import bag_messages
from deploy.ros.pictures import ENCODINGS, rgb_picture
from deploy.ros.pipeline import Pipeline
from deploy.ros.types import WRITTEN, type_store
from talent.errors import UserError
from talent.image import overlay
from tests.deploy.ros_recordings import FRAME, STORE, compressed, image, pixels, through_cdr, values

NANOSECONDS = 1_700_000_000_123_456_789


@pytest.fixture
def segmenter(toy_bundle):
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        yield segmenter


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


MESSAGES = bag_messages(STORE)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_masks_equal_the_segmenters(segmenter, picture, encoding):
    message = through_cdr(image(picture, encoding=encoding, padding=7, nanoseconds=NANOSECONDS))
    wanted = segmenter("g", np.ascontiguousarray(rgb_picture(message)))
    answer = Pipeline(segmenter, sentence="g").answer(message)
    mask = through_cdr(MESSAGES.mask(answer))
    assert wanted.mask.any() and not wanted.mask.all()
    np.testing.assert_array_equal(pixels(mask), wanted.mask * np.uint8(255))
    assert (mask.encoding, mask.height, mask.width, mask.step, mask.is_bigendian) == ("mono8", 90, 150, 150, 0)
    assert mask.header == message.header and mask.header.frame_id == FRAME
    assert mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec == NANOSECONDS


def test_a_compressed_picture_is_answered_as_the_picture_itself(segmenter, picture):
    pipeline = Pipeline(segmenter, sentence="b")
    answers = [pipeline.answer(through_cdr(message)) for message in (image(picture), compressed(picture))]
    assert answers[0].result.box == answers[1].result.box is not None
    np.testing.assert_array_equal(answers[0].result.mask, answers[1].result.mask)


def test_a_box_in_pixels_and_the_sentence_as_class(segmenter, picture):
    answer = Pipeline(segmenter, sentence="g").answer(image(picture, nanoseconds=NANOSECONDS))
    message = through_cdr(MESSAGES.detections(answer))
    detection, = message.detections
    x0, y0, x1, y1 = answer.result.box
    assert detection.bbox.center.position.x - detection.bbox.size_x / 2 == x0
    assert detection.bbox.center.position.x + detection.bbox.size_x / 2 == x1
    assert detection.bbox.center.position.y - detection.bbox.size_y / 2 == y0
    assert detection.bbox.center.position.y + detection.bbox.size_y / 2 == y1
    assert detection.bbox.center.theta == 0
    result, = detection.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ("g", answer.result.score)
    assert message.header == detection.header == image(picture, nanoseconds=NANOSECONDS).header


def test_nothing_found_is_no_detection_and_a_black_mask(segmenter, picture):
    answer = Pipeline(segmenter, sentence="g").answer(image(np.zeros_like(picture)))
    assert answer.result.box is None
    assert through_cdr(MESSAGES.detections(answer)).detections == []
    assert not pixels(through_cdr(MESSAGES.mask(answer))).any()


def test_the_overlay_is_the_picture_with_the_object_marked(segmenter, picture):
    answer = Pipeline(segmenter, sentence="g").answer(through_cdr(image(picture, encoding="bgra8", padding=3)))
    message = through_cdr(MESSAGES.overlay(answer))
    assert (message.encoding, message.step) == ("rgb8", 450)
    np.testing.assert_array_equal(pixels(message), overlay(picture, answer.result.mask))


def test_a_sentence_changes_pauses_and_stays_when_the_next_is_bad(segmenter, picture):
    pipeline = Pipeline(segmenter)
    message = image(picture)
    assert pipeline.sentence == "" and pipeline.answer(message) is None
    boxes = []
    for sentence in ("r", "b"):
        pipeline.change_sentence(sentence)
        answer = pipeline.answer(message)
        assert answer.sentence == pipeline.sentence == sentence
        boxes.append(answer.result.box)
    assert boxes == [segmenter(sentence, picture).box for sentence in ("r", "b")] and boxes[0] != boxes[1]
    with pytest.raises(UserError, match="holds no words"):
        pipeline.change_sentence("&nbsp;")
    assert pipeline.answer(message).result.box == boxes[1]
    report = pipeline.report()
    assert report.level is Level.WARN and report.message.startswith("looking for 'b'; the last sentence was refused: ")
    assert "holds no words" in report.values["refused sentence"]
    pipeline.change_sentence(" \t")
    assert pipeline.answer(message) is None
    report = pipeline.report()
    assert report.level is Level.OK and report.message == "paused: there is no sentence"
    assert report.values["refused sentence"] == ""


def test_the_first_sentence_is_checked(segmenter):
    with pytest.raises(UserError, match="holds no words"):
        Pipeline(segmenter, sentence="&nbsp;")


def test_a_bad_picture_is_counted_and_does_not_hurt_the_next(segmenter, picture):
    pipeline = Pipeline(segmenter, sentence="r")
    wanted = pipeline.answer(image(picture)).result
    for bad, problem in ((image(picture, encoding="16UC1"), "received '16UC1'"),
                         (image(np.zeros((1, 33_000, 3), np.uint8)), "sides from 1 to 32766"),
                         (image(picture, data=np.zeros(3, np.uint8)), "received 3")):
        with pytest.raises(UserError, match=problem):
            pipeline.answer(bad)
        np.testing.assert_array_equal(pipeline.answer(image(picture)).result.mask, wanted.mask)
        assert problem in pipeline.health.last_refusal
    assert (pipeline.health.count("refused"), pipeline.health.count("answered")) == (3, 4)


def test_an_error_of_the_backend_is_told_with_its_kind(segmenter, picture, monkeypatch):
    pipeline = Pipeline(segmenter, sentence="r")
    original = segmenter.backend.vision
    monkeypatch.setattr(segmenter.backend, "vision", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.answer(image(picture))
    assert pipeline.health.last_refusal == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(segmenter.backend, "vision", original)
    assert pipeline.answer(image(picture)).result.mask.any()


def test_the_report_says_what_runs_and_how_fast(segmenter, picture, clock):
    pipeline = Pipeline(segmenter, sentence="g", clock=clock)
    for sentence in ("r", "g"):
        pipeline.change_sentence(sentence)
    for _ in range(3):
        assert pipeline.answer(image(picture)).result.mask.any()
    clock.now += 0.5
    report = pipeline.report()
    assert report.level is Level.OK and report.message == "looking for 'g'"
    assert report.values == {
        "pictures in": "3", "answered": "3", "dropped": "0", "paused": "0", "refused": "0", "last refusal": "",
        "refused sentence": "", "milliseconds p50": "0.0", "milliseconds p99": "0.0", "frames per second": "6.0",
        "sentence": "g", "backend": "onnxruntime", "precision": "fp32", "prompt hit rate": "0.33"}
    message = through_cdr(MESSAGES.diagnostics(report, name="talent: segmentation", nanoseconds=NANOSECONDS))
    status, = message.status
    assert (status.level, status.name, status.message) == (0, "talent: segmentation", "looking for 'g'")
    assert values(message) == report.values
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == divmod(NANOSECONDS, 10**9)


def test_levels(clock):
    health = Health(clock)

    def level(sentence: str = "the mug") -> tuple[Level, str]:
        report = health.report(sentence)
        return report.level, report.message

    assert level() == (Level.OK, "looking for 'the mug'")
    clock.now += 2
    assert level()[0] is Level.STALE and "no picture for 2 s" in level()[1]
    health.dropped()
    assert level()[0] is Level.OK
    health.refused("it is depth")
    assert level() == (Level.ERROR, "no picture could be used: it is depth")
    assert level()[0] is Level.OK  # that was told; since then there was none
    health.answered(5)
    health.refused("too few bytes")
    assert level() == (Level.WARN, "1 of 2 pictures could not be used: too few bytes")
    health.paused()
    assert level("") == (Level.OK, "paused: there is no sentence")
    clock.now += 2
    health.begin()
    assert level()[0] is Level.OK


def test_a_network_that_hangs_is_a_warning_and_then_an_error(clock):
    health = Health(clock)
    health.answered(30)
    levels = []
    for _ in range(6):  # seconds
        for _ in range(32):
            clock.now += 1 / 32
            health.dropped()
        levels.append(health.report("the mug").level)
    assert levels == [Level.OK, Level.OK, Level.WARN, Level.WARN, Level.WARN, Level.ERROR]
    report = health.report("the mug")
    assert report.level is Level.ERROR
    assert report.message.startswith("no answer for 6 s while pictures come; the network hangs or is too slow here")
    assert health.report("").level is Level.OK  # paused: there is nothing to answer
    health.answered(6000)
    assert health.report("the mug").level is Level.OK
    health.dropped()
    clock.now += 1.5
    assert health.report("the mug").level is Level.OK  # from the first picture that was overtaken since
    clock.now += 3
    assert health.report("the mug").level is Level.STALE  # no pictures come either
    health.dropped()
    health.begin()
    assert health.report("the mug").level is Level.OK


def test_pictures_left_out_by_the_rate_are_no_sign_of_a_slow_network(clock):
    health = Health(clock)
    health.answered(30)
    for _ in range(100):
        clock.now += 0.1
        health.dropped(by_rate=True)
    assert health.report("the mug").level is Level.OK and health.count("dropped") == 100


def test_times_and_rates(clock):
    health = Health(clock)
    for milliseconds in range(1, 102):
        health.answered(milliseconds)
    for _ in range(9):
        health.dropped()
    clock.now += 4
    report = health.report("")
    assert (report.values["milliseconds p50"], report.values["milliseconds p99"]) == ("51.0", "100.0")
    assert (report.values["frames per second"], report.values["pictures in"]) == ("25.2", "110")
    clock.now += 1
    report = health.report("")
    assert (report.values["frames per second"], report.values["milliseconds p50"]) == ("0.0", "51.0")


def test_the_types_are_those_of_humble_and_of_jazzy():
    humble, jazzy = type_store("humble"), type_store("jazzy")
    for kind in WRITTEN:
        assert humble.hash_rihs01(kind) == jazzy.hash_rihs01(kind)
        assert humble.generate_msgdef(kind, ros_version=2) == jazzy.generate_msgdef(kind, ros_version=2)
