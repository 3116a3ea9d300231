"""deploy.runtime.cuda by either wrapper: one suite, on the stand-in for CUDA and, with the marker `gpu`, on a card.

On the stand-in nothing that is queued happens before something waits for it, and what is not given back is counted.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from deploy.runtime import cuda as cuda_module
from deploy.runtime.cuda import WRAPPERS, CudaDevice, CudaError, open_device
from deploy.runtime.driver import DEVICE_MEMORY, HOST_MEMORY, Driver
from deploy.runtime.gpu import gpu_architecture
from talent.errors import UserError

SHAPE = (5, 7, 3)
INVALID_VALUE, LAUNCH_FAILED, UNSUPPORTED = 1, 719, 900

pytestmark = pytest.mark.filterwarnings("error:.* was not given back:RuntimeWarning")


@pytest.fixture
def device(cuda, wrapper) -> Iterator[CudaDevice]:
    """A GPU of the stand-in."""
    opened = open_device()
    assert opened.name == wrapper
    yield opened
    opened.close()


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def any_device(request, wrapper) -> Iterator[CudaDevice]:
    """A GPU of the stand-in, or a real one."""
    if request.param == "stand-in":
        yield request.getfixturevalue("device")
        return
    if gpu_architecture() is None:
        pytest.fail("expected a GPU, received none; leave these tests out with -m 'not gpu'")
    if importlib.util.find_spec(wrapper) is None:
        pytest.skip(f"needs {wrapper}, which is not installed here")
    opened = open_device(wrapper=wrapper)
    yield opened
    opened.close()


class Work:
    """A stream, an input and an output on the host, and memory of the GPU between them; closed in a block's end."""

    def __init__(self, device: CudaDevice, *, seed: int = 0) -> None:
        self.device = device
        values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        self.stream = device.stream()
        self.source, self.target = (device.pinned(SHAPE, np.float32) for _ in range(2))
        self.memory = device.allocate(values.nbytes)
        self.source.array[:], self.target.array[:] = values, 0

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *exception: object) -> None:
        for piece in (self.source, self.target, self.memory, self.stream) * 2:  # closing twice is fine
            piece.close()

    def copy_in(self) -> None:
        self.device.copy_to_device(self.memory.address, self.source.array, self.stream)

    def copy_out(self) -> None:
        self.device.copy_to_host(self.target.array, self.memory.address, self.stream)

    def queue(self) -> None:
        self.copy_in()
        self.copy_out()

    def check(self) -> None:
        self.stream.synchronise()
        assert np.array_equal(self.target.array, self.source.array)


def other_thread(work) -> None:
    """Run `work` in another thread, and raise here what it raises there."""
    raised = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


# Both on the stand-in and on a card


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPE, np.float32), ((1,), np.uint8), ((3, 1, 129), np.float16),
                                              ((), np.int64)])
def test_what_goes_in_comes_out(any_device, shape, dtype):
    values = np.asarray(np.random.default_rng(0).integers(0, 250, shape)).astype(dtype)
    with any_device.current():
        stream, source = any_device.stream(), any_device.pinned(shape, dtype)
        there, here = any_device.allocate(values.nbytes), any_device.allocate(values.nbytes + 3)
        assert source.array.shape == shape and source.array.dtype == dtype and there.nbytes == values.nbytes
        source.array[...] = values
        received = np.zeros(shape, dtype)
        any_device.copy_to_device(there.address, source.array, stream)
        any_device.copy_on_device(here.address + 3, there.address, values.nbytes, stream)
        any_device.copy_to_host(received, here.address + 3, stream)
        stream.synchronise()
        assert np.array_equal(received, values)
        for piece in (source, there, here, stream):
            piece.close()


def test_a_graph_replays_what_was_queued(any_device):
    with any_device.current(), Work(any_device) as work, Work(any_device, seed=1) as other:
        graph = any_device.capture(work.stream, work.queue)
        work.stream.synchronise()
        assert not work.target.array.any()  # capturing runs nothing
        for factor in (2, 3):
            work.source.array[:] *= factor
            graph.launch(work.stream)
            work.check()
        work.source.array[:] += 1
        graph.launch(other.stream)
        other.stream.synchronise()
        work.check()
        graph.close()
        graph.close()
        with pytest.raises(RuntimeError, match="CUDA graph is closed"):
            graph.launch(work.stream)


