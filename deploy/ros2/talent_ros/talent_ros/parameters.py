"""The node's parameters, and the segmenter that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy import Segmenter
from talent.errors import UserError

# name: default, which also says the type, and what `ros2 param describe` tells
PARAMETERS: dict[str, tuple[Any, str]] = {
    "bundle": ("", "directory that talent-export wrote"),
    "backend": ("auto", "what runs the network: auto, onnxruntime, tensorrt or tensorrt_rtx"),
    "precision": ("", "refuse a bundle in another precision than this; empty for any"),
    "device": (0, "number of the GPU"),
    "threads": (0, "threads for onnxruntime; 0 for one per core"),
    "cuda_graphs": (True, "replay a TensorRT engine's kernels as one CUDA graph; false to start them one by one"),
    "threshold": (-1.0, "probability above which a pixel belongs to the object; below 0 for the bundle's"),
    "prompt": ("", "what to look for at first; empty to wait for a message on ~/prompt"),
    "compressed": (False, "take sensor_msgs/CompressedImage from image/compressed instead of sensor_msgs/Image"),
    "overlay": (False, "also publish the picture with the object marked"),
    "rate_limit": (0.0, "pictures per second that are answered at most; 0 for all that can be"),
    "autostart": (False, "configure and activate without being asked by a lifecycle manager"),
}


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text; quote it in a YAML file"}


def checked(name: str, value: Any) -> Any:
    """A parameter's value in the type of its default, which a number without its point is not. Raises UserError."""
    kind = type(PARAMETERS[name][0])
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"expected the parameter {name} to be {_KINDS[kind]}, received {value!r}")
    return value


def open_segmenter(settings: Mapping[str, Any]) -> Segmenter:
    """The bundle, loaded and warmed up. settings: PARAMETERS by name. Raises UserError for what cannot be."""
    if not settings["bundle"]:
        raise UserError("expected the parameter bundle to name a directory that talent-export wrote, received none; "
                        "for example: ros2 launch talent_ros talent.launch.py bundle:=/home/robot/bundle")
    if not settings["rate_limit"] >= 0:  # nor NaN
        raise UserError(f"expected the parameter rate_limit to be at least 0, received {settings['rate_limit']}")
    segmenter = Segmenter(settings["bundle"], settings["backend"], precision=settings["precision"] or None,
                          device=settings["device"], threads=settings["threads"] or None,
                          threshold=None if settings["threshold"] < 0 else settings["threshold"],
                          cuda_graphs=settings["cuda_graphs"])
    segmenter.warmup()
    return segmenter
