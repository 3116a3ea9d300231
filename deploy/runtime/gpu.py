"""Which GPU is here, asked of the driver itself: no package is needed to learn that there is none."""

from __future__ import annotations

import ctypes

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute in cuda.h
_COMPUTE_CAPABILITY_MINOR = 76
_NAME_BYTES = 256


def gpu_architecture() -> str | None:
    """`sm87` for a first visible GPU of compute capability 8.7; None without a driver or a GPU. Makes no context."""
    cuda, device = _first_device()
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


def gpu_name() -> str | None:
    """What the driver calls the first visible GPU ("Orin"); None without a driver or a GPU. Makes no context."""
    cuda, device = _first_device()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if device is None or cuda.cuDeviceGetName(name, _NAME_BYTES, device) != 0:
        return None
    return name.value.decode(errors="replace")


def _first_device() -> tuple[ctypes.CDLL | None, ctypes.c_int | None]:
    """The driver and its first visible GPU; None for what is not there."""
    cuda, device = _driver(), ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return cuda, None
    return cuda, device


def _driver() -> ctypes.CDLL | None:
    for library in _LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
