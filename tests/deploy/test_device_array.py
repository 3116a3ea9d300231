"""Pictures that lie on the GPU: both protocols, layouts, streams, whose memory it is. On the stand-in for CUDA."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

from deploy.runtime.cuda import WRAPPERS, CudaDevice, CudaStream, open_device
from deploy.runtime.device_array import DevicePicture, device_picture, is_device_array
from talent.errors import UserError
from talent.image import check_photo
from tests.deploy.stand_in_cuda import StandInCuda

HEIGHT, WIDTH = 5, 7
CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
DEVICE_IN_CAPSULE = {b"dltensor": 8, b"dltensor_versioned": 40}  # bytes before DLTensor.device


@pytest.fixture(params=WRAPPERS)
def cuda(stand_in_library, request) -> Iterator[StandInCuda]:
    with StandInCuda.installed(stand_in_library, request.param) as stand_in:
        yield stand_in
        assert stand_in.depth() == 0


@pytest.fixture
def device(cuda) -> Iterator[CudaDevice]:
    """A GPU, current in the test."""
    opened = open_device()
    with opened.current():
        yield opened
    opened.close()


@pytest.fixture
def stream(device) -> Iterator[CudaStream]:
    opened = device.stream()
    yield opened
    opened.close()


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


class Memory:
    """Bytes of the stand-in's GPU, as NumPy sees them: what comes out of `array` is a view of it."""

    def __init__(self, cuda: StandInCuda, nbytes: int = 4096, *, function: str = "cuMemAlloc_v2") -> None:
        self.address = cuda.allocate(nbytes, function=function)
        self.bytes = cuda.view(self.address, (nbytes,), np.uint8)

    def array(self, photo: np.ndarray, *, offset: int = 0, gap: int = 0) -> np.ndarray:
        """A photo in it, from an offset on, with a gap behind each row."""
        height, width, channels = photo.shape
        row = width * channels * photo.itemsize + gap
        view = as_strided(self.bytes[offset:].view(photo.dtype)[:1], photo.shape,
                          (row, channels * photo.itemsize, photo.itemsize))
        view[:] = photo
        return view


class Interface:
    """An array of another library, by __cuda_array_interface__."""

    def __init__(self, array: np.ndarray, *, version: int = 3, **changed: object) -> None:
        strides = None if array.flags.c_contiguous else array.strides
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": array.dtype.str, "strides": strides,
                                         "data": (array.ctypes.data, True), "version": version, **changed}


class Dlpack:
    """An array of another library, by DLPack: NumPy's own capsules, with the GPU's number written into them.

    versions: whether it knows versions; major, dtype: what else is written. asked: what it was asked with.
    """

    def __init__(self, array: np.ndarray, *, versions: bool = True, kind: int = CUDA, index: int = 0,
                 major: int | None = None, dtype: tuple[int, int] | None = None) -> None:
        self.array, self.versions, self.place = array, versions, (kind, index)
        self.major, self.dtype = major, dtype
        self.asked: list[dict] = []
        self.capsule = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, **asked: object) -> object:
        if not self.versions and "max_version" in asked:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.asked.append(asked)
        versions = {"max_version": asked["max_version"]} if self.versions else {}
        self.capsule = self.array.__dlpack__(**versions)
        name = capsule_name(self.capsule)
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.argtypes, get_pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
        managed = get_pointer(self.capsule, name)
        place = (ctypes.c_int32 * 2).from_address(managed + DEVICE_IN_CAPSULE[name])
        assert place[:] == [1, 0]  # the host, where NumPy says it is
        place[:] = self.place
        start = managed + DEVICE_IN_CAPSULE[name] - 8
        data, offset = ctypes.c_uint64.from_address(start), ctypes.c_uint64.from_address(start + 40)
        data.value, offset.value = data.value - 16, offset.value + 16
        if self.major is not None:
            ctypes.c_uint32.from_address(managed).value = self.major
        if self.dtype is not None:
            (ctypes.c_uint8 * 2).from_address(managed + DEVICE_IN_CAPSULE[name] + 12)[:] = self.dtype
        return self.capsule


def capsule_name(capsule: object) -> bytes:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.argtypes, name.restype = (ctypes.py_object,), ctypes.c_char_p
    return name(capsule)


def seen(cuda: StandInCuda, picture: DevicePicture) -> np.ndarray:
    """What a kernel would read of a picture."""
    rows = [cuda.view(picture.address + y * picture.stride, (picture.width, picture.channels), np.uint8)
            for y in range(picture.height)]
    return np.stack(rows)


