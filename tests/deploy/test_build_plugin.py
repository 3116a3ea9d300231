"""talent-build --plugin: what is built, kept, recorded and told of a bundle whose vision graph has an RCA."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from deploy import build, builders, engine, plugin, plugin_choice
from deploy.build import main
from deploy.builders import Runtime
from deploy.bundle import GRAPHS, Bundle
from deploy.engine import EngineBuild
from deploy.engine_notes import EngineNotes
from deploy.inspect_bundle import not_recorded
from deploy.plugin_choice import ROUNDS
from talent.errors import UserError
from talent.native import BUILD
from tests.deploy.fake_tensorrt import fake

VERSION = "10.16.1.11"


@pytest.fixture
def bundle(make_bundle) -> Bundle:
    return make_bundle(rca=True)


@pytest.fixture
def workshop(monkeypatch) -> SimpleNamespace:
    """A board (sm87) with full TensorRT, and the plugin, that builds and times no real engines.

    built: (graph, with the plugin) in order. faster: of the two. failing: "with" or "without" engines are not built.
    inputs: what engines were timed on.
    """
    shop = SimpleNamespace(built=[], faster=True, failing=None, inputs={}, arch="sm87", gpu="Orin",
                           library=Path("plugin.so"))

    def build_engine(onnx: Path, plan: Path, *, plugins, **options) -> EngineBuild:
        if shop.failing == ("with" if plugins else "without"):
            raise UserError("the builder gave up")
        shop.built.append((onnx.stem, tuple(plugins)))
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(f"{onnx.stem} {len(shop.built)} {plugins}")
        return EngineBuild(path=plan, bytes=plan.stat().st_size, seconds=1.5, runtime=Runtime("tensorrt", VERSION),
                           arch="sm87", peak_memory_bytes=None, peak_gpu_memory_bytes=None,
                           plugin_layers=1 if plugins else 0)

    def engine_loader(runtime, inputs):
        shop.inputs = {name: value.shape for name, value in inputs.items()}
        return lambda path, has_plugin: contextlib.nullcontext(
            lambda: 1e-3 if has_plugin is shop.faster else 2e-3)

    def load(trt, logger):
        if shop.library is None:
            raise UserError(f"no plugin; build it: {BUILD}")

    module = fake(VERSION)
    module.Logger = mock.Mock(ERROR="errors")
    monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime("tensorrt", VERSION)])
    for place in (build, plugin_choice):
        monkeypatch.setattr(place, "load_runtime", lambda name: module)
    for place in (build, builders, engine, plugin_choice):
        monkeypatch.setattr(place, "gpu_architecture", lambda: shop.arch)
    monkeypatch.setattr(plugin_choice, "gpu_name", lambda: shop.gpu)
    monkeypatch.setattr(plugin, "find", lambda: shop.library)
    monkeypatch.setattr(plugin, "load", load)
    monkeypatch.setattr(plugin, "unload", lambda trt: None)
    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(build, "engine_loader", engine_loader)
    return shop


@pytest.fixture
def run(bundle, workshop, capsys) -> Callable[..., tuple[list[tuple[str, bool]], list[str]]]:
    """run(*options): what talent-build built, with the plugin or not, and the lines that it printed."""

    def build_with(*options: str) -> tuple[list[tuple[str, bool]], list[str]]:
        del workshop.built[:]
        assert main([str(bundle.directory), *options]) == 0
        Bundle.load(bundle.directory, verify=True)
        return [(graph, bool(plugins)) for graph, plugins in workshop.built], capsys.readouterr().out.splitlines()

    return build_with


def recorded(bundle: Bundle) -> tuple[EngineNotes, dict]:
    """The notes of the vision engine, and what bundle.json says of it."""
    _, entry = json.loads((bundle.directory / "bundle.json").read_text())["engines"]
    return EngineNotes.read(bundle.directory / entry["path"]), entry


@pytest.mark.parametrize("faster", [True, False])
def test_auto_keeps_what_is_faster_and_records_both(bundle, workshop, run, faster):
    workshop.faster = faster
    built, lines = run("--batch", "2")
    assert built == [("text", False), ("vision", False), ("vision", True)]
    assert workshop.built[2][1] == plugin.FUNCTIONS
    assert lines[2] == ("vision with the RCA plugin (1 layer)" if faster else "vision without the RCA plugin") + (
        f": the faster of the two here: {1000 if faster else 2000} us with it, {2000 if faster else 1000} us without, "
        f"medians of {ROUNDS} runs on Orin")
    notes, entry = recorded(bundle)
    assert (notes.plugin, notes.plugin_layers, entry["plugin"]) == (faster, int(faster), faster)
    assert (bundle.directory / entry["path"]).read_text().endswith(f"{plugin.FUNCTIONS if faster else ()}")
    choice = notes.plugin_choice
    assert (choice.requested, choice.gpu, choice.rounds) == ("auto", "Orin", ROUNDS)
    assert (choice.with_microseconds < choice.without_microseconds) is faster
    assert workshop.inputs == {"image": (1, 3, 64, 64), "colour": (1, 3, 1, 1), "bias": (1, 1, 1, 1)}
    assert not_recorded(Bundle.load(bundle.directory)) == []
    assert sorted(path.name for path in (bundle.directory / entry["path"]).parent.iterdir()) == [
        "text.json", "text.plan", "vision.json", "vision.plan"]


@pytest.mark.parametrize(("option", "has_plugin"), [("on", True), ("off", False)])
def test_what_is_asked_for_is_built_once(bundle, run, option, has_plugin):
    built, lines = run("--plugin", option)
    assert built == [("text", False), ("vision", has_plugin)]
    assert lines[2].endswith(f": --plugin {option}") and lines[2].startswith(
        "vision with the RCA plugin (1 layer)" if has_plugin else "vision without the RCA plugin")
    notes, entry = recorded(bundle)
    assert notes.plugin is entry["plugin"] is has_plugin and notes.plugin_choice.requested == option
    text = EngineNotes.read(bundle.directory / Bundle.load(bundle.directory).engines[0].path)
    assert (text.plugin, text.plugin_layers, text.plugin_choice) == (False, 0, None)


def test_on_without_the_library_builds_nothing(bundle, workshop, capsys):
    workshop.library = None
    assert main([str(bundle.directory), "--plugin", "on"]) == 2
    assert BUILD in capsys.readouterr().err and workshop.built == []
    assert Bundle.load(bundle.directory).engines == () and not (bundle.directory / "engines").exists()


def test_on_for_a_bundle_without_rca_asks_for_nothing(toy_bundle, workshop, capsys):
    workshop.library = None
    assert main([str(toy_bundle.directory), "--plugin", "on"]) == 0
    assert workshop.built == [("text", ()), ("vision", ())] and "RCA" not in capsys.readouterr().out


def test_auto_without_the_library_is_off_in_one_line(bundle, workshop, run):
    workshop.library = None
    built, lines = run()
    assert built == [("text", False), ("vision", False)] and len(lines) == 4
    assert lines[2] == f"vision without the RCA plugin: its library was not found; build it: {BUILD}"
    notes, _ = recorded(bundle)
    assert notes.plugin_choice.gpu is None and notes.plugin_choice.rounds is None


def test_auto_goes_without_a_plugin_that_cannot_be_built(bundle, workshop, run):
    workshop.failing = "with"
    built, lines = run()
    assert built == [("text", False), ("vision", False)]
    assert lines[2] == "vision without the RCA plugin: the engine with it was not built: the builder gave up"
    assert recorded(bundle)[0].plugin is False
    assert run()[0] == [] and run("--force")[0] == built


def test_auto_fails_where_no_engine_can_be_built_and_leaves_what_was_there(bundle, workshop, run, capsys):
    run("--plugin", "on")
    before = {path: path.read_bytes() for path in bundle.directory.rglob("*") if path.is_file()}
    workshop.failing = "without"
    assert main([str(bundle.directory)]) == 2 and "the builder gave up" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in bundle.directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("first", "second", "built"), [
    ("on", "on", []), ("off", "off", []), ("auto", "auto", []), ("on", "off", [False]), ("off", "on", [True]),
    ("auto", "on", []), ("auto", "off", [False]), ("on", "auto", [False, True]), ("off", "auto", [False, True])])
def test_an_engine_is_kept_where_it_is_what_is_asked_for(run, first, second, built):
    """Where the plugin is faster."""
    run("--plugin", first)
    assert run("--plugin", second)[0] == [("vision", has_plugin) for has_plugin in built]
    assert run("--plugin", second)[0] == []


def test_auto_measures_again_on_another_gpu_and_once_the_library_is_there(workshop, run):
    library, workshop.library = workshop.library, None
    run()
    workshop.library = library
    compared = [("vision", False), ("vision", True)]
    assert run()[0] == compared and run()[0] == []
    workshop.gpu = "Orin NX"
    assert run()[0] == compared and run()[0] == []


def test_an_engine_whose_plugin_is_gone_is_built_without_it(bundle, workshop, run):
    run()
    assert recorded(bundle)[0].plugin
    workshop.library = None
    assert run()[0] == [("vision", False)] and recorded(bundle)[1]["plugin"] is False


def test_where_no_gpu_is_auto_builds_without_the_plugin_for_real(bundle, monkeypatch, capsys):
    version = pytest.importorskip("tensorrt_rtx").__version__
    monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime("tensorrt_rtx", version)])
    for place in (build, builders, engine, plugin_choice):
        monkeypatch.setattr(place, "gpu_architecture", lambda: None)
    assert main([str(bundle.directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "vision without the RCA plugin: no NVIDIA GPU is here to compare the two on"
    notes, entry = recorded(bundle)
    assert (notes.plugin, notes.plugin_layers, entry["plugin"]) == (False, 0, False)


def test_engines_of_before_there_was_a_plugin_are_engines_without_it(bundle, workshop, run):
    run("--plugin", "off")
    for record in Bundle.load(bundle.directory).engines:
        path = (bundle.directory / record.path).with_suffix(".json")
        old = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("plugin")}
        path.write_text(json.dumps(old))
    assert run("--plugin", "off")[0] == []
    workshop.library = None
    built, lines = run()
    assert built == [] and len(lines) == len(GRAPHS) + 1
