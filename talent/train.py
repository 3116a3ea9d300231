"""talent-train: full, adapter or LoRA tuning on a CPU, one GPU or many machines (Hugging Face accelerate)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from talent.checkpoint import Checkpoint, load_checkpoint, new_checkpoint
from talent.config import preset
from talent.curves import draw_curves
from talent.data.batches import RunSampler, TrainingSet
from talent.data.registry import open_dataset
from talent.data.sample import Samples
from talent.errors import EXIT_BAD_INPUT, UserError, command
from talent.evaluate import Predict, evaluate, torch_predictor
from talent.files import atomic_write
from talent.image import save_image
from talent.losses import Losses, talent_losses
from talent.metrics import SegmentationMetrics
from talent.model import TalentModel
from talent.model.checkpointing import set_gradient_checkpointing
from talent.model.fake_quantization import add_fake_quantization
from talent.model.fast_linear import set_fast_linear
from talent.model.lora import LoraSettings, add_lora, select_trainable, set_training_mode
from talent.model.summary import parameter_table, summarise
from talent.model.sync_batchnorm import synchronise_batchnorm
from talent.monitor import Monitor
from talent.optimisation import MovingAverage, build_optimizer, learning_rate
from talent.require import require
from talent.run_directory import BEST, CURVES, NONFINITE, PREDICTIONS, RunDirectory, saving
from talent.settings import TrainSettings, parse_settings
from talent.stopping import StopRequest, leave_signals_to_the_run
from talent.worst_cases import draw_worst_cases

__all__ = ["BEST", "Run", "main"]
NAMES = ("loss", "segmentation", "cpcl", "tccl")
SHOWN = 12  # validation samples on predictions.png
CALIBRATION = 64  # samples that give the first ranges of fake quantization, as many as talent-export takes


class Stopped(Exception):
    """A signal asked the run to end in the middle of a validation."""


class Diverged(UserError):
    """Losses or gradients that are not finite. Every process raises it, and one of them is enough to say it."""


def starting_point(settings: TrainSettings) -> Checkpoint:
    """The network that a new run starts with, LoRA factors added."""
    if settings.init:
        checkpoint = load_checkpoint(settings.init)
    else:
        config = preset(settings.preset)
        if settings.context_length:
            config = dataclasses.replace(config, context_length=settings.context_length)
        checkpoint = new_checkpoint(config, pretrained=settings.pretrained)
    if "lora" in settings.tune:
        if checkpoint.lora is None:
            add_lora(checkpoint.model, settings.lora)
            checkpoint.lora = settings.lora
        elif settings.lora not in (checkpoint.lora, LoraSettings()):
            raise UserError(f"lora: {settings.init} holds unmerged factors, expected their settings {checkpoint.lora} "
                            f"or none, received {settings.lora}; leave --lora.* out to go on with them")
    checkpoint.training = settings.to_dict() | {"preset": checkpoint.config.preset}
    return checkpoint


class Run:
    """A training run: where it stands, and how it is saved and taken up again.

    An optimiser step takes `global_batch` samples: batch_size of each process, `accumulate` times. Which samples, which
    of their sentences and which activations are dropped depend on the seed and the step alone, so that a run that was
    killed goes on as if it had not been.
    """

    def __init__(self, settings: TrainSettings, stop: StopRequest):
        self.settings, self.stop = settings, stop
        self.directory = RunDirectory(settings.output)
        self.directory.check(settings)
        self.accelerator = self._accelerator()
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.global_batch = settings.batch_size * self.processes * settings.accumulate
        if settings.resume:
            self.directory.check_global_batch(self.global_batch)
        require("accelerate.utils", extra="train").set_seed(settings.seed)
        resumed = settings.resume and self.directory.resumable
        self.checkpoint, state = self.directory.load_last() if resumed else (starting_point(settings), None)
        select_trainable(self.checkpoint.model, tune=settings.tune, train_heads=settings.train_heads)
        set_gradient_checkpointing(self.checkpoint.model, settings.checkpointing)
        set_fast_linear(self.checkpoint.model, self.accelerator.device.type == "cpu")
        if self.processes > 1:
            synchronise_batchnorm(self.checkpoint.model, gpu=self.accelerator.device.type == "cuda")
        self.samples = self._open("train", settings.train_samples)
        self.validation = self._open(settings.val_split, settings.val_samples)
        self.steps = (settings.steps if settings.epochs is None
                      else math.ceil(settings.epochs * len(self.samples) / self.global_batch))
        self.model, self.optimizer = self.accelerator.prepare(
            self.checkpoint.model, build_optimizer(self.checkpoint.model, settings))
        self.average = MovingAverage(self.network, settings.ema) if settings.ema else None
        self.quantization = add_fake_quantization(self.network) if settings.qat else None
        self.step = 0
        if state:
            self._restore(state)
        self.best = self.directory.best_miou() if resumed else -1.0

    def _accelerator(self):
        """Raises UserError for a precision that the device does not have; accelerate would take another in silence."""
        precision, reason = self.settings.precision, ""
        try:
            accelerator = require("accelerate", extra="train").Accelerator(
                mixed_precision="no" if precision == "fp32" else precision, cpu=self.settings.cpu)
        except ValueError as error:
            accelerator, reason = None, f" ({error})"
        if accelerator is None or precision != "fp32" and not accelerator.native_amp:
            raise UserError(f"precision: {precision} is not to be had on this device{reason}; fp16 needs a GPU, bf16 a "
                            "CPU or a GPU since Ampere; take --precision fp32")
        return accelerator

    @property
    def network(self) -> TalentModel:
        """The model itself, without what distributes it."""
        return self.checkpoint.model

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.accelerator.is_main_process

    def _open(self, split: str, length: int | None) -> Samples:
        return open_dataset(self.settings.data, split=split, size=self.checkpoint.config.image_size, length=length,
                            root=self.settings.data_root)

    def loader(self) -> torch.utils.data.DataLoader:
        """This process's batches from the present step to the last one."""
        s = self.settings
        dataset = TrainingSet(self.samples, self.checkpoint.tokenizer, image_size=self.checkpoint.config.image_size,
                              seed=s.seed)
        sampler = RunSampler(length=len(self.samples), batch_size=s.batch_size, batches=self.steps * s.accumulate,
                             seed=s.seed, start=self.step * s.accumulate, rank=self.rank, processes=self.processes)
        # Workers draw their seeds from a generator of their own: the global one belongs to dropout.
        return torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=s.workers,
                                           generator=torch.Generator(), worker_init_fn=leave_signals_to_the_run,
                                           pin_memory=self.accelerator.device.type == "cuda")

    def _state(self) -> dict:
        scaler = self.accelerator.scaler
        return {"step": self.step, "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "ranges": self.quantization.state_dict() if self.quantization else None,
                "scaler": scaler.state_dict() if scaler else None}

    def _restore(self, state: dict) -> None:
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])
        if self.quantization and state.get("ranges"):
            self.quantization.load_state_dict(state["ranges"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def describe(self) -> str:
        device = f"{self.processes} x {self.accelerator.device.type}"
        rounded = f", {len(self.quantization.layers)} layers through fake quantization" if self.quantization else ""
        return (f"{summarise(self.network)}\ntuning {self.settings.tune}: {self.steps} steps of {self.global_batch} of "
                f"{len(self.samples)} samples, from step {self.step}; device {device}, precision "
                f"{self.settings.precision}{rounded}, {os.cpu_count()} CPU cores")

    def train(self) -> int:
        """Run to the last step, validating and saving on the way; returns the signal that ended it early, or 0."""
        settings = self.settings
        if self.is_main:
            self.directory.begin(settings, {"global_batch": self.global_batch, "processes": self.processes,
                                            "device": str(self.accelerator.device),
                                            "parameters": parameter_table(self.network)})
            self.directory.rewind(self.step)
            print(self.describe())
        if self.quantization and not self.quantization.calibrated:
            self._calibrate()
        if not self.step:
            self._save_last()
        set_training_mode(self.network)
        batches = iter(self.loader())
        monitor = Monitor(self.directory, main=self.is_main, step=self.step, steps=self.steps,
                          samples=self.global_batch, best=self.best)
        with monitor:
            ended = 0
            if self.step and self._due(settings.validate_every) and not self._validated():
                ended = self._validate(monitor)  # the run was ended in the validation of this step
            while self.step < self.steps and not ended:
                values, ended = self._update(batches)
                self.step += 1
                monitor.step(self.step, values, log=self._due(settings.log_every))
                validate = self._due(settings.validate_every)
                if validate or ended or self._due(settings.save_every):
                    self._save_last()
                if validate and not ended:
                    ended = self._validate(monitor)
        return ended

    def _calibrate(self) -> None:
        """First ranges: what the network makes of the samples of the first steps with nothing rounded, as exported."""
        self.network.eval()
        batches, steps = iter(self.loader()), min(self.steps - self.step, math.ceil(CALIBRATION / self.global_batch))
        tqdm = require("tqdm", extra="train").tqdm
        with self.quantization.observing(rounding=False), torch.no_grad():
            for _ in tqdm(range(steps), desc="calibrate", leave=False, disable=None if self.is_main else True):
                for batch in self._next(batches):
                    image, tokens = (batch[name].to(self.accelerator.device) for name in ("image", "tokens"))
                    self.network(image, tokens[:, 0])
        self.quantization.update()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _validated(self) -> bool:
        return any(line["kind"] == "validation" and line["step"] == self.step for line in self.directory.lines())

    def _update(self, batches: Iterator[dict[str, Tensor]]) -> tuple[dict[str, float], int]:
        """One optimiser step. Returns its losses, mean over all processes, and the signal that ends the run, or 0."""
        settings, parts = self.settings, []
        rate = learning_rate(self.step, settings, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        together = self._next(batches)
        count = self._negatives(together)
        for number, batch in enumerate(together):
            batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            self._seed(number)
            last = number == settings.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self._losses(batch, count)
                self.accelerator.backward(losses.total / settings.accumulate)
            values = torch.stack([losses.total, losses.segmentation, losses.cpcl, losses.tccl]).detach()
            parts.append((values, batch["index"]))
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), settings.clip)
        # One exchange a step: the losses, and whether anybody was asked to stop.
        asked = torch.tensor([float(self.stop.signal)], device=self.accelerator.device)
        shared = torch.cat([torch.stack([values for values, _ in parts]).mean(0), asked])
        *means, signals = self.accelerator.reduce(shared, "mean").tolist()
        norm = float(norm)
        # Under fp16 a gradient that overflows is normal: the scaler leaves the step out and tries a smaller scale.
        if not math.isfinite(means[0]) or not (math.isfinite(norm) or settings.precision == "fp16"):
            self._refuse(parts, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.network)
        if self.quantization:
            self.quantization.update()
        values = dict(zip(NAMES, means, strict=True)) | {"learning_rate": rate, "gradient_norm": norm}
        return values, self._signal() if signals else 0

    def _signal(self) -> int:
        """The signal that ends the run; where another process received it, the one that ends jobs."""
        return self.stop.signal or signal.SIGTERM

    def _seed(self, number: int) -> None:
        """Dropout of this batch: depends on the seed, the step and the process, not on what ran before."""
        place = np.random.SeedSequence([self.settings.seed, self.step, number, self.rank])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _next(self, batches: Iterator[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The batches of one step. Raises UserError for a sample that cannot be read."""
        try:
            return [next(batches) for _ in range(self.settings.accumulate)]
        except UserError as error:  # from a worker it comes with a traceback in front
            raise UserError(str(error).rpartition("\ntalent.errors.UserError: ")[2].strip()) from error

    def _negatives(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """How many samples of a batch have a negative sentence, on average over the batches of a step in all processes.

        What TCCL is divided by: one mean over the samples of the step, not a mean of means.
        """
        count = torch.stack([batch["valid"].sum() for batch in batches]).float().mean()
        return self.accelerator.reduce(count.to(self.accelerator.device), "mean")

    def _losses(self, batch: dict[str, Tensor], count: Tensor) -> Losses:
        tokens = batch["tokens"]  # [B, 3, L]
        contrast = None if self.settings.losses.tlm == "none" else tokens[:, 1:]
        with self.quantization.observing() if self.quantization else contextlib.nullcontext():
            output = self.model(batch["image"], tokens[:, 0], contrast)
        return talent_losses(output, output.contrast, batch, self.settings.losses, count)

    def _refuse(self, parts: list[tuple[Tensor, Tensor]], norm: float) -> None:
        """Raise UserError for losses or gradients that are not finite, after writing down which samples made them."""
        gather = require("accelerate.utils", extra="train").gather_object
        own = [(values[0].item(), index.tolist()) for values, index in parts]
        bad = [(loss, indices) for loss, indices in gather(own) if not math.isfinite(loss)]
        what = f"the loss became {bad[0][0]}" if bad else f"the gradient's norm became {norm}"
        indices = [index for _, some in bad or gather(own) for index in some]
        report = self.directory.path / NONFINITE
        if self.is_main:
            samples = [{"index": index, "name": self.samples[index].name,
                        "expressions": list(self.samples[index].expressions)} for index in indices]
            with atomic_write(report) as temporary:
                temporary.write_text(json.dumps({"step": self.step + 1, "what": what, "samples": samples}, indent=2))
        raise Diverged(f"{what} at step {self.step + 1}, batch of samples {indices} (their names and sentences: "
                       f"{report}); start another run with a lower --learning_rate or --precision fp32; the last "
                       f"checkpoint is whole: --init {self.directory.last}")

    def _save_last(self) -> None:
        if self.is_main:
            self.checkpoint.metrics = {"step": self.step}
            self.directory.save_last(self.checkpoint, self._state())
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> contextlib.AbstractContextManager:
        return self.average.applied(self.network) if self.average else contextlib.nullcontext()

    def _validate(self, monitor: Monitor) -> int:
        """Metrics of this step; the best weights are kept. Returns the signal that ended it with nothing written, or 0.
        """
        with self._averaged():
            metrics = self._evaluate()
            if metrics is None:
                return self._signal()
            result = metrics.result()
            if result["mIoU"] > self.best:
                self.best = result["mIoU"]
                if self.is_main:
                    self.checkpoint.metrics = {"step": self.step, **result}
                    self.directory.save_best(self.checkpoint)
        monitor.validation(self.step, result, best=self.best)
        self.accelerator.wait_for_everyone()
        return 0

    def _evaluate(self) -> SegmentationMetrics | None:
        """Each process scores its share of the validation split; None where a signal ended it."""
        gather = require("accelerate.utils", extra="train").gather_object
        share = range(self.rank, len(self.validation), self.processes)
        self.network.eval()
        try:
            scores = evaluate(self._predictor(), self.checkpoint.tokenizer, self.validation,
                              image_size=self.checkpoint.config.image_size, threshold=self.checkpoint.config.threshold,
                              label="validate", indices=share, progress=self.is_main).scores
        except Stopped:
            scores = [None]
        set_training_mode(self.network)
        scores = gather(list(scores))
        return None if None in scores else SegmentationMetrics.from_scores(scores)

    def _predictor(self) -> Predict:
        answer = torch_predictor(self.network, precision=self.settings.precision)

        def predict(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            if self.stop.signal:
                raise Stopped
            return answer(images, tokens)

        return predict

    def show(self) -> None:
        """curves.png, and predictions.png: what the best weights say about samples of the validation split."""
        with atomic_write(self.directory.path / CURVES) as temporary:
            draw_curves(self.directory.lines(), temporary)
        best = load_checkpoint(self.directory.best)
        predict, config = torch_predictor(best.model), best.config
        indices = sorted({number * len(self.validation) // SHOWN for number in range(SHOWN)})
        scores = evaluate(predict, best.tokenizer, self.validation, image_size=config.image_size,
                          threshold=config.threshold, label="pictures", indices=indices).scores
        first = [one for one in scores if one.index[1] == 0]
        picture = draw_worst_cases(predict, best.tokenizer, self.validation, first, image_size=config.image_size,
                                   threshold=config.threshold,
                                   title=f"validation split, weights of step {best.metrics['step']}")
        save_image(self.directory.path / PREDICTIONS, picture)


@command("talent-train")
def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_settings(argv)
    with StopRequest() as stop:
        run = Run(settings, stop)
        try:
            ended = run.train()
        except Diverged:
            if run.is_main:
                raise
            return EXIT_BAD_INPUT
        if ended:
            if run.is_main:
                print(f"stopped at step {run.step} of {run.steps}; saved: {run.directory.last}; go on with the same "
                      "command and --resume true")
            return 128 + ended
        if run.is_main:
            with saving(run.directory.path):
                run.show()
            print(f"best validation mIoU {run.best:.4f}; checkpoints: {run.directory.best} and {run.directory.last}; "
                  f"pictures: {run.directory.path / CURVES} and {run.directory.path / PREDICTIONS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
