"""benchmarks/report.py: pages and Markdown hold the numbers that they were given, and say which targets these meet."""

from __future__ import annotations

import copy
import html.parser
import json
import math
import re

import pytest

from benchmarks import report, results_file
from benchmarks.contenders import EAGER, ONNX_RUNTIME
from benchmarks.goals import MET, NOT_MEASURED, evaluate
from benchmarks.intervals import summary
from benchmarks.peers import OFFICIAL
from benchmarks.report import main, read_results
from benchmarks.report_markdown import markdown
from benchmarks.report_page import section, write_page
from benchmarks.report_pairs import joined
from benchmarks.report_plots import (
    Axis,
    _beside,
    latency_bars,
    parity_against_latency,
    parity_strips,
    scaling_curves,
)
from benchmarks.report_table import Cell, fact_table, number, origin_table, stage_table, table
from benchmarks.report_text import change, flat, mebibytes, milliseconds, place_of, signed
from tests.benchmarks.made_results import (
    MACHINE,
    NOT_RUN,
    base_rows,
    changes,
    latency_result,
    parity_result,
    result,
    rounds_around,
    scaling_result,
    timed_row,
)

OURS = (ONNX_RUNTIME, "fp32", "base")


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
    assert [head.strip() for head in heads] == ["row", *latency["rows"][1]["stages"]]
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


def scores_by_row(*results):
    """[(name of the latency result, name of the row, mIoU)] of what was joined."""
    return [(pair.result["title"], pair.row["name"], pair.miou) for pairs in joined(results).values() for pair in pairs]


def test_accuracy_meets_latency_by_backend_precision_and_source(latency, accuracy):
    (sentences, (pair,)), = joined([latency, accuracy]).items()
    assert pair.result is latency and pair.row is latency["rows"][2] and pair.miou == 0.6123
    plot = parity_against_latency([latency, accuracy])
    frame = pair.row["stages"]["frame"]
    assert plot.count("<circle") == 1 and f"{milliseconds(frame['p50_ms'])} ms, mIoU 0.6123" in plot
    assert "mIoU of 112 sentences about 40 samples of shapes, split test<" in plot and latency["title"] not in plot
    accuracy["rows"][0]["source"] = "another bundle"
    assert joined([latency, accuracy]) == {} and parity_against_latency([latency, accuracy]) == ""


@pytest.mark.parametrize("other", [
    {"sha256": "07" * 32}, {"sha256": None}, {"bundles": {"base": ("base", 518)}},
    {"bundles": {"other": ("base", 448)}}])
def test_accuracy_of_other_weights_or_sizes_is_not_joined(latency, other):
    assert scores_by_row(latency, parity_result({OURS: 0.6})) == [(latency["title"], "ONNX Runtime FP32", 0.6)]
    assert scores_by_row(latency, parity_result({OURS: 0.6}, **other)) == []


def test_weights_count_and_not_the_folder_of_a_bundle(latency):
    moved = parity_result({(ONNX_RUNTIME, "fp32", "elsewhere"): 0.6}, bundles={"elsewhere": ("base", 448)})
    assert scores_by_row(latency, moved) == [(latency["title"], "ONNX Runtime FP32", 0.6)]
    moved["rows"][0]["device"] = "cuda"
    assert scores_by_row(latency, moved) == []
    bundles = {"a": ("base", 448), "b": ("base", 448)}
    two = [timed_row(ONNX_RUNTIME, 9, source="a"), timed_row(ONNX_RUNTIME, 9, source="b")]
    two[1]["name"] += ", b"
    of_a = parity_result({(ONNX_RUNTIME, "fp32", "a"): 0.6}, bundles=bundles)
    assert [name for _, name, _ in scores_by_row(latency_result(two, bundles=bundles), of_a)] == ["ONNX Runtime FP32"]


