"""Recorded bags: ROS 2's (mcap, sqlite3) and ROS 1's in, ROS 2's out, without ROS (package rosbags)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from deploy.ros.pipeline import reason
from deploy.ros.types import COMPRESSED_IMAGE, IMAGE, STRING, WRITTEN, type_store
from talent.errors import UserError, suggest
from talent.files import atomic_directory, atomic_write
from talent.require import require

METADATA = "metadata.yaml"  # in the directory of a ROS 2 bag
_PICTURES = (IMAGE, COMPRESSED_IMAGE)
_VERSION = 8  # of the metadata: the newest that Humble reads, and Jazzy reads it too


class BagReader:
    """A bag that `open_bag` opened."""

    def __init__(self, path: Path, reader: Any, store: Any) -> None:
        self.path = path
        self._reader = reader
        self._store = store

    @property
    def connections(self) -> list[Any]:
        """What rosbags calls so: a topic with its type, as one publisher offered it."""
        return self._reader.connections

    @property
    def is_ros1(self) -> bool:
        return not self._reader.is2

    def image_topic(self, wanted: str | None) -> str:
        """The topic of the pictures; `wanted`, or the only one there is.

        Raises UserError where there is none, where there are several, and for one that is not of pictures.
        """
        counts: dict[str, int] = {}
        for connection in self.connections:
            if connection.msgtype in _PICTURES:
                counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
        if wanted is not None:
            self._check_topic(wanted, _PICTURES)
            topics = [wanted]
        else:
            topics = [topic for topic, count in counts.items() if count]
        if len(topics) > 1:
            listed = ", ".join(f"{topic} ({counts[topic]})" for topic in sorted(topics))
            raise UserError(f"expected one topic with pictures in {self.path}, received {len(topics)}: {listed}; "
                            "choose one with --topic")
        if not topics or not counts[topics[0]]:
            raise UserError(f"the bag {self.path} has no pictures{f' on {wanted}' if wanted else ''}: expected "
                            f"messages of {IMAGE} or {COMPRESSED_IMAGE}, received {self._listed()}")
        return topics[0]

    def check_text_topic(self, topic: str) -> None:
        """Raises UserError where a topic is not there or not of std_msgs/String."""
        self._check_topic(topic, (STRING,))

    def _check_topic(self, topic: str, types: Collection[str]) -> None:
        found = {connection.msgtype for connection in self.connections if connection.topic == topic}
        if not found:
            raise UserError(f"no topic {topic!r} in the bag {self.path}"
                            + suggest(topic, (connection.topic for connection in self.connections)))
        if not found <= set(types):
            raise UserError(f"expected messages of {' or '.join(types)} on {topic}, received "
                            f"{', '.join(sorted(found))}")

    def _listed(self) -> str:
        topics = sorted({f"{connection.topic} ({connection.msgtype})" for connection in self.connections})
        return ", ".join(topics) or "no topic at all"

    def count(self, topic: str) -> int:
        """How many messages a topic has."""
        return sum(connection.msgcount for connection in self.connections if connection.topic == topic)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[tuple[Any, int, bytes]]:
        """(connection, nanoseconds, serialised message) in the order of time; of all topics, or of some.

        Raises UserError where the bag is damaged.
        """
        wanted = [connection for connection in self.connections if topics is None or connection.topic in topics]
        try:
            yield from self._reader.messages(wanted)
        except Exception as error:  # of the storage, of its compression, or of what unpacks numbers
            raise _damaged(self.path, error) from error

    def deserialise(self, connection: Any, data: bytes) -> Any:
        """A serialised message as an object. Raises UserError where it does not fit its type."""
        try:
            return self._reader.deserialize(data, connection.msgtype)
        except Exception as error:  # wrong lengths and texts come out as many kinds of errors
            raise UserError(f"expected a message of {connection.msgtype} on {connection.topic}, received {len(data)} "
                            f"bytes that are none: {reason(error)}") from error

    def why_not_copied(self, connection: Any) -> str | None:
        """What hinders that a topic goes into another bag as it is; None where nothing does."""
        if self.is_ros1:
            return "it is of ROS 1; run rosbags-convert first"
        known = self._reader.typestore
        if connection.msgtype not in known.fielddefs:
            return f"the bag does not define its type {connection.msgtype}"
        if (connection.msgtype in WRITTEN
                and known.hash_rihs01(connection.msgtype) != self._store.hash_rihs01(connection.msgtype)):
            return f"its type {connection.msgtype} is of another version"
        return None

    @property
    def types(self) -> Any:
        """The rosbags Typestore of the bag's own messages."""
        return self._reader.typestore


