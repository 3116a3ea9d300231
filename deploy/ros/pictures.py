"""Pictures out of ROS messages: sensor_msgs/Image and sensor_msgs/CompressedImage of any library, by their fields."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from talent.errors import UserError

_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1, "rgba8": 4, "bgra8": 4}
_TO_RGB = {"bgr8": cv2.COLOR_BGR2RGB, "mono8": cv2.COLOR_GRAY2RGB, "rgba8": cv2.COLOR_RGBA2RGB,
           "bgra8": cv2.COLOR_BGRA2RGB}
ENCODINGS = tuple(_CHANNELS)
_EXPECTED = f"expected a picture in {', '.join(ENCODINGS[:-1])} or {ENCODINGS[-1]}"


def rgb_picture(message: Any) -> np.ndarray:
    """An Image or CompressedImage message -> uint8 [H, W, 3] RGB, which may share the message's memory.

    The message may come from rclpy or rosbags: its data is anything with a buffer of bytes. Rows may be longer than
    their pixels (`step`). Raises UserError for another encoding, such as 16UC1, and for data that does not fit its
    description.
    """
    return _decode(message) if hasattr(message, "format") else _view(message)


def _bytes(message: Any) -> np.ndarray:
    """The message's data as uint8 [N], not copied."""
    try:
        return np.frombuffer(message.data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise UserError(f"expected the data of a picture as bytes, received {type(message.data).__name__}: {error}"
                        ) from error


def _view(message: Any) -> np.ndarray:
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in _CHANNELS:
        raise UserError(f"{_EXPECTED}, received {encoding!r}; choose the topic of a colour or grey camera with 8 bits "
                        "per channel")
    row = width * _CHANNELS[encoding]
    if height < 1 or width < 1 or step < row:
        raise UserError(f"expected at least one pixel, and a step of at least {row} bytes for {width} pixels of "
                        f"{encoding}, received {width} x {height} pixels and a step of {step} bytes")
    data = _bytes(message)
    if data.size != height * step:
        raise UserError(f"expected {height * step} bytes of data for {height} rows of {step} bytes, received "
                        f"{data.size}; the sender of this picture is at fault")
    picture = np.ndarray((height, width, _CHANNELS[encoding]), np.uint8, data, strides=(step, _CHANNELS[encoding], 1))
    return cv2.cvtColor(picture, _TO_RGB[encoding]) if encoding in _TO_RGB else picture


def _decode(message: Any) -> np.ndarray:
    data = _bytes(message)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error:  # a broken header can claim a size that OpenCV refuses
        bgr = None
    if bgr is None:
        raise UserError(f"expected a picture compressed as JPEG or PNG, received {data.size} bytes of "
                        f"{message.format!r} that OpenCV cannot read")
    if bgr.dtype != np.uint8:
        raise UserError(f"expected a compressed picture with 8 bits per channel, received {bgr.dtype} in "
                        f"{message.format!r}; choose the topic of a colour or grey camera")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
