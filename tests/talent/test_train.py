"""Short training runs of a small network: what they write, how they go on, that they learn, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from talent import train
from talent.checkpoint import CONFIG, load_checkpoint
from talent.errors import UserError
from talent.losses import talent_losses
from talent.model.lora import LoraSettings
from talent.run_directory import ABOUT, BEST, LAST, NONFINITE, RunDirectory
from talent.settings import parse_settings
from talent.stopping import StopRequest
from tests.networks import SMALL, save_network
from tests.talent.runs import assert_equal, assert_same_run, assert_whole, log, losses, state, weights

SHORT = ["--steps", "4", "--batch_size", "2", "--train_samples", "6", "--val_samples", "2", "--validate_every", "2",
         "--log_every", "1", "--workers", "0", "--warmup_steps", "1", "--cpu", "true"]


def command(*argv: str) -> int:
    """The command as in a process of its own: accelerate keeps its state for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train.main(argv)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Without dropout."""
    return save_network(tmp_path_factory.mktemp("weights") / "plain", dataclasses.replace(SMALL, dropout=0.0))


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without the pictures, which take longer than the steps."""
    monkeypatch.setattr(train.Run, "show", lambda self: None)


def refused(capsys, *argv: str) -> str:
    """The only line of an error."""
    capsys.readouterr()
    assert command(*SHORT, *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("talent-train: error: ") and len(error.splitlines()) == 1
    return error


def test_a_run_writes_checkpoints_metrics_and_pictures_and_is_not_overwritten(tmp_path, initial, capsys):
    run = tmp_path / "runs" / "one"
    assert command(*SHORT, "--init", str(initial), "--tune", "full", "--log_every", "3", "-o", str(run)) == 0
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tuning full: 4 steps of 2 of 6 samples, from step 0") for line in out)
    assert out[-1].endswith(f"checkpoints: {run / 'best'} and {run / 'last'}; pictures: {run / 'curves.png'} and "
                            f"{run / 'predictions.png'}")
    assert sorted(path.name for path in run.iterdir()) == [
        "best", "curves.png", "last", "metrics.jsonl", "predictions.png", "run.json", "tensorboard"]
    assert [line["step"] for line in log(run, "validation")] == [2, 4]
    assert [line["step"] for line in log(run, "train")] == [3, 4], "every third step, and the last one"
    for line in log(run, "train"):
        assert line["loss"] == pytest.approx(line["segmentation"] + 0.1 * line["cpcl"] + 0.01 * line["tccl"], rel=1e-4)
        assert line["gradient_norm"] > 0 and line["samples_s"] > 0
    for line in log(run, "validation"):
        assert {"mIoU", "oIoU", "Pr@0.5", "samples"} <= line.keys() and 0 <= line["mIoU"] <= 1
    last, best = load_checkpoint(run / "last"), load_checkpoint(run / "best")
    assert last.metrics == {"step": 4} and last.training["tune"] == "full" and last.lora is None
    assert last.config == SMALL and best.training["preset"] == "smallest"
    assert best.metrics["mIoU"] == max(line["mIoU"] for line in log(run, "validation"))
    about = json.loads((run / ABOUT).read_text())
    assert about["settings"]["steps"] == 4 and about["commit"] and about["versions"]["accelerate"]
    assert about["parameters"][-1] == {"module": "total", "total": sum(p.numel() for p in last.model.parameters()),
                                       "trainable": about["parameters"][-1]["trainable"]}
    assert len(np.unique(cv2.imread(str(run / "predictions.png")).reshape(-1, 3), axis=0)) > 1000, "photographs"

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "already holds a run; add --resume true" in refused(capsys, "--init", str(initial), "-o", str(run))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changed", [
    ["--tune", "lora", "--lora.dropout", "0.3", "--accumulate", "2"],
    ["--tune", "full", "--ema", "0.8", "--schedule", "step", "--checkpointing", "true"],
    ["--tune", "lora+adapters", "--precision", "bf16", "--losses.tlm", "rectified", "--epochs", "1.3"],
    ["--tune", "lora", "--qat", "--lora.dropout", "0.3", "--accumulate", "2", "--checkpointing", "true"],
    ["--tune", "full", "--qat", "--ema", "0.8", "--precision", "bf16"]],
    ids=["LoRA, accumulation", "average, checkpointing", "bf16, rectified, epochs",
         "fake quantization, LoRA, accumulation, checkpointing", "fake quantization, average, bf16"])
