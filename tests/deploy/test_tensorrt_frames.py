"""Frames through the TensorRT backend, on stand-ins that compute: answers are ONNX Runtime's, nothing is copied twice,
nothing is left behind. What a real GPU does differently is for the tests marked `gpu` in test_cuda.py."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deploy import Segmenter
from deploy.runtime import segmenter as segmenter_module
from deploy.runtime.segmenter import Prompt, Segmentation
from deploy.runtime.streams import stream_handle
from talent import native
from talent.errors import UserError
from tests.deploy.fake_runtime import BATCH, compile_pictures
from tests.deploy.test_tensorrt_backend import with_plans

SENTENCES = ("r", "g", "b", "r g", "g b")
COPY_IN = "cudaMemcpyAsync"


@pytest.fixture(scope="session")
def pictures_library(stand_in_library, tmp_path_factory):
    return compile_pictures(tmp_path_factory.mktemp("pictures"), stand_in_library)


@pytest.fixture(params=["pictures on the CPU", "pictures on the GPU"])
def runtime(request, fake_tensorrt, pictures_library, monkeypatch):
    """With and without libtalent_kernels.so."""
    if request.param == "pictures on the GPU":
        monkeypatch.setenv(native.LIBRARIES, str(pictures_library))
    return fake_tensorrt


@pytest.fixture
def on_gpu(fake_tensorrt, pictures_library, monkeypatch):
    monkeypatch.setenv(native.LIBRARIES, str(pictures_library))
    return fake_tensorrt


@pytest.fixture
def segmenter(runtime, toy_bundle):
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter:
        segmenter.backend.most_expressions = BATCH
        yield segmenter
    assert not runtime.cuda.live() and not runtime.cuda.raised


@pytest.fixture
def wanted(toy_bundle):
    """The answers of ONNX Runtime."""
    with Segmenter(toy_bundle, "onnxruntime", threads=1) as segmenter:
        yield segmenter


def check(received: Segmentation, wanted: Segmentation) -> None:
    """The same mask but for what OpenCV and the kernels round differently."""
    assert received.mask.shape == wanted.mask.shape and received.mask.dtype == np.bool_
    assert np.mean(received.mask != wanted.mask) <= 1e-3
    assert received.score == pytest.approx(wanted.score, abs=2e-3)
    np.testing.assert_allclose(received.logits, wanted.logits, atol=0.05)
    np.testing.assert_allclose(received.box or (), wanted.box or (), atol=1)
    assert np.mean((received.probability > 0.35) != received.mask) <= 1e-3


def lanes(runtime) -> int:
    """Callers that were inside at once: each has a stream."""
    return runtime.cuda.live()["streams"]


def runs(runtime) -> int:
    """Of the vision engine that were no replay of a graph."""
    return sum(context.runs for context in runtime.engines["vision"].contexts)


def held_up(runtime) -> tuple[threading.Event, threading.Event]:
    """(started, may_go_on) of the next run in the context that was made last, for a single sentence."""
    started, may_go_on = threading.Event(), threading.Event()
    context = runtime.engines["vision"].contexts[-1]
    original = context.execute_async_v3

    def slow(stream: int) -> bool:
        started.set()
        assert may_go_on.wait(20)
        return original(stream)

    context.execute_async_v3 = slow
    return started, may_go_on


class OnGpu:
    """A picture on the GPU as CuPy's or torch's array shows it. stream: whose work writes it."""

    def __init__(self, runtime, picture: np.ndarray, *, stream: int | None = None, late: bool = False) -> None:
        address = runtime.cuda.allocate(picture.nbytes)
        memory = runtime.cuda.view(address, picture.shape, np.uint8)
        memory[...] = 0
        if late:
            runtime.cuda.queue(stream, lambda: np.copyto(memory, picture))
        else:
            memory[...] = picture
        self.__cuda_array_interface__ = {"shape": picture.shape, "typestr": "|u1", "data": (address, False),
                                         "version": 3, "strides": None, "stream": stream}


def test_answers_are_those_of_onnxruntime(segmenter, wanted, picture):
    for _ in range(3):  # plain, captured, launched
        for sentence in SENTENCES:
            check(segmenter(sentence, picture), wanted(sentence, picture))
    other = np.ascontiguousarray(picture[:50, ::-1])
    check(segmenter("g", other), wanted("g", other))  # a photo of another size
    stats = segmenter.stats()
    assert (stats.frames, stats.expressions, stats.prompt_misses) == (16, 16, 5)


def test_nothing_found(segmenter):
    result = segmenter("r", np.zeros((30, 40, 3), np.uint8))
    assert not result.mask.any() and result.box is None and result.score == 0.0


def test_several_sentences_go_together(segmenter, runtime, wanted, picture):
    for _ in range(3):
        results = segmenter.segment_many(picture, SENTENCES)
        for sentence, received in zip(SENTENCES, results, strict=True):
            check(received, wanted(sentence, picture))
    assert lanes(runtime) == 1
    assert runs(runtime) == 2 + 2 and runtime.cuda.calls("cuGraphLaunch") == 2 * 2  # of four, and of the one left over


def test_the_answer_is_the_caller_s_own(segmenter, picture):
    first = segmenter("r", picture)
    mask, logits = first.mask.copy(), first.logits.copy()
    segmenter("g", picture)
    assert np.array_equal(first.mask, mask) and np.array_equal(first.logits, logits)


def test_frames_replay_a_graph(segmenter, runtime, picture):
    prompt = segmenter.encode("r")
    for _ in range(10):
        segmenter.segment(picture, prompt)
    assert runs(runtime) == 2  # one plain, one captured
    assert runtime.cuda.calls("cuGraphLaunch") == 9
    for _ in range(3):
        segmenter.segment_many(picture, SENTENCES[:2])  # other shapes have a graph of their own
        segmenter.segment(picture, prompt)
    assert runs(runtime) == 4 and runtime.cuda.calls("cuGraphLaunch") == 9 + 2 + 3
    assert not [note for note in segmenter.stats().notes if "CUDA graph" in note]


def test_graphs_can_be_turned_off(runtime, toy_bundle, picture):
    with Segmenter(with_plans(toy_bundle), "tensorrt", cuda_graphs=False) as segmenter:
        for _ in range(4):
            segmenter("r", picture)
    assert runs(runtime) == 4 and not runtime.cuda.calls("cuStreamBeginCapture")


@pytest.mark.parametrize(("function", "said"), [
    ("cuGraphInstantiate", "CUDA_ERROR_NOT_SUPPORTED"), ("cuStreamBeginCapture", "CUDA_ERROR_NOT_SUPPORTED"),
    ("stand_in_queue", "vision.plan did not run")])
def test_what_cannot_be_captured_runs_all_the_same_and_is_told(fake_tensorrt, toy_bundle, wanted, picture, function,
                                                               said):
    segmenter = Segmenter(with_plans(toy_bundle), "tensorrt")
    segmenter.encode("g")
    segmenter("r", picture)
    fake_tensorrt.cuda.fail(function, code=801)
    for sentence in ("r", "g", "r"):
        check(segmenter(sentence, picture), wanted(sentence, picture))
    note = segmenter.stats().notes[-1]
    assert note.startswith("no CUDA graph: ") and said in note
    assert fake_tensorrt.cuda.calls("cuStreamBeginCapture") == 1 and not fake_tensorrt.cuda.calls("cuGraphLaunch")
    segmenter.close()
    assert not fake_tensorrt.cuda.live()


def test_prompts_stay_on_the_gpu(segmenter, runtime, picture):
    prompts = [segmenter.encode(sentence) for sentence in SENTENCES[:3]]

    def copies(work) -> int:
        before = runtime.cuda.calls(COPY_IN)
        work()
        return runtime.cuda.calls(COPY_IN) - before

    segmenter.segment(picture, prompts[0])
    same = copies(lambda: segmenter.segment(picture, prompts[0]))
    assert copies(lambda: segmenter.segment(picture, prompts[1])) == same + 2  # colour and bias
    assert copies(lambda: segmenter.segment(picture, prompts[1])) == same


def test_of_several_prompts_only_the_new_ones_are_copied(on_gpu, toy_bundle, wanted, picture):
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter:
        segmenter.backend.most_expressions = BATCH
        red, green, blue = (segmenter.encode(sentence) for sentence in SENTENCES[:3])
        counts = []
        for prompts in ([red, green], [red, green], [red, blue], [red], [red, blue]):
            before = on_gpu.cuda.calls(COPY_IN)
            results = segmenter.segment_many(picture, prompts)
            counts.append(on_gpu.cuda.calls(COPY_IN) - before)
            for prompt, result in zip(prompts, results, strict=True):
                check(result, wanted(prompt.sentence, picture))
    photo_and_answers = counts[1]
    assert counts == [photo_and_answers + 4, photo_and_answers, photo_and_answers + 2, photo_and_answers,
                      photo_and_answers + 2]


def test_every_caller_has_a_context_of_its_own(segmenter, runtime, wanted, picture):
    """Two frames at once: the first is held up within TensorRT until the second is through."""
    prompt = segmenter.encode("r")
    segmenter.segment(picture, prompt)
    started, may_go_on = held_up(runtime)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(segmenter.segment, picture[:, :100], prompt)
        assert started.wait(20)
        check(segmenter("g", picture), wanted("g", picture))
        may_go_on.set()
        check(first.result(20), wanted("r", picture[:, :100]))
    assert lanes(runtime) == 2
    segmenter("b", picture)
    assert lanes(runtime) == 2  # the next one takes one that is free


def test_eight_threads_give_what_one_gives(segmenter, runtime, picture):
    pictures = [np.roll(picture, shift, axis=1) for shift in range(0, 80, 10)]
    serial = [[segmenter(sentence, one) for sentence in SENTENCES[:3]] for one in pictures]

    def work(index: int) -> list[Segmentation]:
        return [segmenter(sentence, pictures[index % 8]) for sentence in SENTENCES[:3]]

    with ThreadPoolExecutor(8) as pool:
        for index, results in enumerate(pool.map(work, range(64))):
            for one, other in zip(results, serial[index % 8], strict=True):
                assert np.array_equal(one.mask, other.mask) and np.array_equal(one.logits, other.logits)
                assert (one.box, one.score) == (other.box, other.score)
    assert lanes(runtime) <= 8


def test_a_picture_on_the_gpu_is_not_copied_to_the_host(on_gpu, toy_bundle, wanted, picture):
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter, segmenter.backend._cuda.current():
        producer = segmenter.backend._cuda.stream()
        for _ in range(3):
            late = OnGpu(on_gpu, picture, stream=producer.handle, late=True)
            check(segmenter("g", late), wanted("g", picture))
        unsaid = OnGpu(on_gpu, picture, stream=None)
        on_gpu.cuda.queue(producer.handle, lambda: np.copyto(
            on_gpu.cuda.view(unsaid.__cuda_array_interface__["data"][0], picture.shape, np.uint8), 0))
        prompt = segmenter.encode("g")
        assert not segmenter.segment(unsaid, prompt, stream=producer).mask.any()  # black by then
        producer.close()


def test_a_stream_that_is_none(on_gpu, toy_bundle, picture):
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter:
        with pytest.raises(UserError, match="expected a CUDA stream: .* received 'mine'"):
            segmenter.segment(picture, segmenter.encode("r"), stream="mine")


def test_streams_of_all_kinds():
    assert stream_handle(0) == 0 and stream_handle(SimpleNamespace(cuda_stream=5)) == 5
    assert stream_handle(SimpleNamespace(handle=6)) == 6 and stream_handle(SimpleNamespace(ptr=7)) == 7
    assert stream_handle(type("Stream", (), {"__cuda_stream__": lambda self: (0, 8)})()) == 8
    assert stream_handle(np.int64(9)) == 9
    for wrong in (True, None, "0", -1, SimpleNamespace(handle="x")):
        with pytest.raises(UserError, match="expected a CUDA stream"):
            stream_handle(wrong)


def test_pictures_on_the_gpu_need_the_kernels_and_a_gpu(fake_tensorrt, toy_bundle, wanted, picture):
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter, segmenter.backend._cuda.current():
        with pytest.raises(UserError, match="need libtalent_kernels.so, which was not found: make plugin"):
            segmenter("r", OnGpu(fake_tensorrt, picture))
        assert "processed on the CPU" in segmenter.stats().notes[0]
        with pytest.raises(UserError, match="received OnGpu on the GPU: the backend onnxruntime takes pictures on the"):
            wanted("r", OnGpu(fake_tensorrt, picture))
    with pytest.raises(UserError, match="runs on the CPU, without CUDA streams; leave `stream` out"):
        wanted.segment(picture, wanted.encode("r"), stream=0)


def test_logits_that_overflowed_are_no_empty_mask(runtime, make_bundle, picture):
    with Segmenter(with_plans(make_bundle(scale=float("inf"))), "tensorrt") as segmenter:
        with pytest.raises(UserError, match="gave logits that are not finite"):
            segmenter("r", picture)


@pytest.mark.parametrize(("frame", "message"), [
    (np.zeros((4, 4, 3), np.float32), "received float32"), (np.zeros((0, 4, 3), np.uint8), "sides from 1"),
    (np.zeros((1, 40_000, 3), np.uint8), r"received \[1, 40000, 3\]"), (None, "received NoneType"),
    (Image.new("RGB", (0, 4)), "sides from 1"), (Image.new("RGB", (40_000, 1)), r"received \[1, 40000, 3\]")],
    ids=["float", "empty", "wide", "none", "empty PIL", "wide PIL"])
def test_a_frame_that_fails_does_not_hurt_the_next(segmenter, runtime, wanted, picture, frame, message):
    with pytest.raises(UserError, match=message):
        segmenter("r", frame)
    check(segmenter("r", picture), wanted("r", picture))
    assert lanes(runtime) == 1


def test_prompts_of_another_type_are_converted_and_others_refused(segmenter, wanted, picture):
    red, green = segmenter.encode("r"), segmenter.encode("g")

    def changed(**tensors: np.ndarray) -> Prompt:
        return Prompt("made by hand", tensors)

    half = changed(**{name: tensor.astype(np.float16) for name, tensor in green.tensors.items()})
    for received, sentence in zip(segmenter.segment_many(picture, [red, half]), "rg", strict=True):
        check(received, wanted(sentence, picture))
    colour, bias = green.tensors["colour"], green.tensors["bias"]
    for strange in (changed(colour=np.concatenate([colour, colour], axis=1), bias=bias), changed(colour=colour),
                    changed(colour=colour, bias=bias, more=bias)):
        for prompts in ([red, strange], [strange]):
            with pytest.raises(UserError, match="prompt tensors .* encode the sentence again"):
                segmenter.segment_many(picture, prompts)
        for received, sentence in zip(segmenter.segment_many(picture, [red, green]), "rg", strict=True):
            check(received, wanted(sentence, picture))


def test_more_expressions_than_the_engine_takes(segmenter, wanted, picture):
    segmenter.backend.most_expressions = 99
    sentences = [f"{'r ' * count}g" for count in range(1, BATCH + 2)]
    with pytest.raises(UserError, match=r"takes no colour of \[5, 3, 1, 1\] \(it allows up to \[4, .*talent-build"):
        segmenter.segment_many(picture, sentences)
    check(segmenter("g", picture), wanted("g", picture))


def test_a_run_that_tensorrt_refuses_costs_its_context_only(segmenter, runtime, wanted, picture):
    segmenter("r", picture)
    runtime.refuse_runs = 2  # the captured one and the plain one
    with pytest.raises(UserError, match=r"vision\.plan did not run .*talent-build .*--force"):
        segmenter("r", picture)
    before = len(runtime.engines["vision"].contexts)
    check(segmenter("g", picture), wanted("g", picture))
    assert len(runtime.engines["vision"].contexts) > before and lanes(runtime) == 1


def test_where_the_gpu_has_no_room_for_another_caller_he_waits(runtime, toy_bundle, wanted, picture):
    runtime.most_contexts = 2  # the first one's
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter:
        prompt = segmenter.encode("r")
        segmenter.segment(picture, prompt)
        started, may_go_on = held_up(runtime)
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(segmenter.segment, picture, prompt)
            assert started.wait(20)
            others = [pool.submit(segmenter.segment, picture, prompt) for _ in range(3)]
            may_go_on.set()
            for frame in (first, *others):
                check(frame.result(20), wanted("r", picture))
        assert lanes(runtime) == 1
    assert not runtime.cuda.live()


def test_a_gpu_without_room_is_refused_at_once_and_auto_goes_on(fake_tensorrt, toy_bundle, monkeypatch):
    fake_tensorrt.most_contexts = 0
    bundle = with_plans(toy_bundle)
    with pytest.raises(UserError, match="got no execution context: the GPU has too little free memory"):
        Segmenter(bundle, "tensorrt")
    monkeypatch.setattr(segmenter_module.importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    with Segmenter(bundle, threads=1) as segmenter:
        assert segmenter.backend.name == "onnxruntime" and "too little free memory" in segmenter.auto_report[0]
    fake_tensorrt.most_contexts = None
    fake_tensorrt.cuda.fail("cuStreamCreate", code=719)
    with pytest.raises(UserError, match="GPU 0 failed: .*CUDA_ERROR_LAUNCH_FAILED.*nvidia-smi"):
        Segmenter(bundle, "tensorrt")
    assert not fake_tensorrt.cuda.live()


def test_rtx_makes_its_own_graphs_and_shares_what_it_compiles(runtime, toy_bundle, wanted, picture):
    made = runtime.as_rtx()
    with Segmenter(with_plans(toy_bundle), "tensorrt") as segmenter:
        for _ in range(4):
            check(segmenter("r", picture), wanted("r", picture))
        segmenter.segment_many(picture, ["r"])
    assert not runtime.cuda.calls("cuStreamBeginCapture") and runs(runtime) == 5
    assert [(config.cuda_graph_strategy, config.strategy, config.cache) for config in made] == [
        ("disabled", "user's", made[0]), ("whole", "user's", made[1])]  # text, vision
    with Segmenter(with_plans(toy_bundle), "tensorrt", cuda_graphs=False) as segmenter:
        check(segmenter("r", picture), wanted("r", picture))
    assert [config.cuda_graph_strategy for config in made[2:]] == ["disabled", "disabled"]


def test_a_segmenter_that_nobody_closes_leaves_nothing(runtime, toy_bundle, picture):
    segmenter = Segmenter(with_plans(toy_bundle), "tensorrt")
    segmenter("r", picture)
    del segmenter
    gc.collect()
    assert not runtime.cuda.live()


CALLS = ("cudaMemcpyAsync", "cudaStreamSynchronize", "cuMemHostAlloc", "cudaMalloc", "cuGraphLaunch",
         "cuStreamBeginCapture", "stand_in_queue")


@pytest.mark.parametrize("function", CALLS)
def test_whatever_fails_in_cuda_the_next_frame_works(segmenter, runtime, wanted, picture, function):
    wide = np.tile(picture, (1, 2, 1))  # needs larger buffers, so that there is something to allocate
    prompt = segmenter.encode("r")
    for before in (0, 1, 3):
        for nth in (1, 2, 3):
            for _ in range(before):
                segmenter.segment(picture, prompt)
            runtime.cuda.fail(function, nth=nth, code=719 if nth > 1 else 2)
            try:
                check(segmenter.segment(wide, prompt), wanted("r", wide))
            except UserError as error:
                assert any(words in str(error) for words in ("CUDA", "memory", "did not run", "a kernel for pictures"))
            runtime.cuda.fail(function, nth=0, code=0)
            check(segmenter.segment(wide, prompt), wanted("r", wide))


def test_nothing_grows(segmenter, runtime, picture):
    for sentence in SENTENCES:
        segmenter(sentence, picture)
    live = runtime.cuda.live()
    for index in range(200):
        segmenter(SENTENCES[index % 5], picture)
    assert runtime.cuda.live() == live


def test_the_warm_up_is_not_counted(segmenter, runtime):
    segmenter.warmup(2)
    assert segmenter.stats().frames == 0 and runs(runtime) == 2


def test_closed(segmenter, picture):
    segmenter("r", picture)
    stats = segmenter.stats()
    segmenter.close()
    segmenter.close()
    assert segmenter.stats() == stats
    with pytest.raises(RuntimeError, match="closed"):
        segmenter("r", picture)
