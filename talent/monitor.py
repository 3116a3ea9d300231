"""A run as it is seen: the progress bar, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import time

from tqdm import tqdm

from talent.require import require
from talent.run_directory import RunDirectory, saving

TENSORBOARD = "tensorboard"


class Monitor:
    """Of the main process; on the others every call does nothing.

    samples: how many samples a step takes, over all processes.
    """

    def __init__(self, run: RunDirectory, *, main: bool, step: int, steps: int, samples: int, best: float):
        self.run, self.main, self.samples, self.best = run, main, samples, best
        self._bar = tqdm(total=steps, initial=step, desc="train", unit="step", disable=None if main else True)
        self._since, self._counted = time.perf_counter(), 0
        self._speed = 0.0
        self._board = None
        if main:
            board = require("torch.utils.tensorboard", extra="train")
            self._board = board.SummaryWriter(run.path / TENSORBOARD, purge_step=step + 1)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self._board:
            self._board.close()

    def step(self, step: int, values: dict[str, float], *, log: bool) -> None:
        """One optimiser step with its losses; log: also write them."""
        self._counted += 1
        now = time.perf_counter()
        if now - self._since > 0.5 or log:
            self._speed = self._counted * self.samples / max(now - self._since, 1e-9)
            self._since, self._counted = now, 0
        shown = {"loss": f"{values['loss']:.3f}", "mIoU": f"{self.best:.3f}" if self.best >= 0 else "-",
                 "samples/s": f"{self._speed:.1f}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if log and self.main:
            self._write("train", step, values | {"samples_s": self._speed})

    def validation(self, step: int, metrics: dict[str, float], *, best: float) -> None:
        """One validation, and the best mIoU so far."""
        self.best = best
        if self.main:
            self._write("validation", step, metrics)
            tqdm.write(f"step {step}: validation mIoU {metrics['mIoU']:.4f}, best {best:.4f}")
        self._since, self._counted = time.perf_counter(), 0  # the time of a validation is no training time

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.run.append({"kind": kind, "step": step, **values})
        with saving(self.run.path / TENSORBOARD):
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name.replace(' ', '_')}", value, step)
            self._board.flush()  # a run that is killed has shown everything up to here
