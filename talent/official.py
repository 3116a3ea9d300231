"""Checkpoints of the official TALENT code: their keys, renamed to this project's.

Source: the official repository (Apache-2.0, Kimsure/TALENT) writes a dict whose `state_dict` has these keys behind
`module.`. Here the class position is added to the class token, the 1x1 (transposed) convolutions of the neck are linear
layers, and fused query-key-value weights of the decoder are three.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from talent.config import ModelConfig, preset
from talent.errors import UserError, suggest
from talent.model import TalentModel, build_model
from talent.model.text import from_clip

PRESETS = ("base", "large")  # those that official checkpoints exist for

# Entries of the official file that no computation reads.
UNUSED = re.compile(r"txt_backbone\.logit_scale|dinov2\.mask_token")

Rename = tuple[str, str]
DENSE: list[Rename] = [
    (r"dense_branch1\.", "branches.branch1."),
    (r"dense_branch([23])\.([01])\.", r"branches.branch\1.\2."),
    (r"\.conv\.(weight|bias)$", r".0.\1"),
    (r"\.bn\.", ".1."),
    (r"\.D_fc([12])\.", r".fc\1."),
    (r"\.adapter\.cross\.", ".adapter.rca."),
]
VISION: list[Rename] = [
    (r"^dinov2\.patch_embed\.proj\.", "vision.patch_embed."),
    (r"^dinov2\.register_tokens$", "vision.reg_token"),
    (r"^dinov2\.(.*)\.ls_gate\.gamma$", r"vision.\1.ls_gate"),
    (r"^dinov2\.", "vision."),
]
NECK: list[Rename] = [
    (r"^neck\.fusion([345])\.txt_lin\.0\.", r"neck.fusions.\1.text."),
    (r"^neck\.fusion([345])\.out_conv\.0\.", r"neck.fusions.\1.gate.linear."),
    (r"^neck\.fusion([345])\.out_conv\.1\.", r"neck.fusions.\1.gate.norm."),
    (r"^neck\.f([345])_proj\.0\.", r"neck.projections.\1.linear."),
    (r"^neck\.f([345])_proj\.1\.", r"neck.projections.\1.norm."),
    (r"^neck\.aggr\.0\.", "neck.aggregation.linear."),
    (r"^neck\.aggr\.1\.", "neck.aggregation.norm."),
    (r"^neck\.coordconv\.0\.conv1\.", "neck.coord_conv.0."),
    (r"^neck\.coordconv\.1\.", "neck.coord_conv.1."),
]
DECODER: list[Rename] = [
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"\.out_proj\.", ".proj."),
]
PROJECTOR: list[Rename] = [
    (r"^proj\.vis\.1\.", "projector.conv1."),
    (r"^proj\.vis\.3\.", "projector.conv2."),
    (r"^proj\.vis\.4\.", "projector.conv3."),
    (r"^proj\.txt\.", "projector.txt."),
]


def _rename(key: str, rules: list[Rename]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _scale_index(key: str) -> str:
    """The official code counts its scales 3, 4, 5."""
    return re.sub(r"(fusions|projections)\.([345])\.", lambda m: f"{m[1]}.{int(m[2]) - 3}.", key)


def _entries(key: str, value: Tensor) -> dict[str, Tensor]:
    """One official entry in this project's names (the decoder's fused weights give three)."""
    if key.startswith("txt_backbone."):
        (name, tensor), = from_clip({key.removeprefix("txt_backbone."): value}).items()
        return {"text." + _rename(name, DENSE): tensor}
    if key.startswith("dinov2."):
        return {_rename(key, VISION + (DENSE if ".adapter." in key else [])): value}
    if key.startswith("neck."):
        name = _scale_index(_rename(key, NECK))
        if name == "neck.projections.2.linear.weight":  # a transposed convolution: in x out
            value = value.transpose(0, 1)
        return {name: value.flatten(1) if name.endswith("linear.weight") else value}
    if key.startswith("decoder."):
        name = _rename(key, DECODER)
        if ".in_proj_" in name:
            return {name.replace("in_proj_", f"{part}."): chunk
                    for part, chunk in zip("qkv", value.chunk(3), strict=True)}
        return {name: value}
    return {_rename(key, PROJECTOR): value}


def _to_tensors(state_dict: Mapping) -> dict[str, Tensor]:
    return {key.removeprefix("module."): torch.as_tensor(value) for key, value in state_dict.items()}


class KeyMismatch(UserError):
    """A state dict that is not an official one. problems: what is wrong -> every key with that fault."""

    def __init__(self, problems: dict[str, list[str]]):
        self.problems = problems
        super().__init__(self.message())

    def message(self, most: int | None = None) -> str:
        """One line; `most` cuts each list of keys after that many."""
        faults = []
        for fault, keys in self.problems.items():
            left_out = 0 if most is None else max(0, len(keys) - most)
            shown = keys[:len(keys) - left_out] + ([f"and {left_out} more"] if left_out else [])
            faults.append(f"{len(keys)} {fault}: {', '.join(shown)}")
        return "the state dict is not an official TALENT checkpoint of this preset: " + "; ".join(faults)


def from_official(state_dict: Mapping, *, preset: str | ModelConfig) -> TalentModel:
    """The network with the weights of an official state dict (keys with or without `module.`), in eval mode.

    preset: "base" or "large" (or a ModelConfig, to change the image size). The number of words L is taken from
    `cost_proj` (17 for RefCOCO and RefCOCO+, 22 for RefCOCOg). Raises UserError listing missing, unexpected or
    misshapen keys.
    """
    return convert_official(state_dict, preset=preset)[1]


def convert_official(state_dict: Mapping, *, preset: str | ModelConfig) -> tuple[ModelConfig, TalentModel]:
    """`from_official` with the config of the network, whose `context_length` is the checkpoint's L."""
    config = _resolve(preset)
    official = _to_tensors(state_dict)
    words = [v.shape[1] for k, v in official.items() if k.endswith("cross.cost_proj.weight") and v.ndim == 2]
    if words:
        config = dataclasses.replace(config, context_length=words[0])
    weights: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for key, value in official.items():
        if UNUSED.fullmatch(key):
            continue
        for name, tensor in _entries(key, value).items():
            weights[name], sources[name] = tensor, key
    if {"vision.cls_token", "vision.pos_embed"} <= weights.keys():  # timm keeps no position for the class token
        position = weights["vision.pos_embed"]
        weights["vision.cls_token"] = weights["vision.cls_token"] + position[:, :1]
        weights["vision.pos_embed"] = position[:, 1:]
    model = build_model(config)
    _check_keys(model, weights, sources)
    model.load_state_dict(weights)
    return config, model.eval()


