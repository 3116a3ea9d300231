"""What both wrappers of CUDA leave to the driver, and the errors about memory that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from deploy.runtime.driver import OUT_OF_MEMORY, CudaError, CudaGraph, Driver, Pointer
from talent.errors import UserError


class DriverCalls:
    """Methods of a CudaDevice (deploy.runtime.cuda) for which pycuda and Polygraphy have nothing."""

    def __init__(self, driver: Driver, index: int) -> None:
        self.driver, self.index = driver, index

    def wait_for(self, stream, other: int) -> None:
        """What is queued on `other` so far comes before what is queued on `stream` from now on."""
        self.driver.wait_for(stream.handle, other)

    def capture(self, stream, work: Callable[[], None]) -> CudaGraph:
        """What `work` queues, as a graph."""
        return self.driver.capture(stream.handle, work)

    def pointer(self, address: int) -> Pointer:
        """What an address is."""
        return self.driver.pointer(address)


@contextmanager
def lack_of_memory(said: Callable[[], UserError]) -> Iterator[None]:
    """CUDA's error about too little memory as what `said` makes of it; others pass."""
    try:
        yield
    except CudaError as error:
        if error.code != OUT_OF_MEMORY:
            raise
        raise said() from error


def checked_bytes(nbytes: int) -> int:
    """The same. Raises ValueError for none."""
    if nbytes < 1:
        raise ValueError(f"expected at least one byte, received {nbytes}")
    return nbytes


def array_bytes(shape: int | tuple[int, ...], dtype: DTypeLike) -> int:
    """Of an array. Raises ValueError for one without elements."""
    nbytes = np.dtype(dtype).itemsize * prod(np.atleast_1d(shape).tolist())
    if nbytes < 1:
        raise ValueError(f"expected a shape of at least one element, received {shape}")
    return nbytes
