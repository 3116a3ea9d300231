"""Which GPU is here, asked of the driver itself: no package is needed to learn that there is none."""

from __future__ import annotations

import ctypes

from deploy.runtime.driver import libcuda

_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute in cuda.h
_COMPUTE_CAPABILITY_MINOR = 76
_NAME_BYTES = 256


def gpu_architecture(index: int = 0) -> str | None:
    """`sm87` for a visible GPU of compute capability 8.7; None without a driver or that GPU. Makes no context."""
    cuda, device = _device(index)
    if device is None:
        return None
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        capability.append(value.value)
    major, minor = capability
    return f"sm{major}{minor}"


def gpu_name(index: int = 0) -> str | None:
    """What the driver calls a visible GPU ("Orin"); None without a driver or that GPU. Makes no context."""
    cuda, device = _device(index)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if device is None or cuda.cuDeviceGetName(name, _NAME_BYTES, device) != 0:
        return None
    return name.value.decode(errors="replace")


def _device(index: int) -> tuple[ctypes.CDLL | None, ctypes.c_int | None]:
    """The driver and one of its visible GPUs; None for what is not there."""
    cuda, device = _driver(), ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
        return cuda, None
    return cuda, device


def _driver() -> ctypes.CDLL | None:
    try:
        return libcuda()
    except OSError:
        return None
