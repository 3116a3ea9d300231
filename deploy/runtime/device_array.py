"""Pictures that lie on the GPU already, by DLPack or `__cuda_array_interface__`: torch, CuPy, pycuda, JAX, Numba.

DLPack comes first: its producer makes our stream wait for its own, where the other interface, in torch, says nothing of
streams. Specifications: dmlc.github.io/dlpack (1.0, and before it), numba.readthedocs.io, CUDA Array Interface 3.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, py_object
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.runtime.cuda import CudaDevice, CudaStream
from deploy.runtime.driver import HOST_MEMORY
from talent.errors import UserError
from talent.image import check_photo_layout

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}  # DLDataTypeCode
_VERSION = (1, 0)
_LEGACY_STREAM = 1


@dataclass(frozen=True)
class DevicePicture:
    """uint8 [H, W, C] RGB on a GPU, from `address` on; its rows lie `stride` bytes apart, pixels without gaps.

    keep: what must live as long as the memory is used: let go of the picture after the stream was synchronised.
    device: the number of the GPU.
    """

    address: int
    height: int
    width: int
    stride: int
    channels: int
    keep: object
    device: int


def is_device_array(image: Any) -> bool:
    """Whether an array says that it lies on an NVIDIA GPU (NumPy's and torch's arrays of the host do not)."""
    return _dlpack_gpu(image) is not None or hasattr(image, "__cuda_array_interface__")


def device_picture(image: Any, device: CudaDevice, stream: CudaStream) -> DevicePicture:
    """A photo on the GPU, uint8 [H, W, 3] RGB, without a copy; what is queued on `stream` from now on sees it finished.

    Rows may have gaps between them. Raises UserError for another type, shape, size or layout, for memory of another GPU
    or of a context that is not the GPU's primary one, and for what its library does not give away.
    """
    gpu = _dlpack_gpu(image)
    if gpu is None:
        return _from_interface(image, device, stream)
    if gpu != device.index:
        raise _other_gpu(gpu, device)
    borrowed = _Borrowed(_capsule(image, stream))
    try:
        return _picture(borrowed.tensor.data_at, _dtype(borrowed.tensor), borrowed.tensor.sizes,
                        borrowed.tensor.byte_strides, keep=borrowed, device=device)
    except BaseException:
        borrowed.give_back()
        raise


def _from_interface(image: Any, device: CudaDevice, stream: CudaStream) -> DevicePicture:
    try:
        interface = image.__cuda_array_interface__
        (address, _), version = interface["data"], interface["version"]
        dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{type(image).__name__} does not give its memory away through __cuda_array_interface__: "
                        f"{error}") from error
    if interface.get("mask") is not None:
        raise UserError("expected a picture without a mask, received one with a mask; leave it out")
    picture = _picture(address or 0, dtype, shape, interface.get("strides"), keep=image, device=device)
    other = interface.get("stream")
    if version < 3 or type(image).__module__.startswith("pycuda."):
        other = _LEGACY_STREAM  # version 2 has no streams, and pycuda says None whatever its kernels still do
    if other == 0:
        raise UserError("expected the number of a stream, 1 or 2 for the default streams, or None in "
                        "__cuda_array_interface__, received 0, which it does not allow")
    if other is not None:
        device.wait_for(stream, other)
    return picture


def _picture(address: int, dtype: object, shape: Sequence[int], strides: Sequence[int] | None, *, keep: object,
             device: CudaDevice) -> DevicePicture:
    """strides: in bytes, None where there are no gaps."""
    check_photo_layout(dtype, shape)
    height, width, channels = shape
    row, column, channel = strides or (width * channels, channels, 1)
    if height == 1:  # the strides of a side of one element mean nothing
        row = width * channels
    if channel != 1 or (column != channels and width > 1) or row < width * channels:
        raise UserError(f"expected a picture [H, W, 3] with strides of [3 W or more, 3, 1] bytes, received strides "
                        f"{list(strides)} for {list(shape)}; copy it into this layout: .contiguous() in torch, "
                        "cupy.ascontiguousarray in CuPy")
    if address == 0:
        raise UserError(f"expected the address of a picture {list(shape)} on GPU {device.index}, received NULL; the "
                        "array was freed, or never filled")
    return DevicePicture(address=_accessible(address, device), height=height, width=width, stride=row,
                         channels=channels, keep=keep, device=device.index)


def _accessible(address: int, device: CudaDevice) -> int:
    """The address that kernels on the device take for it."""
    pointer = device.pointer(address)
    if pointer.memory_type == 0:
        raise UserError(f"expected memory of GPU {device.index}, received the address {address:#x}, which CUDA does "
                        "not know; the array was freed, or lies in the host's memory")
    if pointer.managed or pointer.memory_type == HOST_MEMORY:  # every GPU and every context may use it
        return pointer.device_address
    if pointer.device != device.index:
        raise _other_gpu(pointer.device, device)
    if pointer.context not in (None, device.context):
        raise UserError(f"expected memory of the primary context of GPU {device.index}, received memory of another "
                        "context; where pycuda made it, import pycuda.autoprimaryctx instead of pycuda.autoinit, or "
                        "call retain_primary_context instead of make_context")
    return pointer.device_address


def _other_gpu(index: int, device: CudaDevice) -> UserError:
    return UserError(f"expected a picture on GPU {device.index}, received one on GPU {index}; copy it there (in torch "
                     f".to('cuda:{device.index}')), or open the segmenter with device={index}")


# DLPack


class _Device(ctypes.Structure):
    _fields_ = [("type", c_int32), ("index", c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor. Its strides count elements; None: without gaps."""

    _fields_ = [("data", c_void_p), ("device", _Device), ("ndim", c_int32), ("dtype", _DataType),
                ("shape", ctypes.POINTER(c_int64)), ("strides", ctypes.POINTER(c_int64)), ("byte_offset", c_uint64)]

    @property
    def data_at(self) -> int:
        return (self.data or 0) and self.data + self.byte_offset

    @property
    def sizes(self) -> list[int]:
        return self.shape[:self.ndim]

    @property
    def byte_strides(self) -> list[int] | None:
        itemsize = self.dtype.bits * self.dtype.lanes // 8
        return [stride * itemsize for stride in self.strides[:self.ndim]] if self.strides else None


