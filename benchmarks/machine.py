"""The machine that something was measured on: what a number needs so that somebody else can repeat it.

What talent-doctor knows is taken from there (deploy/diagnosis); clocks, temperatures, load and the governor are read
here, because they change while a benchmark runs: `conditions` is asked before and after.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from deploy.diagnosis import gpus, system
from deploy.diagnosis.system import Outcome, Reader

CPUS = "sys/devices/system/cpu"
QUERY = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw", "power.limit",
         "pstate", "clocks_throttle_reasons.active")
GPU_CONDITIONS = ("sm_clock_mhz", "memory_clock_mhz", "max_sm_clock_mhz", "max_memory_clock_mhz",
                  "temperature_celsius", "power_watts", "power_limit_watts", "performance_state", "throttle_reasons")
_TEXTS = ("performance_state", "throttle_reasons")
COMMANDS = {"clocks": ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")}
BUSY = 0.2
"""Share of the cores that are in use before a benchmark begins, from which on other programs must be thought to slow it
down. The load average would not do: it remembers for minutes what has ended."""
WATCHED = 0.3
"""Seconds over which the use of the cores is looked at."""
TEGRA_GPU = "sys/class/devfreq"  # a Jetson's GPU is one of its devices: 17000000.gpu, 17000000.ga10b, gpu-gpc-0


def machine(reader: Reader | None = None) -> dict[str, Any]:
    """Everything that is known: None for what is not, with the reason in "unknown" by field. Sizes in bytes.

    "before": the conditions now. Takes three seconds at most, however long a command hangs.
    """
    reader = reader or Reader()
    outcomes = reader.run_all({**system.COMMANDS, **gpus.COMMANDS, **COMMANDS})
    found, cards = system.read_machine(reader, outcomes), gpus.read_gpus(outcomes)
    jetson = found.jetson
    facts = {
        "cpu": found.processor or platform.processor() or found.architecture, "cores": usable_cores(),
        "cores_of_machine": found.cores, "architecture": found.architecture, "system": found.system,
        "distribution": found.distribution, "memory_bytes": found.memory_bytes, "swap_bytes": found.swap_bytes,
        "cpu_governor": _governors(reader), "cpu_max_clock_mhz": _cpu_clocks(reader, "cpuinfo_max_freq"),
        "board": jetson.model if jetson else None, "jetpack": jetson.jetpack if jetson else None,
        "l4t": jetson.l4t if jetson else None, "power_mode": jetson.power_mode if jetson else None,
        "gpus": [dataclasses.asdict(gpu) for gpu in cards.gpus], "gpu_architecture": cards.arch,
        "driver": cards.driver, "cuda": cards.cuda, "before": _conditions(reader, outcomes["clocks"])}
    return {**facts, "unknown": _reasons(facts, cards.failure, outcomes)}


def conditions(reader: Reader | None = None) -> dict[str, Any]:
    """What changes while something runs: clocks, temperatures, load, free memory; None for what is not known."""
    reader = reader or Reader()
    return _conditions(reader, reader.run_all(COMMANDS)["clocks"])


def describe_device() -> dict[str, Any]:
    """The machine in six lines of text, None for what it has not: cpu, cores, cpu_governor, board, power_mode, gpu."""
    return describe(machine())


def describe(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`machine` in six lines, as `describe_device`."""
    board = facts["board"] and f"{facts['board']}, JetPack {facts['jetpack'] or 'unknown'}"
    return {"cpu": facts["cpu"], "cores": facts["cores"], "cpu_governor": facts["cpu_governor"], "board": board,
            "power_mode": facts["power_mode"], "gpu": _gpu(facts)}


def busy(facts: Mapping[str, Any]) -> str | None:
    """Whether something else ran when `machine` was asked, before the benchmark, as a clause; None where nothing did.

    facts: of `machine`, or what a result file has of it.
    """
    used, cores = (facts.get("before") or {}).get("cores_in_use"), facts.get("cores_of_machine")
    if used is None or not cores or used <= BUSY * cores:
        return None
    return f"other programs used {used:.1f} of {cores} cores"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu(facts: Mapping[str, Any]) -> str | None:
    if not facts["gpus"]:
        return None
    first = facts["gpus"][0]
    now = (facts["before"]["gpus"] or [{}])[0]
    clock, most = now.get("sm_clock_mhz"), now.get("max_sm_clock_mhz") or first["max_clock_mhz"]
    limit = now.get("power_limit_watts") or first["power_limit_watts"]
    parts = [first["name"], facts["driver"] and f"driver {facts['driver']}",
             f"{clock:.0f} of {most:.0f} MHz" if clock and most else most and f"at most {most:.0f} MHz",
             limit and f"{limit:.0f} W"]
    return ", ".join(filter(None, parts))