def test_a_capture_that_fails_leaves_the_stream_usable(any_device):
    with any_device.current(), Work(any_device) as work:
        with pytest.raises(CudaError, match="cuStreamSynchronize|cudaStreamSynchronize") as caught:
            any_device.capture(work.stream, lambda: (work.queue(), work.stream.synchronise()))
        assert caught.value.code == UNSUPPORTED and "STREAM_CAPTURE_UNSUPPORTED" in str(caught.value)
        with pytest.raises(ZeroDivisionError):
            any_device.capture(work.stream, lambda: (work.queue(), 1 / 0))

        def hidden() -> None:
            with pytest.raises(CudaError):
                work.stream.synchronise()

        with pytest.raises(CudaError, match="STREAM_CAPTURE_INVALIDATED"):
            any_device.capture(work.stream, hidden)
        work.queue()
        work.check()
        graph = any_device.capture(work.stream, work.queue)
        graph.launch(work.stream)
        work.check()
        graph.close()


def test_other_threads_do_not_disturb_a_capture(any_device):
    def elsewhere() -> None:
        with any_device.current(), Work(any_device, seed=1) as other:
            any_device.wait_for(other.stream, 0)  # which puts an event into the default stream
            other.queue()
            other.check()

    with any_device.current(), Work(any_device) as work:
        graph = any_device.capture(work.stream, lambda: (work.copy_in(), other_thread(elsewhere), work.copy_out()))
        graph.launch(work.stream)
        work.check()
        graph.close()


@pytest.mark.parametrize("other", ["ours", 0, 1, 2])
def test_a_stream_waits_for_another_ones_work(any_device, other):
    with any_device.current(), Work(any_device) as work:
        driver = Driver()
        ours = any_device.stream()
        handle = ours.handle if other == "ours" else other
        driver.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(work.memory.address),
                    ctypes.c_void_p(work.source.array.ctypes.data), ctypes.c_size_t(work.source.array.nbytes),
                    ctypes.c_void_p(handle))
        any_device.wait_for(work.stream, handle)
        work.copy_out()
        work.check()
        ours.close()


def test_events_tell_the_time_between_them(any_device):
    with any_device.current(), Work(any_device) as work:
        earlier, later, never = (any_device.event() for _ in range(3))
        earlier.record(work.stream)
        work.queue()
        later.record(work.stream)
        later.synchronise()
        assert np.array_equal(work.target.array, work.source.array)
        assert 0 < later.milliseconds_since(earlier) < 1000 and earlier.milliseconds_since(later) < 0
        with pytest.raises(CudaError, match="cuEventElapsedTime failed: CUDA_ERROR_INVALID_HANDLE"):
            later.milliseconds_since(never)
        for event in (earlier, later, never) * 2:
            event.close()


def test_one_thread_makes_another_uses_and_a_third_closes(any_device):
    made = []

    def use() -> None:
        with any_device.current():
            made[0].queue()
            made[0].check()

    def make() -> None:
        with any_device.current():
            made.append(Work(any_device))

    other_thread(make)
    other_thread(use)
    use()
    other_thread(lambda: made.pop().__exit__())


def test_what_a_pointer_is(any_device):
    with any_device.current(), Work(any_device) as work:
        there = any_device.pointer(work.memory.address + 8)
        assert (there.memory_type, there.device) == (DEVICE_MEMORY, any_device.index) and not there.managed
        assert there.context == any_device.context and there.device_address == work.memory.address + 8
        here = any_device.pointer(work.source.array.ctypes.data)
        assert here.memory_type == HOST_MEMORY and here.device_address


def test_too_much_memory_is_a_clear_error(any_device):
    wanted = rf"GPU 0 is out of memory: expected {2**30:.1f} MiB more, but \d+\.\d MiB of \d+\.\d MiB are free; close"
    with any_device.current(), Work(any_device) as work:
        with pytest.raises(UserError, match=wanted) as caught:
            any_device.allocate(2**50)
        assert isinstance(caught.value.__cause__, CudaError) and "OUT_OF_MEMORY" in str(caught.value.__cause__)
        work.queue()
        work.check()


def test_what_cannot_be_copied_is_refused(any_device):
    with any_device.current(), Work(any_device) as work:
        turned, fixed = work.source.array.T, np.zeros(SHAPE, np.float32)
        fixed.flags.writeable = False
        for copy in (lambda array: any_device.copy_to_device(work.memory.address, array, work.stream),
                     lambda array: any_device.copy_to_host(array, work.memory.address, work.stream)):
            with pytest.raises(ValueError, match=r"expected a contiguous array, received shape \[3, 7, 5\]"):
                copy(turned)
        with pytest.raises(ValueError, match="received a read-only one"):
            any_device.copy_to_host(fixed, work.memory.address, work.stream)
        any_device.copy_to_device(work.memory.address, fixed, work.stream)
        for nothing in (lambda: any_device.allocate(0), lambda: any_device.pinned((3, 0), np.uint8)):
            with pytest.raises(ValueError, match="expected .*at least one"):
                nothing()


