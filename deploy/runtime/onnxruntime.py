"""The two graphs in ONNX Runtime, on the CPU: the runner where no GPU is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.bundle import Bundle
from deploy.runtime.interface import IMAGE, LOGITS, MOST_EXPRESSIONS, TOKENS, check_graphs
from talent.errors import UserError
from talent.require import require

# Makes the biases of quantized layers integers, with scales that underflow where the graph's scales are FP16: with ONNX
# Runtime 1.24 the masks of an INT8 bundle came out empty.
WRONG_OPTIMIZERS = ["WeightBiasQuantization"]


class OnnxRuntimeBackend:
    """Runs text.onnx and vision.onnx of a bundle. `threads`: how many per operator, None for one per core."""

    name = "onnxruntime"
    most_expressions = MOST_EXPRESSIONS
    takes_pictures = False

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"expected at least one thread, received {threads}")
        self._onnxruntime = require("onnxruntime", extra="cpu")
        self._text = self._session(bundle.text_onnx, threads)
        self._vision = self._session(bundle.vision_onnx, threads)
        check_graphs(str(bundle.directory), text_inputs=_types(self._text.get_inputs()),
                     text_outputs=_types(self._text.get_outputs()), vision_inputs=_types(self._vision.get_inputs()),
                     vision_outputs=_types(self._vision.get_outputs()))
        self._prompt_names = [output.name for output in self._text.get_outputs()]

    def _session(self, path: Path, threads: int | None):
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: a missing GPU is no news here
        # Between frames its threads would go on spinning and take the cores from whatever else runs in the robot.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            return self._onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"],
                                                      disabled_optimizers=WRONG_OPTIMIZERS)
        except Exception as error:  # its exception classes have no common base but Exception
            reason = " ".join(str(error).split())
            raise UserError(f"ONNX Runtime cannot load {path}: {reason}; copy the bundle again or export it again with "
                            "talent-export") from error

    def text(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B, L] -> the prompt tensors by name."""
        return dict(zip(self._prompt_names, _run(self._text, self._prompt_names, {TOKENS: tokens}), strict=True))

    def vision(self, image: np.ndarray, prompt: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [B or 1, 3, S, S] and the prompt tensors of B expressions -> logits float32 [B, 1, h, w]."""
        logits, = _run(self._vision, [LOGITS], {IMAGE: image, **prompt})
        return logits.astype(np.float32, copy=False)

    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def close(self) -> None:
        self._text = self._vision = None


def _types(values) -> dict[str, str]:
    return {value.name: value.type for value in values}


def _run(session, outputs: list[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(outputs, inputs)
    except Exception as error:  # as in `_session`; of the wrong names it says ValueError
        shapes = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in inputs.items())
        raise UserError(f"ONNX Runtime did not run, given {shapes}: {' '.join(str(error).split())}; prompt tensors "
                        "must be of this bundle: encode the sentence again, with this segmenter") from error
