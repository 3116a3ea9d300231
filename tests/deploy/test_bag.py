"""talent-bag: a recorded bag in, a bag with the answers out; bad input costs one line, exit code 2 and no file."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.typesys import Stores, get_typestore

from deploy import Segmenter, backend_options
from deploy.bag import main
from deploy.ros.bags import METADATA
from deploy.ros.types import DETECTIONS, IMAGE, STRING
from talent.image import overlay
from tests.deploy.ros_recordings import FRAME, TENTH, compressed, image, pixels, read, record, text, values

CAMERA, PROMPT = "/camera/image_raw", "/prompt"
ZSTD = bytes.fromhex("28b52ffd")  # how what zstd compressed begins
START = 1_700_000_000_000_000_000


@pytest.fixture
def pictures(picture) -> list[np.ndarray]:
    """Five pictures in which things move to the right."""
    return [np.roll(picture, 3 * index, axis=1) for index in range(5)]


@pytest.fixture
def recording(tmp_path, pictures):
    """A second and a half of them, one each 0.1 s, as one .mcap file."""
    messages = [image(pictures[index % 5], padding=index % 3, nanoseconds=index * TENTH) for index in range(15)]
    return record(tmp_path / "in.mcap", [(CAMERA, START + index * TENTH, message)
                                         for index, message in enumerate(messages)])


@pytest.fixture
def run(toy_bundle):
    """run(*arguments) -> exit code, with the toy bundle in ONNX Runtime."""

    def run(*arguments) -> int:
        return main([*map(str, arguments), "--bundle", str(toy_bundle.directory), "--backend", "onnxruntime",
                     "--threads", "1"])

    return run


@pytest.fixture
def wanted(toy_bundle, pictures):
    """wanted(sentence): what the segmenter itself says of the five pictures."""

    def answers(sentence: str):
        with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
            return [segmenter(sentence, picture) for picture in pictures]

    return answers


def test_masks_boxes_and_diagnostics_at_the_pictures_times(run, recording, wanted, tmp_path, capsys):
    assert run(recording, "g", "-o", tmp_path / "out.mcap") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    line, = printed.out.splitlines()
    assert line.startswith(f"wrote {tmp_path / 'out.mcap'}: 15 masks of {CAMERA}, ")
    assert line.endswith(" per second with onnxruntime")
    found = read(tmp_path / "out.mcap")
    assert found.keys() == {"/talent/mask", "/talent/detections", "/talent/diagnostics"}
    answers = wanted("g")
    times = [START + index * TENTH for index in range(15)]
    assert [when for when, _ in found["/talent/mask"]] == [when for when, _ in found["/talent/detections"]] == times
    for index, (_, mask) in enumerate(found["/talent/mask"]):
        np.testing.assert_array_equal(pixels(mask), answers[index % 5].mask * np.uint8(255))
        assert mask.header.frame_id == FRAME
        assert mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec == index * TENTH
    for index, (_, message) in enumerate(found["/talent/detections"]):
        detection, = message.detections
        x0, y0, x1, y1 = answers[index % 5].box
        assert (detection.bbox.center.position.x, detection.bbox.size_x) == ((x0 + x1) / 2, x1 - x0)
        assert (detection.bbox.center.position.y, detection.bbox.size_y) == ((y0 + y1) / 2, y1 - y0)
        assert detection.results[0].hypothesis.class_id == "g"
        assert detection.results[0].hypothesis.score == answers[index % 5].score
    reports = found["/talent/diagnostics"]  # once a second of the recording, and at its end
    assert [(when - START) // TENTH for when, _ in reports] == [10, 14]
    assert [values(message)["answered"] for _, message in reports] == ["10", "15"]


def test_a_directory_that_every_ros_plays(run, recording, tmp_path):
    assert run(recording, "g", "-o", tmp_path / "out", "--namespace", "eye/left/") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [METADATA, "out.db3"]
    found = read(tmp_path / "out")
    assert {topic: len(messages) for topic, messages in found.items()} == {
        "/eye/left/mask": 15, "/eye/left/detections": 15, "/eye/left/diagnostics": 2}
    with sqlite3.connect(tmp_path / "out" / "out.db3") as database:
        kinds = dict(database.execute("SELECT topic_type, encoded_message_definition FROM message_definitions"))
    assert "BoundingBox2D bbox" in kinds[DETECTIONS] and "MSG: vision_msgs/Point2D" in kinds[DETECTIONS]


def test_copying_keeps_what_was_recorded(run, tmp_path, pictures, capsys):
    source = record(tmp_path / "in", [(CAMERA, START, image(pictures[0])), ("/note", START + 1, text("left")),
                                      (CAMERA, START + TENTH, image(pictures[1]))], storage="SQLITE3")
    assert run(source, "g", "-o", tmp_path / "out.mcap", "--copy", "--overlay") == 0
    found, before = read(tmp_path / "out.mcap"), read(source)
    assert found.keys() == {*before, *(f"/talent/{name}" for name in ("mask", "detections", "overlay", "diagnostics"))}
    assert [(when, message.data) for when, message in found["/note"]] == [(START + 1, "left")]
    for (when, message), (again, copied) in zip(before[CAMERA], found[CAMERA], strict=True):
        assert (when, repr(message.header)) == (again, repr(copied.header))
        np.testing.assert_array_equal(message.data, copied.data)
    for index, (_, message) in enumerate(found["/talent/overlay"]):
        mask = pixels(found["/talent/mask"][index][1]) == 255
        np.testing.assert_array_equal(pixels(message), overlay(pictures[index], mask))
    capsys.readouterr()
    assert run(tmp_path / "out.mcap", "g", "-o", tmp_path / "more.mcap", "--topic", CAMERA, "--copy") == 2
    assert "has the topic /talent/detections already; leave out --copy" in capsys.readouterr().err
    assert run(tmp_path / "out.mcap", "g", "-o", tmp_path / "more.mcap", "--topic", CAMERA, "--copy",
               "--namespace", "/again") == 0
    assert len(read(tmp_path / "more.mcap")) == 6 + 3


def test_types_that_the_bag_does_not_define_are_left_out_with_a_word(run, tmp_path, pictures, capsys):
    """As sqlite3 bags of Humble are: without definitions, which for the known types are not needed."""
    source = record(tmp_path / "in", [(CAMERA, START, image(pictures[0])), ("/note", START, text("left"))],
                    storage="SQLITE3")
    with sqlite3.connect(source / "in.db3") as database:
        database.execute("DELETE FROM message_definitions")
        database.execute("UPDATE topics SET type = 'mine/msg/Note' WHERE name = '/note'")
    metadata = (source / METADATA).read_text()
    (source / METADATA).write_text(metadata.replace(STRING, "mine/msg/Note"))
    assert run(source, "g", "-o", tmp_path / "out", "--copy") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("not copied: /note: the bag does not define its type mine/msg/Note\nwrote")
    assert read(tmp_path / "out").keys() == {CAMERA, "/talent/mask", "/talent/detections", "/talent/diagnostics"}


def test_sentences_in_the_bag_hold_from_their_time_on(run, tmp_path, pictures, wanted, capsys):
    sentences = {1: "r", 3: "&nbsp;", 5: "", 6: "b"}  # 0.01 s before these pictures
    messages = [(CAMERA, START + index * TENTH, image(pictures[index % 5])) for index in range(8)]
    messages += [(PROMPT, START + index * TENTH - TENTH // 10, text(sentence)) for index, sentence in sentences.items()]
    source = record(tmp_path / "in.mcap", sorted(messages, key=lambda message: message[1]))
    assert run(source, "--prompt-topic", PROMPT, "-o", tmp_path / "out.mcap") == 0
    refused, line = capsys.readouterr().out.splitlines()
    assert refused.startswith("sentence refused: expected a sentence that names an object, received '&nbsp;'")
    assert f": 6 masks of {CAMERA}, 2 while there was no sentence, " in line
    found = read(tmp_path / "out.mcap")["/talent/detections"]
    said = {(when - START) // TENTH: message.detections[0].results[0].hypothesis.class_id for when, message in found}
    assert said == {1: "r", 2: "r", 3: "r", 4: "r", 6: "b", 7: "b"}
    masks = {(when - START) // TENTH: pixels(message) for when, message in read(tmp_path / "out.mcap")["/talent/mask"]}
    for index, sentence in said.items():
        np.testing.assert_array_equal(masks[index] == 255, wanted(sentence)[index % 5].mask)


def test_compressed_pictures_and_the_choice_between_topics(run, tmp_path, pictures, wanted, capsys):
    messages = [(topic, START + index * TENTH, make(pictures[index])) for index in range(2)
                for topic, make in ((CAMERA, image), (f"{CAMERA}/compressed", compressed))]
    source = record(tmp_path / "in.mcap", messages, topics=[("/unused/image", IMAGE)])
    assert run(source, "g", "-o", tmp_path / "out.mcap") == 2
    error = capsys.readouterr().err
    assert f"received 2: {CAMERA} (2), {CAMERA}/compressed (2); choose one with --topic" in error
    assert run(source, "g", "-o", tmp_path / "out.mcap", "--topic", f"{CAMERA}/compressed") == 0
    for index, (_, message) in enumerate(read(tmp_path / "out.mcap")["/talent/mask"]):
        np.testing.assert_array_equal(pixels(message) == 255, wanted("g")[index].mask)


def test_the_only_topic_with_pictures_needs_no_choice(run, tmp_path, pictures):
    source = record(tmp_path / "in.mcap", [(CAMERA, START, image(pictures[0]))], topics=[("/unused/image", IMAGE)])
    assert run(source, "g", "-o", tmp_path / "out.mcap") == 0


def test_a_picture_that_is_refused_costs_only_itself(run, tmp_path, pictures, capsys):
    source = record(tmp_path / "in.mcap", [
        (CAMERA, START, image(pictures[0])), (CAMERA, START + 1, image(pictures[1], encoding="16UC1")),
        (CAMERA, START + 2, image(pictures[2], data=np.zeros(5, np.uint8))), (CAMERA, START + 3, image(pictures[3]))])
    assert run(source, "g", "-o", tmp_path / "out.mcap") == 0
    line = capsys.readouterr().out
    assert f": 2 masks of {CAMERA}, 2 refused (the last one: expected 40500 bytes of data" in line
    found = read(tmp_path / "out.mcap")
    assert [when - START for when, _ in found["/talent/mask"]] == [0, 3]
    (_, report), = found["/talent/diagnostics"]
    assert (report.status[0].level, values(report)["refused"]) == (1, "2")


def test_a_bag_of_ros_1(run, tmp_path, pictures, wanted, capsys):
    store = get_typestore(Stores.ROS1_NOETIC)
    with Writer1(tmp_path / "in.bag") as writer:
        connection = writer.add_connection(CAMERA, IMAGE, typestore=store)
        for index in range(2):
            new = image(pictures[index], nanoseconds=index * TENTH)
            header = store.types["std_msgs/msg/Header"](seq=index, stamp=new.header.stamp, frame_id=FRAME)
            old = store.types[IMAGE](**{**{name: getattr(new, name) for name in (
                "height", "width", "encoding", "is_bigendian", "step", "data")}, "header": header})
            writer.write(connection, START + index * TENTH, store.serialize_ros1(old, IMAGE))
    assert run(tmp_path / "in.bag", "g", "-o", tmp_path / "out.mcap", "--copy") == 0
    assert f"not copied: {CAMERA}: it is of ROS 1; run rosbags-convert first" in capsys.readouterr().out
    found = read(tmp_path / "out.mcap")["/talent/mask"]
    assert [when for when, _ in found] == [START, START + TENTH]
    for index, (_, message) in enumerate(found):
        np.testing.assert_array_equal(pixels(message) == 255, wanted("g")[index].mask)


@pytest.fixture
def refused(run, tmp_path, capsys):
    """refused(*arguments) -> the one line of the error; checks that no file came, went or changed."""

    def snapshot() -> dict:
        return {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}

    def refused(*arguments) -> str:
        capsys.readouterr()
        before = snapshot()
        assert run(*arguments) == 2
        printed = capsys.readouterr()
        line, = printed.err.splitlines()
        assert printed.out == "" and line.startswith("talent-bag: error: ") and snapshot() == before
        return line

    return refused


def test_bags_that_cannot_be_read(refused, recording, tmp_path):
    output = tmp_path / "out.mcap"
    assert "no such bag" in refused(tmp_path / "none.mcap", "g", "-o", output)
    whole = recording.read_bytes()
    damaged = tmp_path / "damaged.mcap"
    for content in (b"", b"no bag", whole[:len(whole) // 2], whole[:-9] + bytes(9)):
        damaged.write_bytes(content)
        assert f"cannot read the bag {damaged}: " in (line := refused(damaged, "g", "-o", output))
        assert f"run: mcap recover {damaged}" in line
    (tmp_path / "notes.txt").write_text("no bag")
    assert "Unrecognized storage format '.txt'" in refused(tmp_path / "notes.txt", "g", "-o", output)
    assert f"without a {METADATA}; after a crash run: ros2 bag" in refused(tmp_path / "bundle", "g", "-o", output)
    (recording.parent / METADATA).write_text("rosbag2_bagfile_information: {version: 5}")
    assert "A metadata key is missing" in refused(recording.parent, "g", "-o", output)


def test_a_bag_that_is_damaged_in_the_middle_leaves_nothing_behind(refused, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)  # over 1 MB: a chunk of its own
    source = record(tmp_path / "in.mcap", [(CAMERA, START + index * TENTH, image(noise)) for index in range(3)],
                    compression="STORAGE")
    content = bytearray(source.read_bytes())
    second = content.index(ZSTD, content.index(ZSTD) + len(ZSTD))
    content[second:second + len(ZSTD)] = bytes(len(ZSTD))
    source.write_bytes(content)
    line = refused(source, "g", "-o", tmp_path / "out.mcap")
    assert f"cannot read the bag {source}: " in line
    refused(source, "g", "-o", tmp_path / "out")


def test_bags_without_pictures(refused, tmp_path):
    output = tmp_path / "out.mcap"
    assert "received no topic at all" in refused(record(tmp_path / "empty.mcap", []), "g", "-o", output)
    source = record(tmp_path / "texts.mcap", [(PROMPT, START, text("g"))], topics=[(CAMERA, IMAGE)])
    assert f"has no pictures: expected messages of {IMAGE} or" in (line := refused(source, "g", "-o", output))
    assert f"received {CAMERA} ({IMAGE}), {PROMPT} ({STRING})" in line
    assert f"has no pictures on {CAMERA}" in refused(source, "g", "-o", output, "--topic", CAMERA)


def test_a_bag_whose_pictures_are_all_refused(refused, tmp_path, pictures):
    source = record(tmp_path / "in.mcap", [(CAMERA, START, image(pictures[0], encoding="16UC1"))])
    line = refused(source, "g", "-o", tmp_path / "out.mcap")
    assert f"none of the pictures on {CAMERA} could be used: expected a picture in rgb8" in line
    refused(source, "g", "-o", tmp_path / "out")


def test_bad_topics_and_sentences(refused, recording, tmp_path):
    output = tmp_path / "out.mcap"
    line = refused(recording, "g", "-o", output, "--topic", "/camera/image")
    assert f"no topic '/camera/image' in the bag {recording}; did you mean '{CAMERA}'?" in line
    assert "no topic '/prompt'" in refused(recording, "g", "-o", output, "--prompt-topic", PROMPT)
    line = refused(recording, "g", "-o", output, "--prompt-topic", CAMERA)
    assert f"expected messages of {STRING} on {CAMERA}, received {IMAGE}" in line
    for sentence in ("", "  "):
        assert "expected a sentence that names an object, or" in refused(recording, sentence, "-o", output)
    assert "holds no words" in refused(recording, "&nbsp;", "-o", output)


def test_namespaces_that_ros_does_not_take(refused, recording, tmp_path):
    for name in ("/bad name!", "eye/2left", "~/eye", "/gr\u00fcn", "eye\n"):
        line = refused(recording, "g", "-o", tmp_path / "out.mcap", "--namespace", name)
        assert line.startswith("talent-bag: error: --namespace: expected letters of ASCII") and repr(name) in line


def test_every_setting_of_the_backend_reaches_the_segmenter(recording, tmp_path, monkeypatch, toy_bundle):
    given = []

    def segmenter(bundle, backend, **options):
        given.append((backend, options))
        return Segmenter(toy_bundle, "onnxruntime", threads=1)

    monkeypatch.setattr(backend_options, "Segmenter", segmenter)
    assert main([str(recording), "g", "-o", str(tmp_path / "out.mcap"), "--backend", "tensorrt", "--device", "1",
                 "--precision", "fp16", "--no-cuda-graphs"]) == 0
    assert main([str(recording), "g", "-o", str(tmp_path / "more.mcap")]) == 0
    assert given == [
        ("tensorrt", {"precision": "fp16", "device": 1, "threads": None, "threshold": None, "cuda_graphs": False}),
        ("auto", {"precision": None, "device": 0, "threads": None, "threshold": None, "cuda_graphs": True})]


def test_a_bundle_in_another_precision(refused, recording, tmp_path):
    assert "expected an int8 bundle" in refused(recording, "g", "-o", tmp_path / "out.mcap", "--precision", "int8")


def test_outputs_that_must_not_be_written(refused, run, recording, tmp_path):
    assert "expected the output to end in .mcap" in refused(recording, "g", "-o", tmp_path / "out.bag")
    for name in ("out.mcap", "out"):
        assert "mkdir -p" in refused(recording, "g", "-o", tmp_path / "none" / name)
    for source in (recording, recording.parent):
        assert "will not overwrite the bag" in refused(source, "g", "-o", source, "--force")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("dear")
    assert "exists already" in refused(recording, "g", "-o", tmp_path / "photos")
    assert f"has no {METADATA} in it" in refused(recording, "g", "-o", tmp_path / "photos", "--force")


@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_an_older_bag_is_replaced_only_by_force(refused, run, recording, tmp_path, name):
    assert run(recording, "g", "-o", tmp_path / name) == 0
    assert "exists already; name another one, or replace it with --force" in refused(recording, "r", "-o",
                                                                                     tmp_path / name)
    assert run(recording, "r", "-o", tmp_path / name, "--force") == 0
    _, message = read(tmp_path / name)["/talent/detections"][0]
    assert message.detections[0].results[0].hypothesis.class_id == "r"
    assert "&nbsp;" in refused(recording, "&nbsp;", "-o", tmp_path / name, "--force")


def test_a_missing_bundle(recording, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(recording), "g", "-o", "out.mcap", "--bundle", "none"]) == 2
    assert "no such bundle" in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_the_bundle_of_the_folder_is_the_default(recording, tmp_path, monkeypatch, toy_bundle):
    monkeypatch.chdir(toy_bundle.directory.parent)  # where it is called "bundle"
    assert main([str(recording), "g", "-o", "out.mcap", "--backend", "onnxruntime", "--threads", "1"]) == 0


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert 'talent-bag in.mcap "the red mug on the left" -o out.mcap' in capsys.readouterr().out
