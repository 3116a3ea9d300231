"""Messages and bags as a robot would record them, serialised as CDR by rosbags."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from deploy.ros.types import COMPRESSED_IMAGE, IMAGE, STRING, type_store

STORE = type_store()
FRAME = "camera_optical"
TENTH = 100_000_000  # nanoseconds
CODES = {"bgr8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_RGB2GRAY, "rgba8": cv2.COLOR_RGB2RGBA,
         "bgra8": cv2.COLOR_RGB2BGRA}


def make(kind: str, /, **fields: Any) -> Any:
    return STORE.types[kind](**fields)


def header(nanoseconds: int = 0) -> Any:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return make("std_msgs/msg/Header", stamp=make("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest),
                frame_id=FRAME)


def image(picture: np.ndarray, *, encoding: str = "rgb8", padding: int = 0, nanoseconds: int = 0,
          **changes: Any) -> Any:
    """uint8 [H, W, 3] RGB as an Image, `padding` bytes of noise after each row. changes: of its fields."""
    pixels = cv2.cvtColor(picture, CODES[encoding]) if encoding in CODES else picture
    rows = pixels.reshape(len(picture), -1)  # [H, W * C]
    noise = np.random.default_rng(0).integers(0, 256, (len(rows), padding), np.uint8)
    data = np.concatenate([rows, noise], axis=1)
    fields = {"header": header(nanoseconds), "height": len(picture), "width": picture.shape[1], "encoding": encoding,
              "is_bigendian": 0, "step": data.shape[1], "data": data.reshape(-1)}
    return make(IMAGE, **{**fields, **changes})


def compressed(picture: np.ndarray, *, suffix: str = ".png", nanoseconds: int = 0, name: str = "png") -> Any:
    """uint8 [H, W, 3] RGB, or [H, W] of any depth, as a CompressedImage."""
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return make(COMPRESSED_IMAGE, header=header(nanoseconds), format=name, data=data.reshape(-1))


def text(sentence: str) -> Any:
    return make(STRING, data=sentence)


def through_cdr(message: Any) -> Any:
    """What another program receives."""
    kind = message.__msgtype__
    return STORE.deserialize_cdr(STORE.serialize_cdr(message, kind), kind)


def record(path: Path, messages: Iterable[tuple[str, int, Any]], *, storage: str = "MCAP", compression: str = "NONE",
           topics: Iterable[tuple[str, str]] = ()) -> Path:
    """A bag of (topic, nanoseconds, message). topics: (name, type) that have no message. path: a directory's, or ends
    in .mcap for a file."""
    directory = path.with_suffix("")
    writer = Writer(directory, version=8, storage_plugin=StoragePlugin[storage])
    writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in topics}
        for topic, nanoseconds, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], nanoseconds, STORE.serialize_cdr(message, kind))
    return directory / path.name if path.suffix else directory


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """(nanoseconds, message) by topic, with nothing but what the bag itself says of its types."""
    with AnyReader([path]) as reader:
        found: dict[str, list[tuple[int, Any]]] = {connection.topic: [] for connection in reader.connections}
        for connection, nanoseconds, data in reader.messages():
            found[connection.topic].append((nanoseconds, reader.deserialize(data, connection.msgtype)))
    return found


def pixels(message: Any) -> np.ndarray:
    """The uint8 [H, W] of an Image in mono8, or [H, W, 3] of one in rgb8."""
    shape = {"mono8": (message.height, message.width), "rgb8": (message.height, message.width, 3)}[message.encoding]
    return np.frombuffer(message.data, np.uint8).reshape(shape)


def values(message: Any) -> dict[str, str]:
    """Of the one status of a DiagnosticArray."""
    status, = message.status
    return {pair.key: pair.value for pair in status.values}