def test_a_closed_device_refuses_and_what_is_closed_says_so(any_device):
    with any_device.current():
        pinned = any_device.pinned(3, np.uint8)
        pinned.close()
        with pytest.raises(RuntimeError, match="page-locked array is closed"):
            _ = pinned.array
    any_device.close()
    any_device.close()
    with pytest.raises(RuntimeError, match=r"this device \(GPU 0\) is closed"), any_device.current():
        pass


# On the stand-in alone: what a GPU does not show


def test_handles_and_addresses_need_more_than_32_bits(device):
    with device.current(), Work(device) as work:
        assert min(work.memory.address, work.stream.handle, device.context) > 2**32


def test_nothing_happens_before_it_is_waited_for(cuda, device):
    """So that tests on the stand-in notice a missing `synchronise`, `wait_for` or a buffer that is used too early."""
    with device.current(), Work(device) as work, Work(device, seed=1) as other:
        work.queue()
        assert not work.target.array.any()
        work.source.array[:] = 7  # page-locked memory is read late
        work.check()
        pageable = np.ones(SHAPE, np.float32)
        device.copy_to_device(work.memory.address, pageable, work.stream)
        pageable[:] = 2  # pageable memory at once
        work.copy_out()
        work.stream.synchronise()
        assert (work.target.array == 1).all()
        work.source.array[:] = 8
        work.copy_in()
        device.copy_to_host(other.target.array, work.memory.address, other.stream)  # without wait_for
        other.stream.synchronise()
        assert (other.target.array == 1).all()
        order = []
        cuda.queue(work.stream.handle, lambda: order.append("kernel"))
        work.stream.synchronise()
        assert order == ["kernel"]


