"""Find what a sentence means in every picture of a recorded ROS bag, and write a bag with the answers."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from deploy.backend_options import add_backend_options, open_segmenter
from deploy.ros.bags import BagReader, BagWriter, check_output, open_bag, write_bag
from deploy.ros.health import Health
from deploy.ros.messages import bag_messages
from deploy.ros.pipeline import Pipeline
from deploy.ros.types import DETECTIONS, DIAGNOSTICS, IMAGE
from talent.errors import UserError, command
from talent.require import require

EXAMPLE = """\
examples:
  talent-bag in.mcap "the red mug on the left" -o out.mcap --bundle bundle/
  talent-bag recording/ --prompt-topic /prompt --topic /camera/image_raw -o answers --copy
"""
ANSWERS = ("mask", "detections", "diagnostics", "overlay")
SECOND = 1_000_000_000  # nanoseconds


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="talent-bag", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path, help="recording: .mcap, .db3, a ROS 2 bag's directory, or ROS 1's .bag")
    parser.add_argument("sentence", nargs="?", default="", help="what to look for; may be left out with --prompt-topic")
    parser.add_argument("-o", "--output", type=Path, metavar="BAG", required=True,
                        help="bag to write: out.mcap (one file, compressed) or a directory (sqlite3)")
    parser.add_argument("--bundle", type=Path, default=Path("bundle"), metavar="DIRECTORY",
                        help="what talent-export wrote (default: %(default)s)")
    parser.add_argument("--topic",
                        help="topic of the pictures, sensor_msgs Image or CompressedImage (default: the only one)")
    parser.add_argument("--prompt-topic", metavar="TOPIC",
                        help="topic of sentences, std_msgs String; each holds from its time on, an empty one pauses")
    parser.add_argument("--namespace", default="/talent",
                        help="before the topics mask, detections, diagnostics, overlay (default: %(default)s)")
    parser.add_argument("--overlay", action="store_true", help="also write the pictures with the object marked")
    parser.add_argument("--copy", action="store_true", help="also write what the recording holds")
    parser.add_argument("--force", action="store_true", help="replace an older bag")
    add_backend_options(parser)
    return parser


class Recorder:
    """Goes through a recording and writes an answer to every picture at the picture's time, and once in a second of the
    recording how it goes.

    topic: of the pictures. prompt_topic: of the sentences, None for none. namespace: before the names of the answers'
    topics. copied: topics that are written as they are.
    """

    def __init__(self, bag: BagReader, out: BagWriter, pipeline: Pipeline, *, topic: str, prompt_topic: str | None,
                 namespace: str, overlay: bool, copied: Collection[str]) -> None:
        self._bag = bag
        self._out = out
        self._pipeline = pipeline
        self._messages = bag_messages(out.types)
        self._topic = topic
        self._prompt_topic = prompt_topic
        self._namespace = namespace
        self._overlay = overlay
        self._copied = copied
        self._next_report: int | None = None  # nanoseconds
        self.refused_sentences: list[str] = []

    def run(self) -> None:
        """The whole recording. Raises UserError where no picture could be used, and where the bag is damaged."""
        tqdm = require("tqdm", extra="ros").tqdm
        topics = {self._topic, *filter(None, [self._prompt_topic]), *self._copied}
        nanoseconds = 0
        with tqdm(total=self._bag.count(self._topic), desc=self._topic, unit="picture", leave=False,
                  disable=None) as bar:
            for connection, nanoseconds, data in self._bag.messages(topics):
                if connection.topic in self._copied:
                    self._out.copy(connection, self._bag.types, nanoseconds, data)
                if connection.topic == self._prompt_topic:
                    self._sentence(connection, data)
                elif connection.topic == self._topic:
                    self._picture(connection, nanoseconds, data)
                    bar.update()
        health = self._pipeline.health
        if health.count("refused") and not health.count("answered"):
            raise UserError(f"none of the pictures on {self._topic} could be used: {health.last_refusal}")
        self._report(nanoseconds)

    def _sentence(self, connection: Any, data: bytes) -> None:
        try:
            self._pipeline.change_sentence(self._bag.deserialise(connection, data).data)
        except UserError as error:  # the old one stays
            self.refused_sentences.append(str(error))

    def _picture(self, connection: Any, nanoseconds: int, data: bytes) -> None:
        if self._next_report is None:
            self._next_report = nanoseconds + SECOND
        elif nanoseconds >= self._next_report:
            self._report(nanoseconds)
            self._next_report = nanoseconds + SECOND
        try:
            message = self._bag.deserialise(connection, data)
        except UserError as error:
            self._pipeline.health.refused(str(error))
            return
        try:
            answer = self._pipeline.answer(message)
        except UserError:  # the pipeline has counted it
            return
        if answer is None:
            return
        self._write("mask", IMAGE, nanoseconds, self._messages.mask(answer))
        self._write("detections", DETECTIONS, nanoseconds, self._messages.detections(answer))
        if self._overlay:
            self._write("overlay", IMAGE, nanoseconds, self._messages.overlay(answer))

    def _report(self, nanoseconds: int) -> None:
        message = self._messages.diagnostics(self._pipeline.report(), name="talent: segmentation",
                                             nanoseconds=nanoseconds)
        self._write("diagnostics", DIAGNOSTICS, nanoseconds, message)

    def _write(self, name: str, kind: str, nanoseconds: int, message: Any) -> None:
        self._out.write(f"{self._namespace}/{name}", kind, nanoseconds, message)


@command("talent-bag")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.sentence.strip() and not arguments.prompt_topic:
        raise UserError('expected a sentence that names an object, or --prompt-topic, received neither; for example '
                        '"the red mug"')
    namespace = _namespace(arguments.namespace)
    check_output(arguments.output, arguments.bag, force=arguments.force)
    with open_bag(arguments.bag) as bag:
        topic = bag.image_topic(arguments.topic)
        if arguments.prompt_topic:
            bag.check_text_topic(arguments.prompt_topic)
        copied, left_out = _copied(bag, namespace) if arguments.copy else (set(), {})
        with (write_bag(arguments.output) as out,
              open_segmenter(arguments.bundle, arguments) as segmenter):
            pipeline = Pipeline(segmenter, sentence=arguments.sentence)
            recorder = Recorder(bag, out, pipeline, topic=topic, prompt_topic=arguments.prompt_topic,
                                namespace=namespace, overlay=arguments.overlay, copied=copied)
            start = time.perf_counter()
            recorder.run()
            seconds = time.perf_counter() - start
            backend = segmenter.backend.name
    for name, why in left_out.items():
        print(f"not copied: {name}: {why}")
    for why in recorder.refused_sentences:
        print(f"sentence refused: {why}")
    print(f"wrote {arguments.output}: {_counts(pipeline.health, topic)}, "
          f"{pipeline.health.count('answered') / seconds:.1f} per second with {backend}")
    return 0


def _namespace(name: str) -> str:
    """With a slash at its start and none at its end. Raises UserError for one in which ROS allows no topics."""
    parts = [part for part in name.split("/") if part]
    for part in parts:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", part):
            raise UserError(f"--namespace: expected letters of ASCII, digits and _ between the slashes, and no digit "
                            f"after a slash, such as /robot/eye_2, received {name!r}")
    return "".join(f"/{part}" for part in parts)


def _copied(bag: BagReader, namespace: str) -> tuple[set[str], dict[str, str]]:
    """The topics that go into the output as they are, and why the others do not.

    Raises UserError where answers would get in among them.
    """
    names = {connection.topic for connection in bag.connections}
    if taken := names & {f"{namespace}/{name}" for name in ANSWERS}:
        raise UserError(f"the bag {bag.path} has the topic {min(taken)} already; leave out --copy, or choose another "
                        "--namespace")
    left_out = {connection.topic: why for connection in bag.connections if (why := bag.why_not_copied(connection))}
    return names - left_out.keys(), left_out


def _counts(health: Health, topic: str) -> str:
    masks, refused, paused = map(health.count, ("answered", "refused", "paused"))
    return (f"{masks} mask{'' if masks == 1 else 's'} of {topic}"
            + (f", {refused} refused (the last one: {health.last_refusal})" if refused else "")
            + (f", {paused} while there was no sentence" if paused else ""))


if __name__ == "__main__":
    raise SystemExit(main())
