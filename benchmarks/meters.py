"""What can tell the power of this machine: NVML on desktops, INA3221 or tegrastats on a Jetson, RAPL for processors.

A meter counts joules since it was made; where the hardware tells watts only, it integrates from one call to the next.
On a desktop the GPU's board and the processor's package are two meters, and nothing measures the rest of the machine. A
Jetson's sensors measure the whole module, so that they are the only meter there.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from benchmarks.nvml import Nvml, open_nvml

TOTALS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Rails that the whole module draws from: Orin Nano, Orin NX, Xavier NX, Nano, TX2."""
PARTS = ("VDDQ_VDD2_1V8AO",)
"""Rails that hang on another one which is measured, too: on an AGX Orin this one on VIN_SYS_5V0."""
SENSORS = "sys/bus/i2c/drivers"
PACKAGES = "sys/class/powercap"
TEGRASTATS = ("tegrastats", "--interval", "100")
PATIENCE = 2.0
"""Seconds in which tegrastats has to write its first line."""


class Meter(Protocol):
    """name: what is measured, and by what. response_seconds: what is shorter is not told apart."""

    name: str
    response_seconds: float

    def joules(self) -> float:
        """Since it was made. Called by one thread."""

    def close(self) -> None:
        """Stop what it started. Twice is fine."""


class Counter:
    """A counter of the hardware. read: joules since any moment; it may start again from 0 after `period` joules."""

    def __init__(self, name: str, read: Callable[[], float], *, response_seconds: float, period: float = 0.0) -> None:
        self.name, self.response_seconds = name, response_seconds
        self._read, self._period = read, period
        self._last, self._total = read(), 0.0

    def joules(self) -> float:
        now = self._read()
        gained = now - self._last
        self._total += gained if gained >= 0 else gained + self._period
        self._last = now
        return self._total

    def close(self) -> None:
        pass


class Power:
    """A reading of watts, integrated by trapezoids from call to call."""

    def __init__(self, name: str, read: Callable[[], float], *, response_seconds: float,
                 clock: Callable[[], float] = time.perf_counter, stop: Callable[[], None] = lambda: None) -> None:
        self.name, self.response_seconds, self.close = name, response_seconds, stop
        self._read, self._clock = read, clock
        self._last, self._when, self._total = read(), clock(), 0.0

    def joules(self) -> float:
        watts, now = self._read(), self._clock()
        self._total += (watts + self._last) / 2 * (now - self._when)
        self._last, self._when = watts, now
        return self._total


def find_meters(root: Path = Path("/"), *, nvml: Callable[[], Nvml | str] = open_nvml,
                tegrastats: tuple[str, ...] = TEGRASTATS) -> tuple[list[Meter], dict[str, str]]:
    """The meters of this machine, and why there is not one, by what would be measured: "board", "gpu", "cpu"."""
    board = ina3221(root)
    if isinstance(board, str) and _is_jetson(root):
        other = _tegrastats(tegrastats)
        board = f"{board}, and {other}" if isinstance(other, str) else other
    if not isinstance(board, str):
        part = f"measured with the whole board: {board.name}"
        return [board], {"gpu": part, "cpu": part}
    found = {"board": board, "gpu": _gpu(nvml()), "cpu": rapl(root)}
    return ([meter for meter in found.values() if not isinstance(meter, str)],
            {what: meter for what, meter in found.items() if isinstance(meter, str)})


def ina3221(root: Path) -> Meter | str:
    """The sensors of a Jetson, as sysfs has them; or why not."""
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted(root.glob(f"{SENSORS}/ina3221*/*/hwmon/hwmon*/in*_label")):  # JetPack 5 and later
        number = re.fullmatch(r"in(\d+)_label", label.name)[1]
        volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if amperes.exists():  # "sum of shunt voltages" has none
            rails[_text(label)] = lambda volts=volts, amperes=amperes: _number(volts) * _number(amperes) / 1e6
    for label in sorted(root.glob(f"{SENSORS}/ina3221*/*/iio:device*/rail_name_*")):  # JetPack 4
        power = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        rails[_text(label)] = lambda power=power: _number(power) / 1000
    if not rails:
        return "no INA3221 sensor was found, which Jetsons have"
    names = whole_board(rails)
    try:
        return Power(f"board (INA3221: {', '.join(names)})", lambda: sum(rails[name]() for name in names),
                     response_seconds=0.05)
    except (OSError, ValueError) as error:
        return f"the INA3221 sensors cannot be read ({error})"


