"""How a GPU is opened: which wrapper, and what is said where something is missing. On the stand-in for CUDA."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from deploy.runtime import driver as driver_module
from deploy.runtime.cuda import open_device
from deploy.runtime.gpu import gpu_architecture, gpu_name
from talent.errors import UserError
from tests.deploy.stand_in_cuda import StandInCuda


def test_the_choice_of_a_wrapper(cuda, wrapper):
    opened = open_device(wrapper="polygraphy")
    assert opened.name == "polygraphy"
    opened.close()
    with pytest.raises(UserError, match="unknown wrapper of CUDA 'pycud'; did you mean 'pycuda'"):
        open_device(wrapper="pycud")
    if wrapper == "polygraphy":  # where pycuda is not installed
        with pytest.raises(UserError, match="needs the package 'pycuda'.*pip install 'talent-edge\\[tensorrt\\]'"):
            open_device(wrapper="pycuda")


@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_is_not_there(cuda, index):
    with pytest.raises(UserError, match=f"from 0 to 1, received {index}: this process sees 2 .*CUDA_VISIBLE_DEVICES"):
        open_device(index)
    assert gpu_architecture(index) is None and gpu_name(index) is None
    assert (gpu_architecture(1), gpu_name(1)) == ("sm87", "Stand-in 1")


def test_a_gpu_that_takes_nobody_else(cuda):
    cuda.fail("cuDevicePrimaryCtxRetain")
    with pytest.raises(UserError, match="GPU 0 cannot be used: cuDevicePrimaryCtxRetain failed: CUDA_ERROR_OUT_OF_MEM"):
        open_device()


def test_no_driver_no_gpu_and_an_old_driver(stand_in_library, monkeypatch):
    with StandInCuda.installed(stand_in_library, "polygraphy", devices=0), pytest.raises(UserError) as caught:
        open_device()
    assert "expected an NVIDIA GPU, found none (cuInit failed: CUDA_ERROR_NO_DEVICE" in str(caught.value)
    with StandInCuda.installed(stand_in_library, "polygraphy") as cuda, pytest.raises(UserError) as caught:
        cuda.fail("cuInit", code=3)
        open_device()
    assert "its driver does not start (cuInit failed: CUDA_ERROR_NOT_INITIALIZED" in str(caught.value)
    monkeypatch.setattr(driver_module, "_LIBRARIES", ("libc.so.6",))  # a library without CUDA's functions
    with pytest.raises(UserError, match="expected a driver of CUDA 11.4 or newer.*update NVIDIA's driver"):
        open_device()
    monkeypatch.setattr(driver_module, "_LIBRARIES", ("libno.so.1", "libnone.so.1"))
    with pytest.raises(UserError, match="expected NVIDIA's driver .libcuda.so.1., found none: install"):
        open_device()
    assert gpu_architecture() is None and gpu_name() is None


def test_a_pycuda_that_does_not_load(stand_in_library, tmp_path, monkeypatch):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcurand.so.10: cannot open shared object')")
    with StandInCuda.installed(stand_in_library, "polygraphy"):
        monkeypatch.delitem(sys.modules, "pycuda")
        monkeypatch.syspath_prepend(tmp_path)
        for asked in (None, "pycuda"):
            with pytest.raises(UserError, match="pycuda does not load: libcurand.so.10: .* again .*uninstall"):
                open_device(wrapper=asked)
        other = open_device(wrapper="polygraphy")
        other.close()


def test_where_libcudart_is_found(stand_in_library, tmp_path, monkeypatch):
    polygraphy = pytest.importorskip("polygraphy.cuda.cuda")
    with StandInCuda.installed(stand_in_library, "polygraphy"):
        monkeypatch.setattr(polygraphy, "_find_cuda_lib_dirs", lambda: [str(tmp_path)], raising=False)
        monkeypatch.setattr("sys.path", [str(tmp_path)])
        real = ctypes.CDLL

        def without_cudart(name: str, *arguments: object):
            if name == "libcudart.so":
                raise OSError("libcudart.so: cannot open shared object file")
            return real(name, *arguments)

        monkeypatch.setattr(ctypes, "CDLL", without_cudart)
        with pytest.raises(UserError, match="expected CUDA's runtime .* found none; run: pip install nvidia-cuda"):
            open_device()
        wheel = tmp_path / "nvidia" / "cu13" / "lib"
        wheel.mkdir(parents=True)
        (wheel / "libcudart.so.13").symlink_to(stand_in_library)
        opened = open_device()
        assert isinstance(opened.wrapper.handle, real) and opened.wrapper.handle._name == str(wheel / "libcudart.so.13")
        with opened.current():
            stream, memory, received = opened.stream(), opened.allocate(3), np.zeros(3, np.uint8)
            opened.copy_to_device(memory.address, np.arange(3, dtype=np.uint8), stream)
            opened.copy_to_host(received, memory.address, stream)
            memory.close()
            stream.close()
        opened.close()
        assert received.tolist() == [0, 1, 2]
