"""What latency.py measures: a `Contender` is a name and a way to open it, `Stages` are the steps that are timed then.

Bundles in each backend that runs here, and a checkpoint in PyTorch; `peer_contenders` of benchmarks/peers.py adds
others. A contender is plain data, as JSON has it: a process of its own opens it, too, to see what it costs alone
(fresh_process.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from deploy.bundle import GRAPHS, REPORT, Bundle
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.segmenter import Prompt, Segmenter
from deploy.runtime.tensorrt import RUNTIMES
from talent.errors import UserError
from talent.image import Letterbox, mask_on_photo, preprocess
from talent.require import require

if TYPE_CHECKING:
    from talent.checkpoint import Checkpoint

EAGER, MERGED, ONNX_RUNTIME = "PyTorch eager", "PyTorch merged", "ONNX Runtime"
BACKENDS = {"onnxruntime": ONNX_RUNTIME, "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


class Stages:
    """What is timed of an opened contender. The first four are its own; the others have a meaning for every one.

    together: whether `infer_batch` takes several pictures at once. takes_pictures: whether there is `segment`, which
    goes from the photo to the mask on the GPU. Each method returns when its work is done, on a GPU, too.
    """

    together = False
    takes_pictures = False

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        """uint8 [H, W, 3] RGB -> float32 [1, 3, S, S] and where the photo lies in it."""
        raise NotImplementedError

    def encode(self, sentence: str) -> Any:
        """What `infer` needs of a sentence, computed afresh in each call."""
        raise NotImplementedError

    def infer(self, tensor: np.ndarray, prompt: Any) -> np.ndarray:
        """float32 [1, 3, S, S] and what `encode` gave -> logits float32 [1, 1, h, w]."""
        raise NotImplementedError

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Any:
        """Logits float32 [1, 1, h, w] -> the mask on the photo."""
        raise NotImplementedError

    def encode_many(self, sentences: Sequence[str]) -> Any:
        """What `segment_many` and `infer_batch` need of several sentences."""
        return [self.encode(sentence) for sentence in sentences]

    def segment_many(self, image: np.ndarray, prompts: Any) -> None:
        """Several sentences about one photo, to the masks: here the network runs once for each of them."""
        tensor, box = self.preprocess(image)
        for prompt in prompts:
            self.postprocess(self.infer(tensor, prompt), box)

    def infer_batch(self, tensor: np.ndarray, prompts: Any) -> np.ndarray:
        """Several pictures float32 [B, 3, S, S] and a sentence for each -> logits float32 [B, 1, h, w]."""
        raise NotImplementedError

    def segment(self, image: np.ndarray, prompt: Any) -> None:
        """The whole way of a photo on the GPU."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Sizes and GFLOP, as in a row of a result file."""
        return {}

    def close(self) -> None:
        """Free it. Twice is fine."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What can be measured. name: of no other. device: "cpu" or "cuda". source: the bundle or checkpoint it comes from.

    backend: what runs it, the name where that is all there is to say. emulated: its time says nothing of the hardware
    that its precision is meant for. image_size: side of its input in pixels where it has one of its own, else None.
    """

    name: str
    precision: str
    device: str = "cpu"
    source: str = ""
    backend: str = ""
    emulated: bool = False
    image_size: int | None = None

    def open(self, *, image_size: int, threads: int) -> Stages:
        """image_size: side of the input in pixels, for those without one of their own. threads: of the CPU.

        Raises UserError where it cannot run here, with the reason.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class NotRun:
    """Something that could not be measured, and why."""

    name: str
    reason: str
    backend: str = ""
    precision: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class BundleContender(Contender):
    """A bundle in a backend of the Segmenter. runtime: "onnxruntime", "tensorrt" or "tensorrt_rtx"."""

    runtime: str

    def open(self, *, image_size: int, threads: int) -> Stages:
        # no prompt is kept: the text is to be computed whenever it is timed
        return BundleStages(Segmenter(self.source, self.runtime, threads=threads, prompts=0))


class BundleStages(Stages):
    """A Segmenter."""

    together = True

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.preprocess, self.encode, self.infer = segmenter.preprocess, segmenter.encode, segmenter.infer
        self.postprocess, self.close = segmenter.postprocess, segmenter.close
        self.segment_many, self.segment = segmenter.segment_many, segmenter.segment
        self.takes_pictures = segmenter.backend.takes_pictures

    def infer_batch(self, tensor: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        most = self.segmenter.backend.most_expressions
        if len(tensor) > most:
            raise UserError(f"{self.segmenter.bundle.directory} takes {most} pictures at once in "
                            f"{self.segmenter.backend.name}, received {len(tensor)}")
        names = prompts[0].tensors
        tensors = {name: np.concatenate([prompt.tensors[name] for prompt in prompts]) for name in names}
        return self.segmenter.backend.vision(tensor, tensors)

    def facts(self) -> dict[str, Any]:
        bundle, runtime = self.segmenter.bundle, self.segmenter.backend.name
        onnx = sum(record.bytes for name, record in bundle.records.items()
                   if name.startswith(tuple(f"{graph}.onnx" for graph in GRAPHS)))
        facts = {"preset": bundle.preset, "image_size": bundle.image_size, "onnx_bytes": onnx, "engine_bytes": None,
                 **exported_cost(bundle)}
        if runtime in RUNTIMES:
            version, arch = require(runtime, extra=RUNTIMES[runtime]).__version__, gpu_architecture()
            records = [bundle.engine_record(graph, runtime=runtime, version=version, arch=arch) for graph in GRAPHS]
            facts["engine_bytes"] = sum(record.bytes for record in records if record)
        return facts


def exported_cost(bundle: Bundle) -> dict[str, float | None]:
    """GFLOP of the graphs by the report of the export: {"gflop": of vision, "text_gflop"}, None where it has none."""
    path = bundle.directory / REPORT
    parts = {}
    if path.is_file():
        cost = json.loads(path.read_text(encoding="utf-8")).get("cost", {}).get("after", {})
        parts = {part: numbers["flop"] / 1e9 for part, numbers in cost.items()}
    return {"gflop": parts.get("vision"), "text_gflop": parts.get("text")}


@dataclass(frozen=True, kw_only=True)
class CheckpointContender(Contender):
    """A checkpoint in PyTorch, in FP32. merged: with LoRA's factors added to the weights."""

    merged: bool

    def open(self, *, image_size: int, threads: int) -> Stages:
        from talent.checkpoint import load_checkpoint  # torch, which the bundles do not need
        from talent.image_size import resized
        from talent.model.lora import merge_lora

        checkpoint = resized(load_checkpoint(self.source), image_size)
        if self.merged:
            if not checkpoint.lora:
                raise UserError("this checkpoint has no LoRA factors to merge")
            merge_lora(checkpoint.model)
        return TorchStages(checkpoint, device=self.device)


