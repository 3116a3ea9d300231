"""From the words on the command line to a source of pictures.

A recording and a folder give every picture, in order. A camera and a stream are live: they give what arrives, and who
is late takes the latest.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from deploy.video.captures import Live, Recording, open_capture
from deploy.video.folder import PICTURES, Folder
from deploy.video.frames import DEFAULT_FPS, Source
from talent.errors import UserError


def is_picture(source: str) -> bool:
    """Whether `source` names one picture, by its suffix or, where it is a file, by its first bytes."""
    if "://" in source or os.path.isdir(source):
        return False
    return Path(source).suffix.lower() in PICTURES or (os.path.isfile(source) and cv2.haveImageReader(source))


def open_source(source: str, *, stride: int = 1, fps: float | None = None) -> Source:
    """A folder, a file, an address (rtsp://, http://) or the number of a camera -> frames.

    stride: of a folder or a recording, take every so many-th frame. fps: of a folder. An address is live unless its
    length is known, as that of a file on a web server. Raises UserError for what is not there, is not a video or gives
    no frame, and for a stride where the source is live.
    """
    if os.path.isdir(source):  # and not Path's, which raises for names that are too long for files
        return Folder(source, stride=stride, fps=fps or DEFAULT_FPS)
    if os.path.isfile(source):
        return Recording(open_capture(source), name=source, stride=stride)
    if "://" not in source and not source.isdecimal() and not os.path.exists(source):
        raise UserError(f"no such picture or video: {source}; expected a picture, a video, a folder of pictures, the "
                        "number of a camera (0) or an address (rtsp://, http://)")
    capture = open_capture(source)
    if capture.length is not None:
        return Recording(capture, name=capture.name, stride=stride)
    if stride != 1:
        capture.release()
        raise UserError(f"--stride {stride}: expected a recording or a folder, received {capture.name}, which is live: "
                        "its latest frame is taken whenever the network is free; leave it out")
    return Live(capture, reopen=lambda: open_capture(source))
