"""A sentence and a picture in, the mask of the object that is meant out.

    segmenter = Segmenter("bundle")
    prompt = segmenter.encode("the red mug on the left")   # once per sentence
    result = segmenter.segment(image, prompt)              # once per frame
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.bundle import Bundle
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.interface import Backend
from deploy.runtime.onnxruntime import OnnxRuntimeBackend
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


class Segmenter:
    """A loaded bundle. Not for use by two threads at once: make one segmenter per thread.

    bundle: a directory or a loaded Bundle. backend: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto": the first
    TensorRT that is installed, finds a GPU and has an engine in the bundle, else ONNX Runtime (`auto_report` says why).
    threads: for ONNX Runtime, None for one per core. threshold: None for the bundle's.
    Raises UserError for a bad bundle, an unknown backend, a backend that cannot run here, or a bad threshold.
    """

    def __init__(self, bundle: Bundle | str | Path, backend: str = "auto", *, threads: int | None = None,
                 threshold: float | None = None) -> None:
        if backend not in BACKENDS:
            raise UserError(f"unknown backend {backend!r}{suggest(backend, BACKENDS)}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.threshold = self.bundle.threshold if threshold is None else threshold
        if not 0 <= self.threshold < 1:
            raise UserError(f"expected a threshold from 0 to below 1, received {self.threshold}")
        self.tokenizer = Tokenizer.load(self.bundle.tokenizer_json, self.bundle.context_length)
        self.auto_report: tuple[str, ...] = ()
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

    def preprocess(self, image: np.ndarray | str | Path) -> tuple[np.ndarray, Letterbox]:
        """A photo (uint8 [H, W, 3] RGB, or its file) -> the network's input, float32 [1, 3, S, S], and its place."""
        photo = read_image(image) if isinstance(image, (str, Path)) else image
        return preprocess(photo, self.bundle.image_size)

    def encode(self, sentence: str) -> Prompt:
        """Run the text graph. Raises UserError for an empty sentence."""
        return Prompt(sentence=sentence, tensors=self.backend.text(self.tokenizer([sentence])))

    def infer(self, tensor: np.ndarray, prompt: Prompt) -> np.ndarray:
        """Run the vision graph: float32 [1, 3, S, S] -> logits float32 [1, 1, h, w]."""
        return self.backend.vision(tensor, prompt.tensors)

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

    def segment(self, image: np.ndarray | str | Path, prompt: Prompt) -> Segmentation:
        """preprocess -> infer -> postprocess for one photo and an encoded sentence."""
        tensor, letterbox = self.preprocess(image)
        return self.postprocess(self.infer(tensor, prompt), letterbox)

    def __call__(self, sentence: str, image: np.ndarray | str | Path) -> Segmentation:
        """A sentence and one photo, in one go."""
        return self.segment(image, self.encode(sentence))

    def close(self) -> None:
        """Free the backend; closing twice is fine."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
