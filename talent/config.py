"""Sizes of the network: the presets and what they are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from talent.errors import UserError, refuse_unknown, suggest
from talent.image import THRESHOLD

CLIP_VOCABULARY = 49408


def plain(value):
    """The same value with lists in the place of tuples, at every depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a network.

    vision_backbone: a timm name; vision_width, vision_depth and vision_heads replace its own sizes where not 0.
    text_backbone: an open_clip name whose pretrained text weights fit, or "" when there is none.
    position_grid: side of the position table (37 in DINOv2), interpolated to image_size / 14.
    vision_adapter: dense | rca | none; text_adapter: dense | none (model.md).
    width: neck, decoder and projector; mask_width: channels under the dynamic kernel; image_size in pixels.
    threshold: probability above which a pixel is the object (the paper's 0.35; tiny's was chosen on the val split).
    """

    preset: str
    image_size: int = 448
    context_length: int = 17
    vocab_size: int = CLIP_VOCABULARY
    text_backbone: str = "ViT-B-16-quickgelu"
    text_positions: int = 77
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    text_embed: int = 512
    text_adapter: str = "dense"
    text_adapter_width: int = 64
    text_adapter_blocks: tuple[int, ...] = (1, 3, 5, 7, 9, 11)
    vision_backbone: str = "vit_base_patch14_reg4_dinov2"
    vision_width: int = 0
    vision_depth: int = 0
    vision_heads: int = 0
    layer_scale: float = 1e-5
    position_grid: int = 37
    vision_adapter: str = "dense"
    vision_adapter_width: int = 128
    vision_adapter_blocks: tuple[int, ...] = (1, 3, 5, 7, 9, 11)
    taps: tuple[int, ...] = (4, 8, 11)
    width: int = 512
    mask_width: int = 256
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_hidden: int = 512
    dropout: float = 0.1
    threshold: float = THRESHOLD

    @property
    def grid(self) -> int:
        """Image tokens per side."""
        return self.image_size // 14

    def to_dict(self) -> dict:
        """Plain values, as YAML and JSON have them."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        refuse_unknown(values, (field.name for field in fields(cls)), what="model setting")
        if "preset" not in values:
            raise UserError("the model setting 'preset' is missing")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


PRESETS = {
    "tiny": ModelConfig(
        preset="tiny", image_size=168, context_length=20, vocab_size=4096, text_backbone="", text_positions=20,
        text_width=96, text_heads=3, text_layers=3, text_embed=96, text_adapter="none", text_adapter_blocks=(),
        vision_backbone="vit_small_patch14_reg4_dinov2", vision_width=128, vision_depth=6, vision_heads=2,
        layer_scale=1.0, position_grid=12, vision_adapter="rca", vision_adapter_width=64,
        vision_adapter_blocks=(1, 3, 5), taps=(1, 3, 5), width=96, mask_width=48, decoder_layers=2, decoder_heads=2,
        decoder_hidden=192, dropout=0.0, threshold=0.5),
    "small": ModelConfig(
        preset="small", image_size=406, text_adapter="none", text_adapter_blocks=(),
        vision_backbone="vit_small_patch14_reg4_dinov2", vision_adapter="rca", width=256, mask_width=128,
        decoder_hidden=256),
    "base": ModelConfig(preset="base"),
    "large": ModelConfig(
        preset="large", vision_backbone="vit_large_patch14_reg4_dinov2", vision_adapter_blocks=(2, 6, 10, 14, 18, 22),
        taps=(8, 16, 23)),
}


def preset(name: str) -> ModelConfig:
    """The preset called `name`, or a UserError that suggests the nearest."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{suggest(name, PRESETS)}")
    return PRESETS[name]