PROTOCOLS = {"interface": Interface, "dlpack": Dlpack, "old dlpack": lambda array: Dlpack(array, versions=False)}


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return PROTOCOLS[request.param]


@pytest.mark.parametrize("gap", [0, 11])
def test_a_photo_is_found_where_it_lies(cuda, device, stream, photo, protocol, gap):
    memory = Memory(cuda)
    array = protocol(memory.array(photo, offset=64, gap=gap))
    assert is_device_array(array)
    picture = device_picture(array, device, stream)
    assert (picture.address, picture.stride) == (memory.address + 64, 3 * WIDTH + gap)
    assert (picture.height, picture.width, picture.channels, picture.device) == (HEIGHT, WIDTH, 3, 0)
    assert np.array_equal(seen(cuda, picture), photo)


@pytest.mark.parametrize("window", [np.s_[1:4], np.s_[:, 2:5], np.s_[2:3, 1:2], np.s_[:, 3:4], np.s_[::2]])
def test_windows_of_a_photo_are_photos(cuda, device, stream, photo, protocol, window):
    part = Memory(cuda).array(photo)[window]
    assert np.array_equal(seen(cuda, device_picture(protocol(part), device, stream)), photo[window])


@pytest.mark.parametrize(("shape", "strides"), [((1, WIDTH, 3), (0, 3, 1)), ((HEIGHT, 1, 3), (21, 1, 1)),
                                                ((1, 1, 3), (-5, 0, 1))])
def test_the_stride_of_a_side_of_one_pixel_means_nothing(cuda, device, stream, photo, protocol, shape, strides):
    part = as_strided(Memory(cuda).array(photo), shape, strides)
    assert np.array_equal(seen(cuda, device_picture(protocol(part), device, stream)), photo[:shape[0], :shape[1]])


@pytest.mark.parametrize("turn", [
    lambda array: array[::-1], lambda array: array[:, ::-1], lambda array: array[:, :, ::-1],
    lambda array: array[:, ::2], lambda array: array.transpose(1, 0, 2),
    lambda array: as_strided(array, array.shape, (0, 3, 1)),
    lambda array: as_strided(array, array.shape, (3 * WIDTH - 1, 3, 1))])
def test_other_layouts_are_refused(cuda, device, stream, photo, protocol, turn):
    array = turn(Memory(cuda).array(photo))
    with pytest.raises(UserError, match=r"strides of \[3 W or more, 3, 1\] bytes, received strides .*\.contiguous\(\)"):
        device_picture(protocol(array), device, stream)


def test_planes_are_refused(cuda, device, stream, protocol):
    """[3, H, W] turned into [H, W, 3] by its strides alone."""
    planes = Memory(cuda).array(np.zeros((3, HEIGHT, WIDTH), np.uint8)).transpose(1, 2, 0)
    with pytest.raises(UserError, match=rf"received strides \[{WIDTH}, 1, {HEIGHT * WIDTH}\] for \[5, 7, 3\]"):
        device_picture(protocol(planes), device, stream)


@pytest.mark.parametrize(("shape", "dtype"), [
    ((5, 7, 3), np.float32), ((5, 7, 3), np.int8), ((5, 7, 3), bool), ((5, 7, 4), np.uint8), ((3, 5, 7), np.uint8),
    ((5, 7), np.uint8), ((1, 5, 7, 3), np.uint8), ((0, 7, 3), np.uint8), ((5, 0, 3), np.uint8), ((), np.uint8)])
def test_what_is_no_photo_is_refused_in_the_words_of_the_host(cuda, device, stream, protocol, shape, dtype):
    array = Memory(cuda).bytes[:np.dtype(dtype).itemsize * int(np.prod(shape))].view(dtype).reshape(shape)
    with pytest.raises(UserError) as wanted:
        check_photo(array)
    with pytest.raises(UserError) as received:
        device_picture(protocol(array), device, stream)
    assert str(received.value) == str(wanted.value)


def test_a_photo_that_is_too_wide_is_refused_in_the_words_of_the_host(cuda, device, stream):
    array = Memory(cuda, 3 * 32767).array(np.zeros((1, 32767, 3), np.uint8))
    for protocol in PROTOCOLS.values():
        with pytest.raises(UserError, match=r"with sides from 1 to 32766 pixels, received \[1, 32767, 3\]"):
            device_picture(protocol(array), device, stream)


