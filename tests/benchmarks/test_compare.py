"""benchmarks/compare.py: verdicts of rows and stages, what else differs, and the exit code."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from benchmarks import results_file
from benchmarks.compare import compare_results, main, table
from benchmarks.intervals import FASTER, NOISE, SLOWER, summary
from talent.errors import UserError

MACHINE = {"cpu": "Processor 8", "cores": 4, "cores_of_machine": 4, "driver": None, "power_mode": "MAXN", "gpus": [],
           "before": {"cores_in_use": 0.1}}


def times(median: float, *, seed: int, rounds: int = 6):
    generator = np.random.default_rng(seed)
    return summary((median * generator.normal(1, 0.01, (rounds, 5))).tolist())


def row(name, *, seed, factor=1.0, stages=("vision", "frame")):
    return results_file.row(name, backend="ONNX Runtime", precision="fp32", device="cpu", stages={
        stage: times(factor * 10 * number, seed=seed + number) for number, stage in enumerate(stages, 1)})


def result(*rows, **changes):
    made = results_file.new("latency", title="t", rows=rows, settings={"threads": 2, "samples": 5, "bundles": []},
                            command=["latency.py"], machine=copy.deepcopy(MACHINE))
    made["dirty"] = False
    made["versions"] = {"python": "3.11"}
    made.update(changes)
    return made


def verdicts(report):
    return {(line.row, line.stage): line.comparison.verdict for line in report.lines}


def test_every_row_and_stage_has_its_verdict():
    before = result(row("same", seed=1), row("better", seed=2), row("worse", seed=3))
    after = result(row("worse", seed=13, factor=1.2), row("same", seed=11), row("better", seed=12, factor=0.8))
    report = compare_results(before, after)
    assert verdicts(report) == {("same", "vision"): NOISE, ("same", "frame"): NOISE, ("better", "vision"): FASTER,
                                ("better", "frame"): FASTER, ("worse", "vision"): SLOWER, ("worse", "frame"): SLOWER}
    assert report.differences == () and report.only_before == () and report.only_after == ()
    text = table(report)
    assert text.splitlines()[0].split() == ["row", "stage", "before", "ms", "after", "ms", "ratio", "95", "%",
                                            "interval", "verdict"]
    assert text.splitlines()[-1] == "2 faster, 2 slower, 2 within noise"


def test_one_stage_only():
    before, after = result(row("a", seed=1)), result(row("a", seed=2, factor=2))
    assert verdicts(compare_results(before, after, stages=["frame"])) == {("a", "frame"): SLOWER}
    with pytest.raises(UserError, match="neither file has the stage 'frames'; did you mean 'frame'?"):
        compare_results(before, after, stages=["frames"])


def test_how_small_a_difference_counts():
    before, after = result(row("a", seed=1)), result(row("a", seed=2, factor=1.1))
    assert set(verdicts(compare_results(before, after)).values()) == {SLOWER}
    assert set(verdicts(compare_results(before, after, least=0.2)).values()) == {NOISE}


def slower_by(factors, made):
    """The same row on a machine that is slower by a factor of its own in each round."""
    stages = {stage: summary([[factor * value for value in samples]
                              for factor, samples in zip(factors, times["samples_ms"], strict=True)])
              for stage, times in made["stages"].items()}
    return {**made, "stages": stages}


def test_a_machine_that_drifts_is_taken_out_by_a_row_that_did_not_change():
    drift = [1.3, 1.5, 1.2, 1.6, 1.4, 1.3]
    before = result(row("eager", seed=1), row("same", seed=2), row("better", seed=3))
    after = result(*(slower_by(drift, made) for made in (row("eager", seed=4), row("same", seed=5),
                                                         row("better", seed=6, factor=0.8))))
    assert verdicts(compare_results(before, after))["same", "frame"] == SLOWER
    report = compare_results(before, after, yardstick="eager")
    assert verdicts(report) == {("same", "vision"): NOISE, ("same", "frame"): NOISE, ("better", "vision"): FASTER,
                                ("better", "frame"): FASTER}
    assert report.lines[-1].comparison.ratio == pytest.approx(0.8, rel=0.02)
    with pytest.raises(UserError, match="--relative-to: expected a row that both files have, received 'eagre'"):
        compare_results(before, after, yardstick="eagre")


def test_rows_and_stages_of_one_file_only():
    before = result(row("a", seed=1, stages=("vision", "frame")), row("gone", seed=2))
    after = result(row("a", seed=3, stages=("vision", "whole")), row("new", seed=4),
                   not_run=[{"name": "gone", "reason": "needs an NVIDIA GPU"}])
    report = compare_results(before, after)
    assert list(verdicts(report)) == [("a", "vision")]
    assert report.only_before == ("gone (not run there: needs an NVIDIA GPU)", "a: frame")
    assert report.only_after == ("new", "a: whole")
    assert "only before: gone (not run there: needs an NVIDIA GPU)" in table(report)


def test_another_machine_settings_and_versions_are_said_first():
    before = result(row("a", seed=1))
    elsewhere = [{"name": "elsewhere", "preset": "tiny", "image_size": 168}]
    after = result(row("a", seed=2), settings={"threads": 4, "samples": 5, "bundles": elsewhere},
                   versions={"python": "3.12"}, dirty=True, commit="0123456789abcdef",
                   machine={**MACHINE, "cpu": "Processor 9", "power_mode": None, "gpus": [{"name": "Orin"}],
                            "before": {"cores_in_use": 3.5}})
    lines = table(compare_results(before, after)).splitlines()
    assert lines[:7] == [
        'WARNING: another machine: cpu is "Processor 8" before and "Processor 9" after',
        'WARNING: another machine: power_mode is "MAXN" before and unknown after',
        'WARNING: another machine: gpus are [] before and ["Orin"] after',
        "WARNING: other settings: threads is 2 before and 4 after",
        'WARNING: other versions: python is "3.11" before and "3.12" after',
        "WARNING: a busy machine: when the file after was begun, other programs used 3.5 of 4 cores",
        "WARNING: uncommitted changes: the file after is of 0123456789ab with changes that are in no commit"]
    assert lines[7].startswith("row")


def test_another_network_of_the_same_name_is_said():
    def of(preset, folder):
        made = row("a", seed=1)
        made["source"] = folder
        return result(made, settings={"threads": 2, "samples": 5, "checkpoint": None,
                                      "bundles": [{"name": folder, "preset": preset, "image_size": 448}]})

    found = compare_results(of("base", "one"), of("small", "other")).differences
    assert found == ('another network: a is ["base", 448, "cpu"] before and ["small", 448, "cpu"] after',)
    assert compare_results(of("base", "one"), of("base", "other")).differences == ()


def test_clocks_and_temperatures_of_the_moment_are_no_other_machine():
    before, after = result(row("a", seed=1)), result(row("a", seed=2))
    after["machine"]["before"]["temperatures_celsius"] = {"cpu": 90.0}
    assert compare_results(before, after).differences == ()


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="results of one benchmark, received latency and parity"):
        compare_results(result(row("a", seed=1)), result(row("a", seed=1), benchmark="parity"))
    with pytest.raises(UserError, match="no row and stage in common: before: a; after: b"):
        compare_results(result(row("a", seed=1)), result(row("b", seed=1)))


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, factor in (("before", 1.0), ("slower", 1.3)):
        results_file.write(tmp_path / name, result(row("a", seed=5, factor=factor)))
        paths.append(str(tmp_path / name))
    return paths


def test_exit_codes(files, capsys):
    before, slower = files
    assert main([before, slower]) == 0
    assert main([before, slower, "--fail-slower"]) == 1
    assert main([slower, before, "--fail-slower"]) == 0
    assert main([before, before, "--fail-slower"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 within noise"


@pytest.mark.parametrize(("arguments", "message"), [
    (["{before}", "none.json"], "cannot read none.json"),
    (["{before}", "{slower}", "--least", "-1"], "--least: expected"),
    (["{before}", "{slower}", "--stage", "txt"], "neither file has the stage")])
def test_bad_input(files, arguments, message, capsys):
    before, slower = files
    assert main([argument.format(before=before, slower=slower) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("compare.py: error: ") and message in printed.err and printed.out == ""


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/compare.py before.json after.json" in capsys.readouterr().out
