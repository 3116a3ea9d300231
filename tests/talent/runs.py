"""What a training run left behind, and how it is compared with another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from talent.checkpoint import load_checkpoint
from talent.run_directory import BEST, LAST, LOG, STATE
from tests.talent import processes

LOSSES = ("loss", "segmentation", "cpcl", "tccl", "learning_rate", "gradient_norm")


def train(initial: Path, run: Path, *prepare, arguments: Sequence[str], resume: bool = False) -> tuple[int, str]:
    """A run in a process of its own, as `processes.run` has it: exit code and output."""
    argv = ["--init", str(initial), *arguments, "-o", str(run), "--resume", str(resume).lower()]
    return processes.run(argv, log=run.with_suffix(".txt"), prepare=[processes.no_pictures, *prepare])


def log(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> list[dict]:
    """Of each logged step, without what depends on the clock."""
    return [{"step": line["step"], **{name: line[name] for name in LOSSES}} for line in log(run, "train")]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint).model.state_dict()


def state(run: Path) -> dict:
    return torch.load(run / LAST / STATE, weights_only=True)


def assert_whole(run: Path) -> None:
    """Both checkpoints, as far as there are any, can be loaded."""
    for name in (LAST, BEST):
        if (run / name).exists():
            load_checkpoint(run / name)
    if (run / LAST).exists():
        assert state(run)["step"] == load_checkpoint(run / LAST).metrics["step"]


def assert_same_run(run: Path, other: Path, *, tolerance: float = 1e-6) -> None:
    """The same losses at every step, each step once, the same validations; weights and state to the bit."""
    received, expected = losses(run), losses(other)
    assert [line["step"] for line in received] == [line["step"] for line in expected]
    for one, two in zip(received, expected, strict=True):
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance)
    assert log(run, "validation") == log(other, "validation")
    for name in (LAST, BEST):
        assert_equal(weights(run / name), weights(other / name))
        assert load_checkpoint(run / name).metrics == load_checkpoint(other / name).metrics
    assert_equal(state(run), state(other))
    hidden = [path for path in run.rglob(".*")]
    assert not hidden, f"left behind: {hidden}"


def assert_equal(received, expected, at: str = "") -> None:
    """Nested dictionaries and lists of tensors and numbers, to the bit."""
    assert type(received) is type(expected), at
    if isinstance(received, dict):
        assert received.keys() == expected.keys(), at
        for key in received:
            assert_equal(received[key], expected[key], f"{at}.{key}")
    elif isinstance(received, list):
        assert len(received) == len(expected), at
        for number, (one, two) in enumerate(zip(received, expected, strict=True)):
            assert_equal(one, two, f"{at}.{number}")
    elif isinstance(received, torch.Tensor):
        assert torch.equal(received, expected), at
    else:
        assert received == expected, at
