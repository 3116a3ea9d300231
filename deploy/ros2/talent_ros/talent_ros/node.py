"""The lifecycle node: it moves messages between ROS and deploy.ros, which does the work and knows no ROS.

    image, or image/compressed  ->  ~/mask, ~/detections, ~/overlay, /diagnostics
    ~/prompt                    ->  the sentence, from the next picture on

Callbacks only put down what came; a thread of its own computes, on the newest picture.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray

from deploy import Segmenter
from deploy.ros.messages import ros_messages
from deploy.ros.pipeline import Answer, Pipeline
from deploy.ros.worker import Worker
from talent.errors import UserError
from talent_ros.parameters import PARAMETERS, checked, open_segmenter

NEWEST = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT,
                    durability=DurabilityPolicy.VOLATILE)  # sensor data, of which nothing waits
RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE,
                      durability=DurabilityPolicy.VOLATILE)
REPORT_SECONDS = 1.0
QUIET_SECONDS = 5.0  # between two lines in the log about pictures that could not be answered


class TalentNode(LifecycleNode):
    """configure loads the bundle and warms it up; activate takes pictures; cleanup frees the bundle."""

    def __init__(self) -> None:
        super().__init__("talent")
        for name, (default, description) in PARAMETERS.items():
            # Any type is taken here and checked by `setting`: else a 10 for 10.0 would end the node with a traceback.
            self.declare_parameter(name, default, ParameterDescriptor(description=description, dynamic_typing=True))
        self._messages = ros_messages()
        self._settings = {}  # as they were when it was configured
        self._segmenter: Segmenter | None = None
        self._pipeline: Pipeline | None = None
        self._worker: Worker | None = None
        self._outputs = {}
        self._inputs = []
        self._reporting = None

    def setting(self, name: str):
        """A parameter in its own type. Raises UserError for one of another."""
        return checked(name, self.get_parameter(name).value)

    def start(self) -> bool:
        """Configure and activate; False where that failed, which the log tells."""
        return all(trigger() == TransitionCallbackReturn.SUCCESS
                   for trigger in (self.trigger_configure, self.trigger_activate))

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._open()
        except Exception as error:  # rclpy would keep it to itself
            self.close()
            self.get_logger().error(str(error) if isinstance(error, UserError) else traceback.format_exc())
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def _open(self) -> None:
        self._settings = {name: self.setting(name) for name in PARAMETERS}
        self._segmenter = open_segmenter(self._settings)
        self._pipeline = Pipeline(self._segmenter, sentence=self._settings["prompt"])
        self._outputs = {"mask": self.create_lifecycle_publisher(Image, "~/mask", NEWEST),
                         "detections": self.create_lifecycle_publisher(Detection2DArray, "~/detections", RELIABLE),
                         "diagnostics": self.create_lifecycle_publisher(DiagnosticArray, "/diagnostics", RELIABLE)}
        if self._settings["overlay"]:
            self._outputs["overlay"] = self.create_lifecycle_publisher(Image, "~/overlay", NEWEST)
        self.get_logger().info(f"loaded {self._segmenter.bundle.directory} for {self._segmenter.backend.name}"
                               + "".join(f"; {line}" for line in self._segmenter.auto_report))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = super().on_activate(state)  # the publishers first: answers come from the worker's thread
        self._worker = Worker(self._pipeline, publish=self._publish, tell=self._tell, rate=self._settings["rate_limit"])
        self._worker.start()
        kind, topic = (CompressedImage, "image/compressed") if self._settings["compressed"] else (Image, "image")
        self._inputs = [self.create_subscription(kind, topic, self._worker.offer, NEWEST),
                        self.create_subscription(String, "~/prompt", self._on_prompt, RELIABLE)]
        self._reporting = self.create_timer(REPORT_SECONDS, self._report)
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = super().on_cleanup(state)
        self.close()
        return done

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = super().on_shutdown(state)
        self.close()
        return done

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an error that nobody foresaw: back to the beginning, to be configured again."""
        self.close()
        return super().on_error(state)

    def _stop(self) -> None:
        """Take no more pictures, and wait for the one under way."""
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._reporting is not None:
            self.destroy_timer(self._reporting)
        if self._worker is not None:
            self._worker.stop()
        self._inputs, self._reporting, self._worker = [], None, None

    def close(self) -> None:
        """Free everything; twice is fine."""
        self._stop()
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        if self._segmenter is not None:
            self._segmenter.close()
        self._outputs, self._pipeline, self._segmenter = {}, None, None

    def _on_prompt(self, message: String) -> None:
        self._worker.change_sentence(message.data)

    def _publish(self, answer: Answer) -> None:
        self._outputs["mask"].publish(self._messages.mask(answer))
        self._outputs["detections"].publish(self._messages.detections(answer))
        if "overlay" in self._outputs:
            self._outputs["overlay"].publish(self._messages.overlay(answer))

    def _tell(self, problem: str) -> None:
        self.get_logger().warning(problem, throttle_duration_sec=QUIET_SECONDS)

    def _report(self) -> None:
        message = self._messages.diagnostics(self._pipeline.report(), name=f"{self.get_name()}: segmentation",
                                             nanoseconds=self.get_clock().now().nanoseconds)
        self._outputs["diagnostics"].publish(message)


def main(args: Sequence[str] | None = None) -> int:
    """Exit code 1 where autostart failed."""
    rclpy.init(args=args)
    node = None
    try:
        node = TalentNode()
        if node.setting("autostart") and not node.start():
            return 1
        rclpy.spin(node)
    except UserError as error:
        node.get_logger().error(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0  # how a node usually ends
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