@pytest.mark.usefixtures("quick")
def test_resume_goes_on_as_if_uninterrupted(tmp_path, initial, monkeypatch, changed):
    """To the bit, with dropout and the optimiser's moments, after an interruption in the fourth step."""
    arguments = [*SHORT, "--init", str(initial), "--save_every", "3", "--learning_rate", "1e-2", *changed]
    assert command(*arguments, "-o", str(tmp_path / "whole")) == 0
    update = train.Run._update

    def interrupted(self, batches):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "_update", interrupted)
        assert command(*arguments, "-o", str(tmp_path / "halves")) == 130
    assert load_checkpoint(tmp_path / "halves" / LAST).metrics["step"] == 3
    torch.rand(7)  # a new process would not stand where this one does
    assert command(*arguments, "--resume", "true", "-o", str(tmp_path / "halves")) == 0
    assert_same_run(tmp_path / "halves", tmp_path / "whole")
    assert len(json.loads((tmp_path / "halves" / ABOUT).read_text())["resumed"]) == 1


def test_finished_run_is_finished(tmp_path, initial, capsys):
    """Its pictures are drawn again, and nothing else is done."""
    arguments = [*SHORT, "--init", str(initial), "-o", str(tmp_path / "run")]
    assert command(*arguments) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "curves.png").unlink()
    assert command(*arguments, "--resume", "true") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before and (tmp_path / "run" / "curves.png").is_file()
    assert "best validation mIoU" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("quick")
def test_run_without_a_checkpoint_starts_from_the_beginning(tmp_path, initial):
    arguments = [*SHORT, "--init", str(initial)]
    assert command(*arguments, "-o", str(tmp_path / "whole")) == 0
    run = RunDirectory(tmp_path / "run")
    run.begin(parse_settings([*arguments, "-o", str(run.path)]), {"global_batch": 2})
    assert command(*arguments, "--resume", "true", "-o", str(run.path)) == 0
    assert_same_run(run.path, tmp_path / "whole")


@pytest.fixture(scope="module")
def halfway(initial, tmp_path_factory) -> Path:
    """A run that was interrupted after two of its four steps."""
    run = tmp_path_factory.mktemp("runs") / "halfway"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", interrupt_at_step_2)
        assert command(*SHORT, "--init", str(initial), "--tune", "full", "-o", str(run)) == 130
    return run


def interrupt_at_step_2(step: int, settings, steps: int) -> float:
    if step == 2:
        raise KeyboardInterrupt
    return settings.learning_rate