def test_scores_of_different_sentences_never_mix(latency):
    ours, easy = parity_result({OURS: 0.6}), parity_result({OURS: 0.9}, data="easy")
    assert [(sentences.data, [pair.miou for pair in pairs])
            for sentences, pairs in joined([latency, ours, easy]).items()] == [("shapes", [0.6]), ("easy", [0.9])]
    assert parity_against_latency([latency, ours, easy]).count("<svg") == 2
    head = markdown([latency, ours, easy]).splitlines()[0]
    assert "| mIoU of 112 sentences about 40 samples of easy, split test |" in head and "of shapes, split" in head
    assert scores_by_row(latency, ours, parity_result({OURS: 0.7})) == [], "one of both is wrong, and which is unknown"
    assert len(scores_by_row(latency, ours, parity_result({OURS: 0.6}))) == 1
    assert len(joined([latency, ours, parity_result({OURS: 0.7}, threshold=0.4)])) == 2


def test_every_machine_gets_the_accuracy():
    two = [latency_result(base_rows(ours=ours), title=title) for ours, title in ((1000, "here"), (100, "there"))]
    both = [*two, parity_result({OURS: 0.6})]
    assert scores_by_row(*both) == [(title, "ONNX Runtime FP32", 0.6) for title in ("here", "there")]
    plot = parity_against_latency(both)
    assert plot.count("<circle") == 2 and "<p class=note>here</p><ol><li value=1>" in plot
    assert "<p class=note>there</p><ol><li value=2>" in plot
    assert markdown(both).count("| 0.6000 |") == 2
    alike = [{**one, "title": "alike", "machine": {**MACHINE, "cpu": cpu}} for one, cpu in zip(two, "AB", strict=True)]
    plot = parity_against_latency([*alike, both[-1]])
    assert ">alike, A, 2 cores" in plot and ">alike, B, 2 cores" in plot


