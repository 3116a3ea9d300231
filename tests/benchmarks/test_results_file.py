"""benchmarks/results_file.py: what is written is read again, and what is no result is refused by its field."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import results_file
from benchmarks.intervals import summary
from talent.errors import UserError

MACHINE = {"cpu": "Processor 8", "cores": 2, "unknown": {"driver": "no GPU"}}


@pytest.fixture
def result():
    times = summary([[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]])
    rows = [results_file.row("fast", backend="ONNX Runtime", precision="fp16", device="cpu", stages={"frame": times},
                             facts={"peak_gpu_bytes": None}),
            results_file.row("no times", backend="b", precision="fp32", device="cuda", facts={"miou": 0.7})]
    return results_file.new("latency", title="Latency", rows=rows, settings={"rounds": 3}, command=["latency.py", "x"],
                            packages=["numpy", "no-such-package"], machine=MACHINE,
                            not_run=[{"name": "slow", "reason": "no GPU"}], notes=["emulated"])


def test_a_result_comes_back_as_it_was_written(result, tmp_path):
    results_file.write(tmp_path / "result.json", result)
    assert results_file.read(tmp_path / "result.json") == result
    assert result["machine"] == MACHINE and result["created"].endswith("+00:00")
    assert result["versions"]["numpy"] != "not installed" == result["versions"]["no-such-package"]
    assert result["rows"][0]["stages"]["frame"]["samples_ms"] == [[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]]


def test_runs_of_a_round_are_one_line_whatever_the_words_are(result, tmp_path):
    result["notes"] = ["a [b {c", "d\ne}]", '"\\n']
    results_file.write(tmp_path / "result.json", result)
    assert results_file.read(tmp_path / "result.json") == result
    assert "[ 3.0, 4.0 ]" in [line.strip(" ,") for line in (tmp_path / "result.json").read_text().splitlines()]


@pytest.mark.parametrize(("said", "dirty"), [("0123abc-dirty", True), ("0123abc", False)])
def test_uncommitted_changes_are_a_field_of_their_own(monkeypatch, said, dirty):
    monkeypatch.setattr(results_file.provenance, "commit", lambda: said)
    made = results_file.new("latency", title="", rows=[], settings={}, command=[], machine=MACHINE)
    assert (made["commit"], made["dirty"]) == ("0123abc", dirty)


def test_this_machine_is_the_default(monkeypatch):
    monkeypatch.setattr(results_file, "this_machine", lambda: {"cpu": "looked at"})
    assert results_file.new("b", title="", rows=[], settings={}, command=[])["machine"] == {"cpu": "looked at"}


def changed(path, value):
    def change(result):
        *way, last = path
        for key in way:
            result = result[key]
        if value is KeyError:
            del result[last]
        else:
            result[last] = value
    return change


@pytest.mark.parametrize(("change", "message"), [
    (changed(["rows"], KeyError), "expected the field 'rows', and it is missing"),
    (changed(["schema"], 2), "expected a result of schema 1, received 2"),
    (changed(["schema"], True), "expected 'schema' to be a whole number, received True"),
    (changed(["dirty"], "no"), "expected 'dirty' to be true or false, received 'no'"),
    (changed(["rows", 0], []), "rows[0]: expected an object with name, backend"),
    (changed(["rows", 0, "emulated"], 1), "rows[0]: expected 'emulated' to be true or false"),
    (changed(["rows", 1, "name"], "fast"), "expected rows of different names, received 'fast' twice"),
    (changed(["rows", 0, "stages", "frame", "p50_ms"], None), "expected 'p50_ms' to be a number of milliseconds"),
    (changed(["rows", 0, "stages", "frame", "ci_low_ms"], "1"), "expected 'ci_low_ms' to be a number"),
    (changed(["rows", 0, "stages", "frame", "samples_ms"], [[1.0], []]), "above 0 for each round, received []"),
    (changed(["rows", 0, "stages", "frame", "samples_ms"], [[1.0, float("nan")]]), "a list of numbers above 0"),
    (changed(["rows", 0, "stages", "frame", "samples_ms"], [[0.0, 1.0]]), "a list of numbers above 0"),
    (changed(["rows", 0, "stages", "frame", "p50_ms"], 0.61), "'p50_ms' to be the median of 'samples_ms'"),
    (changed(["rows", 0, "facts", "gflop"], float("inf")), "rows[0].facts['gflop']: expected a number"),
    (changed(["machine"], {"gpus": [{}]}), "machine.gpus[0]: expected the field 'name'"),
    (changed(["not_run", 0, "reason"], None), "not_run[0]: expected 'reason' to be text, received None")])
def test_another_shape_is_refused_by_its_field(result, tmp_path, change, message):
    wrong = copy.deepcopy(result)
    change(wrong)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(UserError) as refused:
        results_file.read(path)
    assert str(refused.value).startswith(str(path)) and message in str(refused.value)
    with pytest.raises(UserError):
        results_file.write(tmp_path / "new.json", wrong)
    assert not (tmp_path / "new.json").exists()


def test_an_interval_may_be_unknown(result, tmp_path):
    result["rows"][0]["stages"]["frame"].update(ci_low_ms=None, ci_high_ms=None)
    results_file.write(tmp_path / "one-round.json", result)


@pytest.mark.parametrize(("content", "message"), [
    (None, "No such file or directory"), ("{", "received something else"), ("[]", "expected an object with benchmark")])
def test_what_is_no_result(tmp_path, content, message):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        results_file.read(path)
