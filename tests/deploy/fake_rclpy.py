"""Modules shaped like rclpy, launch and the message packages of Humble and Jazzy, as far as the node uses them.

After rclpy 3.3 and 7.1 (lifecycle/node.py, lifecycle/publisher.py, node.py, qos.py, impl/rcutils_logger.py), launch_ros
0.19 and 0.26, and the setters that rosidl_generator_py writes. Where the two distributions differ, what both take.
"""

from __future__ import annotations

import array
import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from deploy.ros.types import type_store

TYPES = {bool: "BOOL", int: "INTEGER", float: "DOUBLE", str: "STRING"}  # of parameters
BASE, NAME, ARRAY, SEQUENCE = 1, 2, 3, 4  # kinds of fields in rosbags' definitions
NOW = 5_000_000_001  # nanoseconds


class TransitionCallbackReturn(Enum):
    SUCCESS, FAILURE, ERROR = range(3)


class LifecycleState(NamedTuple):
    label: str
    state_id: int


class ExternalShutdownException(Exception):
    pass


class InvalidParameterTypeException(Exception):
    def __init__(self, name: str, value: Any, expected: type) -> None:
        super().__init__(f"Trying to set parameter '{name}' to '{value}' of type '{TYPES[type(value)]}', expecting "
                         f"type '{TYPES[expected]}': {name}")


class QoSProfile:
    def __init__(self, **kwargs) -> None:
        assert kwargs.keys() <= {"history", "depth", "reliability", "durability", "lifespan", "deadline", "liveliness"}
        assert "history" in kwargs or "depth" in kwargs
        self.__dict__.update(kwargs)


HistoryPolicy = Enum("HistoryPolicy", ["KEEP_LAST", "KEEP_ALL"])
ReliabilityPolicy = Enum("ReliabilityPolicy", ["RELIABLE", "BEST_EFFORT"])
DurabilityPolicy = Enum("DurabilityPolicy", ["TRANSIENT_LOCAL", "VOLATILE"])


def _takes(desc: tuple, value: Any, classes: dict[str, type]) -> bool:
    """Whether the setter of a field takes a value, as rosidl_generator_py's do."""
    kind, detail = desc
    if kind == NAME:
        return isinstance(value, classes[detail])
    if kind == BASE:
        name = detail[0]
        if name == "byte":
            return isinstance(value, bytes) and len(value) == 1
        if name.startswith("float"):
            return isinstance(value, float)
        if name == "string":
            return isinstance(value, str)
        return isinstance(value, int) and 0 <= value < 2**32 if name.startswith("uint") else isinstance(value, int)
    inner = detail[0]
    if kind == ARRAY and inner[0] == BASE:
        return isinstance(value, np.ndarray) and value.dtype == inner[1][0] and value.size == detail[1]
    if inner == (BASE, ("uint8", 0)):  # anything else is taken byte by byte, which is too slow for pictures
        return isinstance(value, array.array) and value.typecode == "B"
    return isinstance(value, Sequence) and all(_takes(inner, item, classes) for item in value)


def message_classes() -> dict[str, type]:
    """Classes by full type name: every field has a default, constructors take names only, setters check."""
    classes: dict[str, type] = {}
    for name, (_, fields) in type_store().fielddefs.items():
        classes[name] = _message_class(name, dict(fields), classes)
    return classes


def _message_class(full: str, fields: dict[str, tuple], classes: dict[str, type]) -> type:
    def init(self, **given) -> None:
        assert given.keys() <= fields.keys(), f"Invalid arguments passed to constructor: {given.keys() - fields.keys()}"
        for name, value in given.items():
            setattr(self, name, value)

    def check(self, name: str, value: Any) -> None:
        assert name in fields, f"{full} has no field {name}"
        assert _takes(fields[name], value, classes), f"{full}.{name} does not take {type(value).__name__} {value!r:.60}"
        object.__setattr__(self, name, value)

    return type(full.rpartition("/")[2], (), {"__init__": init, "__setattr__": check})


