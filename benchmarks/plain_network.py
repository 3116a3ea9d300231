"""A plain export (plain_export.py makes it) where it is kept, and in ONNX Runtime. Without torch: opening one measures
what a program costs that has the ONNX file and nothing else of the network.

    <form>-<size>px-<digest>/network.onnx  network.onnx.data  tokenizer.json  network.json
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import talent
from deploy.runtime.interface import IMAGE, LOGITS, TOKENS
from talent import provenance
from talent.errors import UserError, suggest
from talent.require import require
from talent.tokenizer import Tokenizer

OFFICIAL, TALENT = "official", "talent"
FORMS = (OFFICIAL, TALENT)
FILE, TOKENIZER, SETTINGS = "network.onnx", "tokenizer.json", "network.json"
CHECKPOINT_FILES = ("model.safetensors", "config.yaml")  # talent.checkpoint says it too, but loads torch
SOURCES = ("official_style.py", "official_inference.py", "plain_export.py")  # besides talent/model/*.py
PACKAGES = ("torch", "onnx", "onnxscript", "peft")


def place(checkpoint: Path, *, image_size: int, form: str, cache: Path) -> Path:
    """The directory in `cache` for this export, whether it is there or not.

    Its name changes with the weights, the settings, the size, the form, the versions and the code of the network.
    Raises UserError for an unknown form, and where there is no checkpoint.
    """
    if form not in FORMS:
        raise UserError(f"unknown form of a plain export {form!r}{suggest(form, FORMS)}")
    files = [checkpoint / name for name in CHECKPOINT_FILES]
    for file in files:
        if not file.is_file():
            raise UserError(f"no checkpoint at {checkpoint}: expected a directory with "
                            f"{' and '.join(CHECKPOINT_FILES)}, and {file.name} is missing; make one with talent-train "
                            "or talent-import")
    files += sorted((Path(talent.__file__).parent / "model").glob("*.py"))
    files += [Path(__file__).with_name(name) for name in SOURCES]
    versions = provenance.versions(*PACKAGES)
    parts = [f"{name} {versions[name]}" for name in ("python", *PACKAGES)] + [provenance.sha256(file) for file in files]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache / f"{form}-{image_size}px-{digest}"


class PlainNetwork:
    """A plain export in ONNX Runtime on the CPU. threads: per operator, None for one per core.

    image_size, threshold, gflop, tokenizer: the network's. onnx_bytes: size of the graph and its weights.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        self.image_size, self.threshold = settings["image_size"], settings["threshold"]
        self.gflop = settings["gflop"]
        self.tokenizer = Tokenizer.load(directory / TOKENIZER, settings["context_length"])
        self.onnx_bytes = sum(file.stat().st_size for file in directory.glob(f"{FILE}*"))
        onnxruntime = require("onnxruntime", extra="cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # as the runtime has it (deploy/runtime/onnxruntime.py), so that both run alike
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(directory / FILE), options,
                                                     providers=["CPUExecutionProvider"])

    def __call__(self, image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """float32 [1, 3, S, S] and int64 [1, L] -> logits float32 [1, 1, h, w]."""
        logits, = self._session.run([LOGITS], {IMAGE: image, TOKENS: tokens})
        return logits
