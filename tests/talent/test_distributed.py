"""Two processes on a CPU (gloo) are one run: losses of one process with the same global batch, one writer of files."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from talent import train as training
from talent.checkpoint import load_checkpoint
from talent.errors import UserError
from talent.losses import talent_losses
from talent.run_directory import ABOUT, BEST, CURVES, LAST, NONFINITE, PREDICTIONS
from tests.networks import SMALL, save_network
from tests.talent import processes
from tests.talent.processes import LIMIT, ROOT, Signal, no_pictures
from tests.talent.runs import assert_same_run, assert_whole, log, losses, weights

# 9 samples of three sentences or so: no number divides into two.
ARGUMENTS = ["--tune", "full", "--steps", "4", "--train_samples", "9", "--val_samples", "5", "--validate_every", "2",
             "--log_every", "1", "--warmup_steps", "1", "--workers", "0", "--cpu", "true"]
LOSS_TOLERANCE = 1e-4  # what the project promises; measured 5e-7
METRIC_TOLERANCE = 1e-4  # BatchNorm statistics are summed in another order: measured 3e-6 for the mean probabilities


@pytest.fixture(scope="module")
def initial(tmp_path_factory) -> Path:
    """Without dropout, whose random numbers depend on the process."""
    return save_network(tmp_path_factory.mktemp("weights") / "initial", dataclasses.replace(SMALL, dropout=0.0))


def arguments(initial: Path, run: Path, *changed: str) -> list[str]:
    return ["--init", str(initial), *ARGUMENTS, *changed, "-o", str(run)]


def alone(initial: Path, run: Path, *changed: str, prepare: Sequence = ()) -> None:
    code, output = processes.run(arguments(initial, run, "--batch_size", "4", *changed), log=run.with_suffix(".txt"),
                                 prepare=[no_pictures, *prepare])
    assert code == 0, output


def together(initial: Path, run: Path, *changed: str, prepare: Sequence = ()) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of two processes with half the batch each."""
    started = processes.start_together(arguments(initial, run, "--batch_size", "2", *changed),
                                       log=run.with_suffix(".txt"), prepare=[no_pictures, *prepare])
    return [one.wait() for one in started], [one.output for one in started]


