"""Answers and reports as ROS messages, made of the classes of ROS's own packages or of rosbags'."""

from __future__ import annotations

import array
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.ros.health import Report
from deploy.ros.pipeline import Answer
from deploy.ros.types import DETECTIONS, DIAGNOSTICS, IMAGE
from talent.image import overlay

_BILLION = 1_000_000_000


class Messages:
    """Makes messages whose fields are all given, because rosbags' classes have no defaults.

    find: the class of a full type name, such as "sensor_msgs/msg/Image". octets: uint8 [N] -> what a field of type
    uint8[] takes; octet: 0 - 255 -> what a field of type byte takes. In these two the libraries differ.
    """

    def __init__(self, find: Callable[[str], type], *, octets: Callable[[np.ndarray], Any],
                 octet: Callable[[int], Any]) -> None:
        self._find = find
        self._octets = octets
        self._octet = octet

    def _make(self, kind: str, /, **fields: Any) -> Any:
        return self._find(kind)(**fields)

    def _header(self, seconds: int, nanoseconds: int, frame: str) -> Any:
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id=frame)

    def _header_of(self, answer: Answer) -> Any:
        """The header of the answer's picture, which may be of another library or of ROS 1."""
        stamp = answer.header.stamp
        return self._header(stamp.sec, stamp.nanosec, answer.header.frame_id)

    def _image(self, answer: Answer, encoding: str, pixels: np.ndarray) -> Any:
        height, width = pixels.shape[:2]
        return self._make(IMAGE, header=self._header_of(answer), height=height, width=width, encoding=encoding,
                          is_bigendian=0, step=pixels.nbytes // height, data=self._octets(pixels.reshape(-1)))

    def mask(self, answer: Answer) -> Any:
        """sensor_msgs/Image in mono8: 255 on the object, 0 elsewhere."""
        return self._image(answer, "mono8", answer.result.mask.astype(np.uint8) * 255)  # [H, W]

    def overlay(self, answer: Answer) -> Any:
        """sensor_msgs/Image in rgb8: the picture with the object tinted and outlined."""
        return self._image(answer, "rgb8", overlay(np.ascontiguousarray(answer.picture), answer.result.mask))

    def detections(self, answer: Answer) -> Any:
        """vision_msgs/Detection2DArray: one detection, or none where the mask is empty.

        Its box is the mask's, in pixels from the picture's left upper corner; class_id is the sentence.
        """
        detections = [] if answer.result.box is None else [self._detection(answer)]
        return self._make(DETECTIONS, header=self._header_of(answer), detections=detections)

    def _detection(self, answer: Answer) -> Any:
        x0, y0, x1, y1 = answer.result.box
        position = self._make("vision_msgs/msg/Point2D", x=(x0 + x1) / 2, y=(y0 + y1) / 2)
        center = self._make("vision_msgs/msg/Pose2D", position=position, theta=0.0)
        box = self._make("vision_msgs/msg/BoundingBox2D", center=center, size_x=float(x1 - x0), size_y=float(y1 - y0))
        hypothesis = self._make("vision_msgs/msg/ObjectHypothesis", class_id=answer.sentence,
                                score=float(answer.result.score))
        result = self._make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis,
                            pose=self._no_pose())
        return self._make("vision_msgs/msg/Detection2D", header=self._header_of(answer), results=[result], bbox=box,
                          id="")

    def _no_pose(self) -> Any:
        """A pose in space that says nothing: a picture alone does not tell it."""
        pose = self._make("geometry_msgs/msg/Pose", position=self._make("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
                          orientation=self._make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0))
        return self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36))

    def diagnostics(self, report: Report, *, name: str, nanoseconds: int) -> Any:
        """diagnostic_msgs/DiagnosticArray with one status. nanoseconds: the time of the report."""
        values = [self._make("diagnostic_msgs/msg/KeyValue", key=key, value=value)
                  for key, value in report.values.items()]
        status = self._make("diagnostic_msgs/msg/DiagnosticStatus", level=self._octet(int(report.level)), name=name,
                            message=report.message, hardware_id="", values=values)
        return self._make(DIAGNOSTICS, header=self._header(*divmod(nanoseconds, _BILLION), ""), status=[status])


def ros_messages() -> Messages:
    """Of the Python packages that a sourced ROS 2 has."""

    def find(name: str) -> type:
        package, kind, message = name.split("/")
        return getattr(importlib.import_module(f"{package}.{kind}"), message)

    # An array is taken over as it is; of anything else rclpy's setters look at each byte.
    return Messages(find, octets=lambda data: array.array("B", data.tobytes()), octet=lambda value: bytes([value]))


def bag_messages(store: Any) -> Messages:
    """Of a rosbags Typestore, such as `type_store` makes."""
    return Messages(store.types.__getitem__, octets=lambda data: data, octet=lambda value: value)