def test_points_of_the_plot_lie_where_their_numbers_are():
    rows = [timed_row(ONNX_RUNTIME, 100, source="a"), timed_row(ONNX_RUNTIME, 200, source="b", precision="fp16")]
    bundles = {"a": ("base", 448), "b": ("base", 448)}
    scores = parity_result({(ONNX_RUNTIME, "fp32", "a"): 0.5, (ONNX_RUNTIME, "fp16", "b"): 0.6}, bundles=bundles)
    plot = parity_against_latency([latency_result(rows, bundles=bundles), scores])
    (x1, y1), (x2, y2) = [tuple(map(float, place)) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', plot)]
    assert x1 < x2 and y1 > y2, "more time is further right, more mIoU further up"
    assert ">0</text>" in plot
    near = [timed_row(ONNX_RUNTIME, 100 + more, source=name, seed=more) for more, name in enumerate("ab")]
    near[1].update(name="second", precision="fp16")
    plot = parity_against_latency([latency_result(near, bundles=bundles), scores])
    assert ">0</text>" not in plot, "times near each other have an axis of their own"
    numbers = re.findall(r'<text class="m on" x="([\d.]+)" y="([\d.]+)">', plot)
    assert len(set(numbers)) == 2 and len(re.findall(r'r="5"', plot)) == 2


def test_numbers_of_dots_that_lie_on_each_other_do_not():
    dots = [(100.0, 100.0), (101.0, 100.0), (100.0, 102.0)]
    places = _beside(dots)
    for index, place in enumerate(places):
        assert all(math.dist(place, other) >= 12 for other in [*dots, *places[:index]])


def test_changes_of_accuracy_have_a_strip_for_each_row_but_the_reference():
    made = parity_result({("PyTorch eager", "fp32", "weights"): 0.62, OURS: 0.61, ("TensorRT", "fp16", "base"): 0.6})
    strips = parity_strips(made)
    Reader(strips)
    names = re.findall(r'<text class=on [^>]*>([^<]*)<', strips)
    assert names == ["ONNX Runtime FP32", "TensorRT FP16"] and "change of IoU against PyTorch eager FP32" in strips
    zero = float(re.search(r'<line class="zero" x1="([\d.]+)"', strips)[1])
    for index, row in enumerate(made["rows"][1:]):
        (left, right), (low, high), (middle, _) = (
            tuple(map(float, re.findall(rf'<line class={kind} x1="([\d.]+)" x2="([\d.]+)"', strips)[index]))
            for kind in ("reach", "most", "median"))
        assert left < low < middle < zero < high < right
        assert (zero - left) / (right - zero) == pytest.approx(0.2 / 0.08, rel=0.01), "to the left is worse"
        assert f"to {row['facts']['delta']['p100']:+.4f}" in strips
    same = parity_result({OURS: 0.6, ("TensorRT", "fp16", "base"): 0.6})
    same["rows"][1]["facts"]["delta"] = changes(0.0, 0.0)
    assert parity_strips(same).count("<line class=median") == 1, "also where nothing changed"
    assert parity_strips(parity_result({OURS: 0.6})) == "" and parity_strips(scaling_result()) == ""


def test_changes_of_accuracy_are_in_the_tables(accuracy):
    heads, first, second = Reader(fact_table(accuracy)).tables[0]
    cells = dict(zip((" ".join(head.split()) for head in heads), (cell.strip() for cell in second), strict=True))
    assert cells["median change"] == "-0.0600" and cells["lost > 0.01"] == "25.0 %"
    assert cells["lost > 0.05"] == "12.5 %" and cells["lost > 0.1"] == "6.2 %" and "sentences" not in cells
    lines = markdown([accuracy]).splitlines()
    assert "lost > 0.01 | lost > 0.05 | lost > 0.1" in lines[0] and "| 25.0 % | 12.5 % | 6.2 % |" in lines[3]
    said = "112 sentences about 40 samples of shapes, split test; changes against ONNX Runtime FP32"
    assert said in lines[-1] and said in section(1, accuracy)


def test_curves_show_what_was_measured_and_predicted():
    made = scaling_result()
    curves = scaling_curves(made)
    reader = Reader(curves)
    words = " ".join(reader.words)
    assert curves.count("<svg") == 2
    assert "vision; dashed: predicted from 1; measured differs by +20.0 % at most" in words
    for row in made["rows"]:
        assert f"{milliseconds(row['stages']['vision']['p50_ms'])} ms, predicted" in words
    predicted = [tuple(map(float, point.split(","))) for point in
                 re.search(r'class="line predicted" points="([^"]*)"', curves)[1].split()]
    (x1, y1), (x2, y2), (x4, y4) = predicted
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2) and x2 > x1
    assert y4 - y2 == pytest.approx(2 * (y2 - y1), abs=0.2) and y2 < y1, "a straight line"
    for row in made["rows"]:
        row["facts"]["peak_host_bytes"] = None
    assert scaling_curves(made).count("<svg") == 1 and scaling_curves(latency_result([timed_row(EAGER, 1)])) == ""


@pytest.mark.parametrize(("last", "shown"), [(4, ["4", "2", "1"]), (32, ["32", "2"])])
def test_points_of_a_curve_have_their_numbers_where_there_is_room(last, shown):
    made = scaling_result()
    made["rows"][2]["facts"]["value"] = last
    panels = scaling_curves(made).split("</svg>")[:2]
    assert [re.findall(r'y="272">(\d+)</text>', panel) for panel in panels] == [shown] * 2


@pytest.mark.parametrize(("values", "ticks"), [
    ([3, 47], [0, 10, 20, 30, 40, 50]), ([0.7], [0, 0.2, 0.4, 0.6, 0.8]), ([100], [0, 20, 40, 60, 80, 100, 120])])