@contextlib.contextmanager
def open_bag(path: str | Path) -> Iterator[BagReader]:
    """A bag to read: .mcap, .db3, the directory that `ros2 bag record` writes, or ROS 1's .bag.

    Raises UserError where there is none or where it is damaged, and where rosbags is not installed.
    """
    highlevel = require("rosbags.highlevel", extra="ros")
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such bag: {path}")
    if path.is_dir() and not (path / METADATA).is_file():
        raise UserError(f"expected a bag, received the directory {path} without a {METADATA}; after a crash run: "
                        f"ros2 bag reindex {path}")
    store = type_store()
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(highlevel.AnyReader([path], default_typestore=store))
        except Exception as error:  # of the storage, of YAML, or of what unpacks numbers
            raise _damaged(path, error) from error
        yield BagReader(path, reader, store)


def _damaged(path: Path, error: Exception) -> UserError:
    advice = f"if the recording was cut off, run: mcap recover {path} -o recovered.mcap"
    return UserError(f"cannot read the bag {path}: {reason(error)}" + (f"; {advice}" if path.suffix == ".mcap" else ""))


def check_output(path: Path, source: Path, *, force: bool) -> None:
    """Raise UserError for a name that is none of a bag, and where an older bag would be lost without `force`."""
    if path.suffix not in ("", ".mcap"):
        raise UserError(f"expected the output to end in .mcap (one file) or in nothing (a directory with sqlite3), "
                        f"received {path}")
    if path.resolve() == source.resolve():
        raise UserError(f"will not overwrite the bag {source} with the answers; name another one")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; name another one, or replace it with --force")



class BagWriter:
    """A bag that `write_bag` writes. types: the rosbags Typestore of the messages that it makes."""

    def __init__(self, writer: Any, types: Any) -> None:
        self._writer = writer
        self.types = types
        self._connections: dict[tuple[str, str, str], Any] = {}

    def write(self, topic: str, kind: str, nanoseconds: int, message: Any) -> None:
        """A message object of `types`."""
        data = self.types.serialize_cdr(message, kind)
        self._writer.write(self._connection(topic, kind, self.types), nanoseconds, data)

    def copy(self, connection: Any, types: Any, nanoseconds: int, data: bytes) -> None:
        """A message of another bag, as it is. types: that bag's."""
        profiles = connection.ext.offered_qos_profiles
        self._writer.write(self._connection(connection.topic, connection.msgtype, types, profiles), nanoseconds, data)

    def _connection(self, topic: str, kind: str, types: Any, profiles: Collection[Any] = ()) -> Any:
        key = (topic, kind, str(profiles))
        if key not in self._connections:
            self._connections[key] = self._writer.add_connection(topic, kind, typestore=types,
                                                                 offered_qos_profiles=list(profiles))
        return self._connections[key]


@contextlib.contextmanager
def write_bag(path: Path) -> Iterator[BagWriter]:
    """A bag to write: one .mcap file, compressed, or a directory with sqlite3, which every ROS 2 plays.

    It is at `path` when the block ends well, and nothing is when it raises. An older bag there is replaced: see
    `check_output`. Raises UserError where it cannot be written, before the block begins.
    """
    if path.suffix:
        with atomic_write(path) as temporary, tempfile.TemporaryDirectory(prefix=f".{path.stem}.",
                                                                          dir=path.parent) as folder:
            written = Path(folder) / path.stem  # rosbags names the file after its directory
            with _writer(written, "MCAP") as writer:
                yield writer
            os.replace(written / path.name, temporary)
    else:
        with atomic_directory(path, marker=METADATA) as temporary:
            written = temporary / path.resolve().name
            with _writer(written, "SQLITE3") as writer:
                yield writer
            for file in written.iterdir():
                os.replace(file, temporary / file.name)
            written.rmdir()


@contextlib.contextmanager
def _writer(directory: Path, storage: str) -> Iterator[BagWriter]:
    rosbag2 = require("rosbags.rosbag2", extra="ros")
    writer = rosbag2.Writer(directory, version=_VERSION, storage_plugin=rosbag2.StoragePlugin[storage])
    if storage == "MCAP":
        writer.set_compression(rosbag2.CompressionMode.STORAGE, rosbag2.CompressionFormat.ZSTD)
    with writer:
        yield BagWriter(writer, type_store())