class Publisher:
    """rclpy.lifecycle.LifecyclePublisher: silent until it is activated."""

    def __init__(self, kind: type, topic: str, profile: QoSProfile) -> None:
        self.kind, self.topic, self.profile = kind, topic, profile
        self.enabled, self.destroyed, self.sent = False, False, []
        self.news = threading.Semaphore(0)

    def on_activate(self, state) -> TransitionCallbackReturn:
        self.enabled = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state) -> TransitionCallbackReturn:
        self.enabled = False
        return TransitionCallbackReturn.SUCCESS

    def publish(self, message: Any) -> None:
        assert not self.destroyed
        if self.enabled:
            assert isinstance(message, self.kind)
            self.sent.append(message)
            self.news.release()


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.news = threading.Semaphore(0)

    def _log(self, level: str, message: str, options: dict) -> None:
        assert options.keys() <= {"throttle_duration_sec", "throttle_time_source_type", "skip_first", "once"}
        self.lines.append((level, message))
        self.news.release()

    def info(self, message: str, **options) -> None:
        self._log("info", message, options)

    def warning(self, message: str, **options) -> None:
        self._log("warning", message, options)

    def error(self, message: str, **options) -> None:
        self._log("error", message, options)


def _step(name: str) -> Callable:
    """`on_configure` and so on: calls those of the managed entities."""

    def step(self, state: LifecycleState) -> TransitionCallbackReturn:
        for entity in self._managed_entities:
            answer = getattr(entity, name, lambda state: TransitionCallbackReturn.SUCCESS)(state)
            if answer != TransitionCallbackReturn.SUCCESS:
                return answer
        return TransitionCallbackReturn.SUCCESS

    return step


def _transition(step: str, start: str, goal: str) -> Callable:
    """`trigger_configure` and so on."""

    def trigger(self) -> TransitionCallbackReturn:
        assert self.state == start, f"no transition {step} from {self.state}"
        answer = self._call(step)
        if answer == TransitionCallbackReturn.SUCCESS:
            self.state = goal
        elif answer == TransitionCallbackReturn.ERROR:
            self.state = "unconfigured" if self._call("error") == TransitionCallbackReturn.SUCCESS else "finalized"
        return answer

    return trigger


