"""The TALENT network: a sentence and a picture in, the logits of one object's mask out.

B batch, L words, S image size, N image tokens, C width of neck, decoder and projector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talent.model.decoder import Decoder
from talent.model.neck import Neck, NeckOutput
from talent.model.projector import Projector
from talent.model.text import TextFeatures, TextTower
from talent.model.vision import VisionTower


@dataclass(frozen=True)
class Prompt:
    """Everything that depends on the words alone, once per expression.

    adapters: T of each image adapter [B, L, A]. neck: three [B, 1, C]. attention: of each decoder layer, what its
    cross-attention made of the words: keys and values [B, L, C] (folded: deploy.folded.FoldedCrossAttention).
    kernel [B, M, 9] and kernel_bias [B, 1, 9]: the projector's 1x1 convolution and the dynamic 3x3 convolution in one.
    """

    adapters: tuple[Tensor, ...]
    neck: tuple[Tensor, ...]
    attention: tuple[tuple[Tensor, ...], ...]
    kernel: Tensor
    kernel_bias: Tensor


@dataclass(frozen=True)
class TalentOutput:
    """logits [B, 1, 4 grid, 4 grid]; neck: its maps; text: words and state; sentence [B, C] = txt_proj(state).

    contrast: states [B, R, C] of further sentences per sample, which only the losses look at: as they are where they
    are as wide as the neck (as in the published presets), else through txt_proj.
    """

    logits: Tensor
    neck: NeckOutput
    text: TextFeatures
    sentence: Tensor
    contrast: Tensor | None = None


class TalentModel(nn.Module):
    """`TalentModel(image [B, 3, S, S] float32, tokens [B, L] int64) -> TalentOutput`."""

    def __init__(self, *, text: TextTower, vision: VisionTower, neck: Neck, decoder: Decoder, projector: Projector):
        super().__init__()
        self.text, self.vision, self.neck, self.decoder, self.projector = text, vision, neck, decoder, projector

    def prompt(self, text: TextFeatures) -> Prompt:
        """The text half after the tower: no picture is needed."""
        kernel, kernel_bias = self.projector.prompt(text.state)
        return Prompt(adapters=self.vision.prompt(text.words), neck=self.neck.prompt(text.state),
                      attention=self.decoder.prompt(text.words), kernel=kernel, kernel_bias=kernel_bias)

    def segment(self, image: Tensor, prompt: Prompt) -> tuple[Tensor, NeckOutput]:
        """The image half: no text work. Returns the logits and the neck's maps.

        In eval mode one picture [1, 3, S, S] may meet the prompts of many expressions: what comes before the first
        words is computed once.
        """
        taps = self.vision(image, prompt.adapters)
        neck = self.neck(taps, prompt.neck)
        decoded = self.decoder(neck.features, prompt.attention)
        return self.projector(decoded, prompt.kernel, prompt.kernel_bias), neck

    def forward(self, image: Tensor, tokens: Tensor, contrast: Tensor | None = None) -> TalentOutput:
        """contrast: token ids [B, R, L] of further sentences.

        All sentences of a batch pass the text tower at once, as in the official code: it is faster, the BatchNorm of
        the text adapters sees them all, and gradients of several processes synchronise.
        """
        batch = tokens.shape[0]
        sentences = tokens if contrast is None else torch.cat([tokens, contrast.flatten(0, 1)])
        encoded = self.text(sentences)
        text = TextFeatures(words=encoded.words[:batch], state=encoded.state[:batch])
        logits, neck = self.segment(image, self.prompt(text))
        sentence = self.neck.txt_proj(text.state)
        states = None
        if contrast is not None:
            states = encoded.state[batch:].unflatten(0, contrast.shape[:2])
            if states.shape[2] != sentence.shape[1]:
                states = self.neck.txt_proj(states)
        return TalentOutput(logits=logits, neck=neck, text=text, sentence=sentence, contrast=states)
