"""Python's side of libtalent_kernels.so, on a stand-in for it that computes on the host and keeps its arguments."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from talent import native
from talent.errors import UserError
from talent.model import rca_kernels
from talent.model.rca import aggregate_costs, rca_cost_aggregation, rca_on_gpu, rca_reference
from talent.model.rca_kernels import ACTIVATIONS, METHODS, RcaLibrary, installed_library
from talent.native import INTERFACE
from tests.native_build import ROOT
from tests.talent.rca_inputs import arguments

CSRC = ROOT / "deploy" / "csrc"
SOURCES = (Path(__file__).with_name("stand_in_kernels.cpp"),
           *(CSRC / name for name in ("talent_reference.cpp", "rca_reference.cpp", "rca_launch.cpp")))
STREAM = 0x7F0012345678  # needs more than 32 bits
# of the values, relative: sums are float32 in all types, so that only the inputs and the result are rounded
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


class Call(ctypes.Structure):
    """What the stand-in was called with last."""

    _fields_ = [("pointers", ctypes.c_void_p * 5), ("sizes", ctypes.c_int64 * 5), ("numbers", ctypes.c_int32 * 3),
                ("stream", ctypes.c_void_p)]


def compile_library(path: Path, *, interface: int = INTERFACE) -> Path:
    """The stand-in as a shared library at `path`."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++, which is not installed here")
    subprocess.run([compiler, "-std=c++17", "-shared", "-fPIC", f"-DINTERFACE={interface}",
                    f"-I{CSRC}", *map(str, SOURCES), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A directory with the stand-in under the library's name."""
    directory = tmp_path_factory.mktemp("build")
    compile_library(directory / "libtalent_kernels.so")
    return directory


@pytest.fixture(scope="module")
def library(directory) -> RcaLibrary:
    return RcaLibrary(directory / "libtalent_kernels.so")


def last_call(library: RcaLibrary) -> Call:
    return Call.in_dll(ctypes.CDLL(str(library.path)), "last_call")


@pytest.fixture
def on_gpu(directory, monkeypatch):
    """Let `rca_on_gpu` take tensors of the host for tensors of a GPU, with STREAM as the current stream there."""
    monkeypatch.setenv(native.LIBRARIES, str(directory))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    installed_library.cache_clear()
    yield rca_on_gpu
    installed_library.cache_clear()


def check(received: Tensor, given: list[Tensor], activation: str) -> None:
    """Against the reference in float64 on the same inputs."""
    wanted = rca_reference(*(x.double() for x in given), activation)
    assert received.is_contiguous() and received.dtype == given[0].dtype
    tolerance = ROUNDING[received.dtype]
    torch.testing.assert_close(received.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("batch", "tokens", "words", "width"), [(2, 13, 5, 7), (3, 4, 1, 16), (1, 1, 1, 1)])
def test_types_and_sizes_arrive(library, batch, tokens, words, width, activation, dtype):
    given = arguments(batch, tokens, words, width, dtype=dtype)
    check(library(*given, activation), given, activation)


def test_every_argument_arrives_in_its_place(library):
    given = arguments(3, 4, 5, 6, dtype=torch.bfloat16)
    output = library(*given, "relu", method="tensor_core", stream=STREAM)
    call = last_call(library)
    assert list(call.pointers) == [tensor.data_ptr() for tensor in (*given, output)]
    assert list(call.sizes) == [3, 3, 4, 5, 6]
    assert list(call.numbers) == [2, 1, 2] and call.stream == STREAM
    library(*(x.half() for x in given))
    assert list(last_call(library).numbers) == [1, 0, 0] and last_call(library).stream is None


def test_the_numbers_are_those_of_the_header():
    header = (CSRC / "rca_kernel.h").read_text()
    names = {"kFloat": rca_kernels.TYPES[torch.float32], "kHalf": rca_kernels.TYPES[torch.float16],
             "kBfloat16": rca_kernels.TYPES[torch.bfloat16], "kNone": ACTIVATIONS["none"],
             "kRelu": ACTIVATIONS["relu"], "kAuto": METHODS["auto"], "kSimt": METHODS["simt"],
             "kTensorCore": METHODS["tensor_core"]}
    for name, number in names.items():
        assert f"{name} = {number}" in header


@pytest.mark.parametrize("picture", ["expanded", "alone"])
def test_one_picture_for_many_expressions_is_not_copied(library, picture):
    visual, text, weight, bias = arguments(3, 4, 5, 6, dtype=torch.float32)
    expanded = visual[1:2].expand(3, -1, -1)
    received = library(visual[1:2] if picture == "alone" else expanded, text, weight, bias)
    call = last_call(library)
    assert call.pointers[0] == visual[1].data_ptr() and list(call.sizes) == [1, 3, 4, 5, 6]
    check(received, [expanded, text, weight, bias], "none")


def test_what_is_not_contiguous_is_copied(library):
    given = arguments(2, 9, 5, 7, dtype=torch.float32)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x for x in given]
    assert not any(x.is_contiguous() for x in turned[:3])
    check(library(*turned), given, "none")
    wider = torch.randn(2, 14, 7)
    check(library(wider[:, 5:], *given[1:]), [wider[:, 5:], *given[1:]], "none")  # without class and register tokens


def test_words_of_the_library_become_an_error(library):
    wanted = r"expected at least one word; received visual \(2, 4, 6\), text \(2, 0, 6\), torch.float32, activation"
    with pytest.raises(RuntimeError, match=wanted):
        library(*arguments(2, 4, 0, 6, dtype=torch.float32))


def test_a_library_of_another_version_is_refused(tmp_path):
    path = compile_library(tmp_path / "libtalent_kernels.so", interface=INTERFACE + 1)
    with pytest.raises(UserError, match=rf"expected interface {INTERFACE} .* received {INTERFACE + 1}; .*make plugin"):
        RcaLibrary(path)


def test_what_is_no_library_of_ours_is_refused(tmp_path):
    path = tmp_path / "libtalent_kernels.so"
    path.write_text("no library")
    for file in (path, Path(torch._C.__file__)):
        with pytest.raises(UserError, match="cannot load the kernels: expected a library of this version.*make plugin"):
            RcaLibrary(file)


def test_the_operator_calls_the_library_on_the_current_stream(on_gpu):
    given = arguments(2, 4, 5, 6, dtype=torch.float16)
    check(on_gpu(*given, "relu"), given, "relu")
    call = last_call(installed_library())
    assert call.pointers[0] == given[0].data_ptr() and call.stream == STREAM
    assert list(call.numbers) == [1, 1, METHODS["auto"]]


def test_an_expanded_picture_passes_the_operator_without_a_copy(on_gpu, monkeypatch):
    visual, text, weight, bias = arguments(3, 4, 5, 6, dtype=torch.float32)
    monkeypatch.setattr("talent.model.rca.rca_cost_aggregation", on_gpu)
    received = aggregate_costs(visual[:1], text, weight, bias)
    call = last_call(installed_library())
    assert call.pointers[0] == visual.data_ptr() and call.sizes[0] == 1
    check(received, [visual[:1].expand(3, -1, -1), text, weight, bias], "none")


def test_other_types_and_bad_sizes_do_not_reach_the_library(on_gpu):
    library = installed_library()
    library(*arguments(1, 1, 1, 1, dtype=torch.float32), stream=1)
    given = arguments(2, 4, 5, 6)
    assert torch.equal(on_gpu(*given), rca_reference(*given))  # float64
    with pytest.raises(RuntimeError, match="scalar type"):  # PyTorch's own words
        on_gpu(given[0].float(), *given[1:])
    with pytest.raises(ValueError, match=r"expected visual \[B,N,D\]"):
        on_gpu(given[0].float(), given[1][:1].float(), given[2].float(), given[3].float())
    assert last_call(library).stream == 1


def test_without_the_library_the_reference_computes(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv(native.LIBRARIES, str(tmp_path))
    given = arguments(2, 4, 5, 6, dtype=torch.float32)
    assert installed_library() is None
    assert torch.equal(on_gpu(*given), rca_reference(*given))


def test_the_operator_has_an_implementation_for_gpus():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("talent::rca_cost_aggregation", "CUDA")


@pytest.mark.parametrize(("words", "activation"), [(1, "relu"), (5, "none")])
@pytest.mark.parametrize("picture", ["expanded", "turned"])
def test_registration_with_other_strides(picture, words, activation):
    """The result is contiguous whatever the strides of the picture, and the fake kernel says so."""
    visual, text, weight, bias = arguments(2, 9, words, 6, dtype=torch.float32)
    visual = visual[:1].expand(2, -1, -1) if picture == "expanded" else visual.mT.contiguous().mT
    given = [x.requires_grad_() for x in (visual, text, weight, bias)]
    results = torch.library.opcheck(rca_cost_aggregation, (*given, activation))
    assert set(results.values()) == {"SUCCESS"}
    assert rca_cost_aggregation(*given, activation).is_contiguous()
    assert rca_cost_aggregation(*(x.to("meta") for x in given), activation).is_contiguous()


def test_the_gradient_of_a_shared_picture_is_the_sum_over_the_expressions():
    visual, text, weight, bias = arguments(3, 4, 5, 6)
    shared = visual[:1].requires_grad_()
    upstream = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    received, = torch.autograd.grad(aggregate_costs(shared, text, weight, bias, "relu"), shared, upstream)
    wanted = sum(torch.autograd.grad(rca_reference(shared, text[i:i + 1], weight, bias, "relu"), shared,
                                     upstream[i:i + 1])[0] for i in range(3))
    torch.testing.assert_close(received, wanted, rtol=1e-9, atol=1e-9)
