"""benchmarks/report.py: pages and Markdown hold the numbers that they were given, and say which targets these meet."""

from __future__ import annotations

import copy
import html.parser
import json
import re

import pytest

from benchmarks import report, results_file
from benchmarks.contenders import EAGER, ONNX_RUNTIME
from benchmarks.goals import GOALS, MEASURED, MET, MISSED, NOT_MEASURED, NotMeasured, Outcome, evaluate, judge
from benchmarks.peers import OFFICIAL, OFFICIAL_KEPT, PLAIN
from benchmarks.report import main, read_results
from benchmarks.report_markdown import markdown
from benchmarks.report_page import write_page
from benchmarks.report_plots import Axis, joined, latency_bars, parity_against_latency, scaling_curves
from benchmarks.report_table import Cell, fact_table, goal_table, number, origin_table, stage_table, table
from benchmarks.report_text import flat, mebibytes, milliseconds, place_of
from tests.benchmarks.made_results import latency_result, parity_result, result, scaling_result, timed_row

FRAME_OF_OFFICIAL, KEPT, FRAME_OF_PLAIN, SMALL_OF_BASE, AROUND, ON_GPU = GOALS
NOT_RUN = [{"name": "TensorRT FP16", "reason": "no <GPU> here"}, {"name": "TensorRT INT8", "reason": "no <GPU> here"}]


def base_rows(*, ours: float = 1000, official: float = 2000, plain: float = 1250):
    return [timed_row(OFFICIAL, official, source="weights", seed=1), timed_row(PLAIN, plain, source="weights", seed=2),
            timed_row(ONNX_RUNTIME, ours, source="base", seed=3, load_seconds=1.25, peak_host_bytes=300 * 2**20)]


@pytest.fixture
def latency():
    return latency_result(base_rows(), notes=["emulated: <not> a GPU"], not_run=NOT_RUN)


@pytest.fixture
def accuracy():
    return parity_result({(ONNX_RUNTIME, "fp32", "base"): 0.6123, ("TensorRT", "fp16", "base"): 0.6})


