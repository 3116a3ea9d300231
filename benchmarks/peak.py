"""The most arithmetic a second that this machine was seen to do, so that rows can be given as a share of it.

A product of two large matrices, in every library that the rows use: on some processors one has twice the speed of
another, and a share of the slower one's would be above 1. It is measured before the rounds and after them, and the
fastest run counts: a peak is what nothing disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from benchmarks.contenders import Contender
from talent.errors import UserError
from talent.require import require

CPU, CUDA = "cpu", "cuda"
SIDE = {CPU: 2048, CUDA: 4096}  # of the matrices
CALLS = {CPU: 1, CUDA: 20}  # in one run: a GPU is asked for many before it is waited for
RUNS = 10  # of each product, besides one that allocates
PRECISIONS = {CPU: ("fp32",), CUDA: ("fp32", "fp16")}
"""What has a peak that is measured here: a CPU emulates FP16, and INT8 bundles compute in several types. On a GPU FP32
is without TF32, which TensorRT may use: there its share of this peak can be above 1."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """What has a peak of its own: "cpu" or "cuda", and a precision."""

    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.device} {self.precision}"

    @classmethod
    def of(cls, contender: Contender) -> Kind | None:
        """None for a row that has no peak to be compared with."""
        known = not contender.emulated and contender.precision in PRECISIONS[contender.device]
        return cls(contender.device, contender.precision) if known else None


class Peaks:
    """The peaks of some kinds; `gflop_per_second` and `unknown` (the reason) by kind, after `measure`."""

    def __init__(self, kinds: Iterable[Kind], *, threads: int) -> None:
        self.gflop_per_second: dict[Kind, float] = {}
        self.unknown: dict[Kind, str] = {}
        self._runs: dict[Kind, list[Run]] = {}
        for kind in dict.fromkeys(kinds):
            self._runs[kind], reasons = _products(kind, threads)
            if not self._runs[kind]:
                self.unknown[kind] = "; ".join(reasons)

    def measure(self) -> None:
        """Run every product some times; the fastest of all calls of this counts."""
        products = [(kind, product) for kind, products in self._runs.items() for product in products]
        for kind, product in tqdm(products, desc="peak", unit="product", leave=False, disable=None):
            product()
            fastest = min(_seconds(product) for _ in range(RUNS))
            work = CALLS[kind.device] * 2 * SIDE[kind.device] ** 3 / 1e9
            self.gflop_per_second[kind] = max(self.gflop_per_second.get(kind, 0), work / fastest)

    def share(self, contender: Contender, gflop_per_second: float | None) -> float | None:
        """Of the peak of its kind; None where either is not known."""
        peak = self.gflop_per_second.get(Kind.of(contender))
        return gflop_per_second / peak if gflop_per_second and peak else None


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _products(kind: Kind, threads: int) -> tuple[list[Run], list[str]]:
    """(a run per library, why the others are missing)."""
    makers = {CPU: (_torch_product, _onnx_runtime_product), CUDA: (_torch_product,)}
    runs, reasons = [], []
    for make in makers[kind.device]:
        try:
            runs.append(make(kind, threads))
        except UserError as error:
            reasons.append(str(error))
    return runs, reasons


def _matrix(side: int) -> np.ndarray:
    """float32 [side, side], evenly from -1 to 1."""
    return np.random.default_rng(0).random((side, side), np.float32) * 2 - 1


def _torch_product(kind: Kind, threads: int) -> Run:
    """PyTorch has the number of threads that latency.py gives it."""
    torch = require("torch", extra="train")
    if kind.device == CUDA and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here")
    matrix = torch.from_numpy(_matrix(SIDE[kind.device])).to(kind.device)
    matrix = matrix.half() if kind.precision == "fp16" else matrix
    result = torch.empty_like(matrix)

    def run() -> None:
        for _ in range(CALLS[kind.device]):
            torch.mm(matrix, matrix, out=result)
        if kind.device == CUDA:
            torch.cuda.synchronize()
    return run


def _onnx_runtime_product(kind: Kind, threads: int) -> Run:
    onnx, runtime = require("onnx", extra="export"), require("onnxruntime", extra="cpu")
    side = SIDE[kind.device]
    matrix = _matrix(side)
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [side, side])]
                       for name in ("x", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "product", inputs, outputs,
                                   [onnx.numpy_helper.from_array(matrix, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": matrix})
