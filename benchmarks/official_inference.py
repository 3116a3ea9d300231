"""An answer of TALENT as the official code computes it: the forward pass of official_style.py in evaluation mode.

What training alone has is gone: no second and third sentence, BatchNorm with its running statistics. LoRA factors stay
what they are in the checkpoint. In the image tower they are linear layers of their own; the official text tower takes
`torch.nn.MultiheadAttention`, which reads weights and calls no layer, so that every pass adds the update to the weights
first and takes it away again, as peft does it there.

B batch, L words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from benchmarks.official_style import OfficialStyle
from talent.model.text import TextFeatures, TextTower
from talent.require import require


@contextlib.contextmanager
def added_updates(tower: TextTower) -> Iterator[None]:
    """The text tower's attention with LoRA's updates in its weights; afterwards with the very weights of before."""
    attentions = [module for block in tower.blocks for module in (block.attn.qkv, block.attn.proj)]
    layers = [module for module in attentions if not isinstance(module, nn.Linear)]  # wrapped by peft
    if layers:
        layer_type = require("peft.tuners.lora", extra="train").LoraLayer
        assert all(isinstance(layer, layer_type) for layer in layers)
    before = [layer.get_base_layer().weight for layer in layers]
    try:
        for layer, weight in zip(layers, before, strict=True):
            updates = (layer.get_delta_weight(name) for name in layer.active_adapters)
            layer.get_base_layer().weight = nn.Parameter(sum(updates, weight), requires_grad=False)
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight = weight


class OfficialInference(OfficialStyle):
    """image [B, 3, S, S] and tokens [B, L] -> logits [B, 1, 4 grid, 4 grid], over the parameters of a TalentModel in
    eval mode."""

    def encode(self, tokens: Tensor) -> TextFeatures:
        """tokens [B, L] -> TextFeatures: all that the official code could keep of a sentence."""
        with added_updates(self.model.text):
            return super().encode(tokens)

    def segment(self, image: Tensor, text: TextFeatures) -> Tensor:
        """image [B, 3, S, S] and what `encode` gave -> logits [B, 1, 4 grid, 4 grid]."""
        _, features, _ = self.neck(self.taps(image, text.words), text.state)
        return self.project(self.decode(features, text.words), text.state)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.segment(image, self.encode(tokens))
