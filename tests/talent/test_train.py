"""Short training runs of a tiny network: what they write, how they go on, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from talent import train
from talent.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from talent.model.lora import LoraSettings
from talent.settings import parse_settings
from talent.tokenizer import build_clip_tokenizer
from tests.networks import TINY, network

SHORT = ["--preset", "tiny", "--steps", "4", "--batch_size", "2", "--train_samples", "6", "--val_samples", "2",
         "--validate_every", "2", "--workers", "0", "--warmup_steps", "1", "--cpu", "true"]


def command(*argv: str) -> int:
    """The command as in a process of its own: accelerate keeps its state for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train.main(argv)


@pytest.fixture(scope="module")
def initial(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "initial"
    tokenizer = build_clip_tokenizer(context_length=TINY.context_length, vocab_size=TINY.vocab_size)
    save_checkpoint(Checkpoint(network(TINY), TINY, tokenizer), path)
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_checkpoints_and_metrics_and_is_not_overwritten(tmp_path, capsys):
    run = tmp_path / "runs" / "one"
    assert command(*SHORT, "--tune", "full", "-o", str(run)) == 0
    out = capsys.readouterr().out.splitlines()
    assert "tuning full" in out[0] and out[-1].endswith(f"checkpoints: {run / 'best'} and {run / 'last'}")
    assert sorted(path.name for path in run.iterdir()) == ["best", "last", "metrics.jsonl"]
    lines = log(run)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert {"loss", "segmentation", "cpcl", "tccl", "mIoU", "learning_rate"} <= line.keys()
        assert line["loss"] == pytest.approx(line["segmentation"] + 0.1 * line["cpcl"] + 0.01 * line["tccl"], rel=1e-4)
    last, best = load_checkpoint(run / "last"), load_checkpoint(run / "best")
    assert last.metrics["step"] == 4 and last.training["tune"] == "full" and last.config == TINY and last.lora is None
    assert best.metrics["mIoU"] == max(line["mIoU"] for line in lines)

    before = (run / "metrics.jsonl").read_bytes(), (run / "last" / "model.safetensors").read_bytes()
    assert command(*SHORT, "--tune", "full", "-o", str(run)) == 2
    error = capsys.readouterr().err
    assert "already holds a run" in error and "--resume true" in error and len(error.splitlines()) == 1
    assert before == ((run / "metrics.jsonl").read_bytes(), (run / "last" / "model.safetensors").read_bytes())


def test_resume_goes_on_as_if_uninterrupted(tmp_path, initial, monkeypatch):
    """To the bit, with LoRA, dropout and the optimiser's moments, after an interruption in the third step."""
    arguments = [*SHORT, "--init", str(initial), "--tune", "lora", "--lora.dropout", "0.3", "--learning_rate", "1e-2"]
    assert command(*arguments, "-o", str(tmp_path / "whole")) == 0

    update, calls = train.Run._update, []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(train.Run, "_update", interrupted)
    assert command(*arguments, "-o", str(tmp_path / "halves")) == 130
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "halves" / "last").metrics["step"] == 2
    torch.rand(7)  # a new process would not stand where this one does
    assert command(*arguments, "--resume", "true", "-o", str(tmp_path / "halves")) == 0

    whole, halves = (weights(tmp_path / name / "last") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key
    assert [line["loss"] for line in log(tmp_path / "whole")] == [line["loss"] for line in log(tmp_path / "halves")]


def test_lora_from_a_checkpoint_trains_the_factors_only(tmp_path, initial, capsys):
    run = tmp_path / "run"
    argv = ["--init", str(initial), "--tune", "lora", "--train_heads", "false", "--lora.rank", "2",
            "--learning_rate", "1e-2", "--preset", "base"]  # the checkpoint's preset counts
    assert command(*SHORT, *argv, "-o", str(run)) == 0
    first = capsys.readouterr().out.splitlines()[0]
    trainable = 2 * (3 * 16 * 96 + 6 * 16 * 128)
    total = sum(p.numel() for p in network(TINY).parameters()) + trainable
    assert f"tuning lora: {trainable:,} of {total:,} parameters are trainable ({trainable / total:.1%})" in first
    last = load_checkpoint(run / "last")
    assert last.lora == LoraSettings(rank=2) and last.training["preset"] == last.config.preset == "tiny"
    before, after = weights(initial), last.model.state_dict()
    for key, value in before.items():
        parent, _, last_name = key.rpartition(".")
        held = key if key in after else f"{parent}.base_layer.{last_name}"
        assert torch.equal(after[held], value), f"{key} is frozen"
    moved = [key for key in after if "lora_B" in key and after[key].any()]
    assert len(moved) == sum("lora_B" in key for key in after) == 36


def test_tuning_goes_on_from_unmerged_factors(tmp_path, initial):
    argv = [*SHORT, "--tune", "lora", "--train_heads", "false", "--learning_rate", "1e-2"]
    assert command(*argv, "--init", str(initial), "--lora.rank", "2", "-o", str(tmp_path / "one")) == 0
    assert command(*argv, "--init", str(tmp_path / "one" / "last"), "-o", str(tmp_path / "two")) == 0
    second = load_checkpoint(tmp_path / "two" / "last")
    assert second.lora == LoraSettings(rank=2), "the factors that are there keep their rank"


def test_bfloat16_runs(tmp_path):
    argv = [*SHORT, "--tune", "lora+adapters", "--precision", "bf16", "--steps", "1", "-o", str(tmp_path / "run")]
    assert command(*argv) == 0
    assert all(v.dtype != torch.bfloat16 and v.isfinite().all() for v in weights(tmp_path / "run" / "last").values())


def test_loss_goes_down_on_two_pictures(tmp_path):
    settings = parse_settings([*SHORT, "--tune", "full", "--train_samples", "2", "--steps", "15",
                               "--learning_rate", "2e-3", "--seed", "1", "-o", str(tmp_path)])
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train.Run(settings)
    batch = next(iter(run.loader))
    train.set_training_mode(run.network)
    losses = []
    for run.step in range(15):
        losses.append(run._update(batch).segmentation.item())
    assert losses[0] > 1.2, "a random network must be bad at it"
    assert losses[-1] < 0.75 * losses[0] and min(losses[10:]) < min(losses[:5])


def test_loss_that_is_not_finite_ends_the_run(tmp_path, capsys):
    assert command(*SHORT, "--tune", "full", "--learning_rate", "1e30", "-o", str(tmp_path / "run")) == 2
    assert "lower --learning_rate" in capsys.readouterr().err.splitlines()[-1]


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = parse_settings(["-o", "run", "--steps", "100", "--warmup_steps", "10", "--learning_rate", "0.5"])
    rates = [train.learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == 0.5 and rates[100] == pytest.approx(0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)


def test_weight_decay_is_for_matrices(initial, tmp_path):
    settings = parse_settings([*SHORT, "--tune", "full", "--weight_decay", "0.1", "-o", str(tmp_path)])
    model = network(TINY)
    decayed, plain = train.build_optimizer(model, settings).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in plain["params"]} == {1} and min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(plain["params"]) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("argv", "message"), [
    (["-o", "run", "--resume", "true"], "nothing to resume in run"),
    (["-o", "file"], "it is a file"),
    (["-o", "run", "--init", "none"], "no checkpoint at none")])
def test_bad_directories(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert command(*SHORT, *argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
