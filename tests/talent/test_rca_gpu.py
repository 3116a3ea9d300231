"""The CUDA kernels of RCA against the reference in float64, and the operator that calls them on a GPU.

A result may be off by twice what PyTorch in the same type is off on the same inputs: both in the norm of the error and
in its largest element. PyTorch computes them in several orders of channels and words, because the largest of few errors
is luck (on the same inputs it differs by a factor of two from order to order); the exact result rounded counts, too.
"""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from talent.model.rca import RectifiedCostAggregator, aggregate_costs, rca_cost_aggregation, rca_reference
from talent.model.rca_kernels import ACTIVATIONS, METHODS, TYPES, RcaLibrary, installed_library
from talent.native import BUILD
from tests.talent.rca_inputs import arguments

pytestmark = pytest.mark.gpu

ALLOWED = 2.0  # times PyTorch's own error
ORDERS = 16
TYPE = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
METHOD = pytest.mark.parametrize("method", METHODS)
WIDTHS = (32, 33, 64, 96, 128, 130, 256, 512, 700)
WORDS = (*range(1, 41), 64, 100)
MANY_WORDS = 300  # more than a kernel holds at once
SHARED = 3  # batch of the tests with one picture
BORDER = 64  # numbers before and behind an output that nobody may write; keeps its alignment


@pytest.fixture(scope="module", autouse=True)
def kernels() -> RcaLibrary:
    """The library that is installed. A lane that selects these tests has to have a GPU and the library."""
    if not torch.cuda.is_available():
        pytest.fail("expected a GPU that PyTorch can use, received none; leave these tests out with -m 'not gpu'")
    if (library := installed_library()) is None:
        pytest.fail(f"expected libtalent_kernels.so, received none; run: {BUILD}")
    return library


