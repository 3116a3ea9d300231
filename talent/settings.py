"""Settings of a training run: defaults, then a YAML file, then the command line (jsonargparse)."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from talent.config import plain, preset
from talent.data.registry import check_name
from talent.errors import UserError, suggest
from talent.evaluate import PRECISIONS
from talent.losses import LossWeights
from talent.model.lora import TUNINGS, LoraSettings
from talent.require import require

LARGEST_SEED = 2**32 - 1  # that NumPy takes
SCHEDULES = ("cosine", "step", "constant")
# In a run that goes on; anything else would make another run of it. Of batch_size and accumulate only the product with
# the number of processes has to stay (RunDirectory.check_global_batch).
MAY_CHANGE = ("output", "resume", "workers", "cpu", "validate_every", "val_samples", "save_every", "log_every",
              "checkpointing", "data_root", "batch_size", "accumulate")


@dataclass(frozen=True)
class TrainSettings:
    """One training run.

    Args:
        output: directory of the run (last/, best/, metrics.jsonl, curves.png and more)
        preset: tiny, small, base or large; taken from `init` where that is given
        context_length: tokens of a sentence where not the preset's (RefCOCOg: 22); not with `init`
        init: checkpoint directory to start from
        pretrained: start from the published DINOv2 and CLIP weights (downloads once)
        tune: full, adapters, lora or lora+adapters
        lora: rank, alpha, dropout and targets of LoRA
        train_heads: train neck, decoder and projector too (always in "full")
        qat: train and validate through the rounding of INT8, so that best/ is what loses least with talent-export
            --int8; with any `tune`, usually a short run from a trained network
        data: shapes, shapes-shifted, refcoco, refcoco+, refcocog, refcocog-google, or a .jsonl file (docs/data.md)
        data_root: folder of RefCOCO's files
        train_samples: use at most so many samples of the training split
        val_samples: use at most so many samples of the validation split
        val_split: name of the validation split
        steps: optimiser steps of the whole run
        epochs: passes over the training split, in the place of `steps`
        batch_size: samples per process and step
        accumulate: batches whose gradients make one optimiser step
        learning_rate: peak, after the warm-up
        schedule: cosine (to 0), step (times `gamma` at every milestone) or constant
        milestones: of the step schedule, as shares of the run
        gamma: of the step schedule
        weight_decay: of AdamW, on matrices only
        warmup_steps: linear warm-up
        clip: largest gradient norm
        ema: decay of an exponential moving average of the weights, which is then validated and kept in best/; 0: none
        losses: target-aware learning and its weights
        precision: fp32, bf16 or fp16 autocast
        checkpointing: compute the blocks again in the backward pass: less memory, more time
        validate_every: steps between validations
        save_every: steps between checkpoints (a validation saves one too)
        log_every: steps between lines in metrics.jsonl
        workers: processes that load data
        seed: of weights, data order and dropout
        resume: go on with the run in `output`
        cpu: do not use a GPU
    """

    output: str
    preset: str = "base"
    context_length: int | None = None
    init: str | None = None
    pretrained: bool = False
    tune: str = "lora+adapters"
    lora: LoraSettings = field(default_factory=LoraSettings)
    train_heads: bool = True
    qat: bool = False
    data: str = "shapes"
    data_root: str | None = None
    train_samples: int | None = None
    val_samples: int | None = None
    val_split: str = "val"
    steps: int = 1000
    epochs: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (35 / 65, 55 / 65)
    gamma: float = 0.1
    weight_decay: float = 0.0
    warmup_steps: int = 50
    clip: float = 1.0
    ema: float = 0.0
    losses: LossWeights = field(default_factory=LossWeights)
    precision: str = "fp32"
    checkpointing: bool = False
    validate_every: int = 500
    save_every: int = 500
    log_every: int = 10
    workers: int = 1
    seed: int = 0
    resume: bool = False
    cpu: bool = False

    def check(self) -> None:
        """Raise UserError for values that no run can have."""
        preset(self.preset)
        check_name(self.data)
        for name, value, known in (("tune", self.tune, TUNINGS), ("schedule", self.schedule, SCHEDULES),
                                   ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise UserError(f"{name}: expected one of {', '.join(known)}, received {value!r}"
                                f"{suggest(value, known)}")
        for name in ("train_samples", "val_samples", "steps", "batch_size", "accumulate", "validate_every",
                     "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, received {value}")
        for name in ("warmup_steps", "workers", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: expected at least 0, received {getattr(self, name)}")
        if self.seed > LARGEST_SEED:
            raise UserError(f"seed: expected at most {LARGEST_SEED}, received {self.seed}")
        for name in ("learning_rate", "clip", "gamma", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}: expected a number above 0, received {value}")
        longest = preset(self.preset).text_positions
        if self.context_length is not None and (self.init or not 3 <= self.context_length <= longest):
            raise UserError(f"context_length: expected 3 to {longest} tokens and no --init, whose network has its own, "
                            f"received {self.context_length}{f' with --init {self.init}' if self.init else ''}")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema: expected a decay from 0 (none) to below 1, such as 0.999, received {self.ema}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < share < 1 for share in self.milestones):
            raise UserError("milestones: expected shares of the run between 0 and 1 in rising order, received "
                            f"{list(self.milestones)}")

    def to_dict(self) -> dict:
        """Plain values, as YAML and JSON have them."""
        return plain(dataclasses.asdict(self))

    def differences(self, other: dict) -> list[str]:
        """`name: expected x, received y` for each setting of `other` (to_dict) that a resumed run must share."""
        own = _flat(self.to_dict())
        return [f"{name}: expected {value!r}, received {own[name]!r}" for name, value in _flat(other).items()
                if name in own and name not in MAY_CHANGE and own[name] != value]


def _flat(values: dict) -> dict:
    flat = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


OPTIONAL = ("config", "context_length", "init", "data_root", "train_samples", "val_samples", "epochs", "losses.cpcl",
            "losses.tccl")
FLAGS = ("--qat",)  # may stand without a value
EXAMPLE = """examples:
  talent-train --config recipes/tiny.yaml -o runs/tiny
  talent-train --init weights/tiny --data shapes-shifted --tune lora -o runs/shifted --steps 300
  talent-train --config recipes/mine.yaml --init weights/tiny --data data.jsonl -o runs/mine
  talent-train --init runs/mine/best --data data.jsonl --tune lora --qat --steps 300 -o runs/mine-int8
  talent-train --config recipes/refcoco-base.yaml --pretrained true --data_root coco -o runs/refcoco
  talent-train --config recipes/refcoco-base.yaml --pretrained true --data_root coco -o runs/refcoco --resume true
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
        parsed = parser.parse_args(_flags_with_values(_config_first(argv)))
        for name, value in parsed.items():  # jsonargparse lets a null in the YAML pass for every type
            if value is None and name not in OPTIONAL:
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


def _flags_with_values(argv: Sequence[str]) -> list[str]:
    """The arguments with `--qat true` in the place of `--qat` alone: jsonargparse wants a value for every setting."""
    followers = [*argv[1:], "-"]
    return [f"{argument}=true" if argument in FLAGS and follower.startswith("-") else argument
            for argument, follower in zip(argv, followers, strict=True)]


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


