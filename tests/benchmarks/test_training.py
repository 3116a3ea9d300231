"""benchmarks/training.py on the tiny preset: the styles compute the same, and the comparison notices where not."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from benchmarks import official_style, training
from benchmarks.official_style import OfficialStyle, official_losses, pairwise_consistency
from benchmarks.training import BF16, CHECKPOINTING, LOSSES, OFFICIAL, OURS, STYLES, main, make_batch
from talent.losses import LossWeights, contextual_pairwise_consistency, talent_losses
from talent.model.lora import select_trainable, set_training_mode
from tests.networks import CONFIGS, DENSE, TINY, inputs, network

QUICK = ["--preset", "tiny", "--rounds", "2", "--threads", "1"]


def trained(config):
    model = network(config)
    select_trainable(model, tune="adapters", train_heads=True)
    set_training_mode(model)
    return model


def scalar(output) -> torch.Tensor:
    """A number that every output moves."""
    parts = [output.logits, output.neck.features, output.neck.aggregated, *output.neck.scales, output.sentence,
             output.contrast, output.text.words]
    return sum((part * torch.cos(torch.arange(part.numel(), dtype=part.dtype)).view_as(part)).sum() for part in parts)


@pytest.mark.parametrize("name", CONFIGS)
def test_official_style_is_the_same_network(name):
    """Outputs, gradients and BatchNorm statistics, in float64, where nothing but rounding may differ."""
    config = CONFIGS[name]
    ours = trained(config).double()
    official = OfficialStyle(copy.deepcopy(ours))
    image, tokens = inputs(config, 2)
    contrast = torch.stack([inputs(config, 2, seed=seed)[1] for seed in (1, 2)], 1)
    results = []
    for model in (ours, official):
        output = model(image.double(), tokens, contrast)
        scalar(output).backward()
        results.append(output)
    one, other = results
    for received, wanted in ((other.logits, one.logits), (other.neck.features, one.neck.features),
                             (other.neck.aggregated, one.neck.aggregated), (other.sentence, one.sentence),
                             (other.contrast, one.contrast), (other.text.words, one.text.words),
                             *zip(other.neck.scales, one.neck.scales, strict=True)):
        torch.testing.assert_close(received, wanted, rtol=1e-6, atol=1e-6)  # positions and masks are float32
    largest = max(float(p.grad.abs().max()) for p in ours.parameters() if p.requires_grad)
    for (key, wanted), (_, received) in zip(ours.named_parameters(), official.model.named_parameters(), strict=True):
        assert (received.grad is not None) == wanted.requires_grad, key
        if wanted.requires_grad:
            torch.testing.assert_close(received.grad, wanted.grad, rtol=1e-5, atol=1e-7 * largest,
                                       msg=lambda m, k=key: f"{k}: {m}")
    for (key, wanted), (_, received) in zip(ours.named_buffers(), official.model.named_buffers(), strict=True):
        torch.testing.assert_close(received, wanted, rtol=1e-6, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def test_official_losses_are_ours():
    model = trained(DENSE)
    batch = make_batch(DENSE, 3)
    batch["valid"][0] = False
    output = model(batch["image"], batch["tokens"][:, 0], batch["tokens"][:, 1:])
    weights = LossWeights(cpcl=0.7, tccl=0.3)
    received, wanted = official_losses(output, batch, weights), talent_losses(output, output.contrast, batch, weights)
    for name in LOSSES:
        assert getattr(received, name).item() == pytest.approx(getattr(wanted, name).item(), rel=1e-5), name


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_consistency_written_out(scale):
    generator = torch.Generator().manual_seed(0)
    features = scale * torch.randn(2, 36, 16, generator=generator).relu()
    sentence = torch.randn(2, 16, generator=generator)
    assert pairwise_consistency(features, sentence).item() == pytest.approx(
        contextual_pairwise_consistency(features, sentence).item(), rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(the JSON, what was printed) of one run of the command, with memory."""
    path = tmp_path_factory.mktemp("run") / "training.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words: printed.append(" ".join(map(str, words))))
        assert main([*QUICK, "-o", str(path)]) == 0
    return json.loads(path.read_text()), printed


def test_every_style_has_times_losses_and_memory(report):
    rows = report[0]["rows"]
    assert [row["style"] for row in rows] == [OFFICIAL, OURS, BF16, CHECKPOINTING]
    for row in rows:
        assert row["label"] == STYLES[row["style"]]
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["median_s"] == pytest.approx(sum(row["seconds"]) / 2)
        assert row["speed_ratio"] == pytest.approx(rows[0]["median_s"] / row["median_s"])
        assert row["cpu_speed_ratio"] == pytest.approx(rows[0]["cpu_median_s"] / row["cpu_median_s"])
        assert row["memory_ratio"] == pytest.approx(row["peak_mb"] / rows[0]["peak_mb"])
        assert row["growth_mb"] == pytest.approx(row["peak_mb"] - row["before_mb"]) and row["growth_mb"] > 0
        assert [set(losses) for losses in row["losses"]] == [set(LOSSES)] * 3, "the warm-up and two rounds"