class LifecycleNode:
    """A node whose transitions are triggered by hand. For tests: `publisher`, `topics`, `deliver`, `tick`."""

    overrides: dict[str, Any] = {}
    made: list[LifecycleNode] = []

    def __init__(self, node_name: str, *, enable_communication_interface: bool = True, **kwargs) -> None:
        self._name, self._parameters, self._logger = node_name, {}, Logger()
        self._publishers, self._subscriptions, self._timers, self._managed_entities = [], [], [], set()
        self.state, self.destroyed = "unconfigured", False
        self.made.append(self)

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> Logger:
        return self._logger

    def get_clock(self) -> SimpleNamespace:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=NOW))

    def declare_parameter(self, name: str, value: Any = None, descriptor: Any = None, ignore_override: bool = False
                          ) -> None:
        assert name not in self._parameters and descriptor.description
        given = self.overrides.get(name, value)
        if not getattr(descriptor, "dynamic_typing", False) and type(given) is not type(value):
            raise InvalidParameterTypeException(name, given, type(value))
        self._parameters[name] = given

    def get_parameter(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, value=self._parameters[name])

    def _topic(self, topic: str) -> str:
        return f"/{self._name}/{topic[2:]}" if topic.startswith("~/") else topic if topic[0] == "/" else f"/{topic}"

    def create_lifecycle_publisher(self, msg_type, topic, qos_profile) -> Publisher:
        publisher = Publisher(msg_type, self._topic(topic), qos_profile)
        self._publishers.append(publisher)
        self._managed_entities.add(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher: Publisher) -> bool:
        self._managed_entities.discard(publisher)
        self._publishers.remove(publisher)
        publisher.destroyed = True
        return True

    def create_subscription(self, msg_type, topic, callback, qos_profile) -> SimpleNamespace:
        inspect.signature(callback).bind(object())
        self._subscriptions.append(SimpleNamespace(kind=msg_type, topic=self._topic(topic), callback=callback,
                                                   profile=qos_profile))
        return self._subscriptions[-1]

    def destroy_subscription(self, subscription) -> bool:
        self._subscriptions.remove(subscription)
        return True

    def create_timer(self, timer_period_sec, callback) -> SimpleNamespace:
        inspect.signature(callback).bind()
        self._timers.append(SimpleNamespace(period=timer_period_sec, callback=callback))
        return self._timers[-1]

    def destroy_timer(self, timer) -> bool:
        self._timers.remove(timer)
        return True

    def destroy_node(self) -> None:
        assert not self.destroyed
        self.destroyed = True

    on_configure, on_activate, on_deactivate, on_cleanup, on_shutdown, on_error = map(
        _step, ("on_configure", "on_activate", "on_deactivate", "on_cleanup", "on_shutdown", "on_error"))

    def _call(self, step: str) -> TransitionCallbackReturn:
        try:
            return getattr(self, f"on_{step}")(LifecycleState(self.state, 0))
        except Exception:  # as rclpy does: nothing is told
            return TransitionCallbackReturn.ERROR

    trigger_configure = _transition("configure", "unconfigured", "inactive")
    trigger_activate = _transition("activate", "inactive", "active")
    trigger_deactivate = _transition("deactivate", "active", "inactive")
    trigger_cleanup = _transition("cleanup", "inactive", "unconfigured")

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        return _transition("shutdown", self.state, "finalized")(self)

    def publisher(self, topic: str) -> Publisher:
        found, = (publisher for publisher in self._publishers if publisher.topic == topic)
        return found

    def topics(self) -> dict[str, QoSProfile]:
        return {subscription.topic: subscription.profile for subscription in self._subscriptions}

    def deliver(self, topic: str, message: Any) -> None:
        for subscription in self._subscriptions:
            if subscription.topic == topic:
                assert isinstance(message, subscription.kind)
                subscription.callback(message)

    def tick(self) -> None:
        for timer in list(self._timers):
            timer.callback()


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    return module


def _rclpy() -> dict[str, ModuleType]:
    def spin(node) -> None:
        state["script"](node)
        raise ExternalShutdownException

    state = {"calls": [], "script": lambda node: None}
    return {
        "rclpy": _module("rclpy", state=state, spin=spin,
                         init=lambda *, args=None: state["calls"].append(("init", args)),
                         try_shutdown=lambda: state["calls"].append(("try_shutdown", None))),
        "rclpy.executors": _module("rclpy.executors", ExternalShutdownException=ExternalShutdownException),
        "rclpy.lifecycle": _module(
            "rclpy.lifecycle", LifecycleState=LifecycleState, TransitionCallbackReturn=TransitionCallbackReturn,
            LifecycleNode=type("LifecycleNode", (LifecycleNode,), {"overrides": {}, "made": []})),
        "rclpy.qos": _module("rclpy.qos", QoSProfile=QoSProfile, HistoryPolicy=HistoryPolicy,
                             ReliabilityPolicy=ReliabilityPolicy, DurabilityPolicy=DurabilityPolicy),
        "rcl_interfaces": _module("rcl_interfaces"),
        "rcl_interfaces.msg": _module("rcl_interfaces.msg", ParameterDescriptor=SimpleNamespace)}


def install(monkeypatch: Any, *, forget: Callable[[str], bool] = lambda name: name.split(".")[0] == "talent_ros"
            ) -> dict[str, ModuleType]:
    """Put the modules where `import` finds them, for the length of a test. forget: modules that imported others."""
    modules = _rclpy()
    for full, cls in message_classes().items():
        package, kind, name = full.split("/")
        modules.setdefault(package, _module(package))
        setattr(modules.setdefault(f"{package}.{kind}", _module(f"{package}.{kind}")), name, cls)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in list(filter(forget, sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    return modules
