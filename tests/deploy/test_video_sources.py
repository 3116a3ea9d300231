"""Folders, recordings and live sources: which frames they give, in which order, and what they say when one is lost."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

from deploy.video.captures import Live, _public
from deploy.video.folder import Folder
from deploy.video.sources import is_picture, open_source
from talent.errors import UserError
from talent.image import save_image

GO_ON = threading.Event()  # never set


def grey(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def write_video(path, frames: int = 12, *, codec: str = "MJPG", fps: float = 10.0):
    """Frame i is grey, at level 20 i (below 240, then from 0 again), with a left half whose red is not its blue."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for index in range(frames):
        frame = grey(20 * index % 240)
        frame[:, :32] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
@pytest.mark.parametrize("stride", [1, 5])
def test_a_recording_gives_every_frame_or_every_stride_th(tmp_path, name, codec, stride):
    source = open_source(str(write_video(tmp_path / name, codec=codec)), stride=stride)
    frames = list(source.frames(GO_ON))
    assert not source.live and source.fps == 10 and source.length == len(frames) == len(range(0, 12, stride))
    assert [frame.index for frame in frames] == list(range(0, 12, stride))
    assert [frame.seconds for frame in frames] == [index / 10 for index in range(0, 12, stride)]
    for frame in frames:
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        assert abs(float(frame.image[24, 56].mean()) - 20 * frame.index) < 6  # the frame that the index says
        red, green, blue = frame.image[24, 8].astype(int)
        assert red > 200 and green < 60 and blue < 60
    assert source.complete and source.notes == []
    source.close()


def test_a_recording_that_ends_early_says_where(tmp_path):
    path = write_video(tmp_path / "a.avi", 30)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    source = open_source(str(path))
    frames = list(source.frames(GO_ON))
    assert 0 < len(frames) < 28 and not source.complete
    note, = source.notes
    assert note.endswith(f"ends after frame {len(frames)} of 30: what follows is damaged or missing")
    passing = open_source(str(path), stride=29)  # its end lies among the frames that are passed over
    assert len(list(passing.frames(GO_ON))) == 1 and passing.notes == source.notes


def test_stopping_a_recording_is_no_loss(tmp_path):
    source, stop = open_source(str(write_video(tmp_path / "a.avi"))), threading.Event()
    frames = source.frames(stop)
    next(frames)
    stop.set()
    assert list(frames) == [] and source.complete


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.txt").write_text("the red mug")
    whole = write_video(tmp_path / "whole.mp4", codec="mp4v")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-400])  # its index lies at the end
    for name in ("noise.mp4", "empty.mp4", "text.txt", "cut.mp4"):
        with pytest.raises(UserError, match=rf"cannot open .*{name}: expected a video file"):
            open_source(str(tmp_path / name))
    with pytest.raises(UserError, match="no such picture or video"):
        open_source(str(tmp_path / "none.mp4"))
    for number in ("9731", "99999999999", "9" * 5000):
        with pytest.raises(UserError, match=f"cannot open camera {number}: expected the number of a camera"):
            open_source(number)


def test_a_folder_is_in_natural_order_and_says_what_it_left_out(tmp_path):
    for number in (10, 9, 1):
        save_image(tmp_path / f"frame{number}.png", grey(number))
    (tmp_path / "frame2.JPG").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture, and nobody says so")
    (tmp_path / "folder.png").mkdir()
    source = Folder(tmp_path, fps=2.0)
    frames = list(source.frames(GO_ON))
    assert source.names == ["frame1.png", "frame2.JPG", "frame9.png", "frame10.png"] and source.length == 4
    assert [(frame.name, frame.index, frame.seconds) for frame in frames] == [
        ("frame1.png", 0, 0.0), ("frame9.png", 2, 1.0), ("frame10.png", 3, 1.5)]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 9, 10]
    note, = source.notes
    assert "left out: not a picture" in note and "frame2.JPG" in note and not source.complete
    assert Folder(tmp_path, stride=3).names == ["frame1.png", "frame10.png"]


def test_a_folder_leaves_out_what_is_too_large(tmp_path):
    save_image(tmp_path / "a.png", grey(1))
    save_image(tmp_path / "b.png", grey(2, (2, 33_000)))
    save_image(tmp_path / "c.png", grey(3))
    source = Folder(tmp_path)
    assert [frame.name for frame in source.frames(GO_ON)] == ["a.png", "c.png"]
    note, = source.notes
    assert note.startswith(f"left out: {tmp_path / 'b.png'}: expected a picture") and "[2, 33000, 3]" in note
    assert not source.complete


