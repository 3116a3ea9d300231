"""What this machine is: its system, memory and disk, and on a Jetson the JetPack and the power mode.

Everything is read through a `Reader`, so that a test can play any machine.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from talent.native import find_library

TIMEOUT = 1.9
"""Seconds that a command may take. All of them run at once, so the doctor is done in about two."""

NOT_FOUND = "not found"
NO_ANSWER = f"no answer within {TIMEOUT:.0f} s"

# Jetson Linux (L4T) releases and the JetPacks that brought them: developer.nvidia.com/embedded/jetpack-archive.
JETPACKS = {"35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4",
            "36.2.0": "6.0 (preview)", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1",
            "36.5.0": "6.2.2", "38.2.0": "7.0", "38.2.1": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1"}
_JETPACK_FAMILIES = {32: "4.x", 34: "5.x", 35: "5.x", 36: "6.x", 38: "7.x", 39: "7.x"}


@dataclass(frozen=True)
class Outcome:
    """What a command printed. failure: None where it ended well, else why not: NOT_FOUND, NO_ANSWER or its words."""

    output: str = ""
    failure: str | None = None


def run(command: Sequence[str]) -> Outcome:
    """Run a command for TIMEOUT seconds at most. A process that cannot even be killed (a stuck driver) is left."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, errors="replace", start_new_session=True)
    except FileNotFoundError:
        return Outcome(failure=NOT_FOUND)
    except OSError as error:
        return Outcome(failure=str(error))
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        _kill(process)
        return Outcome(failure=NO_ANSWER)
    if process.returncode < 0:
        return Outcome(output, f"killed by {signal.Signals(-process.returncode).name}")
    if process.returncode > 0:
        words = (errors.strip() or output.strip()).splitlines()
        return Outcome(output, words[-1].strip() if words else f"exit code {process.returncode}")
    return Outcome(output)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and its children (it leads a session of its own) without waiting for one that will not die."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.stdout.close()
    process.stderr.close()


def installed_version(distribution: str) -> str | None:
    """Version of an installed Python distribution, or None. Imports nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Host:
    """What Python knows of the machine. temporary_free_bytes: room in the folder for temporary files."""

    system: str
    release: str
    architecture: str
    python: str
    cores: int
    temporary_free_bytes: int


def this_host() -> Host:
    try:
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except OSError:  # no folder for temporary files can be written to
        free = 0
    return Host(system=platform.system(), release=platform.release(), architecture=platform.machine(),
                python=platform.python_version(), cores=os.cpu_count() or 1, temporary_free_bytes=free)


@dataclass(frozen=True)
class Reader:
    """Where facts come from: the files under `root`, commands, installed distributions, Python itself, and our compiled
    libraries."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], Outcome] = run
    version: Callable[[str], str | None] = installed_version
    host: Callable[[], Host] = this_host
    library: Callable[[str], Path | None] = find_library

    def text(self, path: str) -> str | None:
        """A small file's text without the zero bytes that device trees end strings with; None where it is missing."""
        try:
            return (self.root / path).read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return None

    def run_all(self, commands: Mapping[str, Sequence[str]]) -> dict[str, Outcome]:
        """Run commands at the same time; their outcomes under the same names."""
        with ThreadPoolExecutor(max_workers=max(1, len(commands))) as pool:
            return dict(zip(commands, pool.map(self.run, commands.values()), strict=True))


@dataclass(frozen=True)
class Jetson:
    """A Jetson board. l4t: "36.4.0"; jetpack: "6.1". power_modes: names by number, as /etc/nvpmodel.conf has them."""

    model: str
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    power_modes: Mapping[str, str] = field(default_factory=dict)

    @property
    def l4t_major(self) -> int | None:
        return int(self.l4t.split(".")[0]) if self.l4t else None

    @property
    def fastest_mode(self) -> str | None:
        """Number of the mode without limits (MAXN_SUPER before MAXN), for `nvpmodel -m`; None where it is unknown."""
        unlimited = [number for number, name in self.power_modes.items() if name.startswith("MAXN")]
        return max(unlimited, key=lambda number: self.power_modes[number], default=None)


@dataclass(frozen=True)
class Machine:
    """This machine. Sizes in bytes, None where the system does not tell. nvidia_device: an NVIDIA GPU is on its bus."""

    system: str
    distribution: str | None
    architecture: str
    processor: str | None
    cores: int
    memory_bytes: int | None
    memory_available_bytes: int | None
    swap_bytes: int | None
    temporary_free_bytes: int
    nvidia_device: bool
    jetson: Jetson | None


COMMANDS = {"nvpmodel": ("nvpmodel", "-q")}


def read_machine(reader: Reader, outcomes: Mapping[str, Outcome]) -> Machine:
    """`outcomes`: of COMMANDS."""
    host = reader.host()
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", reader.text("proc/meminfo") or "", re.MULTILINE))
    size = {name: 1024 * int(kilobytes) for name, kilobytes in memory.items()}
    return Machine(
        system=f"{host.system} {host.release}", architecture=host.architecture, cores=host.cores,
        distribution=_first(r'^PRETTY_NAME="?([^"\n]+)', reader.text("etc/os-release")),
        processor=_first(r"^model name\s*:\s*(.+)", reader.text("proc/cpuinfo")), memory_bytes=size.get("MemTotal"),
        memory_available_bytes=size.get("MemAvailable"), swap_bytes=size.get("SwapTotal"),
        temporary_free_bytes=host.temporary_free_bytes, nvidia_device=_nvidia_device(reader),
        jetson=_jetson(reader, outcomes["nvpmodel"]))


def _first(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "", re.MULTILINE)
    return match[1].strip() if match else None


def _nvidia_device(reader: Reader) -> bool:
    """Whether a display controller (PCI class 03) of NVIDIA (vendor 10de) is on the bus, with or without a driver."""
    return any(reader.text(f"{device.relative_to(reader.root)}/vendor") == "0x10de"
               and (reader.text(f"{device.relative_to(reader.root)}/class") or "").startswith("0x03")
               for device in reader.root.glob("sys/bus/pci/devices/*"))


def _jetson(reader: Reader, nvpmodel: Outcome) -> Jetson | None:
    """The board, from its device tree (also seen inside containers) and from /etc/nv_tegra_release."""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", reader.text("etc/nv_tegra_release") or "")
    if release is None and "nvidia,tegra" not in (reader.text("proc/device-tree/compatible") or ""):
        return None
    l4t = f"{release[1]}.{release[2]}" if release else None
    modes = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", reader.text("etc/nvpmodel.conf") or ""))
    current = _first(r"NV Power Mode:\s*(\S+)", nvpmodel.output)
    if current is None:  # nvpmodel may want root, its memory does not
        number = _first(r"pmode:0*(\d+)", reader.text("var/lib/nvpmodel/status"))
        current = modes.get(number) if number else None
    return Jetson(model=reader.text("proc/device-tree/model") or "NVIDIA Jetson", l4t=l4t,
                  jetpack=JETPACKS.get(l4t) or _JETPACK_FAMILIES.get(int(release[1])) if release else None,
                  power_mode=current, power_modes=modes)