def test_losses_and_logits_are_compared(report):
    by_style = {row["style"]: row for row in report[0]["rows"]}
    assert by_style[OFFICIAL]["loss_difference"] == 0
    for style in (OURS, CHECKPOINTING):
        assert by_style[style]["loss_difference"] <= report[0]["tolerance"] == 1e-3
        assert by_style[style]["logits_difference"] < 1e-4
    assert 0 < by_style[BF16]["loss_difference"] < 0.1 and 0 < by_style[BF16]["logits_difference"] < 0.2
    totals = [losses["total"] for losses in by_style[OURS]["losses"]]
    assert len(set(totals)) == 3, "the steps move the weights"


def test_the_report_says_how_it_was_measured(report):
    numbers, printed = report
    assert (numbers["preset"], numbers["batch"], numbers["rounds"], numbers["steps"], numbers["threads"]) \
        == ("tiny", 2, 2, 1, 1)
    assert numbers["model"]["dropout"] == 0 and numbers["model"]["layer_scale"] == numbers["layer_scale"]
    assert numbers["commit"] and numbers["versions"]["torch"] and numbers["device"]["cores"] >= 1
    assert numbers["parameters"][-1]["module"] == "total" and numbers["parameters"][-1]["trainable"] > 0
    text = "\n".join(printed)
    for row in numbers["rows"]:
        assert row["label"] in text and f"{row['losses'][2]['total']:.6f}" in text
    assert "median of 2 rounds x 1 steps" in text and "VmHWM" in text
    assert printed[-1].startswith("wrote the numbers to ") and printed[-1].endswith("training.json")


def test_without_memory_and_without_a_file(capsys):
    assert main([*QUICK, "--rounds", "1", "--no-memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "peak MB" not in "\n".join(lines) and lines[-1].startswith("wrote nothing; add -o")


def test_a_style_that_computes_something_else_fails_the_run(monkeypatch, tmp_path, capsys):
    real = official_style.explicit_attention
    monkeypatch.setattr(official_style, "explicit_attention", lambda x, attention: 1.01 * real(x, attention))
    path = tmp_path / "training.json"
    assert main([*QUICK, "--rounds", "1", "--no-memory", "-o", str(path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 'TALENT Edge' are not those of 'official style'" in error and "at most 1e-03" in error
    assert not path.exists()


def test_a_gradient_that_is_wrong_fails_the_run(monkeypatch, capsys):
    """The first losses agree; what the steps do with the weights does not."""
    real = training.Trainer.step

    def step(self):
        if self.style == OURS:
            for group in self.optimizer.param_groups:
                group["lr"] = 3e-4
        return real(self)

    monkeypatch.setattr(training.Trainer, "step", step)
    assert main([*QUICK, "--no-memory"]) == 2
    assert "the losses of 'TALENT Edge' are not those" in capsys.readouterr().err


def test_rounds_are_interleaved_and_rotated(monkeypatch):
    order = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def step(self):
            order.append(self.name)
            return {"total": 1.0}

        logits = None

    measured = training.measure_time({name: Recorder(name) for name in "abc"}, rounds=3, steps=2)
    assert "".join(order) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert all(len(own.seconds) == 6 and len(own.losses) == 7 for own in measured.values())


def test_styles_share_frozen_weights_and_no_others():
    trainers = training.build_trainers(dataclasses.replace(TINY, dropout=0.0), 1)
    ours, official = (dict(trainers[style].model.named_parameters()) for style in (OURS, OFFICIAL))
    for name, parameter in ours.items():
        assert (parameter is official[name]) == (not parameter.requires_grad), name
        assert torch.equal(parameter, official[name]), name


def test_the_batch_has_sentences_as_the_tokenizer_makes_them():
    batch = make_batch(TINY, 4)
    tokens = batch["tokens"]
    assert tokens.shape == (4, 3, TINY.context_length) and tokens.dtype == torch.int64
    ends = tokens.argmax(2)
    assert (tokens[:, :, 0] == TINY.vocab_size - 2).all() and (tokens.max(2).values == TINY.vocab_size - 1).all()
    for sentence, end in zip(tokens.flatten(0, 1), ends.flatten(), strict=True):
        assert end >= 3 and (sentence[1:end] > 0).all() and not sentence[end + 1:].any()
    assert all(torch.equal(value, make_batch(TINY, 4)[key]) for key, value in batch.items())


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "bsae"], "did you mean 'base'?"), (["--batch", "0"], "--batch: expected at least 1"),
    (["--rounds", "0"], "--rounds: expected at least 1"), (["--steps", "0"], "--steps: expected at least 1"),
    (["--threads", "-1"], "--threads: expected at least 1"), (["--memory-of", "our"], "did you mean 'ours'?"),
    (["-o", "none/training.json"], "none")])
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    line, = [line for line in printed.err.splitlines() if line]
    assert line.startswith("training.py: error: ") and message in line
    assert printed.out == ""


def test_a_measurement_that_dies_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(training.sys, "executable", "/bin/false")
    assert main(QUICK) == 2
    assert "measuring the memory of 'official' failed with exit code 1" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "python benchmarks/training.py --preset base" in printed and "--memory-of" not in printed