def test_a_folder_turns_pictures_upright(tmp_path):
    encoded = cv2.imencode(".jpg", grey(100, (40, 80)))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: a quarter turn
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "a.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
    frame, = Folder(tmp_path).frames(GO_ON)
    assert frame.image.shape == (80, 40, 3)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(UserError, match="expected a folder with pictures"):
        open_source(str(tmp_path))


def test_what_is_one_picture(tmp_path):
    save_image(tmp_path / "photo.png", grey(5))
    (tmp_path / "photo.png").rename(tmp_path / "photo")
    write_video(tmp_path / "a.avi")
    assert is_picture(str(tmp_path / "photo"))  # by its first bytes
    assert is_picture("missing.jpeg") and is_picture("MISSING.PNG")
    assert not is_picture("long" * 2000)
    for source in ("0", "rtsp://robot/stream.jpg", str(tmp_path), str(tmp_path / "a.avi"), "missing.mp4"):
        assert not is_picture(source)


def test_passwords_in_addresses_are_not_shown():
    assert _public("rtsp://me:secret@robot:554/left?x=1") == "rtsp://robot:554/left?x=1"
    with pytest.raises(UserError) as refused:
        open_source("nonsense://me:secret@robot/left")
    assert "nonsense://robot/left" in str(refused.value) and "secret" not in str(refused.value)


def test_addresses_that_are_none():
    for address in ("rtsp://[bad/x", "rtsp://me:sec[ret@robot/x", "rtsp://me:secret@ho\u2100st/x"):
        with pytest.raises(UserError, match=r"cannot open rtsp://\.\.\.: expected an address") as refused:
            open_source(address)
        assert "ret" not in str(refused.value)


class FakeCapture:
    """A capture that gives these frames, and then none. Opens with a first frame that Live does not keep."""

    name, fps, length = "camera 0", 30.0, None

    def __init__(self, levels: list[int]) -> None:
        self._frames = [grey(level) for level in levels]
        self.released = False

    def read(self) -> np.ndarray | None:
        assert not self.released
        return self._frames.pop(0) if self._frames else None

    def release(self) -> None:
        self.released = True


def test_a_live_source_is_opened_again_and_at_last_given_up():
    later = [FakeCapture([]), FakeCapture([3, 4])]
    opened = []

    def reopen() -> FakeCapture:
        if len(opened) == 2:
            raise UserError("it is unplugged")
        opened.append(later.pop(0))
        return opened[-1]

    first = FakeCapture([0, 1, 2])
    times = iter([10.0, 10.5, 12.0, 12.25])
    source = Live(first, reopen=reopen, waits=(0, 0), clock=lambda: next(times))
    frames = list(source.frames(GO_ON))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 3, 4]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.seconds for frame in frames] == [0.0, 0.5, 2.0, 2.25]
    assert first.released and all(capture.released for capture in opened)
    assert [note.split(" ", 2)[2] for note in source.notes] == [
        "gives no more frames; opening it again", "is back", "gives no more frames; opening it again",
        "is lost: opened 2 times in 0 s, no frame"]
    assert not source.complete


class StoppedMeanwhile(threading.Event):
    """Somebody sets it while somebody waits for it."""

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == 3600
        self.set()
        return True


def test_stopping_a_live_source_ends_the_waiting_for_it():
    source = Live(FakeCapture([0, 1]), reopen=lambda: pytest.fail("opened again"), waits=(3600,))
    assert len(list(source.frames(StoppedMeanwhile()))) == 1 and source.complete


def test_a_camera_that_gives_nothing():
    capture = FakeCapture([])
    with pytest.raises(UserError, match="opens but gives no frame"):
        Live(capture, reopen=lambda: capture)
    assert capture.released


def test_an_address_is_live_unless_its_length_is_known(tmp_path):
    jpeg = tmp_path / "stream.mjpeg"  # a stream's bytes have no length, and a file's have none in this format either
    jpeg.write_bytes(b"".join(cv2.imencode(".jpg", grey(20 * index))[1].tobytes() for index in range(6)))
    with pytest.raises(UserError, match=r"--stride 2: expected a recording or a folder, .* which is live"):
        open_source(f"file://{jpeg}", stride=2)
    live = open_source(f"file://{jpeg}")
    assert live.live and live.length is None
    live.close()
    for recording in (open_source(str(jpeg)), open_source(f"file://{write_video(tmp_path / 'a.avi')}")):
        assert not recording.live
        assert len(list(recording.frames(GO_ON))) == recording.length if recording.length else 6
