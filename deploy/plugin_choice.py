"""Whether an engine takes the plugin for RCA or the body of its ONNX function: as asked for, or whichever is faster.

    on, off --> one engine
    auto    --> where the engine's GPU and the plugin are here: both engines, run in turn; the faster one is kept
                elsewhere: the one without the plugin
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy import plugin
from deploy.builders import load_runtime
from deploy.bundle import covers
from deploy.engine import EngineBuild
from deploy.engine_notes import EngineNotes, PluginChoice
from deploy.onnx_summary import Tensor
from deploy.runtime.gpu import gpu_architecture, gpu_name
from deploy.runtime.tensorrt import enter_engine, load_plugin, polygraphy_exception
from talent.errors import UserError
from talent.native import BUILD
from talent.require import require

AUTO, ON, OFF = REQUESTS = ("auto", "on", "off")
WARM_UP, ROUNDS = 30, 100
"""Runs of each of two engines that are not timed, and that are."""
FASTER = "the faster of the two here"

Build = Callable[[Path, bool], EngineBuild]
"""Builds an engine into a path, with the plugin or without it. Raises UserError where it cannot."""
Run = Callable[[], float]
"""Runs a loaded engine once and waits for its answer: the seconds that took. Raises UserError where it fails."""
Load = Callable[[Path, bool], AbstractContextManager[Run]]
"""Loads the engine at a path, which has the plugin or not, on the GPU here. Raises UserError where it cannot."""


@dataclass(frozen=True)
class Decision:
    """What is to be built of a graph with RCA. takes_plugin: None where both are built and compared.

    requested: of REQUESTS. gpu: name of the GPU that they are compared on.
    """

    requested: str
    takes_plugin: bool | None
    reason: str
    gpu: str | None = None

    def fits(self, notes: EngineNotes) -> bool:
        """Whether an engine with these notes is what this decision comes to."""
        if self.takes_plugin is not None:
            return notes.plugin == self.takes_plugin
        return notes.plugin_choice is not None and notes.plugin_choice.gpu == self.gpu


def decide(requested: str, *, runtime: str, arch: str) -> Decision:
    """What to build with `runtime` for the GPUs `arch` ("sm87", "sm86+sm89", "portable"). requested: of REQUESTS.

    Raises UserError where the plugin is asked for ("on") and its library is missing or does not load.
    """
    if requested == OFF:
        return Decision(OFF, False, "--plugin off")
    if requested == ON:
        _check_plugin(runtime)
        return Decision(ON, True, "--plugin on")
    if hindrance := _hindrance(runtime, arch):
        return Decision(AUTO, False, hindrance)
    return Decision(AUTO, None, FASTER, gpu=gpu_name() or gpu_architecture())


def check_library() -> None:
    """Raise UserError where the plugin's library is missing: for those who ask for it, before a long work."""
    if plugin.find() is None:
        raise UserError(f"expected the library of the TensorRT plugin for RCA, which --plugin on asks for, found none; "
                        f"build it: {BUILD}; or leave --plugin out")


def _hindrance(runtime: str, arch: str) -> str | None:
    """Why the two engines cannot be compared here; None where they can."""
    here = gpu_architecture()
    if here is None:
        return "no NVIDIA GPU is here to compare the two on"
    if not covers(arch, here):
        return f"the engine is for {arch}, and the GPU here, which could compare the two, is {here}"
    if plugin.find() is None:
        return f"its library was not found; build it: {BUILD}"
    if importlib.util.find_spec("polygraphy") is None:
        return "comparing the two takes the package polygraphy; run: pip install polygraphy"
    try:
        _check_plugin(runtime)
    except UserError as error:
        return f"it does not load: {_in_one_line(error)}"
    return None


def _check_plugin(runtime: str) -> None:
    """Raise UserError where the plugin does not load. It is taken out again: every build loads what it needs."""
    trt = load_runtime(runtime)
    plugin.load(trt, trt.Logger(trt.Logger.ERROR))
    plugin.unload(trt)