def test_resume_with_other_settings(halfway, initial, capsys):
    own = ["--init", str(initial), "--tune", "full", "--resume", "true", "-o", str(halfway)]
    before = {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}
    error = refused(capsys, *own, "--steps", "8", "--losses.tlm", "none")
    assert "was begun with other settings" in error and f"--init {halfway / LAST}" in error
    assert "steps: expected 4, received 8" in error and "losses.tlm: expected 'official', received 'none'" in error
    error = refused(capsys, *own, "--batch_size", "4")
    assert "batch_size: expected 2 samples a step" in error and "received 4; change --batch_size or" in error
    assert before == {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("quick")
def test_batch_size_and_accumulation_may_trade_places(halfway, initial, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in halfway.rglob("*"):
        target = copy / path.relative_to(halfway)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    arguments = [*SHORT, "--init", str(initial), "--tune", "full", "--resume", "true", "-o", str(copy)]
    assert command(*arguments, "--batch_size", "1", "--accumulate", "2") == 0
    assert [line["step"] for line in log(copy, "train")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("file", "content", "message"), [
    (f"{LAST}/{CONFIG}", b"\0\0", "is not YAML"), (f"{LAST}/training_state.pt", b"", "cannot be read"),
    (f"{BEST}/{CONFIG}", b"metrics: [", "is damaged"), (ABOUT, b"{", "is damaged")])
def test_damaged_run(halfway, initial, capsys, file, content, message):
    whole = (halfway / file).read_bytes()
    (halfway / file).write_bytes(content)
    try:
        error = refused(capsys, "--init", str(initial), "--tune", "full", "--resume", "true", "-o", str(halfway))
        assert message in error and file in error
    finally:
        (halfway / file).write_bytes(whole)


@pytest.mark.usefixtures("quick")
def test_lora_from_a_checkpoint_trains_the_factors_only(tmp_path, initial):
    run = tmp_path / "run"
    argv = ["--init", str(initial), "--tune", "lora", "--train_heads", "false", "--lora.rank", "2",
            "--lora.text", "[qkv, proj]", "--learning_rate", "1e-2", "--preset", "base"]  # that of `initial` counts
    assert command(*SHORT, *argv, "-o", str(run)) == 0
    last = load_checkpoint(run / "last")
    assert last.lora == LoraSettings(rank=2, text=("qkv", "proj"))
    assert last.training["preset"] == last.config.preset == "smallest"
    total = json.loads((run / ABOUT).read_text())["parameters"][-1]
    factors = {key: value for key, value in last.model.state_dict().items() if ".lora_" in key}
    assert total["trainable"] == sum(value.numel() for value in factors.values())
    before, after = weights(initial), last.model.state_dict()
    for key, value in before.items():
        parent, _, last_name = key.rpartition(".")
        held = key if key in after else f"{parent}.base_layer.{last_name}"
        assert torch.equal(after[held], value), f"{key} is frozen"
    moved = [key for key, value in factors.items() if "lora_B" in key and value.any()]
    assert len(moved) == len(factors) / 2 == 1 * 2 + 3 * 4, "one text block, three image blocks"


@pytest.mark.usefixtures("quick")
def test_tuning_goes_on_from_unmerged_factors(tmp_path, initial, capsys):
    argv = ["--tune", "lora", "--train_heads", "false", "--learning_rate", "1e-2"]
    assert command(*SHORT, *argv, "--init", str(initial), "--lora.rank", "2", "-o", str(tmp_path / "one")) == 0
    first = tmp_path / "one" / "last"
    assert command(*SHORT, *argv, "--init", str(first), "-o", str(tmp_path / "two")) == 0
    second = load_checkpoint(tmp_path / "two" / "last")
    assert second.lora == LoraSettings(rank=2), "the factors that are there keep their rank"
    error = refused(capsys, *argv, "--init", str(first), "--lora.rank", "4", "-o", str(tmp_path / "three"))
    assert "holds unmerged factors" in error and "rank=2" in error and "rank=4" in error
    assert not (tmp_path / "three").exists()


@pytest.mark.usefixtures("quick")
def test_bfloat16_computes_in_less_and_stores_in_full(tmp_path, initial):
    argv = [*SHORT, "--init", str(initial), "--tune", "lora+adapters", "--steps", "2"]
    assert command(*argv, "--precision", "bf16", "-o", str(tmp_path / "bf16")) == 0
    assert command(*argv, "-o", str(tmp_path / "fp32")) == 0
    assert all(v.dtype != torch.bfloat16 and v.isfinite().all() for v in weights(tmp_path / "bf16" / LAST).values())
    rough, exact = losses(tmp_path / "bf16")[0]["loss"], losses(tmp_path / "fp32")[0]["loss"]
    assert rough == pytest.approx(exact, rel=0.05) and rough != exact


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_fp16_needs_a_gpu(tmp_path, initial, capsys):
    error = refused(capsys, "--init", str(initial), "--precision", "fp16", "-o", str(tmp_path / "run"))
    assert "fp16" in error and "GPU" in error and "--precision fp32" in error
    assert not (tmp_path / "run").exists()


def test_loss_goes_down_on_two_pictures(tmp_path, initial):
    settings = parse_settings([*SHORT, "--init", str(initial), "--tune", "full", "--train_samples", "2",
                               "--steps", "40", "--learning_rate", "3e-3", "-o", str(tmp_path / "run")])
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train.Run(settings, StopRequest())
    train.set_training_mode(run.network)
    batches, values = iter(run.loader()), []
    for run.step in range(40):
        values.append(run._update(batches)[0]["segmentation"])
    assert values[0] > 1.2, "a random network must be bad at it"
    assert np.mean(values[-5:]) < 0.75 * np.mean(values[:5])


@pytest.mark.parametrize(("size", "accumulate"), [(2, 2), (1, 4)])
@pytest.mark.usefixtures("quick")
def test_accumulated_batches_are_one_large_batch(tmp_path, plain, monkeypatch, size, accumulate):
    """Only the LoRA factors move, so that BatchNorm keeps its statistics: in training mode it would see half a batch.

    One sample has no negative sentence: the contrast is a mean over the step, not a mean of means.
    """
    item = train.TrainingSet.__getitem__

    def without_negative(self, pick):
        return item(self, pick) | {"valid": torch.tensor(pick.index != 3)}

    monkeypatch.setattr(train.TrainingSet, "__getitem__", without_negative)
    argv = [*SHORT, "--init", str(plain), "--tune", "lora", "--train_heads", "false", "--learning_rate", "1e-3"]
    for name, *sizes in (("large", 4, 1), ("small", size, accumulate)):
        division = ["--batch_size", str(sizes[0]), "--accumulate", str(sizes[1])]
        assert command(*argv, *division, "-o", str(tmp_path / name)) == 0
    for received, expected in zip(losses(tmp_path / "small"), losses(tmp_path / "large"), strict=True):
        assert received == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected = weights(tmp_path / "large" / LAST)
    for key, value in weights(tmp_path / "small" / LAST).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick")
def test_moving_average_is_validated_and_kept_in_best(tmp_path, initial, monkeypatch):
    """a <- d a + (1 - d) w after every step, d = min(decay, (1 + n) / (10 + n)); last/ holds the weights themselves."""
    history, validated = [], []
    update, predictor = train.MovingAverage.update, train.torch_predictor

    def follow(self, model):
        history.append({key: value.clone() for key, value in model.state_dict().items()})
        update(self, model)

    def look(model, **named):
        validated.append({key: value.clone() for key, value in model.state_dict().items()})
        return predictor(model, **named)

    monkeypatch.setattr(train.MovingAverage, "update", follow)
    monkeypatch.setattr(train, "torch_predictor", look)
    argv = [*SHORT, "--init", str(initial), "--tune", "full", "--learning_rate", "1e-3", "--ema", "0.15"]
    assert command(*argv, "-o", str(tmp_path / "run")) == 0
    average, averages = weights(initial), [None]
    for n, moved in enumerate(history):
        decay = min(0.15, (1 + n) / (10 + n))
        average = {key: decay * value + (1 - decay) * moved[key] if value.is_floating_point() else moved[key]
                   for key, value in average.items()}
        averages.append(average)
    assert len(averages) == 5
    best = load_checkpoint(tmp_path / "run" / BEST)
    for received, expected in ((validated[0], averages[2]), (validated[1], averages[4]),
                               (best.model.state_dict(), averages[best.metrics["step"]])):
        for key in expected:
            torch.testing.assert_close(received[key], expected[key], msg=key)
    assert_equal(dict(weights(tmp_path / "run" / LAST)), history[-1])
    assert state(tmp_path / "run")["average"]["updates"] == 4


@pytest.mark.usefixtures("quick")
def test_checkpointing_changes_nothing(tmp_path, initial):
    argv = [*SHORT, "--init", str(initial), "--tune", "full"]
    assert command(*argv, "-o", str(tmp_path / "kept")) == 0
    assert command(*argv, "--checkpointing", "true", "-o", str(tmp_path / "computed")) == 0
    assert_same_run(tmp_path / "computed", tmp_path / "kept")


@pytest.mark.usefixtures("quick")
def test_gradients_are_clipped(tmp_path, initial, monkeypatch):
    """The log has their norm before."""
    norms, step = [], torch.optim.AdamW.step

    def measured(self, *arguments, **named):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()))
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    argv = [*SHORT, "--init", str(initial), "--tune", "full"]
    assert command(*argv, "--clip", "0.125", "-o", str(tmp_path / "clipped")) == 0
    assert norms == pytest.approx([0.125] * 4, rel=1e-4)
    assert min(line["gradient_norm"] for line in log(tmp_path / "clipped", "train")) > 1
    norms.clear()
    assert command(*argv, "--clip", "1e9", "-o", str(tmp_path / "free")) == 0
    assert norms == pytest.approx([line["gradient_norm"] for line in log(tmp_path / "free", "train")], rel=1e-4)


