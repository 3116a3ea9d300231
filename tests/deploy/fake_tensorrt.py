"""Modules shaped like the TensorRT of one version: what that version lacks is lacking, what it refuses is refused.

After the Python bindings of TensorRT 10.3, 10.7, 10.16 and 11.1 (python/src/infer/pyCore.cpp, python/src/parsers) and
tensorrt_rtx 1.7.1. They compute nothing: a plan is made of what the builder was told.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import ModuleType, SimpleNamespace

SHAPES = ("10.3.0", "10.7.0.23", "10.16.1.11", "11.1.0.106")
RTX = "1.7.1.116"
PHASES = (("Building engine", None, 3), ("Timing tactics", "Building engine", 4))
OTHER_GPU = b"cache of another GPU"


class _Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = _Severity


class IProgressMonitor:
    pass


class Profile:
    def __init__(self) -> None:
        self.shapes = {}

    def set_shape(self, name, low, usual, high) -> None:
        self.shapes[name] = (low, usual, high)


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    """IBuilderConfig. It has no set_flag: a strongly typed network takes no FP16 or INT8 flag in any version."""

    def __init__(self) -> None:
        self.pools, self.profiles, self.cache = {}, [], None

    def set_memory_pool_limit(self, pool, size) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile) -> None:
        self.profiles.append(profile)


class ConfigWithTimingCache(Config):
    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content == b"damaged" else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content == OTHER_GPU and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class RtxConfig(Config):
    """The real one has the timing cache's calls, which look for a GPU: nobody may call them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_compute_capabilities, self.targets = 1, {}

    def set_compute_capability(self, value, index) -> bool:
        self.targets[index] = value.name
        return index < self.num_compute_capabilities


class Registry:
    """IPluginRegistry, with one of NVIDIA's own. creators: what the next library brings; what is there is refused."""

    def __init__(self) -> None:
        self.all_creators = [creator("ROIAlign_TRT", "2", "")]
        self.creators, self.loaded = [creator("RcaCostAggregation", "1", "talent")], []

    def load_library(self, path: str) -> object | None:
        if not self.creators or any(one in self.all_creators for one in self.creators):
            return None
        handle = tuple(self.creators)
        self.loaded.append(path)
        self.all_creators += handle
        return handle

    def deregister_library(self, handle) -> None:
        for one in handle:
            self.all_creators.remove(one)


def creator(name: str, version: str, namespace: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, plugin_version=version, plugin_namespace=namespace)


class Parser:
    """One input "x" [-1, 2] comes out of every model, and one layer, which `plugin` computes where it is registered."""

    refuse = False
    plugin = creator("RcaCostAggregation", "1", "talent")

    def __init__(self, network, logger) -> None:
        self.network, self.num_errors = network, 1

    def parse_from_file(self, path: str) -> bool:
        return self._parse("file", path)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        return self._parse("memory", path, model)

    def _parse(self, *source) -> bool:
        self.network.source = source
        known = self.plugin in self.registry.all_creators
        self.network.layers.append(SimpleNamespace(type=self.layer_type["PLUGIN_V3" if known else "MATRIX_MULTIPLY"]))
        return not self.refuse

    def get_error(self, index: int) -> str:
        return "no importer for NoSuchOperator"


class Network:
    def __init__(self) -> None:
        self.layers, self.source, self.num_inputs = [], None, 1

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> SimpleNamespace:
        return self.layers[index]

    def get_input(self, index: int) -> SimpleNamespace:
        return [SimpleNamespace(name="x", shape=(-1, 2))][index]


class Builder:
    """say: messages for the logger. monitored: whether progress is told. failing: whether no plan comes out."""

    say: tuple[tuple[_Severity, str], ...] = ()
    failing = False
    made: list[Builder] = []

    def __init__(self, logger) -> None:
        self.logger, self.config, self.network = logger, None, None
        type(self).made.append(self)

    def create_network(self, flags: int = 0):
        if flags not in self.allowed_flags:
            raise TypeError(f"no such flags in this version, or not strongly typed: {flags:b}")
        self.network = Network()
        return self.network

    def create_builder_config(self):
        self.config = self.config_type()
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network, config) -> memoryview | None:
        for severity, message in self.say:
            self.logger.log(severity, message)
        monitor = getattr(config, "progress_monitor", None)
        if self.failing or (monitor is not None and not self._report(monitor)):
            return None
        if config.cache is not None:
            config.cache.content += b"+measured"
        return memoryview(json.dumps({"pools": config.pools, "shapes": config.profiles[0].shapes}).encode())

    def _report(self, monitor) -> bool:
        """Tell the phases, the inner one within the second step of the outer; False where a step said stop."""
        (outer, _, steps), inner = PHASES
        monitor.phase_start(*PHASES[0])
        carry_on = monitor.step_complete(outer, 0)
        if carry_on:
            monitor.phase_start(*inner)
            carry_on = all(monitor.step_complete(inner[0], step) for step in range(inner[2]))
            monitor.phase_finish(inner[0])
        carry_on = carry_on and all(monitor.step_complete(outer, step) for step in range(1, steps))
        monitor.phase_finish(outer)
        return carry_on


def fake(version: str, *, monitored: bool = True) -> ModuleType:
    """`tensorrt` of a version of SHAPES, or `tensorrt_rtx` for RTX. monitored: whether it has IProgressMonitor."""
    rtx = version == RTX
    module = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = version
    major = int(version.split(".")[0])
    common = ["GPU_FALLBACK", "REFIT", "TF32"]
    if rtx or major >= 11:
        flags = IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=0)
        module.BuilderFlag = IntEnum("BuilderFlag", common, start=0)
    else:
        flags = IntEnum("NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH", "STRONGLY_TYPED"], start=0)
        module.BuilderFlag = IntEnum("BuilderFlag", ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", *common], start=0)
    module.NetworkDefinitionCreationFlag = flags
    module.MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"], start=0)
    module.ILogger = ILogger
    if monitored:
        module.IProgressMonitor = IProgressMonitor
    if rtx:
        module.ComputeCapability = IntEnum(
            "ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"], start=0)
    strong = {0, 1} if major >= 11 else {1 << flags.STRONGLY_TYPED}
    registry = Registry()
    module.get_plugin_registry = lambda: registry
    module.LayerType = IntEnum("LayerType", ["MATRIX_MULTIPLY", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3"], start=0)
    module.OnnxParser = type("OnnxParser", (Parser,), {"registry": registry, "layer_type": module.LayerType})
    module.Builder = type("Builder", (Builder,), {
        "made": [], "allowed_flags": strong, "config_type": RtxConfig if rtx else ConfigWithTimingCache})
    return module