def _resolve(name: str | ModelConfig) -> ModelConfig:
    if isinstance(name, ModelConfig):
        return name
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r} of an official checkpoint{suggest(name, PRESETS)}")
    return preset(name)


def _check_keys(model: TalentModel, weights: dict[str, Tensor], sources: dict[str, str]) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted({sources[k] for k in weights.keys() - own.keys()})
    shapes = [f"{sources[k]} (gives {tuple(weights[k].shape)}, expected {tuple(own[k].shape)})"
              for k in sorted(own.keys() & weights.keys()) if own[k].shape != weights[k].shape]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        raise KeyMismatch({fault: keys for fault, keys in faults.items() if keys})


def load_official_file(path: Path) -> dict[str, Tensor]:
    """The `state_dict` inside an official .pth file. Only tensors are read: a pickle that wants more is refused."""
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own advice is to load the file unsafely
        raise UserError(f"{path}: expected a PyTorch checkpoint of tensors; it is something else, or holds code that "
                        "would run on loading; download it again from its source") from error
    except Exception as error:  # torch raises many kinds for a damaged file; each of them is bad input
        raise UserError(f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:150]}); "
                        "download it again") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and isinstance(value, Tensor)
                                                 for key, value in state.items()):
        raise UserError(f"{path}: expected a dict with 'state_dict', as the official code saves it")
    return dict(state)
