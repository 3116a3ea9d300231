"""What the peers of latency.py share: the runtime's own pre- and postprocessing, so that only the networks differ.

They take one picture and one sentence at a time: several are several runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contenders import Stages
from talent.errors import UserError
from talent.image import Letterbox, mask_on_photo, preprocess
from talent.require import require

SENTENCE = "the thing on the left"  # for what is run once before it is measured


class PeerStages(Stages):
    """A network of another kind. image_size: side of its input in pixels. threshold: of the probability."""

    def __init__(self, *, image_size: int, threshold: float) -> None:
        self.image_size, self.threshold = image_size, threshold

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        return preprocess(image, self.image_size)

    def postprocess(self, logits: np.ndarray, letterbox: Letterbox) -> Any:
        if not np.isfinite(logits).all():
            raise UserError("the network gave logits that are not finite; measure another checkpoint")
        return mask_on_photo(logits[0, 0], letterbox, self.threshold)

    def example(self) -> np.ndarray:
        """A picture as `infer` takes it, float32 [1, 3, S, S]: noise, always the same."""
        generator = np.random.default_rng(0)
        return generator.standard_normal((1, 3, self.image_size, self.image_size), dtype=np.float32)


class TorchPeerStages(PeerStages):
    """A network in PyTorch. Subclasses say what the two halves compute, in tensors. device: "cpu" or "cuda"."""

    def __init__(self, *, image_size: int, threshold: float, device: str) -> None:
        super().__init__(image_size=image_size, threshold=threshold)
        self.device = device
        self._torch = require("torch", extra="train")

    def encode_tensors(self, sentence: str) -> Any:
        """What `infer_tensors` needs of a sentence."""
        raise NotImplementedError

    def infer_tensors(self, image, prompt: Any):
        """Tensor [1, 3, S, S] on the device and what `encode_tensors` gave -> logits [1, 1, h, w]."""
        raise NotImplementedError

    def encode(self, sentence: str) -> Any:
        with self._torch.inference_mode():
            prompt = self.encode_tensors(sentence)
            if self.device == "cuda":
                self._torch.cuda.synchronize()  # else the work would be timed in the next stage
        return prompt

    def infer(self, tensor: np.ndarray, prompt: Any) -> np.ndarray:
        with self._torch.inference_mode():
            return self.infer_tensors(self.on_device(tensor), prompt).float().cpu().numpy()

    def on_device(self, array: np.ndarray):
        """The same numbers as a tensor."""
        return self._torch.from_numpy(array).to(self.device)

    def facts(self) -> dict[str, Any]:
        """{"engine_bytes": None, "gflop": of what `infer` computes, "text_gflop": of `encode`}."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        from deploy.cost import count

        prompts: list[Any] = []
        image = self.on_device(self.example())
        with FakeTensorMode(allow_non_fake_inputs=True):
            text = count(lambda: prompts.append(self.encode_tensors(SENTENCE)))
            vision = count(lambda: self.infer_tensors(image, prompts[0]))
        return {"engine_bytes": None, "gflop": vision.flop / 1e9, "text_gflop": text.flop / 1e9}