class _Managed(ctypes.Structure):
    """DLManagedTensor, of the capsule "dltensor"."""

    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned, of the capsule "dltensor_versioned"."""

    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", c_void_p),
                ("flags", c_uint64), ("tensor", _Tensor)]


_LAYOUTS = {b"dltensor": _Managed, b"dltensor_versioned": _ManagedVersioned}
_USED = {name: b"used_" + name for name in _LAYOUTS}  # a capsule keeps the pointer to its name
_DELETER = ctypes.PYFUNCTYPE(None, c_void_p)
_get_name = ctypes.PYFUNCTYPE(c_char_p, py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_set_name = ctypes.PYFUNCTYPE(c_int, py_object, c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


class _Borrowed:
    """A tensor that a capsule brought. It is given back once, at the latest when nobody refers to this any more."""

    def __init__(self, capsule: object) -> None:
        self._address: int | None = None
        name = _get_name(capsule)
        if name not in _LAYOUTS:
            raise UserError(f"expected a fresh DLPack capsule, received one named {name!r}; ask the array for it again")
        self._address = _get_pointer(capsule, name)
        self._managed = _LAYOUTS[name].from_address(self._address)
        _set_name(capsule, _USED[name])  # from now on it is not the capsule that gives it back
        if isinstance(self._managed, _ManagedVersioned) and self._managed.major != _VERSION[0]:
            received = f"{self._managed.major}.{self._managed.minor}"
            self.give_back()
            raise UserError(f"expected DLPack {_VERSION[0]}, received {received}; pass the array through a library "
                            "that speaks it")

    @property
    def tensor(self) -> _Tensor:
        return self._managed.tensor

    def give_back(self) -> None:
        """Call the producer's deleter. Twice is fine."""
        address, self._address = self._address, None
        if address is not None and self._managed.deleter:
            _DELETER(self._managed.deleter)(address)

    def __del__(self) -> None:
        self.give_back()


def _dlpack_gpu(image: Any) -> int | None:
    """The GPU that an array lies on, by DLPack; None where it lies elsewhere, or does not know DLPack."""
    if not hasattr(image, "__dlpack_device__") or not hasattr(image, "__dlpack__"):
        return None
    try:
        kind, index = image.__dlpack_device__()
    except (BufferError, ValueError):  # of torch, for a device that has no number in DLPack
        return None
    return int(index) if int(kind) in (_CUDA, _CUDA_MANAGED) else None


def _capsule(image: Any, stream: CudaStream) -> object:
    try:
        try:
            return image.__dlpack__(stream=stream.handle, max_version=_VERSION)
        except TypeError:  # it was made before DLPack had versions
            return image.__dlpack__(stream=stream.handle)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{type(image).__name__} does not give its memory away through DLPack: {error}") from error


def _dtype(tensor: _Tensor) -> str:
    """As NumPy would name it."""
    kind = _KINDS.get(tensor.dtype.code, f"DLPack type {tensor.dtype.code} of ")
    name = "bool" if kind == "bool" else f"{kind}{tensor.dtype.bits}"
    return name if tensor.dtype.lanes == 1 else f"{name} x {tensor.dtype.lanes}"