@pytest.fixture(scope="module")
def pair(initial, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two processes, with what they printed. It says which files they wrote and which samples they took."""
    run = tmp_path_factory.mktemp("runs") / "pair"
    codes, outputs = together(initial, run, prepare=[Written(run), Taken(run)])
    assert codes == [0, 0], outputs
    return run, outputs


@pytest.fixture(scope="module")
def single(initial, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "single"
    alone(initial, run, prepare=[Taken(run)])
    return run


def _note(run: Path, what: str, content: object) -> None:
    with open(run.with_suffix(f".{what}.{os.environ.get('RANK', '0')}"), "a") as file:
        file.write(json.dumps(content) + "\n")


def noted(run: Path, what: str, rank: int) -> list:
    path = run.with_suffix(f".{what}.{rank}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Written:
    """Notes every file and folder of the run that this process makes, moves or removes."""

    run: Path

    def __call__(self) -> None:
        def audit(event: str, details: tuple) -> None:
            writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"):
                if str(details[0]).startswith(f"{self.run}{os.sep}"):
                    _note(self.run, "written", f"{event} {details[0]}")

        sys.addaudithook(audit)


@dataclass(frozen=True)
class Taken:
    """Notes the indices of every batch."""

    run: Path

    def __call__(self) -> None:
        def noting(output, contrast, batch, settings, count):
            _note(self.run, "taken", batch["index"].tolist())
            return talent_losses(output, contrast, batch, settings, count)

        training.talent_losses = noting


def assert_equal_losses(run: Path, other: Path) -> float:
    received, expected = losses(run), losses(other)
    assert [line["step"] for line in received] == [line["step"] for line in expected]
    names = ("loss", "segmentation", "cpcl", "tccl")
    difference = max(abs(one[name] - two[name]) for one, two in zip(received, expected, strict=True) for name in names)
    assert difference < LOSS_TOLERANCE
    return difference


def assert_equal_metrics(run: Path, other: Path) -> None:
    for received, expected in zip(log(run, "validation"), log(other, "validation"), strict=True):
        assert received == pytest.approx(expected, abs=METRIC_TOLERANCE)


def test_two_processes_lose_as_one(pair, single):
    run, _ = pair
    assert_equal_losses(run, single)
    assert_equal_metrics(run, single)
    for name in (LAST, BEST):
        received, expected = weights(run / name), weights(single / name)
        assert received.keys() == expected.keys(), "nothing of what distributes the network is in its names"


def test_every_sentence_is_scored_once(pair, single):
    samples = [line["samples"] for line in log(pair[0], "validation")]
    assert samples == [line["samples"] for line in log(single, "validation")] and samples[0] % 2, "an odd number"


def test_two_processes_share_the_batch_of_one(pair, single):
    taken = [noted(pair[0], "taken", rank) for rank in range(2)]
    assert [one + two for one, two in zip(*taken, strict=True)] == noted(single, "taken", 0)


def test_one_process_writes_and_speaks(pair):
    run, outputs = pair
    assert outputs[1] == "" and len(outputs[0].splitlines()) > 5
    assert noted(run, "written", 0) and noted(run, "written", 1) == []
    about = json.loads((run / ABOUT).read_text())
    assert about["processes"] == 2 and about["global_batch"] == 4


@pytest.mark.parametrize("changed", [
    ("--losses.tlm", "rectified", "--learning_rate", "1e-4"), ("--losses.tlm", "none", "--checkpointing", "true"),
    ("--tune", "lora+adapters", "--train_heads", "false", "--ema", "0.5", "--checkpointing", "true")],
    ids=["rectified", "none, checkpointing", "LoRA, average, checkpointing"])
def test_two_processes_lose_as_one_in_other_ways_too(tmp_path, initial, changed):
    """Rectified losses have steep gradients. AdamW's first steps are as long for parameters whose gradient is rounding
    as for any other, so at a high learning rate even one process that sums a batch in another order is off by 1e-3.
    """
    alone(initial, tmp_path / "one", *changed)
    codes, outputs = together(initial, tmp_path / "two", *changed)
    assert codes == [0, 0], outputs
    assert_equal_losses(tmp_path / "two", tmp_path / "one")
    assert_equal_metrics(tmp_path / "two", tmp_path / "one")


@dataclass(frozen=True)
class WithoutNegatives:
    """These samples have no sentence about another object."""

    indices: tuple[int, ...]

    def __call__(self) -> None:
        item = training.TrainingSet.__getitem__

        def changed(self_, pick):
            return item(self_, pick) | {"valid": torch.tensor(pick.index not in self.indices)}

        training.TrainingSet.__getitem__ = changed


def test_contrast_is_one_mean_over_all_processes(tmp_path, initial, single):
    """Not a mean of means: one process's batch has two samples with a negative, the other's one."""
    without = WithoutNegatives((noted(single, "taken", 0)[0][0],))
    alone(initial, tmp_path / "one", prepare=[without])
    codes, outputs = together(initial, tmp_path / "two", prepare=[without])
    assert codes == [0, 0], outputs
    assert_equal_losses(tmp_path / "two", tmp_path / "one")
    assert losses(tmp_path / "one")[0]["tccl"] != pytest.approx(losses(single)[0]["tccl"], abs=1e-3)


@dataclass(frozen=True)
class OnRank:
    rank: str
    change: Callable[[], None]

    def __call__(self) -> None:
        if os.environ["RANK"] == self.rank:
            self.change()


@dataclass(frozen=True)
class Poison:
    """The loss of this batch (from 1) is not a number."""

    number: int

    def __call__(self) -> None:
        calls = []

        def poisoned(*arguments):
            calls.append(1)
            found = talent_losses(*arguments)
            return dataclasses.replace(found, total=found.total * (torch.nan if len(calls) == self.number else 1.0))

        training.talent_losses = poisoned


def test_loss_that_is_not_finite_on_one_process_stops_both(tmp_path, initial, pair):
    run, samples = tmp_path / "run", noted(pair[0], "taken", 1)[2]
    codes, outputs = together(initial, run, prepare=[OnRank("1", Poison(3))])
    assert codes == [2, 2] and outputs[1] == ""
    assert f"the loss became nan at step 3, batch of samples {samples}" in outputs[0].splitlines()[-1]
    report = json.loads((run / NONFINITE).read_text())
    assert report["step"] == 3 and [one["index"] for one in report["samples"]] == samples
    assert_whole(run)
    assert load_checkpoint(run / LAST).metrics["step"] == 2
    assert [line["step"] for line in log(run, "train")] == [1, 2]


@dataclass(frozen=True)
class FailsInValidation:
    def __call__(self) -> None:
        def broken(*ignored, **named):
            raise UserError("cannot read picture.jpg")

        training.evaluate = broken


def test_what_only_one_process_knows_is_said(tmp_path, initial):
    """The others end too, however they do it."""
    codes, outputs = together(initial, tmp_path / "run", prepare=[OnRank("1", FailsInValidation())])
    assert codes[1] == 2 and codes[0] != 0
    assert outputs[1].splitlines()[-1] == "talent-train: error: cannot read picture.jpg"
    assert_whole(tmp_path / "run")


@pytest.mark.parametrize("where", ["talent.train.talent_losses", "talent.train.torch_predictor"],
                         ids=["in a step", "in a validation"])
def test_a_signal_to_one_process_stops_both(tmp_path, initial, pair, where):
    run = tmp_path / "run"
    stop = Signal(where, 2 if where.endswith("predictor") else 3, signals=(signal.SIGTERM,))
    codes, outputs = together(initial, run, prepare=[OnRank("1", stop)])
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert "stopped at step" in outputs[0].splitlines()[-1]
    assert_whole(run)
    codes, outputs = together(initial, run, "--resume", "true")
    assert codes == [0, 0], outputs
    assert_same_run(run, pair[0])


def test_killed_process(tmp_path, initial, pair):
    """The other one fails; both together go on as if nothing had been."""
    run = tmp_path / "run"
    codes, outputs = together(initial, run, prepare=[OnRank("1", Signal("talent.train.talent_losses", 4))])
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, outputs
    codes, outputs = together(initial, run, "--resume", "true")
    assert codes == [0, 0], outputs
    assert_same_run(run, pair[0])


def test_one_process_goes_on_with_a_run_of_two(tmp_path, initial, single):
    """By accumulating. BatchNorm then sees half the batch, so the losses differ, but the samples are the same."""
    run = tmp_path / "run"
    stop = Signal("talent.train.talent_losses", 2, signals=(signal.SIGTERM,))
    assert together(initial, run, prepare=[stop])[0] == [128 + signal.SIGTERM] * 2
    code, output = processes.run(arguments(initial, run, "--batch_size", "2", "--resume", "true"),
                                 log=tmp_path / "refused.txt")
    assert code == 2 and "batch_size: expected 4 samples a step" in output and "received 2" in output
    code, output = processes.run(
        arguments(initial, run, "--batch_size", "2", "--accumulate", "2", "--resume", "true"),
        log=tmp_path / "alone.txt", prepare=[no_pictures, Taken(run)])
    assert code == 0, output
    taken = noted(run, "taken", 0)
    assert [one + two for one, two in zip(taken[::2], taken[1::2], strict=True)] == noted(single, "taken", 0)[2:]
    assert [line["step"] for line in log(run, "train")] == [1, 2, 3, 4]


def launch(launcher: list[str], argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", *launcher, "-m", "talent.train", *argv], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> str:
    """Its output. Fails where it takes too long."""
    try:
        return process.communicate(timeout=2 * LIMIT)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_torchrun_is_stopped(tmp_path, initial):
    """SIGTERM to torchrun reaches both processes and their workers; they save and end."""
    run = tmp_path / "run"
    torchrun = launch(["torch.distributed.run", f"--master_port={processes.free_port()}", "--nproc_per_node=2"],
                      arguments(initial, run, "--steps", "200", "--workers", "1", "--batch_size", "2",
                                "--validate_every", "1000"))
    assert any(line.startswith("tuning full") for line in iter(torchrun.stdout.readline, "")), "it begins"
    torchrun.terminate()
    output = ended(torchrun)
    assert torchrun.returncode != 0
    assert output.count("SIGTERM: saving at the end of this step") == 2 and "Traceback" not in \
        output.split("stopped at step")[0], output
    assert_whole(run)
    step = load_checkpoint(run / LAST).metrics["step"]
    assert 0 < step < 200 and f"stopped at step {step} of 200; saved: {run / LAST}" in output


def test_accelerate_launch(tmp_path, initial, pair):
    run = tmp_path / "run"
    accelerate = launch(
        ["accelerate.commands.launch", f"--main_process_port={processes.free_port()}", "--multi_gpu",
         "--num_processes=2"], arguments(initial, run, "--batch_size", "2"))
    output = ended(accelerate)
    assert accelerate.returncode == 0, output
    assert output.count("best validation mIoU") == 1 and (run / CURVES).is_file() and (run / PREDICTIONS).is_file()
    assert_same_run(run, pair[0])