class TorchStages(Stages):
    """A network in PyTorch: the runtime's pre- and postprocessing around the model's own two halves."""

    together = True

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        config = checkpoint.config
        self.model, self.tokenizer, self.device = checkpoint.model.to(device).eval(), checkpoint.tokenizer, device
        self.preset, self.image_size, self.threshold = config.preset, config.image_size, config.threshold
        self._torch = require("torch", extra="train")

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        return preprocess(image, self.image_size)

    def encode(self, sentence: str):
        return self.encode_many([sentence])

    def encode_many(self, sentences: Sequence[str]):
        torch = self._torch
        with torch.inference_mode():
            tokens = torch.from_numpy(self.tokenizer(list(sentences))).to(self.device)
            prompt = self.model.prompt(self.model.text(tokens))
            if self.device == "cuda":
                torch.cuda.synchronize()  # else the work would be timed in the next stage
        return prompt

    def infer(self, tensor: np.ndarray, prompt) -> np.ndarray:
        with self._torch.inference_mode():
            logits, _ = self.model.segment(self._torch.from_numpy(tensor).to(self.device), prompt)
            return logits.float().cpu().numpy()

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Any:
        if not np.isfinite(logits).all():
            raise UserError("the network gave logits that are not finite; measure another checkpoint")
        return mask_on_photo(logits[0, 0], letterbox, self.threshold)

    def segment_many(self, image: np.ndarray, prompts) -> None:
        tensor, box = self.preprocess(image)
        for logits in self.infer(tensor, prompts):
            self.postprocess(logits[None], box)

    infer_batch = infer

    def facts(self) -> dict[str, Any]:
        from deploy.cost import network_cost

        image = self._torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        tokens = self._torch.from_numpy(self.tokenizer(["a cup"])).to(self.device)
        cost = network_cost(self.model, image, tokens)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return {"preset": self.preset, "image_size": self.image_size, "weights_bytes": weights, "engine_bytes": None,
                "gflop": cost["vision"].flop / 1e9, "text_gflop": cost["text"].flop / 1e9}