def test_axes_have_round_numbers_and_hold_every_value(values, ticks):
    axis = Axis.over(values)
    assert axis.ticks == pytest.approx(ticks) and all(0 <= axis.share(value) <= 1 for value in values)
    near = Axis.over([0.61, 0.62], from_zero=False)
    assert 0.5 < near.least <= 0.61 and 0.62 <= near.most < 0.7
    assert 0.0 in Axis.over([-0.2, 0.08], from_zero=False).ticks, "and not something near it"


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
    assert "Processor <8>, 2 cores, 2 threads" in text and "commit `0123456789`, 2026-11-23. Emulated: &lt;not>" in text
    assert "torch 2.99.1, onnxruntime 1.99.2" in text and "tensorrt" not in text.lower().replace("onnxruntime", "")
    assert lines[-7].startswith("Accuracy: ") and text.endswith("\n")
    frames = [row["stages"]["frame"]["p50_ms"] for row in latency["rows"]]
    ratio = rf"{frames[2] / frames[0]:.3f} \([\d.]+ – [\d.]+\)"
    assert re.fullmatch(rf"- a frame, .* official style: {ratio}, at most 0.62: met", lines[-3])
    assert sum(line.startswith("- ") for line in lines) == 3, "what was not measured is no line"
    near = markdown([latency_result(base_rows(ours=1000, plain=1000 / 0.899))])
    assert re.search(r"plain ONNX export: 0\.\d+ \([\d.]+ – [\d.]+\), at most 0.90: \w+, within noise\n", near)
    assert "with local changes" in markdown([{**latency, "dirty": True}])


def test_markdown_of_accuracy_alone_and_of_curves(accuracy):
    assert "| 0.6123 |" in markdown([accuracy]) and "deviation" in markdown([scaling_result()])
    accuracy["rows"][0]["name"] = "a|b\n<script>alert(1)</script>"
    accuracy["title"] = "<b>of</b>\nall"
    lines = markdown([accuracy]).splitlines()
    assert lines[2].startswith(r"| a\|b &lt;script>alert(1)&lt;/script> | 0.6123 |")
    assert lines[0].startswith("| &lt;b>of&lt;/b> all |") and len(lines) == 6


@pytest.mark.parametrize(("rounds", "said"), [(6, "95 %"), (20, "95 %"), (5, "93.8 %"), (4, "87.5 %"), (2, "50.0 %")])
def test_an_interval_says_how_often_it_is_right(rounds, said):
    row = timed_row(ONNX_RUNTIME, 100, source="base")
    row["stages"] = {stage: summary(rounds_around(10, rounds=rounds)) for stage in row["stages"]}
    made = latency_result([row])
    assert f"| frame p50 ({said}) |" in markdown([made])
    words = " ".join(Reader(section(1, made)).words)
    assert f"{said} interval of the whole" in words and f"its {said} interval over the rounds" in words
    assert set(re.findall(r"[\d.]+ % interval", words)) == {f"{said} interval"}


def test_a_single_round_has_no_interval():
    row = timed_row(ONNX_RUNTIME, 100, source="base")
    row["stages"] = {stage: summary(rounds_around(10, rounds=1)) for stage in row["stages"]}
    made = latency_result([row])
    assert "| frame p50 |" in markdown([made]) and "interval" not in section(1, made)


def test_the_share_of_the_peak_says_what_the_peak_is():
    made = latency_result([timed_row(EAGER, 10, gflop=1.0, gflop_per_second=100.0, peak_share=0.25,
                                     energy_mj_per_frame=12.3)],
                          machine={**MACHINE, "peak_gflop_per_second": {"cpu fp32": 400.4}})
    words = " ".join(Reader(section(1, made)).words)
    assert "of peak" in words and "25.0 %" in words and "mJ a frame" in words
    assert "Peak, of a product of large matrices: 400 GFLOP/s (cpu fp32)" in words
    assert "Peak" not in section(1, latency_result([timed_row(EAGER, 10)]))


