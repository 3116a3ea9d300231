"""The RCA of deploy/csrc against PyTorch, with no GPU.

By its plain C++ reference, and by the code of its CUDA kernels on an emulated device (tests/csrc).
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from talent.model.rca import ACTIVATIONS, rca_reference
from tests.native_build import build

TYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = TYPES[1:]
NAMES = tuple(ACTIVATIONS)
AUTO, SIMT, TENSOR_CORE = range(3)
TF32 = 2.0 ** -11  # the largest relative error of a number rounded to it
KINDS = ("none", "rows", "tensor", "any")
SIZES = tuple(itertools.product((1, 2), (1, 2, 7, 16), (1, 3, 33, 64)))  # batch, tokens, channels


@dataclass(frozen=True)
class Device:
    capability: int = 86
    multiprocessors: int = 4
    shared_bytes: int = 99 * 1024


class Host:
    """The two libraries, called with tensors: visual [B or 1, N, D], text [B, K, D], weight [D, K], bias [D]."""

    def __init__(self, directory: Path) -> None:
        pointers, sizes, numbers = [ctypes.c_void_p] * 5, [ctypes.c_int64] * 5, [ctypes.c_int32] * 2
        self._reference = ctypes.CDLL(str(directory / "libtalent_reference.so")).talent_rca_reference
        self._reference.argtypes = [*pointers, *sizes, *numbers]
        self._emulated = ctypes.CDLL(str(directory / "libtalent_emulated.so")).talent_rca_emulated
        self._emulated.argtypes = [*pointers, *sizes, *numbers, *[ctypes.c_int32] * 5,
                                   *[ctypes.POINTER(ctypes.c_int32)] * 2]
        self._reference.restype = self._emulated.restype = ctypes.c_char_p
        self.kind, self.passes = "none", 0

    def reference(self, *inputs: Tensor, activation: str = "none") -> Tensor:
        output = _poisoned(*inputs)
        _raise(self._reference(*_arguments(*inputs, output, activation)))
        return output

    def emulated(self, *inputs: Tensor, activation: str = "none", method: int = AUTO, device: Device | None = None,
                 order: int = 0) -> Tensor:
        """By the kernel that a device would get; `kind` and `passes` tell which."""
        output, device = _poisoned(*inputs), device or Device()
        kind, passes = ctypes.c_int32(), ctypes.c_int32()
        _raise(self._emulated(*_arguments(*inputs, output, activation), method, device.capability,
                              device.multiprocessors, device.shared_bytes, order, kind, passes))
        self.kind, self.passes = KINDS[kind.value], passes.value
        return output


def _poisoned(visual: Tensor, text: Tensor, *_) -> Tensor:
    return torch.full((text.shape[0], *visual.shape[1:]), float("nan"), dtype=visual.dtype)


def _arguments(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, output: Tensor,
               activation: str) -> list[int]:
    return [*(tensor.data_ptr() for tensor in (visual, text, weight, bias, output)), visual.shape[0], *output.shape[:2],
            text.shape[1], output.shape[2], TYPES.index(visual.dtype), NAMES.index(activation)]


def _raise(said: bytes | None) -> None:
    if said is not None:
        raise RuntimeError(said.decode())


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> Host:
    directory = tmp_path_factory.mktemp("host")
    build(directory, "-DTALENT_CUDA=OFF", targets=("talent_reference", "talent_emulated"))
    return Host(directory)


def _inputs(dtype: torch.dtype, *, batch: int, tokens: int, words: int, width: int, pictures: int | None = None,
            seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    shapes = ((pictures or batch, tokens, width), (batch, words, width), (width, words), (width,))
    scales = (1.0, width ** -0.5, 1.0, 1.0)
    return tuple((torch.randn(shape) * scale).to(dtype) for shape, scale in zip(shapes, scales, strict=True))


def _exact(*inputs: Tensor, activation: str = "none") -> Tensor:
    return rca_reference(*(tensor.double() for tensor in inputs), activation)


def _error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


def _check(result: Tensor, *inputs: Tensor, activation: str = "none") -> None:
    """At most twice the error of PyTorch in the same type."""
    exact = _exact(*inputs, activation=activation)
    ours, theirs = _error(result, exact), _error(rca_reference(*inputs, activation), exact)
    assert ours <= 2 * theirs, f"error {ours:.2e}, of PyTorch {theirs:.2e}"


def _check_bound(result: Tensor, *inputs: Tensor, activation: str = "none", cost_rounding: float = 0.0) -> None:
    """Within what FP32 sums and one rounding at the end can err, element by element (Higham, 2002, section 3.1).

    cost_rounding: to what a cost is rounded between the two products.
    """
    exact = _exact(*inputs, activation=activation)
    magnitude = _exact(*(tensor.abs() for tensor in inputs))
    sums = (inputs[0].shape[2] + inputs[1].shape[1] + 4) * torch.finfo(torch.float32).eps / 2
    number = torch.finfo(result.dtype)
    allowed = (sums + cost_rounding) * magnitude + number.eps / 2 * exact.abs() + number.smallest_normal * number.eps
    assert bool(((result.double() - exact).abs() <= 1.01 * allowed).all())


@pytest.mark.parametrize("words", range(1, 41))
def test_the_reference_is_the_operator_of_pytorch(host, words):
    for dtype, (batch, tokens, width) in itertools.product(TYPES, SIZES):
        activation = NAMES[(tokens + width) % 2]
        inputs = _inputs(dtype, batch=batch, tokens=tokens, words=words, width=width, seed=words)
        _check_bound(host.reference(*inputs, activation=activation), *inputs, activation=activation)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("method", [SIMT, TENSOR_CORE], ids=["simt", "tensor core"])
def test_the_kernels_err_no_more_than_pytorch(host, dtype, method):
    kinds = set()
    for width, words in ((32, 3), (64, 17), (64, 40), (96, 22), (128, 17), (128, 22), (256, 5), (512, 1), (33, 4)):
        activation = NAMES[words % 2]
        inputs = _inputs(dtype, batch=2, tokens=19, words=words, width=width)
        _check(host.emulated(*inputs, activation=activation, method=method), *inputs, activation=activation)
        kinds.add(host.kind)
    assert kinds == {"rows", "any"} | ({"tensor"} if method == TENSOR_CORE and dtype in HALVES else set())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [64, 33])
def test_one_picture_meets_many_expressions(host, dtype, width):
    inputs = _inputs(dtype, batch=3, pictures=1, tokens=21, words=9, width=width)
    repeated = (inputs[0].expand(3, -1, -1).contiguous(), *inputs[1:])
    assert torch.equal(host.emulated(*inputs), host.emulated(*repeated))
    assert torch.equal(host.reference(*inputs), host.reference(*repeated))
    _check(host.emulated(*inputs), *inputs)


@pytest.mark.parametrize(("dtype", "tokens", "width", "kind"), [
    (torch.float32, 1101, 32, "rows"), (torch.float16, 2101, 64, "tensor"), (torch.float32, 201, 9, "any")], ids=str)
def test_a_block_that_passes_over_its_tokens_more_than_once(host, dtype, tokens, width, kind):
    inputs = _inputs(dtype, batch=1, tokens=tokens, words=8, width=width)
    few = host.emulated(*inputs, device=Device(multiprocessors=1000))
    assert (host.kind, host.passes) == (kind, 1)
    assert torch.equal(host.emulated(*inputs, device=Device(multiprocessors=1)), few)
    assert host.passes > 1
    _check(few, *inputs)


def test_what_a_device_cannot_do_is_computed_otherwise(host):
    inputs = _inputs(torch.float16, batch=1, tokens=5, words=12, width=128)
    kinds = []
    for device in (Device(), Device(capability=75), Device(shared_bytes=4096)):
        _check(host.emulated(*inputs, device=device), *inputs)
        kinds.append(host.kind)
    assert kinds == ["tensor", "rows", "any"]
    shifted = torch.cat([inputs[1].flatten(), inputs[1].flatten()])[1:inputs[1].numel() + 1].view_as(inputs[1])
    odd = (inputs[0], shifted, *inputs[2:])  # begins where no vector may
    _check(host.emulated(*odd), *odd)
    assert host.kind == "any"


@pytest.mark.parametrize("method", [SIMT, TENSOR_CORE], ids=["simt", "tensor core"])
def test_costs_beyond_a_half_type_do_not_overflow(host, method):
    visual, text, weight, bias = _inputs(torch.float16, batch=1, tokens=16, words=9, width=64)
    inputs = (visual * 8, text * 2e4, weight * 1e-3, bias)
    exact = _exact(*inputs)
    costs = inputs[0].double() @ inputs[1].double().transpose(1, 2)
    assert costs.abs().max() > 1e5 and exact.abs().max() < 6e4
    assert not rca_reference(*inputs).isfinite().all()  # where PyTorch gives up
    for result in (host.reference(*inputs), host.emulated(*inputs, method=method)):
        assert _error(result, exact) < 1e-3


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("words", [3, 9])
def test_extreme_values(host, dtype, words):
    """From the largest to the smallest numbers of a type: overflow just where FP32 and the type overflow."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    overflows = []
    for factor in (largest / 8, largest ** 0.5 / 4, smallest * 8, smallest / 4):
        visual, text, weight, bias = _inputs(dtype, batch=1, tokens=16, words=words, width=64)
        inputs = ((visual.float().clamp(-2, 2) * factor).to(dtype), text, weight, bias)
        wanted = rca_reference(*(tensor.float() for tensor in inputs)).to(dtype)
        overflows.append(not wanted.isfinite().all())
        for result in (host.reference(*inputs), host.emulated(*inputs)):
            assert torch.equal(result.isfinite(), wanted.isfinite())
            if wanted.isfinite().all():
                _check_bound(result, *inputs, cost_rounding=TF32)
    assert any(overflows) and not all(overflows)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("width", "words"), [(64, 3), (64, 9), (96, 17), (33, 5)])
