"""With the plugin or without it: who decides, and that the faster of two engines is kept and nothing else is left."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from deploy import plugin, plugin_choice
from deploy.builders import Runtime
from deploy.engine import EngineBuild
from deploy.engine_notes import EngineNotes, PluginChoice
from deploy.onnx_summary import Tensor
from deploy.plugin_choice import (
    AUTO,
    FASTER,
    OFF,
    ON,
    ROUNDS,
    WARM_UP,
    Decision,
    build_chosen,
    check_library,
    decide,
    describe_choice,
    engine_loader,
    random_inputs,
)
from talent.errors import UserError
from tests.deploy.fake_tensorrt import fake

GPU = "NVIDIA Toaster"
COMPARED = Decision(AUTO, None, FASTER, gpu=GPU)
OLD = b"what was there before"


# What to build


@pytest.fixture
def here(monkeypatch) -> SimpleNamespace:
    """A board (sm87) with TensorRT, Polygraphy and the plugin's library, which a test takes away.

    loaded, unloaded: names of the TensorRTs that the plugin was registered with, and taken out of.
    """
    machine = SimpleNamespace(arch="sm87", library=Path("plugin.so"), polygraphy=True, failure=None, loaded=[],
                              unloaded=[])
    find_spec, module = importlib.util.find_spec, fake("10.16.1.11")
    module.Logger = mock.Mock(ERROR="errors")

    def load(trt, logger):
        if machine.failure:
            raise UserError(machine.failure)
        assert logger is module.Logger.return_value and module.Logger.call_args == mock.call("errors")
        machine.loaded.append(trt.__name__)

    monkeypatch.setattr(plugin, "find", lambda: machine.library)
    monkeypatch.setattr(plugin, "load", load)
    monkeypatch.setattr(plugin, "unload", lambda trt: machine.unloaded.append(trt.__name__))
    monkeypatch.setattr(plugin_choice, "load_runtime", lambda name: module)
    monkeypatch.setattr(plugin_choice, "gpu_architecture", lambda: machine.arch)
    monkeypatch.setattr(plugin_choice, "gpu_name", lambda: GPU)
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: machine.polygraphy or None if name == "polygraphy" else find_spec(name))
    return machine


def test_auto_compares_where_the_gpu_and_the_plugin_are(here):
    for arch in ("sm87", "sm86+sm87"):
        assert decide(AUTO, runtime="tensorrt", arch=arch) == COMPARED
    here.arch = "sm89"
    assert decide(AUTO, runtime="tensorrt_rtx", arch="portable") == COMPARED
    assert here.loaded == here.unloaded == ["tensorrt"] * 3


@pytest.mark.parametrize(("changes", "arch", "reason"), [
    ({"arch": None}, "sm87", "no NVIDIA GPU"), ({"arch": None, "library": None}, "portable", "no NVIDIA GPU"),
    ({}, "portable", "for portable, and the GPU here, .* is sm87"), ({}, "sm86+sm89", "for sm86.sm89, .* is sm87"),
    ({"library": None}, "sm87", "library was not found; build it: make plugin"),
    ({"polygraphy": False}, "sm87", "pip install polygraphy"),
    ({"failure": "made for\nTensorRT 11"}, "sm87", "does not load: made for TensorRT 11$")])
def test_auto_is_off_elsewhere_and_says_why(here, changes, arch, reason):
    vars(here).update(changes)
    decision = decide(AUTO, runtime="tensorrt", arch=arch)
    assert (decision.requested, decision.takes_plugin, decision.gpu) == (AUTO, False, None)
    assert re.search(reason, decision.reason), decision.reason
    assert here.loaded == []


def test_off_asks_for_nothing(here):
    vars(here).update(arch=None, library=None, failure="no")
    assert decide(OFF, runtime="tensorrt", arch="sm87").takes_plugin is False and here.loaded == []


def test_on_needs_no_gpu_but_the_plugin(here):
    here.arch = None
    assert decide(ON, runtime="tensorrt", arch="portable").takes_plugin is True and here.loaded == ["tensorrt"]
    here.failure = "no libtalent_plugin.so; build it"
    with pytest.raises(UserError, match="no libtalent_plugin.so; build it"):
        decide(ON, runtime="tensorrt", arch="portable")


def test_the_library_is_asked_for_before_a_long_work(here):
    check_library()
    here.library = None
    with pytest.raises(UserError, match="--plugin on asks for, found none; build it: make plugin.*; or leave"):
        check_library()


@pytest.mark.parametrize(("decision", "fitting"), [
    (Decision(OFF, False, ""), {"off", "auto, off", "auto, off here", "before", "auto, unbuildable"}),
    (Decision(AUTO, False, ""), {"off", "auto, off", "auto, off here", "before", "auto, unbuildable"}),
    (Decision(ON, True, ""), {"on", "auto, on here", "auto, on elsewhere"}),
    (COMPARED, {"auto, off here", "auto, on here", "auto, unbuildable"})])
def test_which_engines_are_kept(decision, fitting):
    engines = {
        "before": (False, None), "off": (False, PluginChoice(requested=OFF, reason="")),
        "on": (True, PluginChoice(requested=ON, reason="")),
        "auto, off": (False, PluginChoice(requested=AUTO, reason="")),
        "auto, unbuildable": (False, PluginChoice(requested=AUTO, reason="", gpu=GPU)),
        "auto, off here": (False, measured(GPU)), "auto, on here": (True, measured(GPU)),
        "auto, on elsewhere": (True, measured("another"))}
    assert {name for name, (has, choice) in engines.items() if decision.fits(notes(has, choice))} == fitting


def measured(gpu: str) -> PluginChoice:
    return PluginChoice(requested=AUTO, reason=FASTER, gpu=gpu, with_microseconds=1.0, without_microseconds=2.0,
                        rounds=ROUNDS)


def notes(has_plugin: bool, choice: PluginChoice | None, layers: int = 9) -> EngineNotes:
    return EngineNotes(
        graph="vision", precision="fp16", runtime="tensorrt", version="10.16.1.11", arch="sm87", batch=4, bundle="",
        onnx={}, bytes=1, sha256="", seconds=1.0, peak_memory_bytes=None, peak_gpu_memory_bytes=None,
        workspace_bytes=None, commit="", versions={}, created="", plugin=has_plugin,
        plugin_layers=layers if has_plugin else 0, plugin_choice=choice)


def test_what_is_told_of_a_choice():
    assert describe_choice(notes(True, measured(GPU))) == (
        f"vision with the RCA plugin (9 layers): {FASTER}: 1 us with it, 2 us without, medians of {ROUNDS} runs on "
        f"{GPU}")
    assert describe_choice(notes(True, PluginChoice(requested=ON, reason="--plugin on"), 1)) == (
        "vision with the RCA plugin (1 layer): --plugin on")
    assert describe_choice(notes(False, PluginChoice(requested=AUTO, reason="no GPU"))) == (
        "vision without the RCA plugin: no GPU")


def test_notes_are_read_as_they_were_written(tmp_path):
    for choice in (measured(GPU), None):
        notes(True, choice).write(tmp_path / "x.plan")
        assert EngineNotes.read(tmp_path / "x.plan") == notes(True, choice)


# Building what was decided


class Workshop:
    """Builds engines that are their own names, and loads them. broken: steps ("build with", "run without") that fail.

    seconds: what runs of an engine take, those with the plugin and those without. runs: which engine ran, in order.
    """

    def __init__(self, with_plugin: Sequence[float] = (), without: Sequence[float] = (), broken: str = "",
                 error: BaseException | None = None) -> None:
        self.seconds = {True: iter(with_plugin), False: iter(without)}
        self.broken, self.error = broken, error or UserError("it is\nbroken")
        self.built: list[Path] = []
        self.runs: list[bool] = []
        self.open: set[bool] = set()
        self.together = 0

    def build(self, path: Path, has_plugin: bool) -> EngineBuild:
        self.step("build", has_plugin)
        path.write_text(name(has_plugin))
        self.built.append(path)
        return EngineBuild(path=path, bytes=4, seconds=2.0, runtime=Runtime("tensorrt", "10.16.1.11"), arch="sm87",
                           peak_memory_bytes=None, peak_gpu_memory_bytes=None, plugin_layers=9 * has_plugin)

    @contextlib.contextmanager
    def load(self, path: Path, has_plugin: bool) -> Iterator:
        self.step("load", has_plugin)
        assert path.read_text() == name(has_plugin)

        def run() -> float:
            self.step("run", has_plugin)
            self.runs.append(has_plugin)
            self.together += len(self.open) == 2
            return next(self.seconds[has_plugin])

        self.open.add(has_plugin)
        yield run
        self.open.remove(has_plugin)

    def step(self, what: str, has_plugin: bool) -> None:
        if self.broken == f"{what} {name(has_plugin)}":
            raise self.error

    def make(self, plan: Path, decision: Decision = COMPARED) -> tuple[EngineBuild, PluginChoice]:
        return build_chosen(self.build, plan, decision, load=self.load, scratch=plan.parents[1], extra="rtx",
                            progress=False)


def name(has_plugin: bool) -> str:
    return "with" if has_plugin else "without"


@pytest.fixture
def plan(tmp_path) -> Path:
    """Where an engine is to be, and one from before is."""
    path = tmp_path / "engines" / "vision.plan"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def files(plan: Path) -> list[str]:
    return sorted(path.relative_to(plan.parents[1]).as_posix() for path in plan.parents[1].rglob("*"))


@pytest.mark.parametrize("decision", [Decision(ON, True, "--plugin on"), Decision(AUTO, False, "no GPU")])
def test_what_is_decided_is_built_once_and_in_its_place(plan, decision):
    workshop = Workshop()
    built, choice = workshop.make(plan, decision)
    assert workshop.built == [plan] and workshop.runs == [] and built.plugin_layers == 9 * decision.takes_plugin
    assert choice == PluginChoice(requested=decision.requested, reason=decision.reason)


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_engine_is_kept_and_the_other_one_removed(plan, faster):
    """By the medians of what counts: warming up is slow, and the slower engine has the faster mean and minimum."""
    warm = [100.0] * WARM_UP
    quick = [*warm, *[2e-3] * (ROUNDS // 2 + 1), *[9.0] * (ROUNDS - ROUNDS // 2 - 1)]
    slow = [*warm, *[3e-3] * (ROUNDS // 2 + 1), *[1e-9] * (ROUNDS - ROUNDS // 2 - 1)]
    workshop = Workshop(with_plugin=quick if faster else slow, without=slow if faster else quick)
    built, choice = workshop.make(plan)
    assert plan.read_text() == name(faster) and files(plan) == ["engines", "engines/vision.plan"]
    assert built.path == plan and built.plugin_layers == 9 * faster
    assert choice == PluginChoice(
        requested=AUTO, reason=FASTER, gpu=GPU, rounds=ROUNDS, with_microseconds=2000.0 if faster else 3000.0,
        without_microseconds=3000.0 if faster else 2000.0)


def test_engines_that_are_as_fast_need_no_library(plan):
    same = [1e-3] * (WARM_UP + ROUNDS)
    Workshop(same, same).make(plan)
    assert plan.read_text() == "without"


def test_they_run_in_turn_and_together_and_are_closed(plan):
    same = [1e-3] * (WARM_UP + ROUNDS)
    workshop = Workshop(same, same)
    workshop.make(plan)
    rounds = list(zip(workshop.runs[::2], workshop.runs[1::2], strict=True))
    assert rounds == [(False, True), (True, False)] * ((WARM_UP + ROUNDS) // 2)
    assert workshop.together == len(workshop.runs) and workshop.open == set()


@pytest.mark.parametrize(("broken", "reason"), [
    ("build with", "was not built"), ("load with", "does not load"), ("run with", "does not run")])
def test_where_the_plugin_fails_the_other_engine_is_kept_and_it_is_said(plan, broken, reason):
    built, choice = Workshop([1e-3] * 200, [1.0] * 200, broken).make(plan)
    assert plan.read_text() == "without" and files(plan) == ["engines", "engines/vision.plan"]
    assert built.plugin_layers == 0
    assert choice == PluginChoice(requested=AUTO, reason=f"the engine with it {reason}: it is broken", gpu=GPU)


@pytest.mark.parametrize("error", [UserError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("broken", ["build without", "load without", "run without"])
def test_where_the_other_engine_fails_so_does_the_build_and_the_old_one_stays(plan, broken, error):
    with pytest.raises(type(error)):
        Workshop([1e-3] * 200, [1.0] * 200, broken, error).make(plan)
    assert plan.read_bytes() == OLD and files(plan) == ["engines", "engines/vision.plan"]


@pytest.mark.parametrize("broken", ["build with", "load with", "run with"])
def test_ctrl_c_is_no_failure_of_the_plugin(plan, broken):
    with pytest.raises(KeyboardInterrupt):
        Workshop([1e-3] * 200, [1.0] * 200, broken, KeyboardInterrupt()).make(plan)
    assert plan.read_bytes() == OLD and files(plan) == ["engines", "engines/vision.plan"]


def test_a_first_engine_makes_its_folder(tmp_path):
    plan = tmp_path / "engines" / "new" / "vision.plan"
    build_chosen((workshop := Workshop([1.0] * 200, [2.0] * 200)).build, plan, COMPARED, load=workshop.load,
                 scratch=tmp_path, extra="rtx", progress=False)
    assert plan.read_text() == "with"


# Running engines


def test_inputs_are_of_the_real_size_and_no_zeros():
    tensors = (Tensor("image", "float32", ("B", 3, 64, 64)), Tensor("words", "float16", ("B", 17, 32)))
    shapes = {"image": (1, 3, 64, 64), "words": (1, 17, 32)}
    inputs = random_inputs(tensors, shapes)
    assert {name: (value.shape, str(value.dtype)) for name, value in inputs.items()} == {
        "image": ((1, 3, 64, 64), "float32"), "words": ((1, 17, 32), "float16")}
    for name, value in inputs.items():
        assert 0.9 < value.astype(float).std() < 1.1 and np.count_nonzero(value) > 0.99 * value.size, name
        assert np.array_equal(value, random_inputs(tensors, shapes)[name])


class RunnerError(Exception):
    pass


@pytest.fixture
def runner(monkeypatch) -> list:
    """What happens to Polygraphy's runner and to the plugin."""
    events: list = []

    class Runner:
        def __enter__(self) -> Runner:
            events.append("enter")
            return self

        def __exit__(self, *exception: object) -> None:
            events.append("exit")

        def infer(self, inputs) -> None:
            events.append(inputs)
            if not inputs:
                raise RunnerError("CUDA error 700\n(illegal address)")

    monkeypatch.setattr(plugin_choice, "enter_engine",
                        lambda stack, path, runtime, advice: stack.enter_context(Runner()))
    monkeypatch.setattr(plugin_choice, "load_plugin", lambda runtime: events.append(f"plugin of {runtime}"))
    monkeypatch.setattr(plugin_choice, "polygraphy_exception", lambda runtime: RunnerError)
    return events


@pytest.mark.parametrize("has_plugin", [True, False])
def test_an_engine_is_run_by_the_backends_runner_after_its_plugin(runner, monkeypatch, has_plugin):
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(plugin_choice.time, "perf_counter", lambda: next(clock))
    with engine_loader("tensorrt", {"x": 1})(Path("x.plan"), has_plugin) as run:
        assert run() == 0.25
    assert runner == [*["plugin of tensorrt"][:has_plugin], "enter", {"x": 1}, "exit"]


def test_an_engine_that_fails_is_told_in_the_runners_words(runner):
    with (pytest.raises(UserError, match="cannot run the engine that it built: CUDA error 700 .illegal address. .*off"),
          engine_loader("tensorrt", {})(Path("x.plan"), False) as run):
        run()
    assert runner[-1] == "exit"