def test_numbers_as_people_read_them():
    assert [milliseconds(value) for value in (0.123, 9.994, 12.34, 999.94, 1234.5)] == [
        "0.12", "9.99", "12.3", "999.9", "1234"]
    assert [signed(value) for value in (0.2, -0.2114, -1e-9)] == ["+20.0 %", "-21.1 %", "+0.0 %"]
    assert [change(value) for value in (0.01, -1e-9)] == ["+0.0100", "+0.0000"]
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
    printed = capsys.readouterr()
    assert printed.out == f"wrote {output}: 1 results in one page\n"
    assert printed.err == "Left out: old.json, whose benchmark writes a shape of its own\n"
    assert printed.err.strip() in output.read_text()
    assert main([str(tmp_path / "latency.json"), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown([latency])


def test_the_results_that_are_kept_here_can_be_read(tmp_path):
    kept = sorted((report.ROOT / "benchmarks" / "results").glob("*.json"))
    results, left_out = read_results(kept)
    assert len(results) + len(left_out) == len(kept)
    assert {result["benchmark"] for result in results} == {"latency", "parity", "scaling"}
    outcomes = evaluate(results)
    assert [outcome.state for outcome in outcomes if outcome.goal.at_most] == [MET] * 4
    write_page(tmp_path / "report.html", results, outcomes=outcomes, left_out=left_out)


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot read"), ("no JSON", "expected the JSON file that a benchmark wrote"), ("[]", "expected an object"),
    ('{"schema": 1}', "expected the field 'benchmark'"),
    ('{"commit": "0123456789"}', "make one: python benchmarks/latency.py"),
    ('{"preset": "base"}', "expected the field 'benchmark'")])
def test_files_that_are_no_results(content, message, tmp_path, capsys):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "-o", str(tmp_path / "report.html")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def all_zero(made):
    for row in made["rows"]:
        for times in row["stages"].values():
            times.update(dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "ci_low_ms", "ci_high_ms"), 0.0),
                         samples_ms=[])


@pytest.mark.parametrize(("kind", "spoil", "reason"), [
    ("latency", lambda made: made["rows"][2]["facts"].update(load_seconds="fast"), "ValueError"),
    ("latency", lambda made: made.update(machine={}), "'board' is missing"),
    ("latency", lambda made: made["settings"]["bundles"][0].pop("name"), "'name' is missing"),
    ("latency", lambda made: made["rows"][2]["stages"].pop("frame"), "'frame' is missing"),
    ("latency", all_zero, "ZeroDivisionError"),
    ("parity", lambda made: made["settings"].pop("split"), "'split' is missing"),
    ("parity", lambda made: made.update(settings={}), "is missing"),
    ("parity", lambda made: made["rows"][1]["facts"]["delta"].pop("p5"), "'p5' is missing"),
    ("scaling", lambda made: made.update(rows=[]), "ValueError"),
    ("scaling", lambda made: made["settings"]["series"]["prompts"].pop("anchor"), "'anchor' is missing"),
    ("scaling", lambda made: made["settings"]["series"]["prompts"].pop("stage"), "'stage' is missing"),
    ("scaling", lambda made: made["settings"].update(series=[1]), "AttributeError"),
    ("scaling", lambda made: made["rows"][0]["facts"].update(predicted_ms="soon"), "TypeError")])
def test_results_that_another_version_wrote(kind, spoil, reason, latency, accuracy, tmp_path, capsys):
    made = copy.deepcopy({"latency": latency, "parity": accuracy, "scaling": scaling_result()}[kind])
    spoil(made)
    path, good = tmp_path / "spoilt.json", tmp_path / "good.json"
    results_file.check(made, "made")
    path.write_text(json.dumps(made))
    results_file.write(good, scaling_result())
    for call in (["-o", str(tmp_path / "report.html")], ["--markdown"]):
        assert main([str(good), str(path), *call]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert f"{path}: {made['title']!r} is not as this version writes it (" in printed.err
        assert reason in printed.err and "measure again" in printed.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["a.json"], "add -o report.html or --markdown"), (["-o", "none/report.html", "a.json"], "mkdir -p none"),
    (["-o", "a.json", "b.json"], "-o: expected a name that ends in .html or .htm, received a.json"),
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