def _reasons(facts: Mapping[str, Any], no_gpu: str | None, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Why a field is None or empty, by its name."""
    before = facts["before"]
    known = {
        "memory_bytes": "/proc/meminfo cannot be read",
        "cpu_governor": "the kernel does not tell (no cpufreq: a virtual machine, or clocks set by firmware)",
        "cpu_max_clock_mhz": "the kernel does not tell (no cpufreq)",
        "board": "no Jetson", "jetpack": "no Jetson" if facts["board"] is None else "a release that is not known",
        "power_mode": "no Jetson" if facts["board"] is None else "nvpmodel -q does not say",
        "gpus": no_gpu or "no GPU was found", "driver": no_gpu or "neither NVML nor nvidia-smi tells it"}
    reasons = {name: reason for name, reason in known.items() if not facts[name]}
    if not before["gpus"]:
        reasons["gpu_clocks"] = f"nvidia-smi: {outcomes['clocks'].failure or 'no answer that can be read'}"
    if not before["temperatures_celsius"]:
        reasons["temperatures_celsius"] = "the kernel shows no thermal zone"
    return reasons


def _conditions(reader: Reader, clocks: Outcome) -> dict[str, Any]:
    return {"cpu_clock_mhz": _cpu_clocks(reader, "scaling_cur_freq"), "gpus": _gpu_conditions(clocks) or _tegra(reader),
            "temperatures_celsius": _temperatures(reader), "load_average": _load(reader),
            "cores_in_use": _cores_in_use(reader), "memory_available_bytes": _available(reader)}


def _governors(reader: Reader) -> str | None:
    """"performance", or several where cores differ: "performance, schedutil"."""
    found = {reader.text(str(path.relative_to(reader.root)))
             for path in reader.root.glob(f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(filter(None, found))) or None


def _cpu_clocks(reader: Reader, name: str) -> list[int] | None:
    """MHz of each core, in order; None where the kernel does not tell."""
    paths = sorted(reader.root.glob(f"{CPUS}/cpu[0-9]*/cpufreq/{name}"),
                   key=lambda path: int(path.parent.parent.name.removeprefix("cpu")))
    texts = [reader.text(str(path.relative_to(reader.root))) for path in paths]
    return [int(text) // 1000 for text in texts if text and text.isdecimal()] or None  # kHz


def _gpu_conditions(outcome: Outcome) -> list[dict[str, Any]]:
    """One entry a GPU, from nvidia-smi; none where it gave no answer, or only [N/A] as on a Jetson."""
    found = []
    for line in outcome.output.splitlines() if outcome.failure is None else ():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(QUERY):
            entry = {name: _text(cell) if name in _TEXTS else _number(cell)
                     for name, cell in zip(GPU_CONDITIONS, cells, strict=True)}
            if any(entry[name] is not None for name in ("sm_clock_mhz", "temperature_celsius", "power_watts")):
                found.append(entry)
    return found


def _tegra(reader: Reader) -> list[dict[str, Any]]:
    """The clock of a Jetson's GPU, which nvidia-smi does not tell."""
    for folder in sorted(reader.root.glob(f"{TEGRA_GPU}/*")):
        if any(word in folder.name for word in ("gpu", "ga10b", "gv11b", "gp10b")):
            now, most = (reader.text(str((folder / name).relative_to(reader.root)))
                         for name in ("cur_freq", "max_freq"))
            if now and now.isdecimal():
                entry = dict.fromkeys(GPU_CONDITIONS)
                entry["sm_clock_mhz"] = int(now) / 1e6
                entry["max_sm_clock_mhz"] = int(most) / 1e6 if most and most.isdecimal() else None
                return [entry]
    return []


def _temperatures(reader: Reader) -> dict[str, float]:
    """Degrees Celsius by the name of the thermal zone."""
    found = {}
    for zone in sorted(reader.root.glob("sys/class/thermal/thermal_zone*")):
        name, value = (reader.text(str((zone / part).relative_to(reader.root))) for part in ("type", "temp"))
        if name and value and value.lstrip("-").isdecimal():  # some zones of a Jetson that is off answer nothing
            found[name] = int(value) / 1000
    return found


def _load(reader: Reader) -> list[float] | None:
    """Programs that ran or wanted to, on average of 1, 5 and 15 minutes."""
    text = reader.text("proc/loadavg")
    return [float(value) for value in text.split()[:3]] if text else None


def _cores_in_use(reader: Reader) -> float | None:
    """Cores that were not idle over WATCHED seconds in which this process slept."""
    before = _ticks(reader)
    time.sleep(WATCHED)
    after = _ticks(reader)
    if before is None or after is None or after[1] <= before[1]:
        return None
    idle, every = after[0] - before[0], after[1] - before[1]
    return after[2] * (1 - idle / every)


def _ticks(reader: Reader) -> tuple[int, int, int] | None:
    """(ticks in which cores were idle or waited for a disk, ticks of all kinds, cores) since the machine began."""
    lines = (reader.text("proc/stat") or "").splitlines()
    cores = sum(line.startswith("cpu") and not line.startswith("cpu ") for line in lines)
    ticks = [int(word) for word in lines[0].split()[1:9]] if cores else []  # guests are in the first ones
    return (ticks[3] + ticks[4], sum(ticks), cores) if len(ticks) == 8 else None


def _available(reader: Reader) -> int | None:
    for line in (reader.text("proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _text(cell: str) -> str | None:
    return None if cell.startswith("[") else cell
