"""A run as it is seen: the picture of its curves, its progress bar, TensorBoard."""

from __future__ import annotations

import io
import json
import re
import sys

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from talent.curves import draw_curves, smoothed
from talent.monitor import TENSORBOARD, Monitor
from talent.run_directory import RunDirectory


def train_line(step: int, **changed) -> dict:
    return {"kind": "train", "step": step, "loss": 3 / step, "segmentation": 2 / step, "cpcl": 1.0, "tccl": 0.7,
            "learning_rate": 1e-3 * (1 - step / 100), "gradient_norm": 1.0, "samples_s": 5.0, **changed}


def validation_line(step: int, **changed) -> dict:
    return {"kind": "validation", "step": step, "mIoU": step / 120, "oIoU": step / 110, "NTA rate": 0.3, "samples": 9,
            **changed}


LINES = [line for step in range(1, 101) for line in
         ([train_line(step)] if step % 20 else [train_line(step), validation_line(step)])]


def drawn(tmp_path, lines) -> np.ndarray:
    draw_curves(lines, tmp_path / "curves.png")
    return cv2.imread(str(tmp_path / "curves.png"))


def test_picture(tmp_path):
    picture = drawn(tmp_path, LINES)
    assert picture.shape == (418, 1430, 3)
    thirds = np.array_split(picture, 3, axis=1)
    for third in thirds:
        coloured = third.max(2).astype(int) - third.min(2) > 60
        assert 300 < coloured.sum() < third.shape[0] * third.shape[1] / 10, "lines, and not much else"
    assert (drawn(tmp_path, LINES) == picture).all(), "the same numbers, the same picture"
    assert (drawn(tmp_path, LINES[:30]) != picture).any()


@pytest.mark.parametrize("lines", [
    [], [train_line(1)], [train_line(1), validation_line(1)], [validation_line(2)],
    [train_line(5), {"kind": "validation", "step": 5, "mIoU": 0.5, "oIoU": 0.5, "samples": 1}]],
    ids=["nothing", "one step", "one of each", "validation only", "no NTA"])
@pytest.mark.filterwarnings("error")
def test_picture_of_a_short_run(tmp_path, lines):
    assert drawn(tmp_path, lines).shape == (418, 1430, 3)


def test_smoothing():
    """A mean over 15 values, over as many as there are on both sides near the ends; a line stays a line."""
    assert smoothed([]).shape == (0,)
    assert smoothed([3.0]).tolist() == [3.0]
    np.testing.assert_allclose(smoothed(range(40)), range(40), atol=1e-12)
    values = np.random.default_rng(0).normal(size=60)
    found = smoothed(values)
    assert found[0] == pytest.approx(values[0]) and found[1] == pytest.approx(values[:3].mean())
    assert found[30] == pytest.approx(values[23:38].mean()) and found[-1] == pytest.approx(values[-1])
    assert smoothed(values).std() < 0.5 * values.std()


VALUES = {"loss": 1.25, "segmentation": 1.0, "learning_rate": 1e-3, "gradient_norm": 2.0}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal(run, monkeypatch):
    """Loss, mIoU, samples per second and the time left."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Monitor(run, main=True, step=3, steps=9, samples=4, best=-1) as monitor:
        monitor.step(4, VALUES, log=True)
        monitor.validation(4, {"mIoU": 0.5, "oIoU": 0.25}, best=0.75)
        for step in (5, 6, 7):
            monitor.step(step, VALUES | {"loss": 0.5}, log=False)
        monitor._bar.refresh()
    seen = [line for line in terminal.getvalue().split("\r") if "samples/s" in line]
    pattern = r"train: +(\d+)%\|.*\| (\d)/9 \[\d\d:\d\d<(?:\d\d:\d\d|\?), .*, loss=(.+), mIoU=(.+), samples/s=[\d.]+\]"
    found = [re.search(pattern, line).groups() for line in seen]
    assert found[-1] == ("78", "7", "0.500", "0.750"), seen[-1]


def test_no_bar_in_a_file_and_nothing_from_other_processes(run, capsys):
    with Monitor(run, main=True, step=0, steps=2, samples=4, best=-1) as monitor:
        monitor.step(1, VALUES, log=True)
        monitor.validation(1, {"mIoU": 0.5}, best=0.5)
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out == "step 1: validation mIoU 0.5000, best 0.5000\n"
    before = run.log.read_bytes()
    with Monitor(run, main=False, step=0, steps=2, samples=4, best=-1) as monitor:
        monitor.step(1, VALUES, log=True)
        monitor.validation(1, {"mIoU": 0.5}, best=0.5)
    shown = capsys.readouterr()
    assert shown.err == shown.out == "" and run.log.read_bytes() == before


def test_log_and_tensorboard_hold_the_same_numbers(run):
    """At once, not when the run ends: it may be killed."""
    monitor = Monitor(run, main=True, step=0, steps=4, samples=4, best=-1)
    monitor.step(1, VALUES, log=False)
    monitor.step(2, VALUES, log=True)
    monitor.validation(2, {"mIoU": 0.5, "NTA rate": 0.25}, best=0.5)
    train, validation = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert train.pop("samples_s") > 0
    assert train == {"kind": "train", "step": 2, **VALUES}
    assert validation == {"kind": "validation", "step": 2, "mIoU": 0.5, "NTA rate": 0.25}
    board = EventAccumulator(str(run.path / TENSORBOARD)).Reload()
    assert set(board.Tags()["scalars"]) == {*(f"train/{name}" for name in [*VALUES, "samples_s"]), "validation/mIoU",
                                            "validation/NTA_rate"}
    assert [(one.step, one.value) for one in board.Scalars("train/loss")] == [(2, 1.25)]
    monitor.__exit__()


def test_speed_is_of_the_steps_since_the_last_look(run, monkeypatch):
    """8 samples a step; validations do not count."""
    now = [100.0]
    monkeypatch.setattr("talent.monitor.time.perf_counter", lambda: now[0])
    with Monitor(run, main=True, step=0, steps=9, samples=8, best=-1) as monitor:
        for step, seconds in ((1, 0.125), (2, 0.125), (3, 0.25)):
            now[0] += seconds
            monitor.step(step, VALUES, log=step == 3)
        now[0] += 1000
        monitor.validation(3, {"mIoU": 0.5}, best=0.5)
        now[0] += 0.25
        monitor.step(4, VALUES, log=True)
    assert [line["samples_s"] for line in run.lines() if line["kind"] == "train"] == [48.0, 32.0]
    assert isinstance(monitor._bar, tqdm)
