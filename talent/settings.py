"""Settings of a training run: defaults, then a YAML file, then the command line (jsonargparse)."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from talent.config import preset
from talent.data.registry import DATASETS
from talent.errors import UserError, suggest
from talent.losses import LossWeights
from talent.model.lora import TUNINGS, LoraSettings
from talent.require import require

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainSettings:
    """One training run.

    Args:
        output: directory of the run: last/, best/ and metrics.jsonl go there
        preset: tiny, small, base or large; taken from `init` where that is given
        init: checkpoint directory to start from
        pretrained: start from the published DINOv2 and CLIP weights (downloads once)
        tune: full, adapters, lora or lora+adapters
        lora: rank, alpha and dropout of LoRA
        train_heads: train neck, decoder and projector too (always in "full")
        data: shapes or shapes-shifted
        train_samples: size of the training split
        val_samples: size of the validation split
        steps: optimiser steps of the whole run
        batch_size: samples per process and step
        learning_rate: peak, after the warm-up
        weight_decay: of AdamW, on matrices only
        warmup_steps: linear warm-up, then cosine to 0
        clip: largest gradient norm
        losses: weights of the target-aware losses
        precision: fp32, bf16 or fp16 autocast
        validate_every: steps between validations (each saves a checkpoint)
        workers: processes that load data
        seed: of weights, data order and dropout
        resume: go on with the run in `output`
        cpu: do not use a GPU
    """

    output: str
    preset: str = "base"
    init: str | None = None
    pretrained: bool = False
    tune: str = "lora+adapters"
    lora: LoraSettings = field(default_factory=LoraSettings)
    train_heads: bool = True
    data: str = "shapes"
    train_samples: int = 20000
    val_samples: int = 200
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int = 50
    clip: float = 1.0
    losses: LossWeights = field(default_factory=LossWeights)
    precision: str = "fp32"
    validate_every: int = 500
    workers: int = 1
    seed: int = 0
    resume: bool = False
    cpu: bool = False

    def check(self) -> None:
        """Raise UserError for values that no run can have."""
        preset(self.preset)
        for name, value, known in (("tune", self.tune, TUNINGS), ("data", self.data, DATASETS),
                                   ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise UserError(f"{name}: expected one of {', '.join(known)}, received {value!r}"
                                f"{suggest(value, known)}")
        for name, value in (("train_samples", self.train_samples), ("val_samples", self.val_samples),
                            ("steps", self.steps), ("batch_size", self.batch_size),
                            ("validate_every", self.validate_every), ("lora.rank", self.lora.rank)):
            if value < 1:
                raise UserError(f"{name}: expected at least 1, received {value}")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


EXAMPLE = """example:
  talent-train --config recipes/tiny.yaml -o runs/tiny
  talent-train --init weights/tiny --data shapes-shifted --tune lora -o runs/shifted --steps 300
"""


def parse_settings(argv: Sequence[str] | None) -> TrainSettings:
    """Settings of the command line; unknown keys, there or in the YAML, raise a UserError with the nearest one."""
    jsonargparse = require("jsonargparse", extra="train")
    parser = jsonargparse.ArgumentParser(
        prog="talent-train", exit_on_error=False, allow_abbrev=False, epilog=EXAMPLE,
        description="Train or fine-tune TALENT (full, adapters, LoRA).",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_class_arguments(TrainSettings, skip={"output"})
    parser.add_argument("-o", "--output", required=True, help="directory of the run")
    try:
        parsed = parser.parse_args(_config_first(argv))
        for name, value in parsed.items():  # jsonargparse lets a null in the YAML pass for every type
            if value is None and name not in ("config", "init", "losses.cpcl", "losses.tccl"):
                raise UserError(f"{name}: expected a value, received null; leave the line out to take the default")
        values = parser.instantiate(parsed)
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(_advice(str(error))) from error
    del values["config"]
    settings = TrainSettings(**vars(values))
    settings.check()
    return settings


def _config_first(argv: Sequence[str] | None) -> list[str]:
    """The arguments with --config in front: jsonargparse lets the last one win, but the command line always should."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    found, rest = finder.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    return [f"--config={path}" for path in found.config] + rest


def _advice(message: str) -> str:
    """jsonargparse's message on one line, with the nearest known setting where a name is unknown."""
    message = " ".join(message.split())
    unknown = re.search(r"(?:unrecognized arguments: --|Option '|Key ')(?P<name>[\w.-]+)"
                        r"|Group '(?P<group>\w+)' does not accept option '(?P<option>\w+)'", message)
    if not unknown:
        return message
    name = unknown["name"] or f"{unknown['group']}.{unknown['option']}"
    known = [f.name for f in dataclasses.fields(TrainSettings)]
    known += [f"{group}.{f.name}" for group, cls in (("lora", LoraSettings), ("losses", LossWeights))
              for f in dataclasses.fields(cls)]
    return f"unknown setting {name!r}{suggest(name, known)}"


