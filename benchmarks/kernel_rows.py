"""The GPU side of benchmarks/kernels.py: every row's code, its check, and how it is timed with CUDA events."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernel_cases import (
    AUTO,
    COMPILED,
    COMPILED_CALLS,
    CUBLAS,
    EAGER,
    GRAPH,
    OPERATOR,
    SIMT,
    TENSOR_CORE,
    Case,
    Contender,
    Opened,
    Row,
    Timer,
)
from talent import provenance
from talent.errors import UserError
from talent.model.rca import rca_cost_aggregation, rca_reference
from talent.model.rca_kernels import RcaLibrary, installed_library
from talent.native import BUILD

TORCH_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# relative norm of the error that a row may have: some times what rounding of inputs between the products costs
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2, "fp32": 1e-5}
METHODS = {AUTO: "auto", SIMT: "simt", TENSOR_CORE: "tensor_core"}
CALLS_AT_ONCE = 100  # in a graph, or in a row from Python, at least; rounded up to whole passes over the sets
REPLAYS = 10  # of a graph between two events
COPIED = 1 << 30  # bytes that the copy reads at most, far more than any cache; on a small card
COPIED_SHARE = 16  # one part in so many of its memory
SEED = 0

Compute = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def by_cublas(visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """RCA in as few calls of PyTorch as there can be: the bias in the second product, the rest in place."""
    gate = F.linear(visual @ text.mT, weight, bias)  # [B, N, D]
    if activation == "relu":
        gate.relu_()
    return gate.mul_(visual)


def make_inputs(case: Case, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal numbers, never zeros (which take less power, so that clocks are higher); costs and gates stay near 1."""
    batch, tokens, words, width = case.sizes
    generator = torch.Generator(device).manual_seed(seed)
    shapes = (((batch, tokens, width), 1.0), ((batch, words, width), width ** -0.5), ((width, words), words ** -0.5),
              ((width,), 1.0))
    visual, text, weight, bias = ((scale * torch.randn(shape, generator=generator, device=device))
                                  .to(TORCH_TYPES[case.type]) for shape, scale in shapes)
    return visual, text, weight, bias


def relative_error(received: Tensor, inputs: tuple[Tensor, ...], activation: str) -> float:
    wanted = rca_reference(*(x.double() for x in inputs), activation)
    return float((received.double() - wanted).norm() / wanted.norm())


