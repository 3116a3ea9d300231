"""The plugin's library: found, checked and registered, taken out again, and what is told where that fails."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from onnx import TensorProto, helper

from deploy import builders, engine, fuse_rca, loaded_alias, plugin
from deploy.builders import Runtime
from deploy.engine import build_engine
from talent import native
from talent.errors import UserError
from tests.deploy.fake_tensorrt import RTX, SHAPES, creator, fake
from tests.native_build import ROOT

PROFILES = {"x": ((1, 2), (1, 2), (4, 2))}
LOGGER = SimpleNamespace(log=lambda severity, message: None)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the plugin is for Linux")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path) -> Path:
    """A process that has loaded nothing, and a folder that is searched for libraries."""
    monkeypatch.setattr(plugin, "_loaded", {})
    monkeypatch.setenv(native.LIBRARIES, str(tmp_path / "libraries"))
    (tmp_path / "libraries").mkdir()
    return tmp_path / "libraries"


@pytest.fixture
def aliases(monkeypatch) -> list[tuple[str, str]]:
    """Names that were asked for."""
    asked = []
    monkeypatch.setattr(plugin, "load_alias", lambda name, library: asked.append((name, library)))
    return asked


@pytest.fixture
def library(fresh) -> Callable[[int], Path]:
    """library(110100): a real one that says it was built with the headers of TensorRT 11.1.0."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")

    def make(built: int) -> Path:
        path = fresh / "libtalent_plugin.so"
        source = f"int talent_plugin_tensorrt(void) {{ return {built}; }}"
        subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], input=source, text=True,
                       check=True)
        return path.resolve()

    return make


def names(trt) -> list[str]:
    return [one.name for one in trt.get_plugin_registry().all_creators]


def number(version: str) -> int:
    major, minor, patch = map(int, version.split(".")[:3])
    return major * 10000 + minor * 100 + patch


def test_the_names_are_those_on_the_nodes():
    assert (plugin.NAME, plugin.VERSION, plugin.NAMESPACE) == (
        fuse_rca.OP_TYPE, fuse_rca.PLUGIN_VERSION, fuse_rca.DOMAIN)
    assert plugin.FUNCTIONS == (fuse_rca.OP_TYPE,)


def test_it_needs_neither_onnx_nor_torch():
    run_python("import sys, deploy.plugin; assert not {'onnx', 'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)")


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [*SHAPES, RTX])
def test_it_is_registered_once_taken_out_and_registered_again(library, aliases, version):
    trt, path = fake(version), library(number(version))
    assert plugin.find() == path
    for _ in range(2):
        assert plugin.load(trt, LOGGER) == plugin.load(trt, LOGGER) == path
        assert names(trt).count(plugin.NAME) == 1
        plugin.unload(trt)
        plugin.unload(trt)
        assert names(trt) == ["ROIAlign_TRT"]
    assert trt.get_plugin_registry().loaded == [str(path)] * 2
    assert aliases == ([("libtensorrt_rtx.so", "libtensorrt_rtx.so.1")] * 2 if version == RTX else [])


def test_one_that_another_part_of_the_process_took_out_is_registered_again(library):
    trt, path = fake("11.1.0.106"), library(110100)
    plugin.load(trt, LOGGER)
    trt.get_plugin_registry().all_creators.clear()
    assert plugin.load(trt, LOGGER) == path and plugin.NAME in names(trt)


def test_where_there_is_no_library_the_command_is_told(fresh):
    assert plugin.find() is None
    with pytest.raises(UserError, match=f"expected the TensorRT plugin libtalent_plugin.so in {fresh}, found none; "
                                        "run: make plugin, or: cmake -B build"):
        plugin.load(fake("11.1.0.106"), LOGGER)


