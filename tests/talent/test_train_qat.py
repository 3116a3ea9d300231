"""talent-train --qat: what the run writes, that it goes on, that it learns what integers can hold, on any division."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from talent import train
from talent.checkpoint import load_checkpoint
from talent.data.registry import open_dataset
from talent.evaluate import evaluate, torch_predictor
from talent.model.fake_quantization import add_fake_quantization
from talent.run_directory import BEST, LAST
from talent.settings import parse_settings
from talent.stopping import StopRequest
from tests.networks import SMALL, save_network
from tests.talent import processes, runs
from tests.talent.processes import Signal, no_pictures
from tests.talent.runs import assert_same_run, log, losses, state, weights

SHORT = ["--tune", "lora", "--lora.rank", "2", "--steps", "4", "--train_samples", "6", "--val_samples", "3",
         "--validate_every", "2", "--log_every", "1", "--workers", "0", "--warmup_steps", "1", "--cpu", "true"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Without dropout, whose random numbers depend on the process."""
    return save_network(tmp_path_factory.mktemp("weights") / "plain", dataclasses.replace(SMALL, dropout=0.0))


@pytest.fixture(scope="module")
def finished(plain, tmp_path_factory) -> Path:
    """A run with fake quantization, two samples a step."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    code, output = runs.train(plain, run, arguments=[*SHORT, "--batch_size", "2", "--qat", "true"])
    assert code == 0, output
    assert ", precision fp32, 27 layers through fake quantization, " in output
    return run


def test_checkpoints_are_ordinary_ones(finished, plain, tmp_path):
    """The same keys as without --qat, and a record of it."""
    code, output = runs.train(plain, tmp_path / "other", arguments=[*SHORT, "--batch_size", "2"])
    assert code == 0, output
    for name in (LAST, BEST):
        assert list(weights(finished / name)) == list(weights(tmp_path / "other" / name))
    assert load_checkpoint(finished / BEST).training["qat"] is True
    assert state(tmp_path / "other")["ranges"] is None
    assert losses(finished) != losses(tmp_path / "other")


def test_validation_is_through_fake_quantization(finished):
    """The metrics of the last step are those of its weights with the ranges of its state, and not those of FP32."""
    last = load_checkpoint(finished / LAST)
    samples = open_dataset("shapes", split="val", size=last.config.image_size, length=3)

    def measured() -> dict:
        return evaluate(torch_predictor(last.model), last.tokenizer, samples, image_size=last.config.image_size,
                        threshold=last.config.threshold, progress=False).result()

    exact = measured()
    add_fake_quantization(last.model).load_state_dict(state(finished)["ranges"])
    wanted, logged = measured(), log(finished, "validation")[-1]
    assert logged["step"] == 4 and wanted != exact
    assert {name: logged[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_run_without_fake_quantization_does_not_go_on_with_it(finished, plain, capsys):
    argv = ["--init", str(plain), *SHORT, "--batch_size", "2", "--resume", "true", "-o", str(finished)]
    assert train.main(argv) == 2
    assert "qat: expected True, received False" in capsys.readouterr().err


KILLED = [*SHORT, "--batch_size", "2", "--qat", "true", "--save_every", "1", "--ema", "0.8", "--learning_rate", "1e-2"]


@pytest.fixture(scope="module")
def whole(initial, tmp_path_factory) -> Path:
    """The run that nobody killed, of a network with dropout."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert runs.train(initial, run, arguments=KILLED)[0] == 0
    return run


@pytest.mark.parametrize("how", [
    Signal("talent.model.fake_quantization.FakeQuantization.update", 1),
    Signal("talent.model.fake_quantization.FakeQuantization.update", 4, after=True)],
    ids=["in the calibration", "after the ranges moved"])
def test_killed_run_goes_on_with_its_ranges(tmp_path, initial, whole, how):
    """To the bit."""
    assert runs.train(initial, tmp_path / "run", how, arguments=KILLED)[0] == -signal.SIGKILL
    code, output = runs.train(initial, tmp_path / "run", arguments=KILLED, resume=True)
    assert code == 0, output
    assert_same_run(tmp_path / "run", whole)
    assert all(float(largest) > 0 for largest in state(tmp_path / "run")["ranges"].values())


def test_same_samples_give_the_same_ranges_however_they_are_divided(tmp_path, plain):
    """Two processes of two samples, and one process of four: each sees only its own, all round alike.

    A value on the edge of two steps falls to one side or the other by its last bit, so that the networks drift apart a
    little; a step is 8e-3 of a range. The two samples of one process alone would make ranges 10 % narrower.
    """
    arguments = ["--init", str(plain), *SHORT, "--qat", "true", "--train_heads", "false"]
    started = processes.start_together([*arguments, "--batch_size", "2", "-o", str(tmp_path / "pair")],
                                       log=tmp_path / "pair.txt", prepare=[no_pictures])
    assert [one.wait() for one in started] == [0, 0], [one.output for one in started]
    code, output = runs.train(plain, tmp_path / "one",
                              arguments=[*SHORT, "--qat", "true", "--train_heads", "false", "--batch_size", "4"])
    assert code == 0, output
    expected, received = (state(tmp_path / name)["ranges"] for name in ("one", "pair"))
    for name, largest in expected.items():
        assert float(received[name]) == pytest.approx(float(largest), rel=5e-3), name
    for one, other in zip(losses(tmp_path / "pair"), losses(tmp_path / "one"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_loss_through_fake_quantization_goes_down(tmp_path, initial):
    """On two pictures, with the LoRA factors and the heads of a network that never learnt anything."""
    settings = parse_settings([*SHORT, "--init", str(initial), "--qat", "--batch_size", "2", "--train_samples", "2",
                               "--steps", "40", "--learning_rate", "3e-3", "-o", str(tmp_path / "run")])
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train.Run(settings, StopRequest())
    run._calibrate()
    first = run.quantization.state_dict()
    train.set_training_mode(run.network)
    batches, values = iter(run.loader()), []
    for run.step in range(40):
        values.append(run._update(batches)[0]["segmentation"])
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    still = {name for name, largest in run.quantization.ranges.items() if torch.equal(largest, first[name])}
    assert still <= {"vision.blocks.0.attn.qkv"}, "ranges follow the network; before that layer nothing is trained"