class Passes:
    """Calls of one row that rotate over the sets; each set keeps its last result, so that outputs rotate, too."""

    def __init__(self, compute: Compute, sets: list[tuple[Tensor, ...]]) -> None:
        self.compute, self.sets = compute, sets
        self.results: list[Tensor | None] = [None] * len(sets)
        self.passes = -(-CALLS_AT_ONCE // len(sets))
        self.calls = self.passes * len(sets)

    @torch.inference_mode()
    def run(self) -> None:
        for _ in range(self.passes):
            for i, inputs in enumerate(self.sets):
                self.results[i] = self.compute(*inputs)


class Card:
    """The current GPU of PyTorch as a Machine. Raises UserError where there is none, or no library."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise UserError("expected an NVIDIA GPU that PyTorch can use, received none; run this on a machine that "
                            "has one, with a CUDA build of PyTorch (see what is missing with: talent-doctor)")
        library = installed_library()
        if library is None:
            raise UserError(f"expected the kernels libtalent_kernels.so, received none; run: {BUILD}")
        self.library: RcaLibrary = library
        self.properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.stream = torch.cuda.Stream()
        source = torch.randn(min(COPIED, self.properties.total_memory // COPIED_SHARE) // 4, device="cuda")
        target, one = torch.empty_like(source), torch.ones(1, device="cuda")
        self.copied_bytes = 2 * source.nbytes
        self.copy = self._graph_timer(lambda: target.copy_(source), calls=1)
        self.launch = self._graph_timer(lambda: [one.fill_(2) for _ in range(CALLS_AT_ONCE)], calls=CALLS_AT_ONCE)

    def describe(self) -> dict[str, Any]:
        found = self.properties
        return {"name": found.name, "capability": f"{found.major}.{found.minor}", "cache_bytes": found.L2_cache_size,
                "multiprocessors": found.multi_processor_count, "memory_bytes": found.total_memory,
                "cuda": torch.version.cuda, "library_sha256": provenance.sha256(self.library.path),
                "tolerance": TOLERANCE, "calls_at_once": CALLS_AT_ONCE, "replays": REPLAYS, "seed": SEED}

    def open(self, case: Case) -> Opened:
        """Every row on the same sets of inputs. Raises UserError for a row that computes something else."""
        torch.compiler.reset()  # else the compiled code of earlier cases counts towards the limit of recompilations
        gc.collect()
        sets = [make_inputs(case, SEED + i, "cuda") for i in range(case.sets(self.properties.L2_cache_size))]
        opened = Opened({}, {})
        for row, compute in self._computes(case, opened.not_run).items():
            try:
                opened.contenders[row] = self._contender(row, compute, sets, case)
            except torch._dynamo.exc.TorchDynamoException as error:  # torch.compile without a compiler, say
                opened.not_run[row] = str(error).strip().partition("\n")[0]
        return opened

    def _computes(self, case: Case, not_run: dict[Row, str]) -> dict[Row, Compute]:
        activation = case.shape.activation
        compiled = torch.compile(rca_reference, dynamic=False)
        found: dict[Row, Compute] = {
            CUBLAS: lambda *inputs: by_cublas(*inputs, activation),
            COMPILED: lambda *inputs: compiled(*inputs, activation),
            OPERATOR: lambda *inputs: rca_cost_aggregation(*inputs, activation),
            COMPILED_CALLS: lambda *inputs: compiled(*inputs, activation),
            EAGER: lambda *inputs: rca_reference(*inputs, activation),
        }
        for row, method in METHODS.items():
            if row == TENSOR_CORE and (case.type == "fp32" or self.properties.major < 8):
                not_run[row] = "needs a half type and compute capability 8.0"
                continue
            found[row] = self._kernel(activation, method)
        return found

    def _kernel(self, activation: str, method: str) -> Compute:
        def compute(*inputs: Tensor) -> Tensor:
            stream = torch.cuda.current_stream().cuda_stream
            return self.library(*inputs, activation, method=method, stream=stream)

        return compute

    def _contender(self, row: Row, compute: Compute, sets: list[tuple[Tensor, ...]], case: Case) -> Contender:
        """A row's timer, after its results of the first and the last set have been checked."""
        passes = Passes(compute, sets)
        timer = self._graph_timer(passes.run, passes.calls) if row.how == GRAPH else self._calls_timer(passes)
        timer()
        error = max(relative_error(passes.results[i], sets[i], case.shape.activation) for i in (0, -1))
        if not error <= TOLERANCE[case.type]:
            raise UserError(f"the results of {row.label!r} are wrong at {case}: expected a relative error of at most "
                            f"{TOLERANCE[case.type]:.0e}, received {error:.1e}, so that its time means nothing; find "
                            "out more with: pytest -m gpu tests/talent/test_rca_gpu.py")
        return Contender(timer, error)

    def _graph_timer(self, run: Callable[[], object], calls: int) -> Timer:
        """`run` captured once, after it has run once on the same stream, and replayed between two events."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            run()

        def replay() -> None:
            for _ in range(REPLAYS):
                graph.replay()

        return lambda: _seconds(replay) / (REPLAYS * calls)

    def _calls_timer(self, passes: Passes) -> Timer:
        passes.run()
        return lambda: _seconds(passes.run) / passes.calls


def _seconds(run: Callable[[], object]) -> float:
    """Between two CUDA events around `run`, which nothing else precedes."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