def inputs(batch: int, tokens: int, words: int, width: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    return arguments(batch, tokens, words, width, dtype=dtype, seed=seed, device="cuda")


def run(kernels: RcaLibrary, given: list[Tensor], activation: str = "none", method: str = "auto") -> Tensor:
    return kernels(*given, activation, method=method, stream=torch.cuda.current_stream().cuda_stream)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def shuffled(given: list[Tensor], activation: str, seed: int) -> Tensor:
    """The reference with channels and words in another order, its result in the old one."""
    visual, text, weight, bias = given
    generator = torch.Generator().manual_seed(seed)
    channels, words = (torch.randperm(n, generator=generator).to(weight.device) for n in weight.shape)
    result = rca_reference(visual[..., channels], text[:, words][..., channels], weight[channels][:, words],
                           bias[channels], activation)
    return result[..., channels.argsort()]


def excess(received: Tensor, given: list[Tensor], activation: str) -> str | None:
    """What of `received` is further from the exact result than is allowed; None where nothing is."""
    wanted = rca_reference(*(x.double() for x in given), activation)
    assert received.shape == wanted.shape and received.dtype == given[0].dtype
    others = (wanted.to(received.dtype), *(shuffled(given, activation, seed) for seed in range(ORDERS)))
    for name, size in (("norm", torch.linalg.vector_norm), ("largest", lambda x: x.abs().amax())):
        error = float(size(received.double() - wanted))
        allowed = ALLOWED * max(float(size(other.double() - wanted)) for other in others)
        if not error <= allowed:
            return f"{name} of the error {error:.2e}, allowed {allowed:.2e}"
    return None


def check_all(kernels: RcaLibrary, cases: list[tuple[int, int, int, int]], dtype: torch.dtype, method: str) -> None:
    """cases: (B, N, K, D); the activations take turns."""
    faults = []
    for number, (sizes, seed) in enumerate(product(cases, range(2))):
        given, activation = inputs(*sizes, dtype, seed), list(ACTIVATIONS)[number % 2]
        if fault := excess(run(kernels, given, activation, method), given, activation):
            faults.append(f"B, N, K, D = {sizes}, {activation}: {fault}")
    assert not faults, "\n".join(faults)


@TYPE
@METHOD
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(kernels, width, method, dtype):
    check_all(kernels, [(batch, tokens, words, width) for batch, tokens in ((33, 1), (1, 77), (3, 35))
                        for words in (1, 17, 22, 40)], dtype, method)


@TYPE
@METHOD
@pytest.mark.parametrize("width", [96, 128, 512])
def test_words(kernels, width, method, dtype):
    check_all(kernels, [(2, 37, words, width) for words in WORDS], dtype, method)


@METHOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_words(kernels, method, dtype):
    """Not in float32, where one sum of many words may err more than twice as much as PyTorch's partial sums."""
    check_all(kernels, [(2, 37, MANY_WORDS, width) for width in (96, 128, 130, 700)], dtype, method)


@TYPE
@METHOD
def test_the_sizes_of_the_network_and_a_large_batch(kernels, method, dtype):
    check_all(kernels, [(1, 1024, 17, 128), (4, 1369, 22, 128), (2, 1369, 1, 512), (4096, 3, 17, 128),
                        (4096, 1, 1, 512), (4096, 5, 22, 33)], dtype, method)


@TYPE
@METHOD
@pytest.mark.parametrize(("words", "width"), [(17, 128), (1, 512), (22, 33)])
@pytest.mark.parametrize("picture", ["expanded", "alone"])
def test_one_picture_for_many_expressions(kernels, picture, words, width, method, dtype):
    visual, text, weight, bias = inputs(SHARED, 131, words, width, dtype)
    visual = visual[1:2]
    expanded = visual.expand(SHARED, -1, -1)
    received = run(kernels, [visual if picture == "alone" else expanded, text, weight, bias], "relu", method)
    assert excess(received, [expanded, text, weight, bias], "relu") is None


@TYPE
@METHOD
@pytest.mark.parametrize("moved", range(4))
def test_tensors_that_begin_off_a_vector(kernels, moved, method, dtype):
    given = inputs(2, 35, 17, 128, dtype)
    base = torch.empty(given[moved].numel() + 1, dtype=dtype, device="cuda")
    given[moved] = base[1:].view_as(given[moved]).copy_(given[moved])
    assert given[moved].data_ptr() % 16 and given[moved].is_contiguous()
    assert excess(run(kernels, given, "none", method), given, "none") is None


@TYPE
@METHOD
@pytest.mark.parametrize("sizes", [(3, 77, 17, 128), (2, 1369, 1, 512), (2, 35, 22, 33), (1, 1, 1, 1)], ids=str)
def test_every_element_is_written_and_nothing_beside(kernels, sizes, method, dtype):
    given = inputs(*sizes, dtype)
    around = torch.full((given[0].numel() + 2 * BORDER,), torch.nan, dtype=dtype, device="cuda")
    output = around[BORDER:-BORDER].view_as(given[0])
    kernels.compute(*given, output, activation="relu", method=method, stream=torch.cuda.current_stream().cuda_stream)
    assert excess(output, given, "relu") is None  # a NaN is never allowed
    assert around[:BORDER].isnan().all() and around[-BORDER:].isnan().all()


@TYPE
@METHOD
def test_nothing_to_compute(kernels, method, dtype):
    assert run(kernels, inputs(2, 0, 5, 64, dtype), method=method).shape == (2, 0, 64)
    assert run(kernels, inputs(0, 7, 5, 64, dtype), method=method).shape == (0, 7, 64)


@TYPE
@METHOD
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("words", "width"), [(1, 512), (17, 128), (22, 130)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(4))
def test_nan_and_infinity_stay_where_they_belong(kernels, place, value, words, width, activation, method, dtype):
    """Positive inputs, so that infinity becomes NaN only where something else, as padding, was multiplied by it."""
    given = [x.abs() + 0.25 for x in inputs(2, 35, words, width, dtype)]
    given[place].view(-1)[given[place].numel() // 2] = value
    wanted = rca_reference(*(x.double() for x in given), activation)
    received = run(kernels, given, activation, method).double()
    assert not wanted.isfinite().all() or (activation == "relu" and value < 0)
    for mark in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(mark(received), mark(wanted)), mark.__name__
    finite = wanted.isfinite()
    torch.testing.assert_close(received[finite], wanted[finite], rtol=0.02, atol=0)  # bfloat16 has 8 bits


@TYPE
@METHOD
def test_the_same_bits_every_time(kernels, method, dtype):
    for sizes in ((4, 1369, 22, 128), (2, 1024, 1, 512), (3, 77, 17, 33)):
        given = inputs(*sizes, dtype)
        first = bits(run(kernels, given, "none", method))
        assert all(torch.equal(bits(run(kernels, given, "none", method)), first) for _ in range(5))


@METHOD
def test_a_sample_does_not_depend_on_its_batch(kernels, method):
    """One kernel may serve a large batch and another a small one, so that this is about the error, not the bits."""
    visual, text, weight, bias = inputs(64, 77, 17, 128, torch.float16)
    whole = run(kernels, [visual, text, weight, bias], "none", method)
    for i in (0, 40, 63):
        assert excess(whole[i:i + 1], [visual[i:i + 1], text[i:i + 1], weight, bias], "none") is None


@TYPE
@METHOD
def test_a_captured_graph_computes_with_new_inputs(kernels, method, dtype):
    given = inputs(2, 1024, 17, 128, dtype)
    run(kernels, given, "relu", method)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(kernels, given, "relu", method)
    for seed in (1, 2):
        fresh = inputs(2, 1024, 17, 128, dtype, seed)
        for old, new in zip(given, fresh, strict=True):
            old.copy_(new)
        output.fill_(torch.nan)
        graph.replay()
        assert torch.equal(bits(output), bits(run(kernels, fresh, "relu", method)))


@METHOD
def test_two_streams_at_once(kernels, method):
    problems = [inputs(4, 1369, 22, 128, torch.float16), inputs(4, 1369, 1, 512, torch.float16, 1)]
    wanted = [bits(run(kernels, given, "relu", method)) for given in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    received: list[list[Tensor]] = [[] for _ in problems]
    torch.cuda.synchronize()
    for _ in range(50):
        for results, given, stream in zip(received, problems, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(kernels, given, "relu", method))
    torch.cuda.synchronize()
    for results, one in zip(received, wanted, strict=True):
        assert all(torch.equal(bits(result), one) for result in results)


@TYPE
def test_the_operator_calls_the_kernel_on_the_current_stream(kernels, dtype, monkeypatch):
    calls = []

    def record(*given, **named):
        calls.append(named["stream"])
        return kernels(*given, **named)

    monkeypatch.setattr("talent.model.rca.installed_library", lambda: record)
    given, stream = inputs(2, 77, 17, 128, dtype), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        received = rca_cost_aggregation(*given, "relu")
    stream.synchronize()
    assert calls == [stream.cuda_stream] and excess(received, given, "relu") is None


def test_float64_and_a_missing_library_go_to_the_reference(kernels, monkeypatch):
    monkeypatch.setattr("talent.model.rca.installed_library", lambda: SimpleNamespace())  # cannot be called
    given = inputs(2, 9, 5, 16, torch.float64)
    assert torch.equal(rca_cost_aggregation(*given), rca_reference(*given))
    monkeypatch.setattr("talent.model.rca.installed_library", lambda: None)
    given = [x.half() for x in given]
    assert torch.equal(rca_cost_aggregation(*given), rca_reference(*given))


def test_words_of_the_library_become_an_error(kernels):
    with pytest.raises(RuntimeError, match="at least one word"):
        rca_cost_aggregation(*inputs(2, 9, 0, 16, torch.float16))


@TYPE
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(dtype, activation):
    given = [x.requires_grad_() for x in inputs(3, 77, 17, 128, dtype)]
    exact = [x.detach().double().requires_grad_() for x in given]
    upstream = torch.randn(3, 77, 128, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    ours = torch.autograd.grad(rca_cost_aggregation(*given, activation), given, upstream)
    torchs = torch.autograd.grad(rca_reference(*given, activation), given, upstream)
    wanted = torch.autograd.grad(rca_reference(*exact, activation), exact, upstream.double())
    for name, one, other, best in zip(("visual", "text", "weight", "bias"), ours, torchs, wanted, strict=True):
        allowed = ALLOWED * max(float((x.double() - best).norm()) for x in (other, best.to(dtype)))
        assert float((one.double() - best).norm()) <= allowed, name


@TYPE
@pytest.mark.parametrize(("words", "activation"), [(1, "relu"), (17, "none")])
@pytest.mark.parametrize("picture", ["own", "expanded"])
def test_registration(picture, words, activation, dtype):
    given = inputs(2, 9, words, 32, dtype)
    if picture == "expanded":
        given[0] = given[0][:1].expand(2, -1, -1)
    results = torch.library.opcheck(rca_cost_aggregation, (*(x.requires_grad_() for x in given), activation))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("pictures", [SHARED, 1])
def test_a_compiled_module_computes_the_same(pictures):
    torch.manual_seed(0)
    module = RectifiedCostAggregator(text_width=64, words=17, width=128).cuda().half().eval()
    image = torch.randn(pictures, 77, 128, device="cuda", dtype=torch.float16)
    text = module.prompt(torch.randn(SHARED, 17, 64, device="cuda", dtype=torch.float16))
    with torch.inference_mode():
        wanted = module(image, text)
        received = torch.compile(module, fullgraph=True)(image, text)
    torch.testing.assert_close(received, wanted, rtol=2e-3, atol=2e-3)  # the linear layers' sums in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_calls_the_kernel_and_trains(dtype):
    torch.manual_seed(0)
    module = RectifiedCostAggregator(text_width=64, words=17, width=128).cuda()
    image, words = torch.randn(1, 77, 128, device="cuda"), torch.randn(SHARED, 17, 64, device="cuda")
    wanted = module(image, module.prompt(words))
    with torch.autocast("cuda", dtype):
        received = module(image, module.prompt(words))
    assert received.dtype == dtype
    tolerance = 0.02 if dtype == torch.float16 else 0.1  # four products, in 11 bits or in 8
    torch.testing.assert_close(received.float(), wanted, rtol=tolerance, atol=tolerance)
    received.float().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().sum() > 0, name


def test_one_picture_takes_no_memory_but_the_output():
    visual, text, weight, bias = inputs(SHARED, 1369, 17, 128, torch.float16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = aggregate_costs(visual[:1], text, weight, bias)
    assert torch.cuda.max_memory_allocated() - before <= output.nbytes + 4096  # the allocator rounds up
