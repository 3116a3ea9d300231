"""What is drawn on a frame, and the files that are written: whole, in their place, or not there at all."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from deploy.runtime.segmenter import Segmentation
from deploy.video.answering import Answer
from deploy.video.drawing import BOX_COLOR, draw
from deploy.video.frames import Frame
from deploy.video.lettering import Lettering
from deploy.video.outputs import answer_lines, answer_record, picture_folder
from deploy.video.video_file import check_video, fit, video_file
from talent.errors import UserError
from talent.image import Letterbox, bounding_box

LONG = "the small red ceramic mug with the white handle that stands on the left side of the wooden table"


def answer_of(mask: np.ndarray, score: float = 0.75) -> Segmentation:
    box = bounding_box(mask)
    return Segmentation(mask=mask, box=box, score=score if box else 0.0, logits=np.zeros((2, 2), np.float32),
                        letterbox=Letterbox(*mask.shape, 64))


def grey(height: int, width: int, level: int = 120) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def square(height: int, width: int, *, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:top + side, left:left + side] = True
    return mask


def changed(picture: np.ndarray, image: np.ndarray) -> tuple[int, int, int, int] | None:
    return bounding_box((picture != image).any(axis=2))


def test_mask_box_and_caption_are_drawn_and_the_frame_stays():
    image, mask = grey(480, 640), square(480, 640, top=200, left=300, side=100)
    before = image.copy()
    picture = draw(image, "the red mug", answer_of(mask), fps=24.0)
    assert np.array_equal(image, before) and picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture[250, 350] != 120).any()  # the tint
    assert tuple(picture[197, 350]) == BOX_COLOR and tuple(picture[350, 350]) == (120, 120, 120)
    caption = picture[:150]
    assert (caption.max(axis=2) > 220).any() and (caption.max(axis=2) < 60).any()  # letters on a dark panel
    assert not np.array_equal(caption, draw(image, "the blue cup", answer_of(mask), fps=24.0)[:150])
    assert not np.array_equal(caption, draw(image, "the red mug", answer_of(mask, 0.31), fps=24.0)[:150])
    assert not np.array_equal(caption, draw(image, "the red mug", answer_of(mask), fps=12.0)[:150])
    assert np.array_equal(picture[400:], image[400:])


def test_nothing_found_and_paused():
    image = grey(480, 640)
    nothing = draw(image, "the red mug", answer_of(np.zeros((480, 640), bool)))
    assert changed(nothing, image)[3] < 160 and not (nothing == BOX_COLOR).all(axis=2).any()
    paused = draw(image, None, None)
    assert np.array_equal(paused, image) and paused is not image


def test_the_caption_makes_room_for_an_object_at_the_top():
    image = grey(480, 640)
    for top, at_top in ((5, False), (300, True)):
        picture = draw(image, "the red mug", answer_of(square(480, 640, top=top, left=10, side=120)))
        panel = (picture == round(0.35 * 120)).all(axis=2)
        assert panel[:150].any() == at_top and panel[-150:].any() != at_top


@pytest.mark.parametrize("opencv", ["5", "4"])
@pytest.mark.parametrize("shape", [(720, 1280), (120, 160), (300, 80), (48, 64), (20, 900), (1, 1)])
def test_captions_stay_inside_a_third_of_any_frame(monkeypatch, shape, opencv):
    if opencv == "4":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    from deploy.video import drawing

    drawing._lettering.cache_clear()
    image = grey(*shape)
    picture = draw(image, LONG, answer_of(np.zeros(shape, bool)), fps=1234.5)
    drawing._lettering.cache_clear()
    box = changed(picture, image)
    if box is not None:
        assert box[3] <= shape[0] / 3 + shape[0] / 20 and box[2] < shape[1] and box[0] > 0 and box[1] > 0
    assert (box is None) == (shape[0] < 80)


@pytest.mark.parametrize("opencv", ["5", "4"])
def test_lines_are_broken_between_words_and_shortened(monkeypatch, opencv):
    if opencv == "4":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    lettering = Lettering(30)
    assert lettering.fit("the  red\tmug\n", 10_000, lines=2) == ["the red mug"]
    width = lettering.width(LONG) // 3
    lines = lettering.fit(LONG, width, lines=5)
    assert " ".join(lines) == LONG and 3 <= len(lines) <= 5
    assert all(lettering.width(line) <= width for line in lines)
    first, second = lettering.fit(LONG, width, lines=2)
    assert first == lines[0] and second.endswith(lettering.ellipsis) and lettering.width(second) <= width
    assert LONG.startswith(f"{first} {second.removesuffix(lettering.ellipsis)}")
    word = "x" * 60
    broken = lettering.fit(word, lettering.width(word) // 2, lines=4)
    assert "".join(broken) == word and len(broken) > 1
    assert lettering.fit("mug", 1, lines=1) == [] and lettering.fit("", 100, lines=1) == []


def test_text_that_is_not_ascii(monkeypatch):
    def drawn(text: str) -> np.ndarray:
        canvas = grey(60, 400, 0)
        Lettering(40).put(canvas, text, left=10, top=10, color=(255, 255, 255))
        return canvas

    if hasattr(cv2, "FontFace"):
        assert not np.array_equal(drawn("\u0440\u043e\u0437\u0430"), drawn("????"))
        assert not np.array_equal(drawn("\u8d64"), drawn("?"))
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    assert np.array_equal(drawn("\u0440\u043e\u0437\u0430"), drawn("????")) and drawn("????").any()


def read_video(path) -> tuple[list[np.ndarray], float]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_a_video_has_every_frame_its_rate_and_its_colours(tmp_path, suffix, size):
    path = tmp_path / f"out{suffix}"
    check_video(path)
    with video_file(path, fps=12.5) as video:
        for level in range(0, 200, 20):
            image = grey(*size, level)
            image[:, :32, 0] = 250
            video.write(image, seconds=0)
            assert not path.exists()
    frames, fps = read_video(path)
    assert fps == 12.5 and len(frames) == 10 == video.written
    for level, frame in zip(range(0, 200, 20), frames, strict=True):
        assert frame.shape[0] - size[0] in (0, 1) and frame.shape[1] - size[1] in (0, 1)  # none is cut
        assert abs(float(frame[10:, 50:].mean()) - level) < 8
        assert frame[24, 8, 0] > 200 and abs(int(frame[24, 8, 2]) - level) < 25
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), video_file(path, fps=10) as video:
        video.write(grey(48, 64), seconds=0)
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_video_whose_bytes_did_not_get_to_the_disk_is_an_error(tmp_path):
    path = tmp_path / "out.mp4"
    with pytest.raises(UserError, match="20 frames were written and 0 are in the file; is the disk full"):
        with video_file(path, fps=10) as video:
            for _ in range(20):
                video.write(grey(48, 64), seconds=0)
            video.release()
            part, = tmp_path.iterdir()
            part.write_bytes(part.read_bytes()[:200])
    assert not list(tmp_path.iterdir())


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    with video_file(tmp_path / "out.avi", fps=10) as video:
        video.write(grey(40, 80), seconds=0)
        video.write(grey(80, 80, 250), seconds=0)
    assert video.fitted == 1
    (first, second), _ = read_video(tmp_path / "out.avi")
    assert first.shape == second.shape == (40, 80, 3)
    assert second[20, 40].min() > 230 and second[20, 10].max() < 20 and second[20, 70].max() < 20
    assert fit(grey(30, 10), (90, 60)).shape == (60, 90, 3)
    assert np.flatnonzero(fit(grey(30, 10), (90, 60)).any(axis=(0, 2))).tolist() == list(range(35, 55))


def test_a_live_video_runs_at_the_speed_of_the_world(tmp_path):
    """Frames that came at 0, 0.1, 0.5 and 0.51 s, at 10 frames a second: the third is late, the fourth is too many."""
    with video_file(tmp_path / "out.avi", fps=10, live=True) as video:
        for level, seconds in ((0, 3.0), (60, 3.1), (120, 3.5), (180, 3.51), (240, 3.6)):
            video.write(grey(48, 64, level), seconds)
    frames, _ = read_video(tmp_path / "out.avi")
    levels = [round(float(frame.mean()) / 60) for frame in frames]
    assert levels == [0, 1, 2, 2, 2, 2, 4]


def test_videos_that_cannot_be_written(tmp_path):
    for name, codec, message in [("out.mov", None, "unknown video type '.mov'; expected one of .mp4, .avi, .mkv"),
                                 ("out", None, "unknown video type"), ("no/out.mp4", None, "mkdir -p"),
                                 ("out.mp4", "ABCD", "cannot write .mp4 with the codec ABCD; leave --codec out"),
                                 ("out.mp4", "h264!", "--codec: expected four letters")]:
        with pytest.raises(UserError) as refused:
            check_video(tmp_path / name, codec)
        assert message in str(refused.value)
    with pytest.raises(UserError, match="refuses 64 x 48 pixels at 90000 frames per second"):
        with video_file(tmp_path / "out.mp4", fps=90000) as video:
            video.write(grey(48, 64), seconds=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_pictures(tmp_path):
    colour = grey(6, 8)
    colour[..., 0] = 9
    with picture_folder(tmp_path / "out") as folder:
        folder.write("a.png", colour)
        folder.write("b.png", colour[..., 0])
        assert not (tmp_path / "out").exists()
    assert cv2.imread(str(tmp_path / "out" / "a.png"))[0, 0].tolist() == [120, 120, 9]
    assert cv2.imread(str(tmp_path / "out" / "b.png"), cv2.IMREAD_UNCHANGED).shape == (6, 8)
    with pytest.raises(UserError, match="is not empty; name another one"):
        with picture_folder(tmp_path / "out"):
            pytest.fail("entered")
    with pytest.raises(UserError, match="c.jpg: .*File name too long|No such file"), \
            picture_folder(tmp_path / "new") as folder:
        folder.write("c" * 300 + "c.jpg", colour)
    assert not (tmp_path / "new").exists()


def test_answers_as_lines_of_json(tmp_path):
    mask = square(48, 64, top=10, left=20, side=8)
    found = Answer(Frame(3, 0.3, grey(48, 64)), "die gr\u00fcne Tasse", answer_of(mask, 0.5))
    nothing = Answer(Frame(4, 1 / 3, grey(48, 64), "b.png"), "r", answer_of(np.zeros((48, 64), bool)))
    paused = Answer(Frame(5, 0.5, grey(48, 64)), None, None)
    path = tmp_path / "answers.jsonl"
    with answer_lines(path, {"bundle": "toy"}) as lines:
        for answer in (found, nothing, paused):
            lines.write(answer)
        assert not path.exists()
    assert "gr\u00fcne" in path.read_text("utf-8")
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"bundle": "toy"},
        {"frame": 3, "seconds": 0.3, "sentence": "die gr\u00fcne Tasse", "box": [20, 10, 28, 18], "score": 0.5},
        {"frame": 4, "seconds": 0.333333, "sentence": "r", "box": None, "score": 0.0, "picture": "b.png"},
        {"frame": 5, "seconds": 0.5, "sentence": None, "box": None, "score": None}]
    assert answer_record(paused)["score"] is None
