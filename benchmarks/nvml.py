"""Power, energy and memory of one NVIDIA GPU, asked of the management library that comes with its driver (NVML)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_BUS_ID_BYTES = 32


class _Memory(ctypes.Structure):
    _fields_ = [(name, c_ulonglong) for name in ("total", "free", "used")]  # nvmlMemory_t


class Nvml:
    """A GPU that NVML knows. Each question gives None where the GPU does not answer it, as a Jetson's most of them."""

    def __init__(self, library: Any, device: c_void_p) -> None:
        self._library, self._device = library, device

    def energy_joules(self) -> float | None:
        """Since the driver was loaded; not before Volta."""
        millijoules = c_ulonglong()
        return millijoules.value / 1000 if self._ask("nvmlDeviceGetTotalEnergyConsumption", millijoules) else None

    def power_watts(self) -> float | None:
        """Of the whole board, as an average over some time that depends on the GPU (20 ms to 1 s)."""
        milliwatts = c_uint()
        return milliwatts.value / 1000 if self._ask("nvmlDeviceGetPowerUsage", milliwatts) else None

    def used_bytes(self) -> int | None:
        """Memory of the GPU that all programs together have."""
        memory = _Memory()
        return memory.used if self._ask("nvmlDeviceGetMemoryInfo", memory) else None

    def _ask(self, function: str, answer: Any) -> bool:
        asked = getattr(self._library, function, None)
        return asked is not None and asked(self._device, byref(answer)) == 0


def open_nvml(load: Callable[[str], Any] = ctypes.CDLL) -> Nvml | str:
    """The first GPU that CUDA shows this process, or why there is none."""
    library, driver = _loaded(load, LIBRARIES), _loaded(load, DRIVERS)
    if library is None or driver is None:
        return f"no NVIDIA driver is installed (no {(LIBRARIES if library is None else DRIVERS)[0]})"
    number, bus, device = c_int(), ctypes.create_string_buffer(_BUS_ID_BYTES), c_void_p()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(byref(number), 0) != 0:
        return "the CUDA driver shows this process no GPU"
    if driver.cuDeviceGetPCIBusId(bus, _BUS_ID_BYTES, number) != 0:
        return "the CUDA driver does not tell the address of the GPU"
    if code := library.nvmlInit_v2():
        return f"NVML does not start ({_words(library, code)})"
    if code := library.nvmlDeviceGetHandleByPciBusId_v2(c_char_p(bus.value), byref(device)):
        return f"NVML does not know the GPU at {bus.value.decode()} ({_words(library, code)})"
    return Nvml(library, device)


def _loaded(load: Callable[[str], Any], names: tuple[str, ...]) -> Any | None:
    for name in names:
        try:
            return load(name)
        except OSError:
            continue
    return None


def _words(library: Any, code: int) -> str:
    library.nvmlErrorString.restype = c_char_p
    words = library.nvmlErrorString(code)
    return words.decode() if words else f"error {code}"