def bundle_contenders(bundles: Sequence[Bundle]) -> list[Contender]:
    """Each bundle in each backend, whether it runs here or not; named by the preset where there are several."""
    found = []
    several = len({bundle.preset for bundle in bundles}) > 1
    for runtime, backend in BACKENDS.items():
        for bundle in bundles:
            on_cpu = runtime == "onnxruntime"
            emulated = on_cpu and bundle.precision != "fp32"
            preset = f" {bundle.preset}" if several else ""
            name = f"{backend}{preset} {bundle.precision.upper()}{' (emulated)' if emulated else ''}"
            found.append(BundleContender(
                name=name, backend=backend, precision=bundle.precision, device="cpu" if on_cpu else "cuda",
                source=str(bundle.directory), emulated=emulated, image_size=bundle.image_size, runtime=runtime))
    return found


def checkpoint_contenders(path: Path) -> list[Contender]:
    """A checkpoint in PyTorch as it is, and with LoRA merged; on the GPU where PyTorch has one.

    Raises UserError for one that cannot be loaded.
    """
    from talent.checkpoint import load_checkpoint  # torch, which the bundles do not need

    load_checkpoint(path)  # what is wrong with it is bad input, not two rows that do not run
    device = "cuda" if require("torch", extra="train").cuda.is_available() else "cpu"
    return [CheckpointContender(name=f"{backend} FP32", backend=backend, precision="fp32", device=device,
                                source=str(path), merged=backend == MERGED) for backend in (EAGER, MERGED)]


def named_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """The same contenders; where several have one name, their sources tell them apart."""
    names = [contender.name for contender in contenders]
    return [dataclasses.replace(contender, name=f"{contender.name}, {contender.source}")
            if names.count(contender.name) > 1 else contender for contender in contenders]


class Opened:
    """Contenders, opened: `stages` of those that run here, `not_run` of the others. A context manager that closes.

    failed: those that are known not to run, and why.
    """

    def __init__(self, contenders: Sequence[Contender], *, image_size: int, threads: int,
                 failed: Mapping[Contender, str] | None = None) -> None:
        self.stages: dict[Contender, Stages] = {}
        self.not_run: list[NotRun] = []
        self._stack = contextlib.ExitStack()
        try:
            for contender in tqdm(contenders, desc="opening", unit="row", leave=False, disable=None):
                try:
                    if failed and contender in failed:
                        raise UserError(failed[contender])
                    stages = contender.open(image_size=image_size, threads=threads)
                except UserError as error:
                    self.not_run.append(NotRun(contender.name, str(error), contender.backend, contender.precision,
                                               contender.source))
                    continue
                self._stack.callback(stages.close)
                self.stages[contender] = stages
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
