"""What a user might run in the place of a bundle, for latency.py: the same network in other ways, and CLIPSeg.

A frame is all of the time but that of reading the picture and of the stage "text". What each peer has in it:

- "official style": the network as the official code computes it. That code has no LoRA: it is merged. Nothing of a
  sentence is kept from one picture to the next, so that "text" is the tokenizer alone and a frame is the whole network.
- "official style, text kept": the same with the text tower in "text", the most that the official code could keep
  without being written anew; what adapters, neck, decoder and projector make of the words is computed in every frame.
- "torch.compile": both halves of this project's network, LoRA merged, by inductor. Compiling is part of opening it.
- "plain export": one ONNX graph in ONNX Runtime (plain_export.py), which can keep no text: as "official style".
- CLIPSeg (clipseg.py) keeps the embedding of a sentence, as this project keeps the prompt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clipseg, plain_network
from benchmarks.contenders import Contender, Stages
from benchmarks.peer_stages import SENTENCE, PeerStages, TorchPeerStages
from benchmarks.plain_network import FILE, PlainNetwork, place
from talent.errors import UserError, suggest
from talent.require import require

OFFICIAL, OFFICIAL_KEPT = "PyTorch official style", "PyTorch official style, text kept"
COMPILED = "torch.compile"
PLAIN, PLAIN_TALENT = "ONNX Runtime plain export", "ONNX Runtime plain export of our PyTorch"
CLIPSEG = "CLIPSeg"
PEERS = {"official": OFFICIAL, "official-kept": OFFICIAL_KEPT, "compile": COMPILED, "plain": PLAIN,
         "plain-talent": PLAIN_TALENT, "clipseg": CLIPSEG}
"""Name on the command line -> name in the table."""
CACHE = Path(__file__).resolve().parent / "out" / "plain"  # where plain exports are kept
COMPILERS = ("g++", "clang++")  # that inductor takes on a CPU, unless CXX names another
KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, kw_only=True)
class CheckpointPeer(Contender):
    """The network of a checkpoint directory, `source`; empty for none."""

    def required(self) -> str:
        """The checkpoint's directory. Raises UserError without one, and without torch."""
        if not self.source:
            raise UserError("pass --checkpoint")
        require("torch", extra="train")
        return self.source

    def loaded(self, image_size: int):
        """The Checkpoint for pictures of this size. Raises UserError without one, and what loading raises."""
        source = self.required()
        from talent.checkpoint import load_checkpoint  # torch, which the bundles do not need
        from talent.image_size import resized

        return resized(load_checkpoint(source), image_size)


@dataclass(frozen=True, kw_only=True)
class OfficialPeer(CheckpointPeer):
    """PyTorch in the official style. keep_text: whether the text tower runs in `encode`, else in `infer`."""

    keep_text: bool

    def open(self, *, image_size: int, threads: int) -> Stages:
        return OfficialStages(self.loaded(image_size), device=self.device, keep_text=self.keep_text)


class OfficialStages(TorchPeerStages):
    """`OfficialInference` of a checkpoint."""

    def __init__(self, checkpoint, *, device: str, keep_text: bool) -> None:
        from benchmarks.official_inference import OfficialInference
        from talent.model.lora import merge_lora

        config = checkpoint.config
        super().__init__(image_size=config.image_size, threshold=config.threshold, device=device)
        merge_lora(checkpoint.model)
        self.network = OfficialInference(checkpoint.model.to(device)).eval()
        self.tokenizer, self.keep_text = checkpoint.tokenizer, keep_text

    def encode_tensors(self, sentence: str) -> Any:
        tokens = self.on_device(self.tokenizer([sentence]))  # [1, L]
        return self.network.encode(tokens) if self.keep_text else tokens

    def infer_tensors(self, image, prompt: Any):
        return self.network.segment(image, prompt if self.keep_text else self.network.encode(prompt))


@dataclass(frozen=True, kw_only=True)
class CompiledPeer(CheckpointPeer):
    """torch.compile of the merged network; a compiler's failure is a UserError."""

    def open(self, *, image_size: int, threads: int) -> Stages:
        checkpoint = self.loaded(image_size)
        compiler = os.environ.get("CXX")
        if self.device == "cpu" and not any(map(shutil.which, [compiler] if compiler else COMPILERS)):
            raise UserError("torch.compile needs a C++ compiler, and there is no "
                            f"{compiler or ' or '.join(COMPILERS)}; on Debian, Ubuntu and JetPack run: apt install g++")
        stages = CompiledStages(checkpoint, device=self.device)
        try:
            with compiled_afresh():
                stages.infer(stages.example(), stages.encode(SENTENCE))
        except (RuntimeError, OSError) as error:  # TorchDynamoException, InductorError, a compiler that stops
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"torch.compile cannot compile this network here ({type(error).__name__}: {reason}); leave "
                            "this row out, or try another version of torch") from error
        return stages


@contextlib.contextmanager
def compiled_afresh() -> Iterator[None]:
    """Inductor without what it kept of earlier runs, so that the time of compiling is that of a first run."""
    before = os.environ.get(KEPT_IN)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        os.environ[KEPT_IN] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ[KEPT_IN]
            else:
                os.environ[KEPT_IN] = before


