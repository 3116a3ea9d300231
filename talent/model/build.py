"""From a ModelConfig to a network, with or without pretrained backbones."""

from __future__ import annotations

from torch import nn

from talent.config import ModelConfig
from talent.errors import UserError
from talent.model.decoder import Decoder
from talent.model.neck import Neck
from talent.model.projector import Projector
from talent.model.talent import TalentModel
from talent.model.text import TextTower, from_clip
from talent.model.vision import PATCH, VisionTower
from talent.require import require


def build_model(config: ModelConfig, *, pretrained: bool = False) -> TalentModel:
    """The network of `config`. pretrained: load DINOv2 and CLIP through timm and open_clip (downloads once).

    Raises UserError where the image size does not fit or the pretrained weights cannot be had; there is never a
    silent random start in the place of pretrained weights.
    """
    if config.image_size % PATCH or config.image_size < 4 * PATCH:
        raise UserError(f"image_size: expected a multiple of {PATCH} of at least {4 * PATCH}, "
                        f"received {config.image_size}")
    text = TextTower(
        vocab_size=config.vocab_size, context_length=config.text_positions, width=config.text_width,
        heads=config.text_heads, layers=config.text_layers, embed=config.text_embed,
        adapter_blocks=config.text_adapter_blocks if config.text_adapter == "dense" else (),
        adapter_width=config.text_adapter_width)
    if pretrained:
        load_clip(text, config)
    backbone = _vision_backbone(config, pretrained=pretrained)
    vision = VisionTower(
        backbone, image_size=config.image_size, adapter=config.vision_adapter,
        adapter_blocks=config.vision_adapter_blocks, adapter_width=config.vision_adapter_width,
        text_width=config.text_width, words=config.context_length, taps=config.taps)
    neck = Neck(image_width=backbone.embed_dim, sentence_width=config.text_embed, width=config.width, grid=config.grid)
    decoder = Decoder(layers=config.decoder_layers, width=config.width, heads=config.decoder_heads,
                      text_width=config.text_width, words=config.context_length, hidden=config.decoder_hidden,
                      grid=config.grid, dropout=config.dropout)
    projector = Projector(width=config.width, mask_width=config.mask_width, sentence_width=config.text_embed,
                          grid=config.grid)
    return TalentModel(text=text, vision=vision, neck=neck, decoder=decoder, projector=projector)


def _vision_backbone(config: ModelConfig, *, pretrained: bool) -> nn.Module:
    timm = require("timm", extra="train")
    sizes = {name: value for name, value in (("embed_dim", config.vision_width), ("depth", config.vision_depth),
                                             ("num_heads", config.vision_heads)) if value}
    if pretrained and sizes:
        raise UserError(f"preset {config.preset!r} has no pretrained backbone; train it without --pretrained")
    try:
        return timm.create_model(config.vision_backbone, pretrained=pretrained, num_classes=0,
                                 img_size=config.position_grid * PATCH, init_values=config.layer_scale, **sizes)
    except OSError as error:
        raise UserError(f"the weights of {config.vision_backbone} cannot be downloaded ({error}); on a machine with "
                        "internet run: python -c \"import timm; timm.create_model("
                        f"'{config.vision_backbone}', pretrained=True)\" and copy its Hugging Face cache here "
                        "(HF_HOME)") from error


def load_clip(text: TextTower, config: ModelConfig) -> None:
    """Load OpenAI's CLIP text weights through open_clip into the tower; adapters keep their values."""
    if not config.text_backbone:
        raise UserError(f"preset {config.preset!r} has no pretrained text tower; train it without --pretrained")
    open_clip = require("open_clip", extra="train")
    try:
        clip = open_clip.create_model(config.text_backbone, pretrained="openai")
    except (OSError, RuntimeError) as error:
        raise UserError(f"the weights of {config.text_backbone} cannot be downloaded ({error}); on a machine with "
                        f"internet run: python -c \"import open_clip; open_clip.create_model('{config.text_backbone}', "
                        "pretrained='openai')\" and copy its cache here (HF_HOME)") from error
    own = set(text.state_dict())
    weights = {k: v for k, v in from_clip(clip.state_dict()).items() if k in own}
    missing = [k for k in text.load_state_dict(weights, strict=False).missing_keys if ".adapter." not in k]
    if missing:
        raise RuntimeError(f"CLIP's text weights lack {missing}")
