"""Which GPUs and which driver are here, from NVML, nvidia-smi and the CUDA driver itself.

NVML and nvidia-smi know memory, power and clocks, and every GPU of the machine; the CUDA driver shows what this process
may use (CUDA_VISIBLE_DEVICES, containers), which is what engines are built for. On a Jetson only the driver says much.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.diagnosis import probe
from deploy.diagnosis.system import Outcome

QUERY = ("name", "compute_cap", "memory.total", "memory.free", "driver_version", "power.limit", "clocks.max.sm",
         "temperature.gpu")
COMMANDS = {"cuda": (sys.executable, probe.__file__, "cuda"), "nvml": (sys.executable, probe.__file__, "nvml"),
            "nvidia-smi": ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")}


@dataclass(frozen=True)
class Gpu:
    """One GPU; None for what nothing tells. compute_capability: "8.7". A Jetson's memory is the machine's."""

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    power_limit_watts: float | None = None
    max_clock_mhz: int | None = None
    temperature_celsius: int | None = None


@dataclass(frozen=True)
class Gpus:
    """The GPUs, and what engines can count on.

    driver: its version. cuda: the newest CUDA it serves, "13.0". arch: "sm87", the first GPU that CUDA shows this
    process. failure: why there is none.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    cuda: str | None
    arch: str | None
    failure: str | None

    @property
    def capability(self) -> int | None:
        """`arch` as a number: 87."""
        return int(self.arch.removeprefix("sm")) if self.arch else None


def answer(outcome: Outcome) -> dict[str, Any]:
    """What probe.py said: its last line, after whatever a package printed. {"failure": why} where it did not."""
    lines = outcome.output.strip().splitlines()
    if outcome.failure is not None or not lines:
        return {"failure": outcome.failure or "no answer"}
    try:
        return json.loads(lines[-1])
    except json.JSONDecodeError:
        return {"failure": f"expected JSON, received {lines[-1]!r}"}


def read_gpus(outcomes: Mapping[str, Outcome]) -> Gpus:
    """`outcomes`: of COMMANDS."""
    visible, managed = answer(outcomes["cuda"]), answer(outcomes["nvml"])
    if not managed.get("gpus"):
        managed = _parse_nvidia_smi(outcomes["nvidia-smi"]) or managed
    shown = [Gpu(**gpu) for gpu in visible.get("gpus", ())]
    gpus = [Gpu(**gpu) for gpu in managed.get("gpus", ())] or shown
    if len(gpus) == len(shown) == 1:
        gpus = [_merge(gpus[0], shown[0])]
    first = shown[0] if shown else None
    if first is None and outcomes["cuda"].failure is not None and gpus:
        first = gpus[0]  # the driver was not asked to the end; the other source is the next best
    arch = f"sm{first.compute_capability.replace('.', '')}" if first and first.compute_capability else None
    return Gpus(gpus=tuple(gpus), driver=managed.get("driver"), cuda=visible.get("cuda"), arch=arch,
                failure=None if arch else visible.get("failure") or "the CUDA driver shows this process no GPU")


def _merge(gpu: Gpu, other: Gpu) -> Gpu:
    """`gpu`, with what it does not know from `other`."""
    known = {name: value for name, value in dataclasses.asdict(gpu).items() if value is not None}
    return Gpu(**dataclasses.asdict(other) | known)


def _parse_nvidia_smi(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.failure is not None:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in outcome.output.strip().splitlines()]
    found = [dict(zip(QUERY, row, strict=True)) for row in rows if len(row) == len(QUERY)]
    gpus = [{"name": row["name"], "compute_capability": _number(row["compute_cap"]) and row["compute_cap"],
             "memory_bytes": _mebibytes(row["memory.total"]), "memory_free_bytes": _mebibytes(row["memory.free"]),
             "power_limit_watts": _number(row["power.limit"]), "max_clock_mhz": _whole(row["clocks.max.sm"]),
             "temperature_celsius": _whole(row["temperature.gpu"])} for row in found]
    driver = next((row["driver_version"] for row in found if not row["driver_version"].startswith("[")), None)
    return {"driver": driver, "gpus": gpus} if gpus else None


def _number(cell: str) -> float | None:
    """None for "[N/A]", which a Jetson answers to most questions."""
    try:
        return float(cell)
    except ValueError:
        return None


def _whole(cell: str) -> int | None:
    number = _number(cell)
    return None if number is None else int(number)


def _mebibytes(cell: str) -> int | None:
    number = _number(cell)
    return None if number is None else int(number * 2**20)
