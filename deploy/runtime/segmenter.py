"""A sentence and a picture in, the mask of the object that is meant out.

    segmenter = Segmenter("bundle")
    prompt = segmenter.encode("the red mug on the left")   # once per sentence
    result = segmenter.segment(image, prompt)              # once per frame
    results = segmenter.segment_many(image, [prompt, "the plate"])   # several sentences about one frame
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.runtime.device_array import is_device_array
from deploy.runtime.gate import ClosedError, Gate
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.interface import Backend, check_alike
from deploy.runtime.onnxruntime import OnnxRuntimeBackend
from deploy.runtime.picture_kernels import summary
from deploy.runtime.recent import Recent
from deploy.runtime.streams import stream_handle
from deploy.runtime.tensorrt import RUNTIMES, TensorRTBackend
from talent.errors import UserError, suggest
from talent.image import Letterbox, check_photo, mask_on_photo, preprocess, probability_on_photo, read_image
from talent.native import BUILD
from talent.tokenizer import Tokenizer

BACKENDS = ("auto", "onnxruntime", *RUNTIMES)


@dataclass(frozen=True)
class Prompt:
    """A sentence, and everything that the vision graph needs of it. Good for any number of pictures."""

    sentence: str
    tensors: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Segmentation:
    """The answer, in the photo's own pixels.

    mask: bool [H, W]. box: (x0, y0, x1, y1), so that `mask[y0:y1, x0:x1]` holds the whole mask; None when the mask is
    empty. score: mean probability inside the mask, 0.0 when it is empty. logits: float32 [h, w], what the network gave;
    letterbox: where the photo lay in its input. `probability` comes from these two.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int] | None
    score: float
    logits: np.ndarray
    letterbox: Letterbox

    @functools.cached_property
    def probability(self) -> np.ndarray:
        """float32 [H, W] in [0, 1]; `mask` is where it is above the threshold.

        Computed when it is first asked for, because it takes longer than the mask, and most programs need no more.
        """
        return probability_on_photo(self.logits, self.letterbox)


@dataclass(frozen=True)
class SegmenterStats:
    """What a segmenter has done. frames: pictures that the vision graph saw (again for each group of expressions that
    go together), expressions: masks it was asked for.

    prompt_hits, prompt_misses: sentences that were encoded already, and that had to be. notes: what is slower here than
    it could be, and why.
    """

    frames: int
    expressions: int
    prompt_hits: int
    prompt_misses: int
    notes: tuple[str, ...] = ()

    @property
    def prompt_hit_rate(self) -> float | None:
        """The share of sentences that were encoded already; None before the first."""
        asked = self.prompt_hits + self.prompt_misses
        return self.prompt_hits / asked if asked else None