@pytest.mark.parametrize(("code", "words"), [(4, "bfloat16"), (77, "DLPack type 77 of 16")])
def test_types_of_dlpack_that_numpy_has_not(device, stream, code, words):
    producer = Dlpack(np.zeros((HEIGHT, WIDTH, 3), np.uint16), dtype=(code, 16))
    with pytest.raises(UserError, match=rf"received {words} \[5, 7, 3\]"):
        device_picture(producer, device, stream)


def test_arrays_of_the_host_are_no_device_arrays(photo):
    for image in (photo, torch.from_numpy(photo), torch.empty(2, device="meta"), "photo.png", photo.tolist(), None,
                  Dlpack(photo, kind=1), Dlpack(photo, kind=3)):
        assert not is_device_array(image)


# Streams


@pytest.mark.parametrize(("version", "other", "waited"), [
    (3, "none", False), (3, "missing", False), (3, 1, True), (3, 2, True), (3, "own", True), (2, "missing", True)])
def test_our_stream_waits_for_the_one_that_is_named(cuda, device, stream, photo, version, other, waited):
    """In version 2, which names none, for the default stream. A copy on that stream is still to come."""
    memory, later = Memory(cuda), device.pinned(photo.shape, np.uint8)
    array = memory.array(np.zeros_like(photo))
    theirs = device.stream()
    later.array[:] = photo
    handle = {"none": 1, "missing": 1, "own": theirs.handle}.get(other, other)
    cuda.library.cuMemcpyHtoDAsync_v2(ctypes.c_uint64(memory.address), ctypes.c_void_p(later.array.ctypes.data),
                                      ctypes.c_size_t(photo.nbytes), ctypes.c_void_p(handle))
    named = {} if other == "missing" else {"stream": None if other == "none" else handle}
    device_picture(Interface(array, version=version, **named), device, stream)
    stream.synchronise()
    assert np.array_equal(array, photo) is waited
    cuda.library.cuCtxSynchronize()
    for piece in (later, theirs):
        piece.close()


def test_arrays_of_pycuda_wait_for_the_default_stream(cuda, device, stream, photo):
    """They always say None."""
    array = Memory(cuda).array(photo)
    of_pycuda = type("GPUArray", (Interface,), {"__module__": "pycuda.gpuarray"})
    for kind, waits in ((Interface, 0), (of_pycuda, 1)):
        before = cuda.calls("cuStreamWaitEvent")
        device_picture(kind(array, stream=None), device, stream)
        assert cuda.calls("cuStreamWaitEvent") == before + waits


def test_dlpacks_producer_is_told_our_stream(cuda, device, stream, photo):
    array = Memory(cuda).array(photo)
    new, old = Dlpack(array), Dlpack(array, versions=False)
    for producer in (new, old):
        device_picture(producer, device, stream)
    assert new.asked == [{"stream": stream.handle, "max_version": (1, 0)}] and old.asked == [{"stream": stream.handle}]
    assert capsule_name(new.capsule) == b"used_dltensor_versioned" and capsule_name(old.capsule) == b"used_dltensor"


def test_dlpack_comes_before_the_other_interface(cuda, device, stream, photo):
    """torch's __cuda_array_interface__ does not tell its stream, and raises where there is a gradient."""
    class Both(Dlpack):
        @property
        def __cuda_array_interface__(self) -> dict:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    both = Both(Memory(cuda).array(photo))
    assert is_device_array(both)
    assert np.array_equal(seen(cuda, device_picture(both, device, stream)), photo)


# Who keeps the memory


@pytest.mark.parametrize("versions", [True, False])
def test_dlpacks_memory_is_given_back_with_the_picture(cuda, device, stream, photo, versions):
    """NumPy's deleter gives up a reference to the array, and would crash if it were called twice."""
    array = Memory(cuda).array(photo)
    freed = weakref.ref(array)
    picture = device_picture(Dlpack(array, versions=versions), device, stream)
    del array
    assert freed() is not None
    owner = picture.keep
    del picture
    assert freed() is not None
    del owner
    assert freed() is None


@pytest.mark.parametrize("versions", [True, False])
def test_dlpacks_memory_is_given_back_at_once_where_it_is_refused(cuda, device, stream, photo, versions):
    """And not again when the error, which holds on to everything, is gone."""
    array = Memory(cuda).array(photo)[:, ::2]
    before = sys.getrefcount(array)
    with pytest.raises(UserError, match="strides") as caught:
        device_picture(Dlpack(array, versions=versions), device, stream)
    assert sys.getrefcount(array) == before + 1  # that of the producer, which the error holds
    del caught
    assert sys.getrefcount(array) == before


