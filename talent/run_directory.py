"""The directory of a training run: its checkpoints, its log, and how a run is taken up again.

last/ is the run as it stands, best/ the weights of the best validation; each is replaced in one step, so that a run
that is killed at any moment leaves both whole. The order of writing makes every moment one that can be gone on from:
last/ before a validation, best/ after it, its line in the log at the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from talent import provenance
from talent.checkpoint import CONFIG, PACKAGES, Checkpoint, load_checkpoint, save_checkpoint
from talent.errors import UserError
from talent.files import atomic_write, recover, remove_leftovers
from talent.require import require
from talent.settings import TrainSettings

STATE = "training_state.pt"
LAST, BEST, LOG, ABOUT = "last", "best", "metrics.jsonl", "run.json"
CURVES, PREDICTIONS, NONFINITE = "curves.png", "predictions.png", "nonfinite.json"
FILES = (LAST, BEST, LOG, ABOUT, CURVES, PREDICTIONS, NONFINITE)


class RunDirectory:
    """Reads and writes the files of one run. Only the main process of a run may write."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last, self.best = self.path / LAST, self.path / BEST
        self.log, self.about = self.path / LOG, self.path / ABOUT

    def check(self, settings: TrainSettings) -> None:
        """Raise UserError where the run cannot be written: a run never overwrites another one."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"cannot write a run to {self.path}: it is a file, expected a directory or a free name")
        if settings.resume:
            if not self.about.is_file():
                raise UserError(f"nothing to resume in {self.path}: no {ABOUT}; leave --resume out to start a run")
            recover(self.last)
            recover(self.best)
            self._check_same_run(settings)
            if self.best.exists() and not self.resumable:
                raise UserError(f"cannot go on with the run in {self.path}: {LAST}/ is gone; start another run with "
                                f"--init {self.best}")
        elif self.about.is_file():
            raise UserError(f"{self.path} already holds a run; add --resume true to go on with it, or name another "
                            "directory")
        elif there := [path.name for path in (self.last, self.best, self.log) if path.exists()]:
            raise UserError(f"{self.path} holds {', '.join(there)} of something that is no run (no {ABOUT}); name "
                            "another directory")

    def _check_same_run(self, settings: TrainSettings) -> None:
        if different := settings.differences(self._about()["settings"]):
            raise UserError(f"{self.path} was begun with other settings, {'; '.join(different)}; resume it with its "
                            f"own ({self.about}), or start another run with --init {self.last}")

    def check_global_batch(self, received: int) -> None:
        """Raise UserError where a step of the resumed run would take more or fewer samples than it did."""
        if received != (expected := self._about()["global_batch"]):
            raise UserError(f"batch_size: expected {expected} samples a step as the run had (batch_size x processes x "
                            f"accumulate), received {received}; change --batch_size or --accumulate")

    def _about(self) -> dict:
        try:
            about = json.loads(self.about.read_text())
            return {name: about[name] for name in ("settings", "global_batch", "resumed")} | about
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.about} is damaged ({type(error).__name__}: {error}), expected what talent-train "
                            f"wrote; start another run with --init {self.last}") from error

    def begin(self, settings: TrainSettings, about: dict) -> None:
        """Make the directory and write what the run is, or, where it goes on, that it did.

        about: its "global_batch", and whatever else is worth knowing.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the directory {self.path} ({error.strerror}); name another one with -o"
                            ) from error
        for name in FILES:
            remove_leftovers(self.path / name)
        made_by = {"commit": provenance.commit(), "versions": provenance.versions(*PACKAGES, "accelerate"), **about}
        if settings.resume:
            content = self._about()
            content["resumed"].append(made_by)
        else:
            content = {"settings": settings.to_dict(), **made_by, "resumed": []}
        with atomic_write(self.about) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint: a run that was killed before its first one starts from the beginning."""
        return self.last.exists()

    def save_last(self, checkpoint: Checkpoint, state: dict) -> None:
        """Raises UserError where it cannot be written; the one before stays."""
        with saving(self.last):
            save_checkpoint(checkpoint, self.last, extra={STATE: lambda path: _write_state(state, path)})

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Raises UserError where it cannot be written; the one before stays."""
        with saving(self.best):
            save_checkpoint(checkpoint, self.best)

    def load_last(self) -> tuple[Checkpoint, dict]:
        """The checkpoint and the training state. Raises UserError where one of them is missing or broken."""
        checkpoint = load_checkpoint(self.last)
        try:
            return checkpoint, torch.load(self.last / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its zip and pickle readers raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.last / STATE} cannot be read ({reason}); start another run with --init "
                            f"{self.last}") from error

    def best_miou(self) -> float:
        """Of the weights in best/; -1 where there are none yet. Raises UserError where its config is broken."""
        yaml = require("yaml", extra="train")
        config = self.best / CONFIG
        if not config.is_file():
            return -1.0
        try:
            return float(yaml.safe_load(config.read_text())["metrics"]["mIoU"])
        except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config} is damaged, expected the metrics of the best weights, received "
                            f"{type(error).__name__}: {' '.join(str(error).split())}; move {self.best} away to go on "
                            "without it") from error

    def append(self, line: dict) -> None:
        """Numbers that are not finite (the gradient of a step that fp16 left out) become null: JSON has none."""
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in line.items()}
        with saving(self.log), open(self.log, "a") as log:
            log.write(json.dumps(finite) + "\n")
            log.flush()
            os.fsync(log.fileno())

    def lines(self) -> list[dict]:
        """The log. A last line that a killed run left unfinished is passed over."""
        if not self.log.is_file():
            return []
        lines = []
        for number, text in enumerate(self.log.read_text(errors="replace").splitlines(keepends=True), 1):
            if not text.endswith("\n"):
                continue
            try:
                line = json.loads(text)
                lines.append({"kind": line["kind"], "step": line["step"]} | line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.log}, line {number}: expected JSON with 'kind' and 'step', received "
                                f"{text.strip()[:80]!r}; remove the line") from error
        return lines

    def rewind(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last checkpoint: they will be written again."""
        kept = [line for line in self.lines() if line["step"] <= step]
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _write_state(state: dict, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # what torch makes of the system's error
        raise OSError(str(error)) from error


@contextlib.contextmanager
def saving(place: Path) -> Iterator[None]:
    """A UserError in the place of the errors of a disk that is full or gone."""
    try:
        yield
    except (OSError, require("safetensors", extra="train").SafetensorError) as error:
        raise UserError(f"cannot write {place} ({' '.join(str(error).split())[:200]}); what was saved before is whole; "
                        "make room on the disk and go on with --resume true") from error
