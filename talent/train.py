"""talent-train: full, adapter or LoRA tuning on a CPU, one GPU or several (Hugging Face accelerate)."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from talent.checkpoint import CONFIG, Checkpoint, load_checkpoint, new_checkpoint, save_checkpoint
from talent.config import preset
from talent.data.batches import RunSampler, TrainingSet
from talent.data.registry import open_dataset
from talent.errors import UserError, command
from talent.evaluate import evaluate, torch_predictor
from talent.losses import Losses, LossWeights, talent_losses
from talent.model import TalentModel
from talent.model.lora import add_lora, parameter_counts, select_trainable, set_training_mode
from talent.model.talent import TalentOutput
from talent.require import require
from talent.settings import TrainSettings, parse_settings

STATE = "training_state.pt"
LAST, BEST, LOG = "last", "best", "metrics.jsonl"


def starting_point(settings: TrainSettings) -> Checkpoint:
    """The network that the run starts with, LoRA factors added and trainable parameters chosen."""
    if settings.resume:
        checkpoint = load_checkpoint(Path(settings.output) / LAST)
    elif settings.init:
        checkpoint = load_checkpoint(settings.init)
    else:
        checkpoint = new_checkpoint(preset(settings.preset), pretrained=settings.pretrained)
    if "lora" in settings.tune and checkpoint.lora is None:
        add_lora(checkpoint.model, settings.lora)
        checkpoint.lora = settings.lora
    select_trainable(checkpoint.model, tune=settings.tune, train_heads=settings.train_heads)
    checkpoint.training = settings.to_dict() | {"preset": checkpoint.config.preset}
    return checkpoint


def build_optimizer(model: TalentModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over what is trainable; weight decay on matrices only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
              {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batch_losses(output: TalentOutput, batch: dict, model: TalentModel, weights: LossWeights) -> Losses:
    """Losses of one batch. States that are not as wide as the neck pass `txt_proj` before the contrast."""
    contrast = output.contrast
    if contrast is not None and contrast.shape[2] != output.sentence.shape[1]:
        contrast = model.neck.txt_proj(contrast)
    return talent_losses(output, contrast, batch, weights)


class Run:
    """A training run: where it stands, and how it is saved and taken up again."""

    def __init__(self, settings: TrainSettings):
        accelerate = require("accelerate", extra="train")
        self.settings = settings
        self.output = Path(settings.output)
        self.accelerator = accelerate.Accelerator(
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision), cpu=settings.cpu)
        accelerate.utils.set_seed(settings.seed)
        self.checkpoint = starting_point(settings)
        self.step, self.best = 0, -1.0
        optimizer = build_optimizer(self.checkpoint.model, settings)
        if settings.resume:
            self._restore(optimizer)
        self.loader = self._loader()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.checkpoint.model, optimizer, self.loader)

    @property
    def network(self) -> TalentModel:
        return self.checkpoint.model

    def _loader(self) -> torch.utils.data.DataLoader:
        s, config = self.settings, self.checkpoint.config
        samples = open_dataset(s.data, split="train", size=config.image_size, length=s.train_samples)
        dataset = TrainingSet(samples, self.checkpoint.tokenizer, image_size=config.image_size, seed=s.seed)
        processes = self.accelerator.num_processes  # accelerate deals whole batches to the processes in turn
        sampler = RunSampler(length=s.train_samples, batch_size=s.batch_size, batches=s.steps * processes, seed=s.seed,
                             start=self.step * processes)
        # The loader draws its workers' seeds from a generator of its own: the global one belongs to dropout, which must
        # go on after a resume as if nothing had happened.
        return torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=s.workers,
                                           persistent_workers=False, generator=torch.Generator())

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        state = torch.load(self.output / LAST / STATE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        torch.set_rng_state(state["rng"])

    def _write_state(self, path: Path) -> None:
        torch.save({"optimizer": self.optimizer.state_dict(), "step": self.step, "best": self.best,
                    "rng": torch.get_rng_state()}, path)

    def train(self) -> None:
        """Run to the last step, validating and saving on the way."""
        settings, accelerator = self.settings, self.accelerator
        self.output.mkdir(parents=True, exist_ok=True)  # not before: a run that cannot start leaves nothing behind
        set_training_mode(self.network)
        with tqdm(total=settings.steps, initial=self.step, desc="train", unit="step",
                  disable=None if accelerator.is_main_process else True) as bar:
            for batch in self.loader:
                started = time.perf_counter()
                losses = self._update(batch)
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{losses.total.item():.3f}", best=f"{max(self.best, 0):.3f}",
                                samples_s=f"{settings.batch_size / (time.perf_counter() - started):.0f}")
                if self.step % settings.validate_every == 0 or self.step == settings.steps:
                    self._validate_and_save(losses)

    def _update(self, batch: dict) -> Losses:
        tokens = batch["tokens"]  # [B, 3, L]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        contrast = None if self.settings.losses.tlm == "none" else tokens[:, 1:]
        output = self.model(batch["image"], tokens[:, 0], contrast)
        losses = batch_losses(output, batch, self.network, self.settings.losses)
        if not torch.isfinite(losses.total):
            raise UserError(f"the loss became {losses.total.item()} at step {self.step}; lower --learning_rate or use "
                            "--precision fp32; the last checkpoint is whole: "
                            f"{self.output / LAST}")
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.total)
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step()
        return losses

    def _validate_and_save(self, losses: Losses) -> None:
        if self.accelerator.is_main_process:
            metrics = self.validate()
            line = {"step": self.step, "learning_rate": learning_rate(self.step - 1, self.settings),
                    "loss": losses.total.item(), "segmentation": losses.segmentation.item(),
                    "cpcl": losses.cpcl.item(), "tccl": losses.tccl.item(), **metrics}
            with open(self.output / LOG, "a") as log:
                log.write(json.dumps(line) + "\n")
            tqdm.write(f"step {self.step}: loss {line['loss']:.3f}, validation mIoU {metrics['mIoU']:.4f}")
            self.checkpoint.metrics = {"step": self.step, **metrics}
            if metrics["mIoU"] > self.best:
                self.best = metrics["mIoU"]
                save_checkpoint(self.checkpoint, self.output / BEST)
            save_checkpoint(self.checkpoint, self.output / LAST, extra={STATE: self._write_state})
        self.accelerator.wait_for_everyone()

    def validate(self) -> dict[str, float]:
        """Metrics on the validation split."""
        config = self.checkpoint.config
        samples = open_dataset(self.settings.data, split="val", size=config.image_size,
                               length=self.settings.val_samples)
        self.network.eval()
        metrics = evaluate(torch_predictor(self.network), self.checkpoint.tokenizer, samples,
                           image_size=config.image_size,
                           threshold=config.threshold, label="validate")
        set_training_mode(self.network)
        return metrics.result()


def check_output(settings: TrainSettings) -> None:
    """A run never overwrites another one: the directory is new, or `resume` is set and it holds a run."""
    output = Path(settings.output)
    holds_run = (output / LAST / CONFIG).is_file()
    if output.exists() and not output.is_dir():
        raise UserError(f"cannot write a run to {output}: it is a file, expected a directory or a free name")
    if settings.resume and not (output / LAST / STATE).is_file():
        raise UserError(f"nothing to resume in {output}: no {LAST}/{STATE}; leave --resume out to start a run")
    if not settings.resume and holds_run:
        raise UserError(f"{output} already holds a run; add --resume true to go on with it, or name another directory")


@command("talent-train")
def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_settings(argv)
    check_output(settings)
    run = Run(settings)
    if run.accelerator.is_main_process:
        trainable, total = parameter_counts(run.network)
        print(f"tuning {settings.tune}: {trainable:,} of {total:,} parameters are trainable ({trainable / total:.1%}); "
              f"device {run.accelerator.device}, precision {settings.precision}, {os.cpu_count()} CPU cores")
    run.train()
    if run.accelerator.is_main_process:
        print(f"best validation mIoU {run.best:.4f}; checkpoints: {run.output / BEST} and {run.output / LAST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
