"""The node on stand-ins for rclpy and the message packages, with the toy bundle: what it publishes, and how it ends.

No ROS is needed, and none was there when this was written: the stand-ins follow rclpy of Humble and Jazzy.
"""

from __future__ import annotations

import array
import importlib
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deploy import Segmenter
from tests.deploy import fake_rclpy
from tests.deploy.fake_rclpy import NOW, DurabilityPolicy, HistoryPolicy, ReliabilityPolicy, TransitionCallbackReturn
from tests.deploy.ros_recordings import compressed, image, pixels, through_cdr, values

PACKAGE = Path(__file__).resolve().parents[2] / "deploy" / "ros2" / "talent_ros"
SECONDS = 10  # until a test gives up
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@pytest.fixture
def ros(monkeypatch) -> SimpleNamespace:
    """The stand-ins and the package, imported on them."""
    modules = fake_rclpy.install(monkeypatch)
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield SimpleNamespace(node=importlib.import_module("talent_ros.node"), state=modules["rclpy"].state,
                          base=modules["rclpy.lifecycle"].LifecycleNode, modules=modules)
    for name in [name for name in sys.modules if name.split(".")[0] == "talent_ros"]:
        del sys.modules[name]


@pytest.fixture
def make_node(ros, toy_bundle):
    """make_node(**parameters): a node of the toy bundle, closed at the end."""
    nodes = []

    def make(**parameters):
        ros.base.overrides = {"bundle": str(toy_bundle.directory), "backend": "onnxruntime", "threads": 1,
                              "prompt": "g", **parameters}
        nodes.append(ros.node.TalentNode())
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def receive(ros):
    """receive(message): a message as rclpy gives it to callbacks, from what rosbags received as CDR."""

    def convert(value):
        if hasattr(value, "__msgtype__"):
            package, kind, name = value.__msgtype__.split("/")
            fields = {key: convert(getattr(value, key)) for key in value.__dataclass_fields__ if key != "__msgtype__"}
            return getattr(ros.modules[f"{package}.{kind}"], name)(**fields)
        return array.array("B", value.tobytes()) if isinstance(value, np.ndarray) else value

    return lambda message: convert(through_cdr(message))


def answered(node, topic: str = "/talent/mask"):
    """Waits for the next message on a topic."""
    publisher = node.publisher(topic)
    assert publisher.news.acquire(timeout=SECONDS)
    return publisher.sent[-1]


def test_a_picture_is_answered(make_node, receive, toy_bundle, picture):
    node = make_node(overlay=True)
    assert node.start() and node.state == "active"
    node.deliver("/image", receive(image(picture, encoding="bgr8", padding=5, nanoseconds=7_000_000_008)))
    overlay = answered(node, "/talent/overlay")  # the last of the three
    mask, detections = answered(node), answered(node, "/talent/detections")
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        wanted = segmenter("g", picture)
    np.testing.assert_array_equal(pixels(mask), wanted.mask * np.uint8(255))
    for header in (mask.header, detections.header, overlay.header):
        assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (7, 8, "camera_optical")
    box = detections.detections[0].bbox
    x0, y0, x1, y1 = wanted.box
    assert (box.center.position.x, box.center.position.y) == ((x0 + x1) / 2, (y0 + y1) / 2)
    assert (box.size_x, box.size_y) == (x1 - x0, y1 - y0)
    assert detections.detections[0].results[0].hypothesis.class_id == "g"
    assert overlay.encoding == "rgb8" and np.any(pixels(overlay) != picture)