class Reader(html.parser.HTMLParser):
    """Collects texts and addresses, and that every tag is closed."""

    VOID = {"meta", "br", "img"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f" {data}"


@pytest.fixture
def page(latency, accuracy, tmp_path):
    results = [latency, accuracy, scaling_result(dirty=True)]
    write_page(tmp_path / "report.html", results, outcomes=evaluate(results), left_out=["left out: old.json"])
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_beside_itself(page):
    reader = Reader(page)
    assert reader.addresses and all(address.startswith("#result-") for address in reader.addresses)
    assert not re.search(r"https?:|@import|url\(|<link|fetch\(", page)
    assert page.count("<script>") == 1 and "prefers-color-scheme: dark" in page and "@media print" in page
    for address in reader.addresses:
        assert f"id={address[1:]}>" in page


def test_the_page_has_every_number_and_where_it_comes_from(page, latency):
    reader = Reader(page)
    words = " ".join(reader.words)
    for row in latency["rows"]:
        for times in row["stages"].values():
            for name in ("p50_ms", "p90_ms", "p99_ms", "ci_low_ms", "ci_high_ms"):
                assert milliseconds(times[name]) in words
    assert words.count("0123456789") >= 3 and "2026-11-23" in words and "with local changes" in words
    for wanted in ("Processor <8>, 2 cores, 2 threads", "governor performance", "torch", "2.99.1", "Left out: old.json",
                   "Emulated: <not> a GPU", "Not run: TensorRT FP16, TensorRT INT8: no <GPU> here", "8,000,000,000",
                   "benchmarks/latency.py", "0.6123", "300", "1.25"):
        assert wanted in words, wanted


def test_a_table_sorts_by_numbers_and_knows_what_is_unknown(latency):
    latency["rows"][0]["stages"].pop("text")
    times = stage_table(latency)
    heads, *rows = Reader(times).tables[0]
    assert [head.strip() for head in heads] == ["", *latency["rows"][1]["stages"]]
    assert len(rows) == 3 and times.count("<button") == len(heads)
    values = re.findall(r'data-value="([^"]*)"', times)
    assert str(latency["rows"][2]["stages"]["vision"]["p50_ms"]) in values
    assert len(values) == 3 * len(heads) - 1, "what is not known has no value, so that it sorts last"


def test_tables_escape_what_they_show():
    shown = table(["a<b"], [[Cell("fine", 'quote"<')]])
    assert "a&lt;b" in shown and 'data-value="quote&quot;&lt;"' in shown
    assert number(None, str) == Cell("–", None)


def test_facts_that_no_row_knows_have_no_column(accuracy):
    assert "NTA" not in fact_table(accuracy) and "oIoU" in fact_table(accuracy)
    accuracy["rows"][1]["facts"]["nta"] = 0.25
    cells = Reader(fact_table(accuracy)).tables[0]
    column = [head.strip() for head in cells[0]].index("NTA ratio")
    assert [row[column].strip() for row in cells[1:]] == ["–", "0.2500"]
    assert fact_table(latency_result([timed_row(EAGER, 10)])) == "" and stage_table(accuracy) == ""


def test_bars_are_as_long_as_the_stages(latency):
    bars = latency_bars(latency)
    longest = max(max(sum(row["stages"][stage]["p50_ms"] for stage in ("read", "preprocess", "text", "vision",
                                                                      "postprocess")),
                      row["stages"]["whole"]["ci_high_ms"]) for row in latency["rows"])
    widths = [float(width) for width in re.findall(r'ms" style="width:([\d.]+)%', bars)]
    assert len(widths) == 15
    ours = latency["rows"][2]["stages"]
    assert widths[10 + 3] == pytest.approx(100 * ours["vision"]["p50_ms"] / longest, abs=1e-3)
    left, wide = map(float, re.findall(r'<u style="left:([\d.]+)%;width:([\d.]+)%', bars)[2])
    assert left == pytest.approx(100 * ours["whole"]["ci_low_ms"] / longest, abs=1e-3)
    assert left + wide == pytest.approx(100 * ours["whole"]["ci_high_ms"] / longest, abs=2e-3)


def test_bars_without_intervals(latency):
    for row in latency["rows"]:
        row["stages"]["whole"].update(ci_low_ms=None, ci_high_ms=None)
    assert "<u " not in latency_bars(latency) and latency_bars(parity_result({})) == ""


def test_accuracy_meets_latency_by_backend_precision_and_source(latency, accuracy):
    (row, frame, miou), = joined([latency, accuracy])
    assert row is latency["rows"][2] and frame is row["stages"]["frame"] and miou == 0.6123
    plot = parity_against_latency([latency, accuracy])
    assert plot.count("<circle") == 1 and f"{milliseconds(frame['p50_ms'])} ms, mIoU 0.6123" in plot
    accuracy["rows"][0]["source"] = "another bundle"
    assert joined([latency, accuracy]) == [] and parity_against_latency([latency, accuracy]) == ""


def test_points_of_the_plot_lie_where_their_numbers_are():
    rows = [timed_row(ONNX_RUNTIME, 100, source="a"), timed_row(ONNX_RUNTIME, 200, source="b", precision="fp16")]
    scores = parity_result({(ONNX_RUNTIME, "fp32", "a"): 0.5, (ONNX_RUNTIME, "fp16", "b"): 0.6})
    plot = parity_against_latency([latency_result(rows), scores])
    (x1, y1), (x2, y2) = [tuple(map(float, place)) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', plot)]
    assert x1 < x2 and y1 > y2, "more time is further right, more mIoU further up"


def test_curves_show_what_was_measured_and_predicted():
    made = scaling_result()
    curves = scaling_curves(made)
    reader = Reader(curves)
    words = " ".join(reader.words)
    assert curves.count("<svg") == 2 and "+20.0% off at most" in words and "predicted from 1" in words
    for row in made["rows"]:
        assert f"{milliseconds(row['stages']['vision']['p50_ms'])} ms, predicted" in words
    predicted = [tuple(map(float, point.split(","))) for point in
                 re.search(r'class="line predicted" points="([^"]*)"', curves)[1].split()]
    slope = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(predicted, predicted[1:], strict=False)]
    assert slope[0] == pytest.approx(slope[1], rel=0.01) and slope[0] < 0, "a straight line upwards"
    for row in made["rows"]:
        row["facts"]["peak_host_bytes"] = None
    assert scaling_curves(made).count("<svg") == 1 and scaling_curves(latency_result([timed_row(EAGER, 1)])) == ""


@pytest.mark.parametrize(("values", "ticks"), [
    ([3, 47], [0, 10, 20, 30, 40, 50]), ([0.7], [0, 0.2, 0.4, 0.6, 0.8]), ([100], [0, 20, 40, 60, 80, 100, 120])])
def test_axes_have_round_numbers_and_hold_every_value(values, ticks):
    axis = Axis.over(values)
    assert axis.ticks == pytest.approx(ticks) and all(0 <= axis.share(value) <= 1 for value in values)
    near = Axis.over([0.61, 0.62], from_zero=False)
    assert 0.5 < near.least <= 0.61 and 0.62 <= near.most < 0.7


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


def test_what_was_measured_otherwise_says_nothing(latency):
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
    lost = latency_result(base_rows()[1:], not_run=[{"name": f"{OFFICIAL} FP32", "reason": "pass --checkpoint"}])
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


def test_the_goals_are_on_the_page(page):
    rows = next(rows for rows in Reader(page).tables if "ratio of medians" in rows[0][0])[1:]
    states = [row[2].split("at most")[0].strip() for row in rows]
    assert states == [MET, NOT_MEASURED, MET, NOT_MEASURED, MET, NOT_MEASURED] and "at most 0.62" in rows[0][2]
    assert "3 met, 3 not measured" in page
    assert "Latency, base at 448 px, commit 0123456789" in rows[0][0]


def test_markdown_has_the_numbers_the_machine_and_the_commit(latency, accuracy):
    text = markdown([latency, accuracy])
    lines = text.splitlines()
    assert lines[0].startswith("| Latency, base at 448 px | mIoU | frame p50 (95 %) |")
    ours, frame = lines[4], latency["rows"][2]["stages"]["frame"]
    assert ours.startswith("| ONNX Runtime FP32 | 0.6123 | ") and lines[2].startswith(f"| {OFFICIAL} FP32 |  | ")
    assert (f"{milliseconds(frame['p50_ms'])} ({milliseconds(frame['ci_low_ms'])} – "
            f"{milliseconds(frame['ci_high_ms'])})") in ours and " 300 |" in ours
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "Processor <8>, 2 cores, 2 threads" in text and "commit `0123456789`, 2026-11-23. Emulated: <not>" in text
    assert "torch 2.99.1, onnxruntime 1.99.2" in text and "tensorrt" not in text.lower().replace("onnxruntime", "")
    assert lines[-1].startswith("Accuracy: ") and text.endswith("\n")
    assert "with local changes" in markdown([{**latency, "dirty": True}])


def test_markdown_of_accuracy_alone_and_of_curves(accuracy):
    assert "| 0.6123 |" in markdown([accuracy]) and "deviation" in markdown([scaling_result()])
    accuracy["rows"][0]["name"] = "a|b"
    assert r"| a\|b | 0.6123 |" in markdown([accuracy])


def test_numbers_as_people_read_them():
    assert [milliseconds(value) for value in (0.123, 9.994, 12.34, 999.94, 1234.5)] == [
        "0.12", "9.99", "12.3", "999.9", "1234"]
    assert mebibytes(2**20 * 12.34) == "12.3" and mebibytes(2**30) == "1024"
    assert flat({"a": None, "b": {"c": [1, 2], "size_bytes": 1234}, "d": [{"e": 1}], "f": []}) == {
        "b: c": "1, 2", "b: size_bytes": "1,234", "d 1: e": "1"}
    assert place_of(latency_result([], threads=1)).endswith("2 cores, 1 thread, governor performance")
    assert "version: torch" in origin_table(latency_result([]))


def test_the_command_writes_a_page(latency, tmp_path, capsys):
    results_file.write(tmp_path / "latency.json", latency)
    (tmp_path / "old.json").write_text('{"rows": [], "preset": "base"}')
    output = tmp_path / "report.html"
    assert main([str(tmp_path / "latency.json"), str(tmp_path / "old.json"), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"wrote {output}: 1 results in one page\n"
    assert "Left out: old.json, whose benchmark writes a shape of its own" in output.read_text()
    assert main([str(tmp_path / "latency.json"), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown([latency])


def test_the_results_that_are_kept_here_can_be_read(tmp_path):
    kept = sorted((report.ROOT / "benchmarks" / "results").glob("*.json"))
    made = tmp_path / "made.json"
    results_file.write(made, scaling_result())
    results, left_out = read_results([*kept, made])
    assert len(results) + len(left_out) == len(kept) + 1 and kept
    write_page(tmp_path / "report.html", results, outcomes=evaluate(results), left_out=left_out)


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot read"), ("no JSON", "expected the JSON file that a benchmark wrote"), ("[]", "expected an object"),
    ('{"schema": 1}', "expected the field 'benchmark'"),
    ('{"preset": "base"}', "make one: python benchmarks/latency.py")])
def test_files_that_are_no_results(content, message, tmp_path, capsys):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "-o", str(tmp_path / "report.html")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["a.json"], "add -o report.html or --markdown"), (["-o", "none/report.html", "a.json"], "mkdir -p none"),
    (["--update-readme", "a.json"], "expected --update-readme alone"), (["--markdown"], "received none"),
    (["--update-readme", "--readme", "no-such-file.md"], "cannot read no-such-file.md")])
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("report.py: error: ") and message in printed.err and printed.out == ""


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "report.py benchmarks/results/*.json -o report.html" in capsys.readouterr().out


def test_made_results_have_the_shape_of_result_files(latency, accuracy):
    for made in (latency, accuracy, scaling_result(), result("other", [], settings={})):
        results_file.check(json.loads(json.dumps(copy.deepcopy(made))), "made")
