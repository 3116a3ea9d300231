"""The directory of a run: what it refuses, what it keeps when the disk is full, and what it makes of damaged files."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from talent.checkpoint import CONFIG, WEIGHTS, Checkpoint, load_checkpoint, new_checkpoint
from talent.errors import UserError
from talent.run_directory import ABOUT, BEST, LAST, LOG, STATE, RunDirectory
from talent.settings import TrainSettings
from tests.networks import SMALL
from tests.talent.runs import assert_equal, assert_whole


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return new_checkpoint(SMALL)


def settings(path: Path, **changed) -> TrainSettings:
    return TrainSettings(**{"output": str(path), "preset": "tiny", "batch_size": 4, **changed})


@pytest.fixture
def run(tmp_path, checkpoint) -> RunDirectory:
    """A run with both checkpoints and two lines."""
    run = RunDirectory(tmp_path / "run")
    run.begin(settings(run.path), {"global_batch": 4})
    checkpoint.metrics = {"step": 3, "mIoU": 0.5}
    run.save_best(checkpoint)
    run.save_last(checkpoint, {"step": 3, "moments": [torch.ones(2)]})
    for line in ({"kind": "train", "step": 3, "loss": 1.5}, {"kind": "validation", "step": 3, "mIoU": 0.5}):
        run.append(line)
    return run


def resumed(run: RunDirectory, **changed) -> TrainSettings:
    return settings(run.path, resume=True, **changed)


def test_what_was_saved_is_read_again(run, checkpoint):
    run.check(resumed(run))
    run.check_global_batch(4)
    loaded, state = run.load_last()
    assert_equal(state, {"step": 3, "moments": [torch.ones(2)]})
    assert_equal(dict(loaded.model.state_dict()), dict(checkpoint.model.state_dict()))
    assert run.best_miou() == 0.5 and run.resumable
    assert [line["kind"] for line in run.lines()] == ["train", "validation"]


def test_it_says_what_it_is_and_when_it_was_resumed(run):
    first = json.loads((run.path / ABOUT).read_text())
    assert first["settings"] == settings(run.path).to_dict() and first["resumed"] == []
    assert first["commit"] and "torch" in first["versions"] and "accelerate" in first["versions"]
    run.begin(resumed(run), {"global_batch": 4, "processes": 2})
    second = json.loads((run.path / ABOUT).read_text())
    assert second == first | {"resumed": second["resumed"]}
    assert [one["processes"] for one in second["resumed"]] == [2]


def refused(run: RunDirectory, settings: TrainSettings) -> str:
    before = sorted(path for path in run.path.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        run.check(settings)
    assert sorted(path for path in run.path.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_run_is_not_overwritten(run):
    assert "already holds a run; add --resume true" in refused(run, settings(run.path))


@pytest.mark.parametrize("name", [LAST, BEST, LOG])
def test_what_is_no_run_is_not_overwritten(run, name):
    """Such as a run of an older version, which had no run.json."""
    for other in {LAST, BEST} - {name}:
        shutil.rmtree(run.path / other)
    for other in {LOG, ABOUT} - {name}:
        (run.path / other).unlink()
    assert f"holds {name} of something that is no run" in refused(run, settings(run.path))
    assert "nothing to resume" in refused(run, resumed(run))


def test_directory_with_other_things_may_be_used(tmp_path):
    (tmp_path / "run" / "notes").mkdir(parents=True)
    RunDirectory(tmp_path / "run").check(settings(tmp_path / "run"))


def test_other_settings_are_named(run):
    message = refused(run, resumed(run, seed=7, learning_rate=0.5, steps=5))
    for name, expected, received in (("seed", 0, 7), ("learning_rate", 0.0001, 0.5), ("steps", 1000, 5)):
        assert f"{name}: expected {expected}, received {received}" in message
    assert f"--init {run.last}" in message and str(run.path / ABOUT) in message


def test_settings_that_make_no_other_run(run):
    run.check(resumed(run, workers=7, cpu=True, validate_every=3, save_every=2, log_every=1, checkpointing=True,
                      batch_size=2, accumulate=2, data_root="elsewhere", val_samples=9))


def test_global_batch_stays(run):
    with pytest.raises(UserError, match="batch_size: expected 4 samples a step.*received 8; change --batch_size or"):
        run.check_global_batch(8)


def test_no_checkpoint_yet(run):
    """Killed before its first one: it starts from the beginning."""
    shutil.rmtree(run.last)
    shutil.rmtree(run.best)
    run.check(resumed(run))
    assert not run.resumable and run.best_miou() == -1


def test_last_is_gone(run):
    shutil.rmtree(run.last)
    message = refused(run, resumed(run))
    assert f"{LAST}/ is gone" in message and f"--init {run.best}" in message


@pytest.mark.parametrize(("file", "content"), [
    (CONFIG, None), (CONFIG, b""), (CONFIG, b"format: ["), (CONFIG, b"format: 1\nmodel: {}\n"), (CONFIG, b"\0" * 400),
    (WEIGHTS, None), (WEIGHTS, b"half"), (STATE, None), (STATE, b""), (STATE, b"PK\3\4half")])
def test_damaged_last(run, file, content):
    path = run.last / file
    path.unlink() if content is None else path.write_bytes(content)
    run.check(resumed(run))
    assert run.resumable, "it must not be taken for a run that has no checkpoint yet"
    with pytest.raises(UserError) as caught:
        run.load_last()
    assert file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "metrics: 3\n", "metrics: {}\n", "metrics: [", "metrics: {mIoU: high}\n"])
def test_damaged_best(run, content):
    (run.best / CONFIG).write_text(content)
    with pytest.raises(UserError, match="damaged.*move .*best away"):
        run.best_miou()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", '{"settings": {}}'])
def test_damaged_about(run, content):
    (run.path / ABOUT).write_text(content)
    with pytest.raises(UserError, match=f"{ABOUT} is damaged.*--init"):
        run.check(resumed(run))


def test_state_is_read_without_running_what_is_in_it(run):
    """weights_only: a pickle that calls something is refused."""
    torch.save({"step": Path("anything that is no tensor")}, run.last / STATE)
    with pytest.raises(UserError, match=f"{STATE} cannot be read"):
        run.load_last()


def test_torn_last_line_is_passed_over_and_cut_off(run):
    with open(run.log, "a") as log:
        log.write('{"kind": "train", "st')
    assert len(run.lines()) == 2
    run.rewind(3)
    run.append({"kind": "train", "step": 4})
    assert [line["step"] for line in run.lines()] == [3, 3, 4]


@pytest.mark.parametrize("line", [b"\0\0\0", b"\xff\xfe", b"text", b"3"])
def test_line_that_is_not_of_a_log(run, line):
    text = run.log.read_bytes()
    run.log.write_bytes(text + line + b"\n" + text)
    with pytest.raises(UserError, match=f"{LOG}, line 3: expected JSON.*remove the line"):
        run.rewind(3)
    assert run.log.read_bytes() == text + line + b"\n" + text


def test_rewind_drops_what_will_be_written_again(run):
    for step in (4, 5):
        run.append({"kind": "train", "step": step})
    run.rewind(4)
    assert [line["step"] for line in run.lines()] == [3, 3, 4]
    run.rewind(0)
    assert run.lines() == [] and run.log.read_text() == ""


def test_numbers_that_json_lacks(run):
    run.append({"kind": "train", "step": 4, "gradient_norm": float("inf"), "loss": 2.0})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    last = json.loads(run.log.read_text().splitlines()[-1], parse_constant=refuse)
    assert last == {"kind": "train", "step": 4, "gradient_norm": None, "loss": 2.0}


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can be larger than `size` bytes: the system refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 1_200_000], ids=["in the weights", "later", "in the state"])
def test_full_disk(run, checkpoint, size):
    """Weights are 1.1 MB here, the state 4 MB."""
    checkpoint.metrics = {"step": 4, "mIoU": 0.9}
    with full_disk(size), pytest.raises(UserError) as caught:
        run.save_last(checkpoint, {"step": 4, "moments": torch.ones(1_000_000)})
    message = str(caught.value)
    assert f"cannot write {run.last}" in message and "--resume true" in message and "\n" not in message
    if size < 1_000_000:
        with full_disk(size), pytest.raises(UserError, match=f"cannot write {run.best}.*make room on the disk"):
            run.save_best(checkpoint)
    assert_whole(run.path)
    assert load_checkpoint(run.last).metrics["step"] == 3 and run.best_miou() == 0.5
    assert not list(run.path.glob(".*"))


def test_full_disk_under_the_log(run):
    with full_disk(run.log.stat().st_size + 10), pytest.raises(UserError, match=f"cannot write {run.log}"):
        run.append({"kind": "train", "step": 4, "loss": 1.0})
    assert [line["step"] for line in run.lines()] == [3, 3]
