"""The ROS package as colcon and ros2 launch see it: package.xml, what is installed, the launch file, the parameters."""

from __future__ import annotations

import ast
import configparser
import importlib
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import setuptools
import yaml

import talent
from tests.deploy import fake_rclpy

PACKAGE = Path(__file__).resolve().parents[2] / "deploy" / "ros2" / "talent_ros"
# The elements of format 3 in the order of its schema, as far as they are used here: REP 149.
ORDER = ["name", "version", "description", "maintainer", "license", "exec_depend", "export"]
STANDARD = {*sys.stdlib_module_names, "deploy", "talent", "talent_ros", "setuptools"}


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(PACKAGE / "package.xml").getroot()


def test_the_manifest_follows_format_3(manifest):
    assert manifest.tag == "package" and manifest.attrib == {"format": "3"}
    tags = [element.tag for element in manifest]
    assert set(tags) <= set(ORDER) and tags == sorted(tags, key=ORDER.index)
    for once in ("name", "version", "description", "export"):
        assert tags.count(once) == 1
    assert manifest.findtext("name") == PACKAGE.name and manifest.findtext("version") == talent.__version__
    assert manifest.findtext("license") == "Apache-2.0" and manifest.find("maintainer").get("email")
    assert [element.text for element in manifest.find("export")] == ["ament_python"]


def _imported(path: Path) -> set[str]:
    """The packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - {"__future__"}


def test_every_package_that_is_imported_is_declared(manifest):
    declared = {element.text for element in manifest.iter("exec_depend")}
    imported = set().union(*map(_imported, PACKAGE.rglob("*.py"))) - STANDARD
    assert imported and imported <= declared
    messages = {"sensor_msgs", "std_msgs", "vision_msgs", "diagnostic_msgs", "geometry_msgs", "builtin_interfaces"}
    assert messages <= declared and {"rclpy", "lifecycle_msgs"} <= declared


@pytest.fixture
def installed(monkeypatch) -> dict:
    """What setup.py asks for."""
    calls = []
    monkeypatch.setattr(setuptools, "setup", lambda **options: calls.append(options))
    monkeypatch.chdir(PACKAGE)
    runpy.run_path(str(PACKAGE / "setup.py"))
    options, = calls
    return options


def test_setup_installs_what_ros_looks_for(installed, manifest):
    assert installed["name"] == manifest.findtext("name") and installed["version"] == manifest.findtext("version")
    assert installed["description"] and installed["license"] == manifest.findtext("license")
    files = {source: folder for folder, sources in installed["data_files"] for source in sources}
    assert all((PACKAGE / source).is_file() for source in files)
    assert files["resource/talent_ros"] == "share/ament_index/resource_index/packages"
    assert files["package.xml"] == "share/talent_ros"
    beside = {str(path.relative_to(PACKAGE)) for folder in ("launch", "config") for path in (PACKAGE / folder).iterdir()
              if path.is_file()}
    assert beside <= files.keys()
    config = configparser.ConfigParser()
    config.read(PACKAGE / "setup.cfg")
    assert config["install"]["install_scripts"] == config["develop"]["script_dir"] == "$base/lib/talent_ros"


def test_the_program_that_is_installed_exists(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE))
    script, = installed["entry_points"]["console_scripts"]
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "talent_node" and callable(getattr(importlib.import_module(module), function))


def test_the_wheel_of_talent_edge_leaves_the_ros_package_out():
    found = setuptools.find_packages(str(PACKAGE.parents[2]), include=["deploy", "deploy.*"])
    assert "deploy.ros" in found and not any("ros2" in name for name in found)


def test_the_parameter_file_has_every_parameter_with_its_default(monkeypatch):
    fake_rclpy.install(monkeypatch)
    monkeypatch.syspath_prepend(str(PACKAGE))
    parameters = importlib.import_module("talent_ros.parameters").PARAMETERS
    content = yaml.safe_load((PACKAGE / "config" / "talent.yaml").read_text())
    written = content["/**"]["ros__parameters"]
    wanted = {name: default for name, (default, _) in parameters.items() if name != "autostart"}
    assert written == wanted
    assert [type(written[name]) for name in wanted] == list(map(type, wanted.values()))  # a reader sees which


class Action:
    """An action or substitution of launch that keeps what it was made of. names: its keywords."""

    names: set[str] = set()

    def __init__(self, *arguments, **options) -> None:
        assert options.keys() <= self.names, options.keys() - self.names
        self.arguments, self.options = arguments, options


def _action(name: str, *names: str) -> type:
    return type(name, (Action,), {"names": set(names)})


class LaunchConfiguration(Action):
    def perform(self, context) -> str:
        return context.launch_configurations[self.arguments[0]]


@pytest.fixture
def launch(monkeypatch) -> ModuleType:
    """The launch file, on stand-ins for launch (1.0, 3.4) and launch_ros (0.19, 0.26)."""
    modules = {
        "launch": {"LaunchDescription": _action("LaunchDescription")},
        "launch.actions": {
            "DeclareLaunchArgument": _action("DeclareLaunchArgument", "default_value", "description", "choices"),
            "OpaqueFunction": _action("OpaqueFunction", "function", "args", "kwargs")},
        "launch.substitutions": {"LaunchConfiguration": LaunchConfiguration},
        "launch_ros": {},
        "launch_ros.actions": {"LifecycleNode": _action(
            "LifecycleNode", "name", "namespace", "package", "executable", "parameters", "remappings", "output")},
        "launch_ros.parameter_descriptions": {"ParameterValue": _action("ParameterValue", "value_type")},
        "ament_index_python": {},
        "ament_index_python.packages": {"get_package_share_directory": lambda name: str(PACKAGE.parent / name)}}
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(**runpy.run_path(str(PACKAGE / "launch" / "talent.launch.py")))


def _launched(launch, **given: str) -> dict:
    """The options of the node, and "values": its parameters as they are set beside the file."""
    entities, = launch.generate_launch_description().arguments
    arguments = {action.arguments[0]: action.options for action in entities if "function" not in action.options}
    assert given.keys() <= arguments.keys()
    context = SimpleNamespace(launch_configurations={
        name: given.get(name, options["default_value"]) for name, options in arguments.items()})
    opaque, = (action for action in entities if "function" in action.options)
    node, = opaque.options["function"](context)
    values = {}
    for name, value in node.options["parameters"][1].items():
        if isinstance(value, Action):
            assert value.options == {"value_type": str}
            value = value.arguments[0].perform(context)
        values[name] = value
    return {**node.options, "values": values}


def test_launching_with_nothing_takes_the_parameter_file(launch):
    node = _launched(launch)
    assert (node["package"], node["executable"], node["name"]) == ("talent_ros", "talent_node", "talent")
    assert Path(node["parameters"][0]) == PACKAGE / "config" / "talent.yaml" and Path(node["parameters"][0]).is_file()
    assert node["values"] == {"autostart": True}


def test_launching_with_arguments(launch):
    node = _launched(launch, bundle="/b", prompt="yes", image="/camera/image_raw", autostart="false",
                     config="mine.yaml", name="eye", namespace="left", backend="onnxruntime")
    assert node["values"] == {"bundle": "/b", "prompt": "yes", "backend": "onnxruntime", "autostart": False}
    assert dict(node["remappings"]) == {"image": "/camera/image_raw",
                                        "image/compressed": "/camera/image_raw/compressed"}
    assert (node["parameters"][0], node["name"], node["namespace"]) == ("mine.yaml", "eye", "left")