class Segmenter:
    """A loaded bundle. Threads may share it: each call is one by itself, and `close` waits for those under way.

    bundle: a directory or a loaded Bundle. backend: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto": the first
    TensorRT that is installed, finds a GPU and has an engine in the bundle, else ONNX Runtime (`auto_report` says why).
    precision: refuse a bundle that is in another one than this. device: number of the GPU, for a TensorRT; its primary
    context is used, which torch and others share. threads: for ONNX Runtime, None for one per core. threshold: None for
    the bundle's. prompts: sentences whose prompt tensors are kept. cuda_graphs: replay the vision engine as a CUDA
    graph while shapes stay the same.
    Raises UserError for a bad bundle, an unknown backend or precision, a backend that cannot run here, or a bad
    threshold.
    """

    def __init__(self, bundle: Bundle | str | Path, backend: str = "auto", *, precision: str | None = None,
                 device: int = 0, threads: int | None = None, threshold: float | None = None, prompts: int = 64,
                 cuda_graphs: bool = True) -> None:
        if backend not in BACKENDS:
            raise UserError(f"unknown backend {backend!r}{suggest(backend, BACKENDS)}")
        if prompts < 0:
            raise UserError(f"expected prompts to be at least 0, received {prompts}")
        if device < 0:
            raise UserError(f"expected the number of a GPU, 0 or more, as device, received {device}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.bundle.check_precision(precision)
        self.threshold = self.bundle.threshold if threshold is None else threshold
        if not 0 <= self.threshold < 1:
            raise UserError(f"expected a threshold from 0 to below 1, received {self.threshold}")
        self.tokenizer = Tokenizer.load(self.bundle.tokenizer_json, self.bundle.context_length)
        self.auto_report: tuple[str, ...] = ()
        self._gate = Gate("this segmenter")
        self._prompts: Recent[Mapping[str, np.ndarray]] = Recent(prompts)
        self._counting = threading.Lock()
        self._frames = self._expressions = 0
        self._notes: tuple[str, ...] = ()  # of a backend that is closed
        self._backend: Backend | None = self._open(backend, device, threads, cuda_graphs)
        self._free = weakref.finalize(self, self._backend.close)  # also where nobody closes it

    def _open(self, backend: str, device: int, threads: int | None, graphs: bool) -> Backend:
        if backend in RUNTIMES:
            return TensorRTBackend(self.bundle, runtime=backend, device=device, graphs=graphs)
        if backend == "auto":
            reasons = []
            for runtime in RUNTIMES if gpu_architecture(device) is not None else ():
                if importlib.util.find_spec(runtime) is None:
                    reasons.append(f"{runtime} is not installed")
                    continue
                try:
                    return TensorRTBackend(self.bundle, runtime=runtime, device=device, graphs=graphs)
                except UserError as error:
                    reasons.append(str(error))
            self.auto_report = tuple(reasons or ["no NVIDIA GPU was found"])
        return OnnxRuntimeBackend(self.bundle, threads=threads)

    @property
    def backend(self) -> Backend:
        """The backend in use (`backend.name` says which)."""
        if self._backend is None:
            raise RuntimeError("this segmenter is closed")
        return self._backend

    def preprocess(self, image: Any) -> tuple[np.ndarray, Letterbox]:
        """A photo -> the network's input, float32 [1, 3, S, S], and its place. On the CPU.

        image: uint8 [H, W, 3] RGB in an array of any strides, a PIL image, or the name of a file.
        """
        return preprocess(np.ascontiguousarray(self._host_array(image)), self.bundle.image_size)

    def encode(self, sentence: str) -> Prompt:
        """Run the text graph, or take what it gave for these words before. Raises UserError for an empty sentence."""
        with self._gate.inside():
            tokens = self.tokenizer([sentence])  # [1, L]
            tensors = self._prompts.get(tokens.tobytes(), lambda: self.backend.text(tokens))
            return Prompt(sentence=sentence, tensors=tensors)

    def infer(self, tensor: np.ndarray, prompt: Prompt) -> np.ndarray:
        """Run the vision graph: float32 [1, 3, S, S] -> logits float32 [1, 1, h, w], or [B, 1, h, w] for a prompt
        whose tensors are those of B expressions."""
        with self._gate.inside():
            return self._infer(tensor, prompt)

    def _infer(self, tensor: np.ndarray, prompt: Prompt) -> np.ndarray:
        expected, received = (3, *[self.bundle.image_size] * 2), (tensor.dtype, tensor.shape[1:])
        if received != (np.float32, expected):
            raise UserError(f"expected the network's input as float32 [B, {', '.join(map(str, expected))}], received "
                            f"{tensor.dtype} {list(tensor.shape)}; `preprocess` makes it of a picture")
        logits = self.backend.vision(tensor, prompt.tensors)
        self._count(frames=len(tensor), expressions=len(logits))
        return logits

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Segmentation:
        """Logits float32 [1, 1, h, w] -> the answer on the photo. On the CPU.

        Raises UserError when the logits are not finite: an FP16 overflow must not pass for "nothing found".
        """
        if logits.shape[:2] != (1, 1):
            raise ValueError(f"expected the logits of one expression [1, 1, h, w], received {list(logits.shape)}")
        if not np.isfinite(logits).all():
            raise self._not_finite()
        own = logits[0, 0].astype(np.float32)  # [h, w], a copy: the probability is computed later, if at all
        mask, box, score = mask_on_photo(own, letterbox, self.threshold)
        return Segmentation(mask=mask, box=box, score=score, logits=own, letterbox=letterbox)

    def segment(self, image: Any, prompt: Prompt | str, *, stream: Any = None) -> Segmentation:
        """One photo and a sentence, encoded or not -> the answer.

        image: as `preprocess` takes it, or, with a TensorRT, uint8 [H, W, 3] RGB that lies on its GPU, in an array with
        `__cuda_array_interface__` or DLPack (pycuda, CuPy, torch), which is not copied to the host. stream: a CUDA
        stream (its number, or pycuda's, CuPy's or torch's object) whose work so far comes first.
        With a TensorRT and libtalent_kernels.so all of it happens on the GPU, else `preprocess`, `infer`,
        `postprocess`. Raises UserError for what it cannot take.
        """
        return self._segment(image, [self._encoded(prompt)], stream)[0]

    def segment_many(self, image: Any, prompts: Sequence[Prompt | str], *, stream: Any = None) -> list[Segmentation]:
        """Several sentences about one photo: what does not depend on the words is computed once for all of them.

        As many at once as the graph or engine takes; image and stream as in `segment`. Raises UserError where there is
        no prompt.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise UserError("expected a list of prompts or sentences, at least one, received "
                            + (f"the sentence {prompts!r}" if prompts else "none"))
        return self._segment(image, [self._encoded(prompt) for prompt in prompts], stream)

    def _encoded(self, prompt: Prompt | str) -> Prompt:
        if isinstance(prompt, str):
            return self.encode(prompt)
        if not isinstance(prompt, Prompt):
            raise UserError(f"expected a sentence, or a prompt that `encode` made of one, received "
                            f"{type(prompt).__name__}")
        return prompt

    def _segment(self, image: Any, prompts: Sequence[Prompt], stream: Any) -> list[Segmentation]:
        with self._gate.inside():
            backend = self.backend
            most = backend.most_expressions
            groups = [prompts[start:start + most] for start in range(0, len(prompts), most)]
            after = self._stream_of(stream, backend)
            if backend.takes_pictures:
                photo = image if is_device_array(image) else self._host_array(image)
                return [answer for group in groups for answer in self._on_gpu(backend, photo, group, after)]
            tensor, letterbox = self.preprocess(image)
            logits = [row for group in groups for row in self._infer(tensor, _together(group))]
            return [self.postprocess(row[None], letterbox) for row in logits]

    def _on_gpu(self, backend: TensorRTBackend, photo: Any, prompts: Sequence[Prompt],
                after: int | None) -> list[Segmentation]:
        answers = backend.answer(photo, [prompt.tensors for prompt in prompts], self.threshold, after=after)
        if answers.totals["not_finite"].any():
            raise self._not_finite()
        self._count(frames=1, expressions=len(answers.masks))
        results = []
        for mask, logits, totals in zip(answers.masks, answers.logits, answers.totals, strict=True):
            box, score = summary(totals, answers.letterbox)
            results.append(Segmentation(mask=mask, box=box, score=score, logits=logits, letterbox=answers.letterbox))
        return results

    def _host_array(self, image: Any) -> np.ndarray:
        """A picture in any of the forms that `preprocess` takes, as uint8 [H, W, 3]. Raises UserError for others."""
        if isinstance(image, (str, Path)):
            image = read_image(image)
        elif type(image).__module__.startswith("PIL."):
            try:
                image = np.asarray(image.convert("RGB"))
            except (OSError, ValueError) as error:  # a file that was cut short, or closed, is noticed now
                raise UserError(f"expected a PIL image that can be read, received one that cannot: {error}; load it "
                                "whole, and before its file is closed") from error
        elif is_device_array(image):
            where = (f"the backend {self.backend.name} takes pictures on the host"
                     if self.backend.name == OnnxRuntimeBackend.name else
                     f"pictures on the GPU need libtalent_kernels.so, which was not found: {BUILD}")
            raise UserError(f"expected a picture in the host's memory, received {type(image).__name__} on the GPU: "
                            f"{where}; or copy it to the host first")
        check_photo(image)
        return image

    def _stream_of(self, stream: Any, backend: Backend) -> int | None:
        if stream is None:
            return None
        if backend.name == OnnxRuntimeBackend.name:
            raise UserError(f"the backend {backend.name} runs on the CPU, without CUDA streams; leave `stream` out")
        return stream_handle(stream)

    def _not_finite(self) -> UserError:
        return UserError(f"the {self.bundle.precision} network gave logits that are not finite, which FP16 overflow "
                         "does; export the bundle again with talent-export --fp32")

    def _count(self, *, frames: int, expressions: int) -> None:
        with self._counting:
            self._frames += frames
            self._expressions += expressions

    def warmup(self, runs: int = 3) -> None:
        """Run both graphs on noise, so that the first frame takes no longer than the others. Not counted in `stats`."""
        generator, size = np.random.default_rng(0), self.bundle.image_size
        with self._gate.inside():
            for _ in range(runs):
                prompt = self.backend.text(self.tokenizer(["warm up"]))
                if self.backend.takes_pictures:
                    photo = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    self.backend.answer(photo, [prompt], self.threshold)
                else:
                    self.backend.vision(generator.normal(size=(1, 3, size, size)).astype(np.float32), prompt)

    def stats(self) -> SegmenterStats:
        """What this segmenter has done so far."""
        try:
            with self._gate.inside():
                notes = self.backend.notes()
        except ClosedError:
            notes = self._notes
        with self._counting:
            return SegmenterStats(frames=self._frames, expressions=self._expressions, prompt_hits=self._prompts.hits,
                                  prompt_misses=self._prompts.misses, notes=notes)

    def __call__(self, sentence: str, image: Any) -> Segmentation:
        """A sentence and one photo, in one go."""
        return self.segment(image, self.encode(sentence))

    def close(self) -> None:
        """Free the backend, once the calls under way are done; later ones raise RuntimeError. Twice is fine."""
        self._gate.close()
        if self._backend is not None:
            self._notes, self._backend = self._backend.notes(), None
        self._free()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _together(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one expression each as one of all of them. Raises UserError where they are not of one bundle."""
    if len(prompts) == 1:
        return prompts[0]
    check_alike([prompt.tensors for prompt in prompts])
    tensors = {name: np.concatenate([prompt.tensors[name] for prompt in prompts]) for name in prompts[0].tensors}
    return Prompt(sentence="; ".join(prompt.sentence for prompt in prompts), tensors=tensors)