def whole_board(rails: Mapping[str, object]) -> list[str]:
    """The rails whose sum is what the module takes: the one that all hang on, or all that are none's part."""
    total = [name for name in TOTALS if name in rails][:1]
    return total or [name for name in rails if name not in PARTS and name != "NC"]


def parse_tegrastats(line: str) -> dict[str, float]:
    """Watts by rail in one line of tegrastats: "VDD_IN 4940mW/4940mW" of now, "POM_5V_IN 2134/2134" of JetPack 4."""
    found = re.findall(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)", line)
    return {name: int(milliwatts) / 1000 for name, milliwatts in found}


def rapl(root: Path) -> Meter | str:
    """The processor's packages and their memory, as the kernel counts their energy; or why not."""
    domains = [folder for folder in sorted(root.glob(f"{PACKAGES}/intel-rapl:*"))
               if (folder / "name").is_file() and _text(folder / "name").startswith(("package", "dram"))]
    if not domains:
        return "the kernel counts no energy of the processor (no intel-rapl: a virtual machine, or ARM)"
    counters = []
    for folder in domains:
        energy = folder / "energy_uj"
        try:
            counters.append(Counter(_text(folder / "name"), lambda energy=energy: _number(energy) / 1e6,
                                    response_seconds=0.002, period=_number(folder / "max_energy_range_uj") / 1e6))
        except PermissionError:
            return f"{energy} may be read by root only; run: sudo chmod a+r {root / PACKAGES}/intel-rapl:*/energy_uj"
        except (OSError, ValueError) as error:
            return f"{energy} cannot be read ({error})"
    names = ", ".join(counter.name for counter in counters)
    return Counter(f"processor (RAPL: {names})", lambda: sum(counter.joules() for counter in counters),
                   response_seconds=0.002)


def _gpu(nvml: Nvml | str) -> Meter | str:
    if isinstance(nvml, str):
        return nvml
    if nvml.energy_joules() is not None:
        return Counter("GPU (NVML, energy counter)", lambda: _answered(nvml.energy_joules()), response_seconds=0.1)
    if nvml.power_watts() is not None:
        return Power("GPU (NVML, power)", lambda: _answered(nvml.power_watts()), response_seconds=0.1)
    return "NVML does not tell the power of this GPU"


def _answered(value: float | None) -> float:
    if value is None:
        raise OSError("NVML no longer tells the power of the GPU")
    return value


class _Lines:
    """tegrastats in the background: the watts of its newest line."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process, self.watts = process, dict[str, float]()
        self.first = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for line in self._process.stdout:
            if rails := parse_tegrastats(line):
                self.watts = rails
                self.first.set()

    def read(self) -> float:
        if self._process.poll() is not None:
            raise OSError("tegrastats ended")
        return sum(self.watts[name] for name in whole_board(self.watts))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def _tegrastats(command: tuple[str, ...]) -> Meter | str:
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True, errors="replace")
    except OSError as error:
        return f"tegrastats does not start ({error.strerror})"
    lines = _Lines(process)
    if not lines.first.wait(PATIENCE):
        lines.stop()
        return "tegrastats tells no power"
    try:
        return Power(f"board (tegrastats: {', '.join(whole_board(lines.watts))})", lines.read, response_seconds=0.1,
                     stop=lines.stop)
    except OSError as error:
        return str(error)


def _is_jetson(root: Path) -> bool:
    return (root / "etc/nv_tegra_release").is_file()


def _text(path: Path) -> str:
    return path.read_text().strip()


def _number(path: Path) -> float:
    return float(_text(path))