@pytest.mark.usefixtures("quick")
def test_epochs_and_the_step_schedule(tmp_path, initial):
    """2.5 epochs of 6 samples in batches of 2 are 7.5 steps, so 8; the rate falls after steps 2 and 6."""
    argv = [*SHORT, "--init", str(initial), "--epochs", "2.5", "--schedule", "step", "--milestones", "[0.25, 0.75]",
            "--gamma", "0.5", "--learning_rate", "1e-3"]
    assert command(*argv, "-o", str(tmp_path / "run")) == 0
    assert [line["learning_rate"] for line in losses(tmp_path / "run")] == pytest.approx(
        [1e-3] * 2 + [5e-4] * 4 + [2.5e-4] * 2)
    assert [line["step"] for line in log(tmp_path / "run", "validation")] == [2, 4, 6, 8]


@pytest.mark.usefixtures("quick")
def test_samples_and_splits(tmp_path, initial, monkeypatch):
    """A batch may be larger than the data; the validation split has a name."""
    taken, opened = [], []

    def noting(output, contrast, batch, settings, count):
        taken.append(batch["index"].tolist())
        return talent_losses(output, contrast, batch, settings, count)

    opening = train.open_dataset
    monkeypatch.setattr(train, "talent_losses", noting)
    monkeypatch.setattr(train, "open_dataset", lambda name, **named: opened.append(named) or opening(name, **named))
    argv = [*SHORT, "--init", str(initial), "--train_samples", "3", "--batch_size", "7", "--val_split", "test",
            "--val_samples", "3", "--steps", "2"]
    assert command(*argv, "-o", str(tmp_path / "run")) == 0
    assert [(one["split"], one["length"]) for one in opened] == [("train", 3), ("test", 3)]
    assert [len(batch) for batch in taken] == [7, 7]
    for start in range(0, 12, 3):
        assert sorted(sum(taken, [])[start:start + 3]) == [0, 1, 2]


