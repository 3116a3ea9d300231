"""An answer of TALENT as the official code computes it: the forward pass of official_style.py in evaluation mode.

What training alone has is gone: no second and third sentence, no LoRA (the official code has none: it is to be merged),
BatchNorm with its running statistics.

B batch, L words.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.official_style import OfficialStyle
from talent.model.text import TextFeatures


class OfficialInference(OfficialStyle):
    """image [B, 3, S, S] and tokens [B, L] -> logits [B, 1, 4 grid, 4 grid], over the parameters of a TalentModel in
    eval mode, its LoRA merged. `encode` gives all that the official code could keep of a sentence."""

    def segment(self, image: Tensor, text: TextFeatures) -> Tensor:
        """image [B, 3, S, S] and what `encode` gave -> logits [B, 1, 4 grid, 4 grid]."""
        _, features, _ = self.neck(self.taps(image, text.words), text.state)
        return self.project(self.decode(features, text.words), text.state)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.segment(image, self.encode(tokens))