class CompiledStages(TorchPeerStages):
    """The two halves that talent-export writes, before any folding, each compiled when it is first called."""

    def __init__(self, checkpoint, *, device: str) -> None:
        from deploy.graphs import TextGraph, VisionGraph, prompt_tensors
        from talent.model.lora import merge_lora

        config = checkpoint.config
        super().__init__(image_size=config.image_size, threshold=config.threshold, device=device)
        self.tokenizer, self.model = checkpoint.tokenizer, checkpoint.model.to(device)
        merge_lora(self.model)
        torch = self._torch
        with torch.inference_mode():
            names = tuple(prompt_tensors(self.model, self.on_device(self.tokenizer([SENTENCE]))))
        self._text, self._vision = (torch.compile(graph.eval(), dynamic=False)
                                    for graph in (TextGraph(self.model), VisionGraph(self.model, names)))

    def encode_tensors(self, sentence: str) -> Any:
        return self._text(self.on_device(self.tokenizer([sentence])))

    def infer_tensors(self, image, prompt: Any):
        return self._vision(image, *prompt)

    def facts(self) -> dict[str, Any]:
        from deploy.cost import network_cost

        cost = network_cost(self.model, self.on_device(self.example()), self.on_device(self.tokenizer([SENTENCE])))
        return {"engine_bytes": None, "gflop": cost["vision"].flop / 1e9, "text_gflop": cost["text"].flop / 1e9}


@dataclass(frozen=True, kw_only=True)
class PlainPeer(CheckpointPeer):
    """A plain export in ONNX Runtime. form: of plain_network.FORMS. cache: directory where exports are kept. directory:
    of the export where it is known, which takes no hash of the checkpoint then."""

    form: str
    cache: Path
    directory: Path | None = None

    def exported(self, image_size: int) -> Path:
        """The directory of the export, made now unless it is kept from before; without torch where it is."""
        if self.directory:
            return self.directory
        checkpoint = Path(self.required())
        directory = place(checkpoint, image_size=image_size, form=self.form, cache=self.cache)
        if (directory / FILE).is_file():
            return directory
        from benchmarks.plain_export import kept_export

        return kept_export(checkpoint, image_size=image_size, form=self.form, cache=self.cache)

    def open(self, *, image_size: int, threads: int) -> Stages:
        return PlainStages(PlainNetwork(self.exported(image_size), threads=threads))


class PlainStages(PeerStages):
    """A plain export: the graph has the text tower in it."""

    def __init__(self, network: PlainNetwork) -> None:
        super().__init__(image_size=network.image_size, threshold=network.threshold)
        self.network = self.infer = network

    def encode(self, sentence: str) -> np.ndarray:
        """Tokens int64 [1, L]."""
        return self.network.tokenizer([sentence])

    def facts(self) -> dict[str, Any]:
        return {"engine_bytes": None, "onnx_bytes": self.network.onnx_bytes, "gflop": self.network.gflop,
                "text_gflop": 0.0}


@dataclass(frozen=True, kw_only=True)
class ClipSegPeer(Contender):
    """CLIPSeg in PyTorch."""

    def open(self, *, image_size: int, threads: int) -> Stages:
        require("transformers", extra="peers")
        return clipseg.ClipSeg(device=self.device)


def peer_contenders(checkpoint: str | Path | None, *, names: Sequence[str] = tuple(PEERS),
                    cache: Path = CACHE) -> list[Contender]:
    """The peers with these names (of PEERS), in this order; each says when it is opened why it cannot run here.

    checkpoint: directory, None for none. cache: directory where plain exports are kept. On the GPU where PyTorch has
    one; ONNX Runtime is on the CPU. Raises UserError for an unknown name.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in PEERS:
            raise UserError(f"unknown peer {name!r}{suggest(name, PEERS)}")
    torch = importlib.util.find_spec("torch") and require("torch", extra="train")
    device = "cuda" if torch and torch.cuda.is_available() else "cpu"
    source = "" if checkpoint is None else str(checkpoint)

    def made(kind: type[Contender], name: str, **arguments: Any) -> Contender:
        known = {"device": device, "source": source}
        return kind(name=f"{PEERS[name]} FP32", backend=PEERS[name], precision="fp32", **{**known, **arguments})

    every: Mapping[str, Contender] = {
        "official": made(OfficialPeer, "official", keep_text=False),
        "official-kept": made(OfficialPeer, "official-kept", keep_text=True),
        "compile": made(CompiledPeer, "compile"),
        "plain": made(PlainPeer, "plain", form=plain_network.OFFICIAL, cache=cache, device="cpu"),
        "plain-talent": made(PlainPeer, "plain-talent", form=plain_network.TALENT, cache=cache, device="cpu"),
        "clipseg": made(ClipSegPeer, "clipseg", source=clipseg.SOURCE, image_size=clipseg.IMAGE_SIZE)}
    return [every[name] for name in names]


def prepare(contenders: Sequence[Contender], *, image_size: int) -> list[Contender]:
    """The same contenders; what is to be exported is exported now, so that opening it measures no exporter.

    One that cannot be prepared is left as it is: opening it says why.
    """
    found = []
    for contender in contenders:
        if isinstance(contender, PlainPeer):
            with contextlib.suppress(UserError):
                contender = dataclasses.replace(contender, directory=contender.exported(image_size))
        found.append(contender)
    return found