def test_unknown_split(tmp_path, initial, capsys):
    error = refused(capsys, "--init", str(initial), "--val_split", "vall", "-o", str(tmp_path / "run"))
    assert "vall" in error and "val" in error and not (tmp_path / "run").exists()


def poisoned(monkeypatch, *, index: int) -> None:
    """The loss of a batch with this sample is not a number."""

    def poisoned_losses(output, contrast, batch, settings, count):
        found = talent_losses(output, contrast, batch, settings, count)
        bad = (batch["index"] == index).any()
        return dataclasses.replace(found, total=found.total * (math.nan if bad else 1.0))

    monkeypatch.setattr(train, "talent_losses", poisoned_losses)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.usefixtures("quick")
def test_loss_that_is_not_a_number_stops_the_run(tmp_path, initial, monkeypatch, capsys, accumulate):
    """With the step, and the batch that made it: of the accumulated ones, only the one that did."""
    argv = ["--init", str(initial), "--tune", "full", "--validate_every", "9", "--save_every", "1",
            "--batch_size", str(2 // accumulate), "--accumulate", str(accumulate)]
    sampler = train.RunSampler(length=6, batch_size=2, batches=4, seed=0)
    batch = [pick.index for pick in list(sampler)[2]]
    poisoned(monkeypatch, index=batch[1])
    run = tmp_path / "run"
    error = refused(capsys, *argv, "-o", str(run))
    expected = batch if accumulate == 1 else batch[1:]
    assert f"the loss became nan at step 3, batch of samples {expected}" in error
    assert str(run / NONFINITE) in error and f"--init {run / LAST}" in error and "--learning_rate" in error
    report = json.loads((run / NONFINITE).read_text())
    assert report["step"] == 3 and [one["index"] for one in report["samples"]] == expected
    assert all(one["expressions"] for one in report["samples"])
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == 2, "the bad step never reached the weights"
    assert all(value.isfinite().all() for value in weights(run / LAST).values())
    assert [line["step"] for line in log(run, "train")] == [1, 2]
    assert "at step 3" in refused(capsys, *argv, "--resume", "true", "-o", str(run)), "the same again"


def test_weights_that_explode_stop_the_run(tmp_path, initial, capsys):
    run = tmp_path / "run"
    error = refused(capsys, "--init", str(initial), "--tune", "full", "--learning_rate", "1e30", "-o", str(run))
    assert "lower --learning_rate" in error
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == 0


@pytest.mark.usefixtures("quick")
def test_gradient_that_is_not_finite_stops_the_run(tmp_path, initial, monkeypatch, capsys):
    """Though the loss is: its batch is named, and the step is not taken."""

    def broken_losses(output, contrast, batch, settings, count):
        found = talent_losses(output, contrast, batch, settings, count)
        return dataclasses.replace(found, total=found.total + (found.total - found.total.detach()).sqrt())

    monkeypatch.setattr(train, "talent_losses", broken_losses)
    run = tmp_path / "run"
    error = refused(capsys, "--init", str(initial), "-o", str(run))
    assert "the gradient's norm became" in error and "at step 1, batch of samples [" in error
    assert len(json.loads((run / NONFINITE).read_text())["samples"]) == 2
    assert_whole(run)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.usefixtures("quick")
def test_sample_that_cannot_be_read(tmp_path, initial, monkeypatch, capsys, workers):
    """One line, whether a worker found it or the run itself."""

    def unreadable(self, pick):
        raise UserError("cannot read UserError: photo.jpg: expected a picture; remove its line")

    monkeypatch.setattr(train.TrainingSet, "__getitem__", unreadable)
    error = refused(capsys, "--init", str(initial), "--workers", workers, "-o", str(tmp_path / "run"))
    assert error == "talent-train: error: cannot read UserError: photo.jpg: expected a picture; remove its line\n"


@pytest.mark.usefixtures("quick")
def test_full_disk(tmp_path, initial, monkeypatch, capsys):
    """In the third save (best/ of step 2): one line, exit code 2, everything before is whole and goes on."""
    from talent import checkpoint
    write, calls = checkpoint.write_checkpoint, []

    def full(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(*arguments, **named)

    argv = ["--init", str(initial), "--tune", "full"]
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", full)
        error = refused(capsys, *argv, "-o", str(run))
    assert f"cannot write {run / BEST} ([Errno 28] No space left on device)" in error and "--resume true" in error
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == 2 and not (run / BEST).exists()
    assert command(*SHORT, *argv, "--resume", "true", "-o", str(run)) == 0
    assert command(*SHORT, *argv, "-o", str(tmp_path / "whole")) == 0
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize("output", ["run", "./runs/one", "."])
@pytest.mark.usefixtures("quick")
def test_relative_output(tmp_path, initial, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    assert command(*SHORT, "--init", str(initial), "--steps", "1", "-o", output) == 0
    assert_whole(tmp_path / output)
    assert command(*SHORT, "--init", str(initial), "--steps", "1", "--resume", "true", "-o", output) == 0


@pytest.mark.parametrize(("argv", "message"), [
    (["-o", "run", "--resume", "true"], "nothing to resume in run"),
    (["-o", "file"], "it is a file"), (["-o", "file/run"], "cannot make the directory file/run (Not a directory)"),
    (["-o", "run", "--init", "none"], "no checkpoint at none")])
def test_bad_directories(tmp_path, initial, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert message in refused(capsys, "--init", str(initial), *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_random_start_is_of_the_seed(tmp_path):
    """Two runs from nothing are one run; the network itself is random, not only the data."""
    built = []
    for seed in (0, 0, 1):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = parse_settings([*SHORT, "--preset", "tiny", "--seed", str(seed), "-o", str(tmp_path / "run")])
        built.append(train.Run(settings, StopRequest()).network.neck.state_dict())
    assert_equal(dict(built[0]), dict(built[1]))
    assert any(not torch.equal(value, built[2][key]) for key, value in built[0].items())
