"""Checkpoints: a directory with model.safetensors, tokenizer.json and config.yaml (no pickle for weights)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from talent import provenance
from talent.config import ModelConfig
from talent.errors import UserError
from talent.files import atomic_directory
from talent.model import TalentModel, build_model
from talent.model.lora import LoraSettings, add_lora
from talent.require import require
from talent.tokenizer import Tokenizer, build_clip_tokenizer

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.yaml"
FORMAT = 1
PACKAGES = ("torch", "timm", "open_clip_torch", "peft", "numpy")


@dataclass
class Checkpoint:
    """A network with everything that is needed to go on from it. lora: its settings where factors are not merged."""

    model: TalentModel
    config: ModelConfig
    tokenizer: Tokenizer
    lora: LoraSettings | None = None
    training: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)


def new_checkpoint(config: ModelConfig, *, pretrained: bool = False) -> Checkpoint:
    """A fresh network of `config` with its tokenizer."""
    tokenizer = build_clip_tokenizer(context_length=config.context_length, vocab_size=config.vocab_size)
    return Checkpoint(build_model(config, pretrained=pretrained), config, tokenizer)


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, half: bool = False, extra: dict | None = None) -> None:
    """Write the directory `path` whole or not at all. half: weights as float16. extra: {file name: bytes writer}."""
    with atomic_directory(path, marker=CONFIG) as directory:
        write_checkpoint(checkpoint, directory, half=half)
        for name, write in (extra or {}).items():
            write(directory / name)


def write_checkpoint(checkpoint: Checkpoint, directory: Path, *, half: bool = False) -> None:
    """The three files of a checkpoint, into an existing directory."""
    safetensors = require("safetensors.torch", extra="train")
    yaml = require("yaml", extra="train")
    weights = {k: _stored(v, half) for k, v in checkpoint.model.state_dict().items()}
    safetensors.save_file(weights, directory / WEIGHTS)
    checkpoint.tokenizer.save(directory / TOKENIZER)
    content = {
        "format": FORMAT,
        "model": checkpoint.config.to_dict(),
        "lora": checkpoint.lora.to_dict() if checkpoint.lora else None,
        "training": checkpoint.training,
        "metrics": checkpoint.metrics,
        "commit": provenance.commit(),
        "versions": provenance.versions(*PACKAGES),
    }
    (directory / CONFIG).write_text(yaml.safe_dump(content, sort_keys=False))


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def _loaded(tensor: Tensor) -> Tensor:
    """A copy in memory of its own: in the mapped file tensors lie anywhere, and kernels round by how they lie."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def network_of(config: ModelConfig, lora: LoraSettings | None, weights: dict[str, Tensor]) -> TalentModel:
    """The network of these settings with these very tensors, in eval mode; buffers that are no weights are built anew.

    Raises RuntimeError for weights that do not fit, UserError for settings that no network has.
    """
    # Parameters without memory, which need no time to be drawn.
    with require("accelerate", extra="train").init_empty_weights(include_buffers=False):
        model = build_model(config)
        if lora:
            add_lora(model, lora)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_config(path: str | Path) -> ModelConfig:
    """The sizes of a checkpoint directory's network, without reading its weights.

    Raises UserError where the directory is missing, incomplete or of a newer format.
    """
    return _settings(Path(path), _content(Path(path)))[0]


def _content(path: Path) -> dict:
    """What CONFIG says, of a directory that has all files of a checkpoint. Raises UserError."""
    yaml = require("yaml", extra="train")
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: expected a directory with {WEIGHTS}, {TOKENIZER} and {CONFIG}; "
                        "make one with talent-train or talent-import")
    for name in (WEIGHTS, TOKENIZER, CONFIG):
        if not (path / name).is_file():
            raise UserError(f"{path} is not a checkpoint: {name} is missing; expected a directory that talent-train or "
                            "talent-import wrote")
    try:
        content = yaml.safe_load((path / CONFIG).read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path / CONFIG} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path / CONFIG}: expected 'format' and the settings of 'model', received "
                        f"{list(content) if isinstance(content, dict) else type(content).__name__}")
    if content.get("format") != FORMAT:
        raise UserError(f"{path / CONFIG}: expected format {FORMAT}, received {content.get('format')!r}; "
                        "a newer talent-edge wrote it: pip install --upgrade talent-edge")
    return content


def _settings(path: Path, content: dict) -> tuple[ModelConfig, LoraSettings | None]:
    """content: of CONFIG in the directory `path`. Raises UserError."""
    try:
        config = ModelConfig.from_dict(content["model"])
        return config, LoraSettings.from_dict(content["lora"]) if content.get("lora") else None
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {error}") from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory; the model is in eval mode, LoRA factors unmerged.

    Raises UserError where the directory is missing, incomplete, of a newer format, or does not fit its config.
    """
    path = Path(path)
    safetensors = require("safetensors", extra="train")
    content = _content(path)
    config, lora = _settings(path, content)
    try:
        with safetensors.safe_open(path / WEIGHTS, framework="pt") as file:
            weights = {key: _loaded(file.get_tensor(key)) for key in file.keys()}
        model = network_of(config, lora, weights)
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {error}") from error
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"{path / WEIGHTS} does not hold the weights that {CONFIG} describes: "
                        f"{' '.join(str(error).split())[:300]}") from error
    tokenizer = Tokenizer.load(path / TOKENIZER, config.context_length)
    return Checkpoint(model, config, tokenizer, lora, training=content.get("training") or {},
                      metrics=content.get("metrics") or {})