def build_chosen(build: Build, plan: Path, decision: Decision, *, load: Load, scratch: Path, extra: str,
                 progress: bool = True) -> tuple[EngineBuild, PluginChoice]:
    """Build the engine `plan` as decided, and say why it is as it is.

    Two engines that are compared lie in a folder in `scratch`, which must be on the plan's file system, and only the
    one that is kept moves to `plan`. Where the one with the plugin is not built or does not run, it is the other one.
    extra: the pip extra that brings tqdm. Raises UserError, with the old plan in its place, where `build` or `load`
    raises it for an engine that cannot be done without.
    """
    choice = PluginChoice(requested=decision.requested, reason=decision.reason, gpu=decision.gpu)
    if decision.takes_plugin is not None:
        return build(plan, decision.takes_plugin), choice
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f".{plan.stem}.") as folder:
        kept = without = build(Path(folder) / "without.plan", False)
        try:
            with _plugin_at_fault("the engine with it was not built"):
                with_plugin = build(Path(folder) / "with.plan", True)
            seconds = compare(load, with_plugin=with_plugin.path, without=without.path, extra=extra, progress=progress)
        except _PluginError as error:
            choice = dataclasses.replace(choice, reason=str(error))
        else:
            kept = with_plugin if seconds[True] < seconds[False] else without
            choice = dataclasses.replace(choice, rounds=ROUNDS, with_microseconds=round(1e6 * seconds[True], 1),
                                         without_microseconds=round(1e6 * seconds[False], 1))
        plan.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept.path, plan)
    return dataclasses.replace(kept, path=plan), choice


def compare(load: Load, *, with_plugin: Path, without: Path, extra: str, progress: bool = True) -> dict[bool, float]:
    """Median seconds of a run of the engine with the plugin (True) and of the one without it (False).

    Both are loaded at once and run in turn, one run of each a round, the first one of a round alternating: what slows
    the GPU meanwhile slows both. The first WARM_UP rounds do not count.
    Raises _PluginError for the engine with the plugin, UserError for the other one, where it does not load or run.
    """
    tqdm = require("tqdm", extra=extra).tqdm
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with contextlib.ExitStack() as stack:
        runs = {False: stack.enter_context(load(without, False))}
        with _plugin_at_fault("the engine with it does not load"):
            runs[True] = stack.enter_context(load(with_plugin, True))
        bar = stack.enter_context(tqdm(total=WARM_UP + ROUNDS, desc="compare with the plugin and without", unit="round",
                                       leave=False, disable=None if progress else True))
        for number in range(WARM_UP + ROUNDS):
            for which in (True, False) if number % 2 else (False, True):
                with _plugin_at_fault("the engine with it does not run") if which else contextlib.nullcontext():
                    took = runs[which]()
                if number >= WARM_UP:
                    seconds[which].append(took)
            bar.update()
    return {which: statistics.median(taken) for which, taken in seconds.items()}


class _PluginError(Exception):
    """Why there is no engine with the plugin to choose."""


@contextlib.contextmanager
def _plugin_at_fault(what: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise _PluginError(f"{what}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def random_inputs(tensors: Sequence[Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Normally distributed numbers, the same ones every time, for a graph's inputs, which are all floating. shapes: by
    name.
    """
    generator = np.random.default_rng(0)
    return {tensor.name: generator.standard_normal(shapes[tensor.name]).astype(tensor.dtype) for tensor in tensors}


def engine_loader(runtime: str, inputs: Mapping[str, np.ndarray]) -> Load:
    """`Load` with the runner of TensorRTBackend. A run takes `inputs` to the GPU and the answer back, as a frame does.
    """
    advice = "--plugin off builds without running anything"

    @contextlib.contextmanager
    def load(plan: Path, has_plugin: bool) -> Iterator[Run]:
        if has_plugin:
            load_plugin(runtime)
        with contextlib.ExitStack() as stack:
            runner = enter_engine(stack, plan, runtime=runtime, advice=advice)
            failure = polygraphy_exception(runtime)

            def run() -> float:
                started = time.perf_counter()
                try:
                    runner.infer(inputs)
                except failure as error:
                    raise UserError(f"{runtime} cannot run the engine that it built: {_in_one_line(error)} (its own "
                                    f"messages are above); {advice}") from error
                return time.perf_counter() - started

            yield run

    return load


def describe_choice(notes: EngineNotes) -> str:
    """One line about an engine of a graph with RCA: with or without the plugin, and why."""
    choice = notes.plugin_choice
    layers = "1 layer" if notes.plugin_layers == 1 else f"{notes.plugin_layers} layers"
    line = f"{notes.graph} " + (f"with the RCA plugin ({layers})" if notes.plugin else "without the RCA plugin")
    line += f": {choice.reason}"
    if choice.rounds is not None:
        line += (f": {choice.with_microseconds:.0f} us with it, {choice.without_microseconds:.0f} us without, medians "
                 f"of {choice.rounds} runs on {choice.gpu}")
    return line
