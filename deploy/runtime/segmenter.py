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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.runtime.gate import Gate
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.interface import Backend
from deploy.runtime.onnxruntime import OnnxRuntimeBackend
from deploy.runtime.recent import Recent
from deploy.runtime.tensorrt import RUNTIMES, TensorRTBackend
from talent.errors import UserError, suggest
from talent.image import Letterbox, mask_on_photo, preprocess, probability_on_photo, read_image
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
    """What a segmenter has done. frames: pictures that the vision graph saw, expressions: masks it was asked for.

    prompt_hits, prompt_misses: sentences that were encoded already, and that had to be.
    """

    frames: int
    expressions: int
    prompt_hits: int
    prompt_misses: int

    @property
    def prompt_hit_rate(self) -> float | None:
        """The share of sentences that were encoded already; None before the first."""
        asked = self.prompt_hits + self.prompt_misses
        return self.prompt_hits / asked if asked else None


class Segmenter:
    """A loaded bundle. Threads may share it: each call is one by itself, and `close` waits for those under way.

    bundle: a directory or a loaded Bundle. backend: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto": the first
    TensorRT that is installed, finds a GPU and has an engine in the bundle, else ONNX Runtime (`auto_report` says why).
    precision: refuse a bundle that is in another one than this. threads: for ONNX Runtime, None for one per core.
    threshold: None for the bundle's. prompts: sentences whose prompt tensors are kept.
    Raises UserError for a bad bundle, an unknown backend or precision, a backend that cannot run here, or a bad
    threshold.
    """

    def __init__(self, bundle: Bundle | str | Path, backend: str = "auto", *, precision: str | None = None,
                 threads: int | None = None, threshold: float | None = None, prompts: int = 64) -> None:
        if backend not in BACKENDS:
            raise UserError(f"unknown backend {backend!r}{suggest(backend, BACKENDS)}")
        if prompts < 0:
            raise UserError(f"expected prompts to be at least 0, received {prompts}")
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
        self._backend: Backend | None = self._open(backend, threads)

    def _open(self, backend: str, threads: int | None) -> Backend:
        if backend in RUNTIMES:
            return TensorRTBackend(self.bundle, runtime=backend)
        if backend == "auto":
            reasons = []
            for runtime in RUNTIMES if gpu_architecture() is not None else ():
                if importlib.util.find_spec(runtime) is None:
                    reasons.append(f"{runtime} is not installed")
                    continue
                try:
                    return TensorRTBackend(self.bundle, runtime=runtime)
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
        """A photo -> the network's input, float32 [1, 3, S, S], and its place.

        image: uint8 [H, W, 3] RGB in an array of any strides, a PIL image, or the name of a file.
        """
        return preprocess(_as_array(image), self.bundle.image_size)

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
            logits = self.backend.vision(tensor, prompt.tensors)
        with self._counting:
            self._frames += len(tensor)
            self._expressions += len(logits)
        return logits

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Segmentation:
        """Logits float32 [1, 1, h, w] -> the answer on the photo.

        Raises UserError when the logits are not finite: an FP16 overflow must not pass for "nothing found".
        """
        if logits.shape[:2] != (1, 1):
            raise ValueError(f"expected the logits of one expression [1, 1, h, w], received {list(logits.shape)}")
        if not np.isfinite(logits).all():
            raise UserError(f"the {self.bundle.precision} network gave logits that are not finite, which FP16 overflow "
                            "does; export the bundle again with talent-export --fp32")
        own = logits[0, 0].astype(np.float32)  # [h, w], a copy: the probability is computed later, if at all
        mask, box, score = mask_on_photo(own, letterbox, self.threshold)
        return Segmentation(mask=mask, box=box, score=score, logits=own, letterbox=letterbox)

    def segment(self, image: Any, prompt: Prompt) -> Segmentation:
        """preprocess -> infer -> postprocess for one photo (as `preprocess` takes it) and an encoded sentence."""
        tensor, letterbox = self.preprocess(image)
        return self.postprocess(self.infer(tensor, prompt), letterbox)

    def segment_many(self, image: Any, prompts: Sequence[Prompt | str]) -> list[Segmentation]:
        """Several sentences about one photo: what does not depend on the words is computed once for all of them.

        As many at once as the graph or engine takes. Raises UserError where there is no prompt.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise UserError("expected a list of prompts or sentences, at least one, received "
                            + (f"the sentence {prompts!r}" if prompts else "none"))
        encoded = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        tensor, letterbox = self.preprocess(image)
        results = []
        for start in range(0, len(encoded), self.backend.most_expressions):
            logits = self.infer(tensor, _together(encoded[start:start + self.backend.most_expressions]))
            results += [self.postprocess(logits[index:index + 1], letterbox) for index in range(len(logits))]
        return results

    def warmup(self, runs: int = 3) -> None:
        """Run both graphs on noise, so that the first frame takes no longer than the others. Not counted in `stats`."""
        noise = np.random.default_rng(0).normal(size=(1, 3, *[self.bundle.image_size] * 2)).astype(np.float32)
        with self._gate.inside():
            for _ in range(runs):
                self.backend.vision(noise, self.backend.text(self.tokenizer(["warm up"])))

    def stats(self) -> SegmenterStats:
        """What this segmenter has done so far."""
        with self._counting:
            return SegmenterStats(frames=self._frames, expressions=self._expressions, prompt_hits=self._prompts.hits,
                                  prompt_misses=self._prompts.misses)

    def __call__(self, sentence: str, image: Any) -> Segmentation:
        """A sentence and one photo, in one go."""
        return self.segment(image, self.encode(sentence))

    def close(self) -> None:
        """Free the backend, once the calls under way are done; later ones raise RuntimeError. Twice is fine."""
        self._gate.close()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _as_array(image: Any) -> np.ndarray:
    """A picture in any of the forms that `Segmenter.preprocess` takes, as an array that lies in one piece."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if type(image).__module__.startswith("PIL."):
        image = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image


def _together(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one expression each as one of all of them."""
    if len(prompts) == 1:
        return prompts[0]
    tensors = {name: np.concatenate([prompt.tensors[name] for prompt in prompts]) for name in prompts[0].tensors}
    return Prompt(sentence="; ".join(prompt.sentence for prompt in prompts), tensors=tensors)