def test_memory_that_is_freed_too_early_is_an_error_of_the_gpu(device, wrapper, capfd):
    with device.current():
        stream, source, target = device.stream(), device.pinned(3, np.uint8), device.allocate(3)
        device.copy_to_device(target.address, source.array, stream)
        source.close()
        with pytest.raises(CudaError, match="StreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronise()
        graph_error = "StreamBeginCapture failed: CUDA_ERROR_ILLEGAL_ADDRESS"  # it is the same for every later call
        with pytest.raises(CudaError, match=graph_error):
            device.capture(stream, lambda: None)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for piece in (target, stream):
                piece.close()
    if wrapper == "pycuda":
        assert capfd.readouterr().err.count("PyCUDA WARNING: a clean-up operation failed") == 2
    else:
        assert [str(one.message).partition(":")[0] for one in warned] == [
            "memory of the GPU was not given back", "a stream was not given back"]
        assert {one.filename for one in warned} == {__file__}


def test_a_callback_runs_at_each_launch(cuda, device):
    with device.current(), Work(device) as work:
        def kernel() -> None:
            cuda.view(work.memory.address, SHAPE, np.float32)[:] += 1

        graph = device.capture(work.stream, lambda: (cuda.queue(work.stream.handle, kernel), work.copy_out()))
        work.copy_in()
        for count in (1, 2):
            graph.launch(work.stream)
            work.stream.synchronise()
            np.testing.assert_allclose(work.target.array, work.source.array + count, rtol=1e-6)
        graph.close()


def test_a_callback_that_raises_is_a_kernel_that_failed(cuda, device):
    with device.current():
        stream = device.stream()
        cuda.queue(stream.handle, lambda: 1 / 0)
        with pytest.raises(CudaError) as caught:
            stream.synchronise()
        assert caught.value.code == LAUNCH_FAILED and isinstance(cuda.raised.pop(), ZeroDivisionError)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream.close()


@pytest.mark.parametrize(("wrapper", "before"), [*((name, before) for name in WRAPPERS
                                                   for before in ("nothing", "foreign")), ("pycuda", "pycuda")],
                         indirect=["wrapper"])
def test_what_was_current_is_current_again(cuda, device, before):
    driver = Driver()
    if before == "pycuda":  # a context on pycuda's stack, and another one in its place on CUDA's
        import pycuda.driver

        own = pycuda.driver.Device(1).make_context()
        driver.pop_context()
    foreign = cuda.foreign_context() if before != "nothing" else None
    depth = cuda.depth()
    for _ in range(2):
        with device.current():
            assert driver.current_context() == device.context
            with device.current(), Work(device) as work:
                work.queue()
                work.check()
            assert driver.current_context() == device.context
            if before == "foreign":
                driver.set_current_context(foreign)  # as cudaSetDevice of another library
        assert driver.current_context() == foreign and cuda.depth() == depth
        with pytest.raises(ZeroDivisionError), device.current():
            _ = 1 / 0
        assert driver.current_context() == foreign and cuda.depth() == depth
    device.close()
    assert driver.current_context() == foreign and cuda.depth() == depth
    if before == "pycuda":
        own.pop()
        own.detach()
    elif before == "foreign":
        cuda.library.cuCtxDestroy_v2(ctypes.c_void_p(foreign))


def test_the_primary_context_is_shared_and_released_once(cuda, wrapper):
    driver = Driver()
    torchs = driver.retain_primary_context(0)
    first, second = open_device(), open_device()
    assert first.context == second.context == torchs and open_device is cuda_module.open_device
    other = open_device(1)
    assert other.index == 1 and other.context != torchs and cuda.live() == {"contexts": 4}
    for _ in range(2):
        first.close()
        other_thread(second.close)
        other.close()
    assert cuda.live() == {"contexts": 1} and cuda.calls("cuCtxCreate") == 0
    driver.release_primary_context(0)


def test_freed_memory_can_be_had_again(cuda, device):
    with device.current():
        for _ in range(3):
            memory = device.allocate(2**29 + 1)
            with pytest.raises(UserError, match=r"expected 512.0 MiB more, but 512.0 MiB of 1024.0 MiB are free"):
                device.allocate(2**29)
            memory.close()
            assert memory.address == 0


def test_a_failed_allocation_is_not_left_to_the_next_kernel(cuda, device):
    with device.current(), pytest.raises(UserError):
        device.allocate(2**40)
    assert cuda.library.cudaGetLastError() == 0


@pytest.mark.parametrize(("function", "call", "names"), [
    ("cuMemAlloc", "allocate", ("cuMemAlloc", "cudaMalloc")), ("cuStreamCreate", "stream", ("cuStreamCreate",)),
    ("cuEventCreate", "event", ("cuEventCreate",)), ("cuMemHostAlloc", "pinned", ("cuMemHostAlloc",))])
def test_an_error_has_cudas_name_and_words(cuda, device, wrapper, function, call, names):
    if (function, wrapper) == ("cuMemAlloc", "polygraphy"):
        function = "cudaMalloc"
    arguments = {"allocate": (8,), "pinned": (3, np.uint8)}.get(call, ())
    with device.current():
        cuda.fail(function, code=INVALID_VALUE)
        with pytest.raises(CudaError) as caught:
            getattr(device, call)(*arguments)
        assert caught.value.call in names and caught.value.code == INVALID_VALUE
        assert str(caught.value) == f"{caught.value.call} failed: CUDA_ERROR_INVALID_VALUE (invalid argument)"
        getattr(device, call)(*arguments).close()
        if call == "pinned":
            cuda.fail(function)
            with pytest.raises(UserError, match="the host cannot lock 1.0 MiB of memory"):
                device.pinned(2**20, np.uint8)


@pytest.mark.parametrize("function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_no_step_of_a_capture_leaves_anything_behind(cuda, device, function):
    with device.current(), Work(device) as work:
        cuda.fail(function, code=INVALID_VALUE)
        with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_VALUE"):
            device.capture(work.stream, work.queue)
        assert "graphs" not in cuda.live()
        work.queue()
        work.check()


def test_a_wait_that_fails_leaves_no_event(cuda, device):
    with device.current(), Work(device) as work:
        for function in ("cuEventRecord", "cuStreamWaitEvent"):
            cuda.fail(function, code=INVALID_VALUE)
            with pytest.raises(CudaError, match=f"{function} failed"):
                device.wait_for(work.stream, 0)
        assert "events" not in cuda.live()


def test_threads_share_a_device(device):
    """Each with a stream of its own, at the same time."""
    barrier = threading.Barrier(4)
    failed = []

    def work(seed: int) -> None:
        try:
            with device.current(), Work(device, seed=seed) as own:
                for _ in range(20):
                    barrier.wait(10)
                    own.source.array[:] += seed
                    own.queue()
                    own.check()
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
