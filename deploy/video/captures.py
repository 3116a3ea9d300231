"""Recordings, cameras and streams, through OpenCV."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import cv2
import numpy as np

from deploy.video.frames import DEFAULT_FPS, Frame
from talent.errors import UserError

MOST_FPS = 240.0  # some containers tell their clock's rate instead
TIMEOUT = 5000  # milliseconds that a stream may be silent
RECONNECT_AFTER = (1.0, 2.0, 4.0)  # seconds before each attempt to open a live source again


class Capture:
    """An open cv2.VideoCapture. Frames are RGB and upright.

    name: the file, or the address without user and password. length: None where it is not known.
    """

    def __init__(self, capture: cv2.VideoCapture, *, name: str) -> None:
        self._capture = capture
        self.name = name
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = fps if 0 < fps <= MOST_FPS else DEFAULT_FPS
        self.length = round(count) if count >= 1 else None

    def read(self) -> np.ndarray | None:
        """The next frame, uint8 [H, W, 3] RGB; None where there is none."""
        done, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if done else None

    def skip(self) -> bool:
        """Pass over a frame. False where there is none."""
        return self._capture.grab()

    def release(self) -> None:
        self._capture.release()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from printing what an error of ours says. FFmpeg is asked once per process."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


def open_capture(source: str) -> Capture:
    """A file, an address or the number of a camera. Raises UserError where OpenCV cannot open it."""
    with quiet():
        if source.isdecimal() and not os.path.exists(source):
            capture, name = _open_camera(source), f"camera {source}"
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver can: older frames are of no use
            advice = ("expected the number of a camera that is plugged in and not in use; "
                      "see which there are: ls /dev/video*")
        elif "://" in source:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
            capture, name = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits), _public(source)
            advice = f"expected an address that answers within {TIMEOUT / 1000:.0f} s; try: ffplay {name}"
        else:
            capture, name = cv2.VideoCapture(source), source
            advice = "expected a video file that OpenCV reads, and a whole one; try: ffprobe " + source
        if not capture.isOpened():
            raise UserError(f"cannot open {name}: {advice}")
        return Capture(capture, name=name)


def _open_camera(number: str) -> cv2.VideoCapture:
    """Not an open one where there is none."""
    try:
        return cv2.VideoCapture(int(number))
    except (cv2.error, ValueError):  # more digits than OpenCV takes, or than Python does
        return cv2.VideoCapture()


def _public(address: str) -> str:
    """An address without user and password, which must not be seen on screens and in files. Raises UserError."""
    try:
        parts = urlsplit(address)
    except ValueError as error:  # the address is not told, since nobody knows which part of it is the password
        raise UserError(f"cannot open {address.partition(':')[0]}://...: expected an address with a name or number of "
                        "a host, such as rtsp://robot:554/left, received one whose host cannot be told; square "
                        "brackets are for IPv6 only, and in a password they are written %5B and %5D") from error
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Recording:
    """Every frame of a file, or every `stride`-th. `seconds` of a frame is its number over the frames per second.

    Raises UserError where the first frame cannot be read.
    """

    live = False

    def __init__(self, capture: Capture, *, name: str, stride: int = 1) -> None:
        self.name, self.fps = name, capture.fps
        self._capture, self._stride = capture, stride
        self._first = capture.read()
        if self._first is None:
            capture.release()
            raise UserError(f"{name}: expected a video, received a file of which no frame can be read; "
                            f"try: ffprobe {name}")
        self.length = None if capture.length is None else -(-capture.length // stride)
        self.notes: list[str] = []
        self.complete = True

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        index, image = 0, self._first
        while image is not None:
            if stop.is_set():
                return
            yield Frame(index=index, seconds=index / self.fps, image=image)
            passed = sum(1 for _ in range(self._stride - 1) if self._capture.skip())
            image = self._capture.read() if passed == self._stride - 1 else None
            index += 1 + passed
        self._check_end(index)

    def _check_end(self, read: int) -> None:
        """A container may only guess how many frames it has: a few less are no loss."""
        told = self._capture.length
        if told is not None and told - read > max(2, 0.02 * told):
            self.complete = False
            self.notes.append(f"{self.name} ends after frame {read} of {told}: what follows is damaged or missing")

    def close(self) -> None:
        self._capture.release()


class Live:
    """A camera or a stream. `seconds` of a frame is when it came, on the clock since the first one.

    Where it falls silent it is opened again, after each of `waits` seconds, and given up after the last. Raises
    UserError where no first frame comes. capture: an open one. reopen: opens another.
    """

    live = True
    length = None

    def __init__(self, capture: Capture, *, reopen: Callable[[], Capture], waits: Sequence[float] = RECONNECT_AFTER,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.fps = capture.name, capture.fps
        self._capture, self._reopen, self._waits, self._clock = capture, reopen, waits, clock
        if capture.read() is None:  # not kept: it will be old when the network is loaded
            capture.release()
            raise UserError(f"{self.name} opens but gives no frame; is another program using it?")
        self.notes: list[str] = []
        self.complete = True

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        start, index = None, 0
        while not stop.is_set():
            image = self._capture.read()
            if image is None:
                image = self._reconnect(stop)
                if image is None:
                    return
            now = self._clock()
            start = now if start is None else start
            yield Frame(index=index, seconds=now - start, image=image)
            index += 1

    def _reconnect(self, stop: threading.Event) -> np.ndarray | None:
        """The first frame after an interruption; None where none came, or where it should stop."""
        self.notes.append(f"{self.name} gives no more frames; opening it again")
        for wait in self._waits:
            self._capture.release()
            if stop.wait(wait):
                return None
            try:
                self._capture = self._reopen()
            except UserError:
                continue  # what it says was said when it fell silent
            image = self._capture.read()
            if image is not None:
                self.notes.append(f"{self.name} is back")
                return image
        self.complete = False
        self.notes.append(f"{self.name} is lost: opened {len(self._waits)} times in {sum(self._waits):g} s, no frame")
        return None

    def close(self) -> None:
        self._capture.release()
