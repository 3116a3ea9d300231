"""What the benchmarks are to reach: targets as data, and whether result files reach them.

A target is a ratio of two times of one run, so that the machine's speed cancels out; it holds for the conditions that
stand beside it. A result that was measured under others neither reaches nor misses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contenders import EAGER, ONNX_RUNTIME
from benchmarks.intervals import compare
from benchmarks.measured import network_of
from benchmarks.peers import OFFICIAL, OFFICIAL_KEPT, PLAIN
from benchmarks.timing import FRAME, WHOLE
from talent.config import PRESETS

MET, MISSED, MEASURED, NOT_MEASURED = "met", "missed", "measured", "not measured"
TENSORRT = ("TensorRT", "TensorRT-RTX")


@dataclass(frozen=True)
class Times:
    """The times of one row: the sum of some stages. backends: the first that there is. preset, image_size: of
    its bundle or checkpoint."""

    stages: tuple[str, ...]
    backends: tuple[str, ...]
    preset: str
    precision: str = "fp32"
    device: str = "cpu"
    image_size: int = 448


@dataclass(frozen=True)
class Goal:
    """The median of `of` over that of `against` in one run. at_most: None where a figure is asked for and no bound.
    threads: of the CPU, None for any."""

    name: str
    of: Times
    against: Times
    at_most: float | None
    threads: int | None = 2


OURS = Times((FRAME,), (ONNX_RUNTIME,), "base")
ON_GPU = Times((FRAME,), TENSORRT, "base", precision="fp16", device="cuda")
GOALS = (
    Goal("a frame, the expression cached / one of eager PyTorch in the official style",
         OURS, Times((FRAME,), (OFFICIAL,), "base"), 0.62),
    Goal("a frame, the expression cached / one of the official style with its text kept",
         OURS, Times((FRAME,), (OFFICIAL_KEPT,), "base"), None),
    Goal("a frame, the expression cached / one of the plain ONNX export",
         OURS, Times((FRAME,), (PLAIN,), "base"), 0.90),
    Goal("a frame of small / a frame of base",
         Times((FRAME,), (ONNX_RUNTIME,), "small", image_size=PRESETS["small"].image_size), OURS, 0.30),
    Goal("pre- and postprocessing / the whole",
         Times(("preprocess", "postprocess"), (ONNX_RUNTIME,), "base"), Times((WHOLE,), (ONNX_RUNTIME,), "base"), 0.03),
    Goal("a frame in FP16 under CUDA graphs / one of eager FP32 on the GPU",
         ON_GPU, Times((FRAME,), (EAGER,), "base", device="cuda"), None, threads=None),
)


@dataclass(frozen=True)
class Outcome:
    """Of one goal. state: MET, MISSED, MEASURED (no bound) or NOT_MEASURED. ratio with its 95 % interval (None for one
    round); title, commit: of the result that says so; reason: why it was not measured."""

    goal: Goal
    state: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    title: str = ""
    commit: str = ""
    dirty: bool = False
    reason: str = ""

    @property
    def sure(self) -> bool:
        """Whether the whole interval lies on the same side of the bound."""
        if self.state not in (MET, MISSED) or self.low is None or self.high is None:
            return False
        return self.high <= self.goal.at_most if self.state == MET else self.low > self.goal.at_most


class NotMeasured(Exception):
    """A result cannot say anything about a goal; the message is why."""


def evaluate(results: Iterable[Mapping[str, Any]], goals: Sequence[Goal] = GOALS) -> list[Outcome]:
    """What the newest result that can tell says of each goal. results: as results_file.read gives them."""
    latencies = sorted((result for result in results if result["benchmark"] == "latency"),
                       key=lambda result: result["created"], reverse=True)
    return [_outcome(goal, latencies) for goal in goals]


def _outcome(goal: Goal, latencies: Sequence[Mapping[str, Any]]) -> Outcome:
    reasons = []
    for result in latencies:
        try:
            return judge(goal, result)
        except NotMeasured as reason:
            reasons.append(str(reason))
    return Outcome(goal, NOT_MEASURED, reason="; ".join(dict.fromkeys(reasons)) or "no result of latency.py was given")


def judge(goal: Goal, result: Mapping[str, Any]) -> Outcome:
    """What one latency result says of a goal. Raises NotMeasured."""
    threads = result["settings"].get("threads")
    if goal.threads not in (None, threads):
        raise NotMeasured(f"it holds for {goal.threads} CPU threads, {result['title']!r} had {threads}")
    compared = compare(_rounds(result, goal.against), _rounds(result, goal.of), paired=True)
    state = MEASURED if goal.at_most is None else MET if compared.ratio <= goal.at_most else MISSED
    return Outcome(goal, state, compared.ratio, compared.low, compared.high, result["title"], result["commit"],
                   result["dirty"])


def _rounds(result: Mapping[str, Any], wanted: Times) -> list[list[float]]:
    """Milliseconds of the runs of each round, the stages added up run by run. Raises NotMeasured without such a row."""
    for backend in wanted.backends:
        wants = (backend, wanted.precision, wanted.device, wanted.preset, wanted.image_size)
        for row in result["rows"]:
            network = network_of(result, row)
            if (row["backend"], row["precision"], row["device"], network.get("preset"),
                    network.get("image_size")) == wants:
                return [list(np.sum(runs, axis=0)) for runs in
                        zip(*(row["stages"][stage]["samples_ms"] for stage in wanted.stages), strict=True)]
    why = next((entry["reason"] for entry in result["not_run"] if entry.get("backend") in wanted.backends
                and entry["name"].count(":") == 0), None)
    raise NotMeasured(f"{result['title']!r} has no row of {' or '.join(wanted.backends)} {wanted.precision.upper()} "
                      f"with {wanted.preset} at {wanted.image_size} px ({'GPU' if wanted.device == 'cuda' else 'CPU'})"
                      + (f": {why}" if why else ""))