@pytest.mark.parametrize("activation", NAMES)
def test_nan_and_infinity_go_where_they_go_in_pytorch(host, dtype, width, words, activation):
    inputs = _inputs(dtype, batch=2, tokens=21, words=words, width=width)
    for index, tensor in enumerate(inputs):
        for value, part in itertools.product((float("nan"), float("inf"), float("-inf")), (3, 7)):
            changed = [one.clone() for one in inputs]
            changed[index].view(-1)[tensor.numel() // part] = value
            wanted = rca_reference(*(one.float() for one in changed), activation)
            for result in (host.reference(*changed, activation=activation),
                           host.emulated(*changed, activation=activation, method=TENSOR_CORE)):
                assert torch.equal(result.isnan(), wanted.isnan())
                assert torch.equal(result.isinf(), wanted.isinf())
                assert torch.equal(result[result.isinf()].sign(), wanted[wanted.isinf()].sign().to(dtype))


def test_the_order_of_threads_changes_nothing(host):
    for dtype, width, words in itertools.product(TYPES, (64, 33), (9,)):
        inputs = _inputs(dtype, batch=1, tokens=40, words=words, width=width)
        assert torch.equal(host.emulated(*inputs, order=0), host.emulated(*inputs, order=1))


def test_sizes_that_cannot_be_are_refused_in_words(host):
    visual, text, weight, bias = _inputs(torch.float32, batch=3, tokens=4, words=2, width=8)
    with pytest.raises(RuntimeError, match="batch of visual to be that of text, or 1"):
        host.reference(visual[:2], text, weight, bias)
    with pytest.raises(RuntimeError, match="at least one word"):
        host.emulated(visual, text[:, :0], weight[:, :0], bias)
    assert host.emulated(visual[:, :0], text, weight, bias).shape == (3, 0, 8)
