"""CLIPSeg (Lueddecke and Ecker, CVPR 2022, arXiv 2112.10003): what a user might pick in the place of TALENT.

The architecture is that of CIDAS/clipseg-rd64-refined: CLIP ViT-B/16, whose layers 3, 6 and 9 feed a decoder of width
64 with the refined (three-part) enlarging, pictures of 352 pixels. transformers' defaults are the ViT-B/32 of 224
pixels, so that the sizes are given here. Its weights are random: time does not depend on them, and its masks mean
nothing. It answers for categories, such as "a cup", rather than for the one object that a sentence means.
"""

from __future__ import annotations

from typing import Any

from benchmarks.peer_stages import TorchPeerStages
from talent.image import THRESHOLD
from talent.require import require
from talent.tokenizer import build_clip_tokenizer

SOURCE = "as CIDAS/clipseg-rd64-refined, random weights"
IMAGE_SIZE = 352
CONTEXT, VOCABULARY = 77, 49408
SEED = 0
PUBLISHED: dict[str, Any] = {"vision_config": {"patch_size": 16}, "reduce_dim": 64, "extract_layers": [3, 6, 9],
                             "use_complex_transposed_convolution": True}


class ClipSeg(TorchPeerStages):
    """transformers' CLIPSegForImageSegmentation. config: what its CLIPSegConfig gets, None for the published sizes.

    Raises UserError where transformers is not installed.
    """

    def __init__(self, *, device: str, config: dict[str, Any] | None = None, image_size: int = IMAGE_SIZE) -> None:
        super().__init__(image_size=image_size, threshold=THRESHOLD, device=device)
        transformers = require("transformers", extra="peers")
        torch = self._torch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            settings = transformers.CLIPSegConfig(**(PUBLISHED if config is None else config))
            self.network = transformers.CLIPSegForImageSegmentation(settings).eval().to(device)
        self.tokenizer = build_clip_tokenizer(context_length=CONTEXT, vocab_size=VOCABULARY)

    def tokens(self, sentence: str):
        """int64 [1, words + 2]: one sentence alone is not padded, as its own processor does it."""
        padded = self.tokenizer([sentence])
        return self.on_device(padded[:, :int(padded.argmax()) + 1])  # the end token has the largest id

    def encode_tensors(self, sentence: str):
        """The conditional embedding [1, 512]."""
        return self.network.get_conditional_embeddings(batch_size=1, input_ids=self.tokens(sentence))

    def infer_tensors(self, image, prompt):
        logits = self.network(pixel_values=image, conditional_embeddings=prompt).logits
        return logits.reshape(1, 1, self.image_size, self.image_size)  # it drops the sizes of one