def test_the_interfaces_array_is_kept_with_the_picture(cuda, device, stream, photo):
    array = Interface(Memory(cuda).array(photo))
    freed = weakref.ref(array)
    picture = device_picture(array, device, stream)
    del array
    assert freed() is picture.keep
    del picture
    assert freed() is None


def test_a_capsule_of_a_later_dlpack_is_given_back_unread(cuda, device, stream, photo):
    array = Memory(cuda).array(photo)
    freed, producer = weakref.ref(array), Dlpack(array, major=2)
    with pytest.raises(UserError, match="expected DLPack 1, received 2.0"):
        device_picture(producer, device, stream)
    del array
    producer.array = None
    assert freed() is None


def test_a_used_capsule_is_refused(cuda, device, stream, photo):
    class Again(Dlpack):
        def __dlpack__(self, **asked: object) -> object:
            return self.capsule or super().__dlpack__(**asked)

    producer = Again(Memory(cuda).array(photo))
    device_picture(producer, device, stream)
    with pytest.raises(UserError, match="expected a fresh DLPack capsule, received one named b'used_dltensor"):
        device_picture(producer, device, stream)


def test_what_a_producer_says_is_passed_on(device, stream):
    class Graded:
        def __dlpack_device__(self) -> tuple[int, int]:
            return CUDA, 0

        def __dlpack__(self, **asked: object) -> object:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    class Sparse:
        @property
        def __cuda_array_interface__(self) -> dict:
            return {"shape": (2, 2, 3), "typestr": "|u1", "version": 3}  # without "data"

    with pytest.raises(UserError, match=r"Graded does not give its memory away through DLPack: .*tensor.detach\(\)"):
        device_picture(Graded(), device, stream)
    with pytest.raises(UserError, match="Sparse does not give its memory away through __cuda_array_int.*data"):
        device_picture(Sparse(), device, stream)


# Whose memory it is


def test_memory_of_another_gpu_is_refused(cuda, device, stream, photo):
    other = open_device(1)
    with other.current():
        array = Memory(cuda).array(photo)
    says, wrong = Dlpack(array, index=1), Dlpack(array, index=0)
    for picture in (Interface(array), says, wrong):
        with pytest.raises(UserError, match=r"on GPU 0, received one on GPU 1; .*\.to\('cuda:0'\).* device=1"):
            device_picture(picture, device, stream)
    assert not says.asked  # torch would refuse, in words of its own
    other.close()


def test_memory_of_another_context_is_refused(cuda, device, stream, photo, protocol):
    context = cuda.foreign_context()
    array = Memory(cuda).array(photo)
    cuda.library.cuCtxPopCurrent_v2(None)
    with pytest.raises(UserError, match="received memory of another context; .*pycuda.autoprimaryctx instead of"):
        device_picture(protocol(array), device, stream)
    cuda.library.cuCtxDestroy_v2(ctypes.c_void_p(context))


@pytest.mark.parametrize("function", ["cuMemAllocManaged", "cuMemAllocAsync"])
def test_managed_memory_and_that_of_a_pool_is_fine(cuda, device, stream, photo, function):
    array = Memory(cuda, function=function).array(photo)
    for picture in (Interface(array), Dlpack(array, kind=CUDA_MANAGED)):
        assert is_device_array(picture)
        assert np.array_equal(seen(cuda, device_picture(picture, device, stream)), photo)


@pytest.mark.parametrize("function", ["cuMemAllocManaged", "cuMemHostAlloc"])
def test_managed_and_page_locked_memory_of_any_context_is_fine(cuda, device, stream, photo, function):
    context = cuda.foreign_context(1)
    array = Memory(cuda, function=function).array(photo)
    cuda.library.cuCtxPopCurrent_v2(None)
    assert np.array_equal(seen(cuda, device_picture(Interface(array), device, stream)), photo)
    cuda.library.cuCtxDestroy_v2(ctypes.c_void_p(context))


def test_memory_that_cuda_does_not_know_is_refused(device, stream, photo, protocol):
    with pytest.raises(UserError, match=f"received the address {photo.ctypes.data:#x}, which CUDA does not know"):
        device_picture(protocol(photo), device, stream)


def test_null_a_mask_and_stream_0_are_refused(cuda, device, stream, photo):
    array = Memory(cuda).array(photo)
    for changed, words in (({"data": (0, False)}, r"the address of a picture \[5, 7, 3\] on GPU 0, received NULL"),
                           ({"mask": object()}, "without a mask"), ({"stream": 0}, "received 0, which it does not")):
        with pytest.raises(UserError, match=words):
            device_picture(Interface(array, **changed), device, stream)