def test_topics_and_quality_of_service(make_node):
    node = make_node()
    assert node.start()
    assert set(node.topics()) == {"/image", "/talent/prompt"}
    assert {publisher.topic for publisher in node._managed_entities} == {
        "/talent/mask", "/talent/detections", "/diagnostics"}
    for profile in (node.topics()["/image"], node.publisher("/talent/mask").profile):
        assert (profile.history, profile.depth) == (HistoryPolicy.KEEP_LAST, 1)
        assert (profile.reliability, profile.durability) == (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
    for profile in (node.topics()["/talent/prompt"], node.publisher("/diagnostics").profile):
        assert profile.reliability == ReliabilityPolicy.RELIABLE


def test_compressed_pictures(make_node, receive, picture):
    node = make_node(compressed=True)
    assert node.start() and set(node.topics()) == {"/image/compressed", "/talent/prompt"}
    node.deliver("/image/compressed", receive(compressed(picture)))
    assert pixels(answered(node)).any()


def test_a_prompt_changes_what_is_looked_for(make_node, receive, picture, ros):
    text = ros.modules["std_msgs.msg"].String
    node = make_node(prompt="")
    assert node.start()
    for sentence in ("r", "b"):
        node.deliver("/talent/prompt", text(data=sentence))
        node.deliver("/image", receive(image(picture)))
        answered(node)
        detections = answered(node, "/talent/detections")
        assert detections.detections[0].results[0].hypothesis.class_id == sentence


def test_diagnostics_once_a_second(make_node, receive, picture):
    node = make_node()
    assert node.start()
    timer, = node._timers
    assert timer.period == 1.0
    node.deliver("/image", receive(image(picture)))
    answered(node)
    node.tick()
    message = answered(node, "/diagnostics")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == divmod(NOW, 10**9)
    status, = message.status
    assert (status.level, status.name, status.message) == (b"\0", "talent: segmentation", "looking for 'g'")
    assert values(message)["answered"] == "1" and values(message)["backend"] == "onnxruntime"


def test_a_bad_picture_is_logged_and_the_next_one_answered(make_node, receive, picture):
    node = make_node()
    assert node.start()
    assert node.get_logger().news.acquire(timeout=SECONDS)  # what was loaded
    node.deliver("/image", receive(image(picture, encoding="16UC1")))
    assert node.get_logger().news.acquire(timeout=SECONDS)
    level, line = node.get_logger().lines[-1]
    assert level == "warning" and "received '16UC1'; choose the topic of a colour or grey camera" in line
    node.deliver("/image", receive(image(picture)))
    assert pixels(answered(node)).any()
    node.tick()
    message = answered(node, "/diagnostics")
    assert message.status[0].level == b"\1" and values(message)["refused"] == values(message)["answered"] == "1"


def test_deactivating_stops_and_activating_goes_on_with_the_same_sentence(make_node, receive, picture, ros):
    node = make_node()
    threads = set(threading.enumerate())
    assert node.start() and set(threading.enumerate()) > threads
    node.deliver("/talent/prompt", ros.modules["std_msgs.msg"].String(data="b"))
    assert node.trigger_deactivate() == SUCCESS and set(threading.enumerate()) == threads
    assert node.topics() == {} and node._timers == [] and not node.publisher("/talent/mask").enabled
    assert node.trigger_activate() == SUCCESS
    node.deliver("/image", receive(image(picture)))
    answered(node)
    assert answered(node, "/talent/detections").detections[0].results[0].hypothesis.class_id == "b"


def test_cleaning_up_frees_the_bundle_and_configuring_loads_it_again(make_node, receive, picture):
    node = make_node()
    assert node.start()
    segmenter = node._segmenter
    assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
    assert node._publishers == [] and node._managed_entities == set()
    with pytest.raises(RuntimeError, match="closed"):
        segmenter.encode("r")
    assert node.start()
    node.deliver("/image", receive(image(picture)))
    assert pixels(answered(node)).any()


def test_shutting_down_while_active(make_node):
    node = make_node()
    assert node.start()
    segmenter = node._segmenter
    assert node.trigger_shutdown() == SUCCESS and node.state == "finalized"
    assert node.topics() == {} and node._publishers == []
    with pytest.raises(RuntimeError, match="closed"):
        segmenter.encode("r")


@pytest.mark.parametrize(("parameters", "problem"), [
    ({"bundle": ""}, "expected the parameter bundle to name a directory"), ({"bundle": "none"}, "no such bundle"),
    ({"backend": "cuda"}, "unknown backend 'cuda'"), ({"precision": "int8"}, "int8"),
    ({"threshold": 1.5}, "expected a threshold from 0 to below 1, received 1.5"),
    ({"rate_limit": -1.0}, "expected the parameter rate_limit to be at least 0, received -1.0"),
    ({"rate_limit": float("nan")}, "expected the parameter rate_limit to be at least 0, received nan"),
    ({"rate_limit": "10"}, "expected the parameter rate_limit to be a number, received '10'"),
    ({"device": 0.5}, "expected the parameter device to be a whole number, received 0.5"),
    ({"compressed": 1}, "expected the parameter compressed to be true or false, received 1"),
    ({"prompt": True}, "expected the parameter prompt to be a text; quote it in a YAML file, received True"),
    ({"prompt": "&nbsp;"}, "expected a sentence that names an object")], ids=str)
def test_bad_parameters_fail_to_configure_with_one_line(make_node, toy_bundle, parameters, problem):
    node = make_node(**parameters)
    assert node.trigger_configure() == FAILURE and node.state == "unconfigured"
    (level, line), = node.get_logger().lines
    assert level == "error" and problem in line and "\n" not in line
    assert node._publishers == [] and node._segmenter is None
    node._parameters.update(bundle=str(toy_bundle.directory), backend="auto", precision="", threshold=-1.0,
                            rate_limit=0.0, prompt="g", device=0, compressed=False)
    assert node.start()


def test_what_nobody_foresaw_is_logged_too(make_node, monkeypatch, ros):
    monkeypatch.setattr(ros.node, "Pipeline", lambda *arguments, **options: 1 / 0)
    node = make_node()
    assert node.trigger_configure() == FAILURE
    (level, text), = node.get_logger().lines
    assert level == "error" and text.startswith("Traceback") and "ZeroDivisionError" in text
    assert node._segmenter is None


def test_the_threshold_of_the_parameters(make_node, toy_bundle):
    node = make_node(threshold=0.75)
    assert node.start() and node._segmenter.threshold == 0.75
    node = make_node()
    assert node.start() and node._segmenter.threshold == toy_bundle.threshold


def test_whole_numbers_are_numbers_too(make_node):
    """YAML's `rate_limit: 10` and `threshold: 0` are integers, which rclpy refuses where a float was declared."""
    node = make_node(rate_limit=10, threshold=0)
    assert node.start() and node._segmenter.threshold == 0
    assert node._settings["rate_limit"] == 10 and type(node._settings["rate_limit"]) is float


def test_the_stand_in_refuses_other_types_as_rclpy_does(make_node, ros):
    node = make_node()
    node.overrides = {"strict": 10}
    with pytest.raises(fake_rclpy.InvalidParameterTypeException, match="of type 'INTEGER', expecting type 'DOUBLE'"):
        node.declare_parameter("strict", 10.0, SimpleNamespace(description="a number"))


def test_parameters_are_read_when_the_node_is_configured(make_node, receive, picture):
    node = make_node()
    assert node.trigger_configure() == SUCCESS
    node._parameters.update(compressed=True, rate_limit=0.001, overlay=True)
    assert node.trigger_activate() == SUCCESS
    assert set(node.topics()) == {"/image", "/talent/prompt"}
    for _ in range(2):  # all that can be answered are
        node.deliver("/image", receive(image(picture)))
        answered(node)
    assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
    assert node.start() and set(node.topics()) == {"/image/compressed", "/talent/prompt"}
    assert node.publisher("/talent/overlay") and node._settings["rate_limit"] == 0.001


def test_every_setting_of_the_backend_reaches_the_segmenter(make_node, monkeypatch, toy_bundle):
    given = []

    def segmenter(bundle, backend, **options):
        given.append((bundle, backend, options))
        return Segmenter(toy_bundle, "onnxruntime", threads=1)

    monkeypatch.setattr("talent_ros.parameters.Segmenter", segmenter)
    node = make_node(backend="tensorrt", precision="fp16", device=1, cuda_graphs=False, threads=0)
    assert node.trigger_configure() == SUCCESS
    (bundle, backend, options), = given
    assert (bundle, backend) == (str(toy_bundle.directory), "tensorrt")
    assert options == {"precision": "fp16", "device": 1, "threads": None, "threshold": None, "cuda_graphs": False}


def test_main_with_an_autostart_that_is_no_truth_value_is_exit_code_1(make_node, ros):
    make_node(autostart="yes")
    assert ros.node.main() == 1
    node = ros.base.made[-1]
    assert node.get_logger().lines == [
        ("error", "expected the parameter autostart to be true or false, received 'yes'")]
    assert node.destroyed and ros.state["calls"][-1] == ("try_shutdown", None)


def test_main_starts_spins_and_ends(make_node, ros, receive, picture):
    masks = []

    def script(node) -> None:
        node.deliver("/image", receive(image(picture)))
        masks.append(answered(node))

    ros.state["script"] = script
    make_node(autostart=True)  # for its parameters
    assert importlib.import_module("talent_ros.cli").main(["--ros-args"]) == 0
    node = ros.base.made[-1]
    assert pixels(masks[0]).any()
    assert ros.state["calls"] == [("init", ["--ros-args"]), ("try_shutdown", None)]
    assert node.destroyed and node.topics() == {} and node._segmenter is None


def test_main_waits_for_a_lifecycle_manager_without_autostart(make_node, ros):
    make_node()
    states = []
    ros.state["script"] = lambda node: states.append(node.state)
    assert ros.node.main() == 0 and states == ["unconfigured"]


def test_main_with_a_bad_bundle_is_exit_code_1(make_node, ros):
    make_node(autostart=True, bundle="none")
    assert ros.node.main() == 1
    assert ros.base.made[-1].destroyed and ros.state["calls"][-1] == ("try_shutdown", None)


def test_without_talent_edge_the_program_says_how_to_install_it(ros, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "talent_ros"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deploy", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("deploy")
    assert importlib.import_module("talent_ros.cli").main([]) == 2
    assert "pip install 'talent-edge[cpu]'" in capsys.readouterr().err