@pytest.mark.parametrize("version", ["10.3.0", RTX])
def test_what_is_no_library_or_not_ours_is_refused(fresh, version):
    path = fresh / "libtalent_plugin.so"
    path.write_bytes(b"no library")
    with pytest.raises(UserError, match=f"expected a shared library for this machine at {path}, .*file too short"):
        plugin.load(fake(version), LOGGER)
    path.unlink()
    path.write_bytes(loaded_alias.alias("libtalent_plugin.so", "libc.so.6"))
    with pytest.raises(UserError, match="found a library without talent_plugin_tensorrt; run: make plugin"):
        plugin.load(fake(version), LOGGER)
    assert plugin._loaded == {}


@pytest.mark.parametrize(("version", "built", "wanted"), [
    ("10.3.0", 110100, "TensorRT 10 for tensorrt 10.3.0, .* of 11.1"),
    ("11.1.0.106", 101303, "TensorRT 11 for tensorrt 11.1.0.106, .* of 10.13"),
    ("11.1.0.106", 10701, "TensorRT 11 .* of 1.7"),
    (RTX, 101303, "TensorRT-RTX 1.7 or TensorRT 11 for tensorrt_rtx 1.7.1.116, .* of 10.13"),
    (RTX, 10600, "TensorRT-RTX 1.7 or TensorRT 11 .* of 1.6"),
    ("1.4.0.76", 110100, "TensorRT-RTX 1.4 for tensorrt_rtx 1.4.0.76, .* of 11.1")])
def test_a_library_for_another_tensorrt_is_refused_before_it_is_loaded(library, aliases, version, built, wanted):
    trt = fake(version)
    trt.__name__ = "tensorrt_rtx" if version.startswith("1.") else "tensorrt"
    library(built)
    with pytest.raises(UserError, match=f"built with the headers of {wanted}; run: cmake .*-DTENSORRT_ROOT="):
        plugin.load(trt, LOGGER)
    assert trt.get_plugin_registry().loaded == []


@pytest.mark.parametrize(("version", "built"), [("10.16.1.11", 100300), ("11.1.0.106", 110000), (RTX, 110100),
                                                (RTX, 10702)])
def test_a_library_for_the_same_interface_is_taken(library, aliases, version, built):
    trt, path = fake(version), library(built)
    assert plugin.load(trt, LOGGER) == path
    assert plugin.NAME in names(trt)


@pytest.mark.parametrize("creators", [[], [creator(plugin.NAME, "2", "talent")], [creator(plugin.NAME, "1", "")],
                                      [creator("Other", "1", "talent")]])
def test_a_library_that_registers_something_else_is_noticed(library, creators):
    trt = fake("11.1.0.106")
    library(110100)
    trt.get_plugin_registry().creators = creators
    with pytest.raises(UserError, match="expected tensorrt 11.1.0.106 to register RcaCostAggregation, version 1, of"):
        plugin.load(trt, LOGGER)
    assert plugin._loaded == {}


def test_a_plugin_of_another_part_of_the_process_is_not_taken_out():
    trt = fake("11.1.0.106")
    trt.get_plugin_registry().all_creators.append(creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE))
    with pytest.raises(UserError, match="another part of this process has registered it; .*a process of its own"):
        plugin.unload(trt)


def test_a_registry_that_cannot_list_its_plugins_has_none():
    assert not plugin.is_registered(SimpleNamespace(all_creators=None))  # TensorRT 10.3, where one is of a newer kind


def test_an_alias_that_the_loader_refuses_is_told(library, monkeypatch):
    def refuse(name: str, library: str) -> None:
        raise OSError("no")

    monkeypatch.setattr(plugin, "load_alias", refuse)
    library(110100)
    with pytest.raises(UserError, match="libtensorrt_rtx.so.1, which .* refuses .no.; link libtensorrt_rtx.so to it"):
        plugin.load(fake(RTX), LOGGER)


# A second name for a library, for real

MATHEMATICS = "libm.so.6"


