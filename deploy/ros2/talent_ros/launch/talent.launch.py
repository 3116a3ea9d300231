"""ros2 launch talent_ros talent.launch.py bundle:=/home/robot/bundle image:=/camera/image_raw prompt:="the red mug"

What is not given comes from the parameter file.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "talent_ros"
TEXTS = {"bundle": "directory that talent-export wrote", "backend": "auto, onnxruntime, tensorrt or tensorrt_rtx",
         "prompt": "what to look for at first"}


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory(PACKAGE)) / "config" / "talent.yaml"
    return LaunchDescription([
        DeclareLaunchArgument("config", default_value=str(config), description="parameter file"),
        *(DeclareLaunchArgument(name, default_value="", description=f"{text}; empty for the parameter file's")
          for name, text in TEXTS.items()),
        DeclareLaunchArgument("image", default_value="image",
                              description="topic of the camera; its compressed pictures come on <image>/compressed"),
        DeclareLaunchArgument("name", default_value="talent", description="name of the node"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument("autostart", default_value="true", choices=["true", "false"],
                              description="configure and activate at once; false where a lifecycle manager does"),
        OpaqueFunction(function=_node)])


def _node(context) -> list:
    """The node, once the arguments are known: those that are empty must not hide the parameter file's."""
    value = {name: LaunchConfiguration(name).perform(context)
             for name in ("config", *TEXTS, "image", "name", "namespace", "autostart")}
    # A text by its type: "yes" is one, and YAML's rules would make it a truth value.
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in TEXTS if value[name]}
    return [LifecycleNode(
        package=PACKAGE, executable="talent_node", name=value["name"], namespace=value["namespace"], output="screen",
        parameters=[value["config"], {**given, "autostart": value["autostart"] == "true"}],
        remappings=[("image", value["image"]), ("image/compressed", f"{value['image']}/compressed")])]
