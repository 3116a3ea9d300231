"""The message types that are read and written, for programs that have no ROS (package rosbags)."""

from __future__ import annotations

from typing import Any

from talent.require import require

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
STRING = "std_msgs/msg/String"
DETECTIONS = "vision_msgs/msg/Detection2DArray"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
WRITTEN = (IMAGE, DETECTIONS, DIAGNOSTICS)

# Of vision_msgs 4, which Humble and Jazzy have. rosbags does not bring this package.
_VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
                   "vision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}


def type_store(distribution: str = "humble") -> Any:
    """A rosbags Typestore with the types of a ROS 2 distribution ("humble" or "jazzy") and of vision_msgs.

    Raises UserError where rosbags is not installed.
    """
    typesys = require("rosbags.typesys", extra="ros")
    store = typesys.get_typestore(typesys.Stores[f"ROS2_{distribution.upper()}"])
    types = {}
    for name, fields in _VISION_MSGS.items():
        types.update(typesys.get_types_from_msg(fields, f"vision_msgs/msg/{name}"))
    store.register(types)
    return store
