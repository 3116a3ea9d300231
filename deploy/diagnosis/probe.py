"""One question to the driver or to a package, asked in a process of its own and answered as one line of JSON.

    python deploy/diagnosis/probe.py cuda
    python deploy/diagnosis/probe.py import tensorrt

A driver that hangs, a package that aborts and two packages that do not bear each other in one process then cost a line
of the doctor's report, not the doctor. Sizes are in bytes, clocks in MHz, power in watts, temperatures in Celsius.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
NOT_INSTALLED = "not installed"
_CLOCK_RATE, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 13, 75, 76  # CUdevice_attribute in cuda.h; the clock in kHz


def cuda(load: Callable[[str], Any] = ctypes.CDLL) -> dict[str, Any]:
    """What the CUDA driver shows this process, in its order: {"cuda": "13.0", "gpus": [...]}, or {"failure": why}.

    Makes no context, so it takes no memory of the GPU. Works on a Jetson, whose nvidia-smi is missing or says little.
    """
    driver = _first_that_loads(load, DRIVERS)
    if driver is None:
        return {"failure": f"no CUDA driver is installed (no {DRIVERS[0]})"}
    if code := driver.cuInit(0):
        return {"failure": f"the CUDA driver does not start: {_error(driver, code)}"}
    number = _integer(driver.cuDriverGetVersion)
    gpus = [_gpu(driver, index) for index in range(_integer(driver.cuDeviceGetCount) or 0)]
    return {"cuda": f"{number // 1000}.{number % 1000 // 10}" if number else None, "gpus": gpus}


def _first_that_loads(load: Callable[[str], Any], names: tuple[str, ...]) -> Any | None:
    for name in names:
        with contextlib.suppress(OSError):
            return load(name)
    return None


def _error(driver: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorString(code, ctypes.byref(text)) != 0 or not text.value:
        return f"error {code}"
    return f"{text.value.decode()} (error {code})"


def _integer(function: Callable[..., int], *arguments: Any) -> int | None:
    value = ctypes.c_int()
    return value.value if function(ctypes.byref(value), *arguments) == 0 else None


def _gpu(driver: Any, index: int) -> dict[str, Any]:
    device = _integer(driver.cuDeviceGet, index)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), device)
    known = driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device) == 0
    major, minor, clock = (_integer(driver.cuDeviceGetAttribute, attribute, device)
                           for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _CLOCK_RATE))
    return {"name": name.value.decode(errors="replace"),
            "compute_capability": None if major is None or minor is None else f"{major}.{minor}",
            "memory_bytes": memory.value if known else None, "max_clock_mhz": clock // 1000 if clock else None}


def nvml() -> dict[str, Any]:
    """What NVIDIA's management library says, through the package nvidia-ml-py: {"driver": ..., "gpus": [...]}."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return {"failure": NOT_INSTALLED}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {"driver": _text(pynvml.nvmlSystemGetDriverVersion()),
                "gpus": [_managed_gpu(pynvml, handle) for handle in handles]}
    except pynvml.NVMLError as error:
        return {"failure": str(error)}


def _managed_gpu(pynvml: Any, handle: Any) -> dict[str, Any]:
    def ask(function: str, *arguments: Any) -> Any | None:
        try:
            return getattr(pynvml, function)(handle, *arguments)
        except pynvml.NVMLError:  # a Jetson answers few of them
            return None

    name, capability = ask("nvmlDeviceGetName"), ask("nvmlDeviceGetCudaComputeCapability")
    memory, limit = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetEnforcedPowerLimit")
    return {"name": _text(name) if name else "NVIDIA GPU",
            "compute_capability": "{}.{}".format(*capability) if capability else None,
            "memory_bytes": memory.total if memory else None, "memory_free_bytes": memory.free if memory else None,
            "power_limit_watts": limit / 1000 if limit else None,
            "max_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
            "temperature_celsius": ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def load_package(name: str) -> dict[str, Any]:
    """Import a package: {"version": its own word}, or {"failure": NOT_INSTALLED or what it raised}."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return {"failure": NOT_INSTALLED if error.name == name else str(error)}
    except Exception as error:  # a broken package may raise anything, and that is the answer
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    version = getattr(module, "__version__", None)
    if version is None and getattr(module, "__file__", None) is None:
        return {"failure": NOT_INSTALLED}  # a folder of that name in the working directory
    return {"version": version}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"cuda": cuda, "nvml": nvml, "import": load_package}


if __name__ == "__main__":
    # Python puts this file's folder first: its modules must not be taken for packages of the same name.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    print(json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])))
