"""benchmarks/goals.py: a target is a ratio of one run, and what was measured otherwise says nothing."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.contenders import EAGER, ONNX_RUNTIME
from benchmarks.goals import GOALS, MEASURED, MET, MISSED, NOT_MEASURED, NotMeasured, Outcome, evaluate, judge
from benchmarks.peers import OFFICIAL, OFFICIAL_KEPT
from benchmarks.report_table import goal_table
from tests.benchmarks.made_results import NOT_RUN, base_rows, latency_result, scaling_result, timed_row

FRAME_OF_OFFICIAL, KEPT, FRAME_OF_PLAIN, SMALL_OF_BASE, AROUND, ON_GPU = GOALS


def test_goals_are_those_of_the_issue():
    assert [(goal.at_most, goal.threads) for goal in GOALS] == [
        (0.62, 2), (None, 2), (0.90, 2), (0.30, 2), (0.03, 2), (None, None)]
    assert all(times.image_size == 448 for goal in GOALS for times in (goal.of, goal.against)
               if times.preset == "base") and SMALL_OF_BASE.of.preset == "small"


@pytest.mark.parametrize(("ours", "state"), [(1000, MET), (1300, MISSED)])
def test_a_goal_is_a_ratio_of_medians_of_one_run(ours, state):
    made = latency_result(base_rows(ours=ours))
    outcome = judge(FRAME_OF_OFFICIAL, made)
    frames = [row["stages"]["frame"]["p50_ms"] for row in made["rows"]]
    assert outcome.state == state and outcome.ratio == pytest.approx(frames[2] / frames[0])
    assert outcome.low < outcome.ratio < outcome.high and outcome.sure and outcome.commit == made["commit"]
    assert judge(FRAME_OF_PLAIN, made).state == (MET if ours == 1000 else MISSED)


def test_a_goal_within_noise_is_not_sure():
    made = latency_result(base_rows(ours=1000, plain=1000 / 0.899))
    outcome = judge(FRAME_OF_PLAIN, made)
    assert outcome.low < 0.9 < outcome.high and not outcome.sure
    assert "within noise" in goal_table([outcome]) and "within noise" not in goal_table([judge(AROUND, made)])
    few = goal_table([dataclasses.replace(outcome, low=None, high=None)])
    assert "too few rounds" in few and "within noise" not in few and "local changes" not in few
    assert "commit 0123456789, with local changes" in goal_table([dataclasses.replace(outcome, dirty=True)])


def test_stages_add_up_run_by_run():
    made = latency_result(base_rows())
    ours = made["rows"][2]["stages"]
    ours["preprocess"]["samples_ms"], ours["postprocess"]["samples_ms"] = [[1.0, 30.0, 5.0]], [[40.0, 2.0, 5.0]]
    ours["whole"]["samples_ms"] = [[1000.0, 1000.0, 1000.0]]
    outcome = judge(AROUND, made)
    assert outcome.ratio == pytest.approx(0.032) and outcome.state == MISSED and outcome.low is None
    assert not outcome.sure


def test_small_is_compared_with_base_of_its_own_size():
    rows = [timed_row(ONNX_RUNTIME, 1000, source="base"), timed_row(ONNX_RUNTIME, 250, source="small", seed=5)]
    rows[1]["name"] += ", small"
    bundles = {"base": ("base", 448), "small": ("small", 406)}
    assert judge(SMALL_OF_BASE, latency_result(rows, bundles=bundles)).ratio == pytest.approx(0.25, rel=0.02)
    with pytest.raises(NotMeasured, match="no row of ONNX Runtime FP32 with base at 448 px"):
        judge(SMALL_OF_BASE, latency_result(rows, bundles={**bundles, "base": ("base", 518)}))


def test_a_bound_without_figure_is_measured():
    rows = [*base_rows(), timed_row(OFFICIAL_KEPT, 1800, source="weights")]
    outcome = judge(KEPT, latency_result(rows))
    assert outcome.state == MEASURED and outcome.ratio == pytest.approx(1000 / 1800, rel=0.02)
    gpu = [timed_row(EAGER, 50, device="cuda", source="weights"),
           timed_row("TensorRT-RTX", 10, precision="fp16", device="cuda", source="base")]
    assert judge(ON_GPU, latency_result(gpu, threads=16)).ratio == pytest.approx(0.2, rel=0.02)


def test_what_was_measured_otherwise_says_nothing():
    latency = latency_result(base_rows(), not_run=NOT_RUN)
    with pytest.raises(NotMeasured, match="holds for 2 CPU threads, 'Latency, base at 448 px' had 4"):
        judge(FRAME_OF_OFFICIAL, latency_result(base_rows(), threads=4))
    with pytest.raises(NotMeasured, match="with base at 448 px"):
        judge(FRAME_OF_OFFICIAL, latency_result(base_rows(), bundles={"base": ("tiny", 448)}))
    emulated = base_rows()
    emulated[2]["precision"] = "fp16"
    with pytest.raises(NotMeasured, match="no row of ONNX Runtime FP32"):
        judge(FRAME_OF_OFFICIAL, latency_result(emulated))
    with pytest.raises(NotMeasured, match=r"no row of PyTorch eager FP32 with base at 448 px \(GPU\)$"):
        judge(ON_GPU, latency)
    latency["rows"].append(timed_row(EAGER, 50, device="cuda", source="weights"))
    with pytest.raises(NotMeasured, match=r"TensorRT or TensorRT-RTX FP16 with base at 448 px \(GPU\): no <GPU> here"):
        judge(ON_GPU, latency)
    lost = latency_result(base_rows()[1:], not_run=[
        {"name": f"{OFFICIAL} FP32", "reason": "pass --checkpoint", "backend": OFFICIAL, "precision": "fp32"}])
    outcome = evaluate([lost], [FRAME_OF_OFFICIAL])[0]
    assert outcome.state == NOT_MEASURED and outcome.reason.endswith("(CPU): pass --checkpoint")
    assert evaluate([scaling_result()])[0] == Outcome(FRAME_OF_OFFICIAL, NOT_MEASURED,
                                                      reason="no result of latency.py was given")


def test_the_newest_result_that_can_tell_counts():
    old = latency_result(base_rows(ours=1500), created="2026-11-01T00:00:00+00:00", title="old")
    new = latency_result(base_rows(ours=1000), created="2026-11-20T00:00:00+00:00", title="new")
    newest = latency_result(base_rows()[:1], created="2026-11-22T00:00:00+00:00", title="newest")
    outcome = evaluate([old, newest, new])[0]
    assert (outcome.title, outcome.state) == ("new", MET)