def test_an_alias_gives_the_library_by_a_name_that_no_file_has():
    with pytest.raises(OSError, match="cannot open"):
        ctypes.CDLL("libtalent_cosines.so")
    loaded_alias.load_alias("libtalent_cosines.so", MATHEMATICS)
    found = ctypes.CDLL("libtalent_cosines.so")
    found.cos.restype, found.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    assert found.cos(0.0) == 1.0
    loaded_alias.load_alias("libtalent_cosines.so", "libnowhere.so.1")  # the name is taken: nothing to do


def test_an_alias_of_nothing_is_an_error():
    with pytest.raises(OSError, match="libnowhere.so.1: cannot open"):
        loaded_alias.load_alias("libtalent_nothing.so", "libnowhere.so.1")


def test_an_alias_leaves_the_stack_as_it_is():
    """A library that says nothing about the stack makes it executable. A process of its own, since that stays."""
    code = ("import pathlib, deploy.loaded_alias as alias\n"
            "def stack():\n"
            "    lines = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
            "    return [line.split()[1] for line in lines if line.endswith('[stack]')]\n"
            "before = stack()\n"
            f"alias.load_alias('libtalent_stack.so', '{MATHEMATICS}')\n"
            "assert stack() == before == ['rw-p'], stack()")
    run_python(code)


# Engines, by modules of TensorRT's shape

@pytest.fixture
def machine(monkeypatch, tmp_path, library, aliases):
    """machine(version): one with that TensorRT alone, a plugin for it, and x.onnx, which has the plugin's function."""
    nodes = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("talent", plugin.NAME, ["a"], ["b"], nodes, opsets)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node(plugin.NAME, ["x"], ["y"], domain="talent")], "g", [x], [y])
    model = helper.make_model(graph, functions=[function], opset_imports=[*opsets, helper.make_opsetid("talent", 1)])
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())

    def install(version: str):
        module = fake(version)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime(module.__name__, version)])
        for place in (builders, engine):
            monkeypatch.setattr(place, "gpu_architecture", lambda: "sm87")
        library(number(version))
        return module

    return install


@pytest.mark.parametrize("version", [*SHAPES, RTX])
def test_one_process_builds_with_the_plugin_and_without_it(machine, tmp_path, version):
    trt = machine(version)
    for plugins, layers in (((), 0), (plugin.FUNCTIONS, 1), ((), 0), (plugin.FUNCTIONS, 1), (plugin.FUNCTIONS, 1)):
        built = build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, plugins=plugins)
        assert built.plugin_layers == layers
        source = trt.Builder.made[-1].network.source
        assert source[0] == ("memory" if plugins and version == "10.3.0" else "file")


def test_a_graph_with_nothing_for_the_plugin_is_an_error(machine, tmp_path):
    machine("11.1.0.106").OnnxParser.plugin = creator("Other", "1", "talent")
    with pytest.raises(UserError, match="expected RcaCostAggregation in .*x.onnx for the plugin .* found none; build"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, plugins=plugin.FUNCTIONS)
    assert not (tmp_path / "x.plan").exists()


def test_a_plugin_that_is_not_ours_is_refused(machine, tmp_path):
    machine("11.1.0.106")
    with pytest.raises(UserError, match="unknown plugin 'RcaCost'; did you mean 'RcaCostAggregation'"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, plugins=["RcaCost"])


def test_what_the_plugin_said_stands_before_the_parsers_words(machine, tmp_path):
    trt = machine("11.1.0.106")

    class Refusing(trt.OnnxParser):
        refuse = True

        def __init__(self, network, logger) -> None:
            super().__init__(network, logger)
            logger.log(trt.ILogger.Severity.ERROR, "RcaCostAggregation layer: expected none or relu, received gelu")
            logger.log(trt.ILogger.Severity.ERROR, "the parser's own")

    trt.OnnxParser = Refusing
    with pytest.raises(UserError, match="(?s)cannot read .*x.onnx:\n  RcaCost.* received gelu\n  no importer for "):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.plan", profiles=PROFILES, plugins=plugin.FUNCTIONS)
