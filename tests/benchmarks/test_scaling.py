"""benchmarks/scaling.py on a small random network: what is predicted, measured, reported, and refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import results_file, scaling, scaling_bundles, scaling_points
from benchmarks.intervals import summary
from benchmarks.scaling import ON_CPU, benchmark, main, measure, read_values, table
from benchmarks.scaling_bundles import bundles_of_sizes, check_sizes, divide, given_bundles, most_at_once
from benchmarks.scaling_chart import draw_chart, predicted_parts, spread
from benchmarks.scaling_cost import (
    BATCH,
    LABELS,
    PROMPTS,
    SERIES,
    SIZE,
    SUPPORT,
    TERMS,
    Curve,
    count,
    curves,
    exported_network,
    line,
    predict,
    variable,
)
from benchmarks.scaling_points import FRAME, TEXT, VISION, Memory, Point, Questions, memory_alone, run_once
from deploy.bundle import Bundle
from deploy.pipeline import shrink
from deploy.runtime.onnxruntime import OnnxRuntimeBackend
from talent.errors import UserError
from talent.image_size import SIZES
from talent.model.lora import LoraSettings
from tests.benchmarks.toy_bundles import toy_bundle
from tests.networks import SMALL, checkpoint, inputs, save_network

QUICK = ["--rounds", "2", "--samples", "1", "--threads", "1", "--sizes", "none"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint directory."""
    return save_network(tmp_path_factory.mktemp("checkpoints") / "small", SMALL)


@pytest.fixture(scope="module")
def bundle(weights, tmp_path_factory):
    return toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", weights).directory


@pytest.fixture(scope="module")
def expected():
    """The curves of the same network."""
    return curves(checkpoint(SMALL), SERIES)


@pytest.fixture(scope="module")
def run(weights, bundle, expected, tmp_path_factory):
    """(the result, the PNG, what was printed) of one run of the command."""
    directory = tmp_path_factory.mktemp("run")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **options: printed.append(" ".join(map(str, words))))
        patch.setattr(scaling, "curves", lambda loaded, names, progress: {name: expected[name] for name in names})
        assert main([str(weights), *QUICK, "--prompts", "1,3", "--batch", "2", "--bundles", str(bundle), "--json",
                     str(directory / "s.json"), "--png", str(directory / "s.png")]) == 0
    return results_file.read(directory / "s.json"), (directory / "s.png").read_bytes(), printed


def counted(network, config, size, *, pictures=1, prompts=1):
    return count(network, image_size=size, context_length=config.context_length, pictures=pictures, prompts=prompts)


def test_the_curves_are_the_arithmetic_at_values_that_were_not_counted(expected):
    trained = checkpoint(SMALL)
    own, large = exported_network(trained, SMALL.image_size), exported_network(trained, 294)
    assert not {3, 7} & set(SUPPORT[PROMPTS]) and 294 not in SUPPORT[SIZE] and set(SUPPORT[SIZE]) <= set(SIZES)
    for prompts in (1, 3, 7):
        assert expected[PROMPTS].gflop(prompts) == pytest.approx(counted(own, SMALL, SMALL.image_size, prompts=prompts))
    assert expected[BATCH].gflop(5) == pytest.approx(counted(own, SMALL, SMALL.image_size, pictures=5, prompts=5))
    assert expected[SIZE].gflop(294) == pytest.approx(counted(large, SMALL, 294), rel=1e-9)
    assert expected[SIZE].gflop(SMALL.image_size) == pytest.approx(counted(own, SMALL, SMALL.image_size), rel=1e-9)


def test_every_term_of_the_curves_is_there(expected):
    """Without one of them the sizes above would be off: attention, enlarging and tokens all count."""
    parts = expected[SIZE].parts(518)
    assert list(parts) == list(TERMS[SIZE]) and min(parts.values()) > 0
    assert parts["for each pair of tokens"] > 0.1 * expected[SIZE].gflop(518)
    once, each = expected[PROMPTS].coefficients
    assert once > 0 and each > 0 and once + each == pytest.approx(expected[BATCH].gflop(1))
    assert expected[BATCH].coefficients[0] == pytest.approx(0, abs=1e-9 * expected[BATCH].gflop(1))


def test_a_network_with_other_adapters_lies_on_its_line():
    config = dataclasses.replace(SMALL, vision_adapter="dense")
    dense = checkpoint(config)
    curve = curves(dense, [PROMPTS])[PROMPTS]
    assert curve.gflop(5) == pytest.approx(counted(exported_network(dense, 70), config, 70, prompts=5))


def test_the_arithmetic_is_that_of_what_is_exported(expected):
    image, tokens = inputs(SMALL, 1)
    tuned = checkpoint(SMALL, LoraSettings(rank=2))
    _, shrinking = shrink(tuned, image.numpy(), tokens.numpy())
    assert shrinking.after["vision"].flop / 1e9 == pytest.approx(expected[PROMPTS].gflop(1))
    merged = exported_network(tuned, SMALL.image_size)
    assert counted(merged, SMALL, SMALL.image_size) == pytest.approx(expected[PROMPTS].gflop(1))


def test_curves_leave_the_checkpoint_as_it_was():
    trained = checkpoint(SMALL)
    before = copy.deepcopy(trained.model.state_dict())
    exported_network(trained, SMALL.image_size)
    exported_network(trained, 224)
    after = trained.model.state_dict()
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)


def test_a_prediction_goes_through_the_usual_point_and_keeps_the_shape():
    curve = Curve(PROMPTS, (30.0, 10.0))
    anchor, predicted = predict(curve, {1: 80.0, 3: 999.0}, usual=1)
    assert anchor == 1 and predicted == pytest.approx({1: 80.0, 3: 120.0})
    anchor, predicted = predict(Curve(SIZE, (0.0, 1.0, 0.0, 0.0)), {224: 1.5, 448: 4.0, 518: 5.0}, usual=434)
    assert anchor == 448 and predicted[448] == 4.0 and predicted[224] == pytest.approx(1.0)
    assert variable(SIZE, 224) == 16 and variable(BATCH, 224) == 224


def test_the_line_that_fits():
    assert line({1: 12.0, 2: 14.0, 5: 20.0}) == pytest.approx((10.0, 2.0))
    assert line({4: 3.0}) is None
    assert line({1: 1.0, 2: 4.0, 3: 7.0}) is None, "less than nothing once"


def test_the_curves_are_named_without_torch():
    """The report draws them too, and needs no torch."""
    code = "import sys, benchmarks.scaling_chart, benchmarks.scaling_cost; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and tuple(LABELS) == SERIES


def test_rows_and_series_say_how_far_the_prediction_is_off(run, expected):
    result = run[0]
    assert [row["name"] for row in result["rows"]] == ["prompts 1", "prompts 3", "batch 2"]
    for row in result["rows"]:
        facts, series = row["facts"], result["settings"]["series"][row["facts"]["series"]]
        took = row["stages"][VISION]["p50_ms"]
        assert facts["gflop"] == pytest.approx(expected[facts["series"]].gflop(facts["value"]))
        assert facts["deviation"] == pytest.approx(took / facts["predicted_ms"] - 1)
        assert facts["gflop_per_second"] == pytest.approx(1000 * facts["gflop"] / took)
        assert [len(samples) for samples in row["stages"][VISION]["samples_ms"]] == [1, 1]
        assert abs(facts["deviation"]) <= abs(series["largest_deviation"])
        assert (row["backend"], row["precision"], row["device"]) == ("ONNX Runtime", "fp32", "cpu")
        assert facts["peak_host_bytes"] > facts["python_host_bytes"] > 2**24 and facts["peak_gpu_bytes"] is None
    first, last = result["rows"][:2]
    assert first["facts"]["deviation"] == pytest.approx(0, abs=1e-12)
    assert last["facts"]["predicted_ms"] / first["facts"]["predicted_ms"] == pytest.approx(
        expected[PROMPTS].gflop(3) / expected[PROMPTS].gflop(1))
    assert result["settings"]["series"][PROMPTS]["anchor"] == 1 and SIZE not in result["settings"]["series"]
    assert result["settings"]["bundles"][0]["image_size"] == SMALL.image_size


def test_the_table_says_it_all(run):
    result, picture, printed = run
    text = table(result)
    assert text == printed[0] and picture.startswith(b"\x89PNG") and len(picture) > 20_000
    for row in result["rows"]:
        assert f"{row['facts']['deviation']:+.1%}" in text and f"{row['stages'][FRAME]['p50_ms']:.1f}" in text
    assert "prompts: vision differs by" in text and "2 rounds x 1 runs" in text
    assert printed[-1].startswith("wrote the numbers to ") and printed[-1].endswith("s.png")


def test_the_straight_line_is_called_one(run):
    result = copy.deepcopy(run[0])
    result["settings"]["series"][PROMPTS] |= {"once_ms": 1.25, "each_ms": 4.2}
    assert "scaled to 1; a straight line through what was measured: 1.2 ms once and 4.2 ms for each\n" in table(result)
    result["settings"]["series"][PROMPTS] |= {"once_ms": None, "each_ms": None}
    assert "straight line" not in table(result) and result["settings"]["series"][BATCH]["each_ms"] is None


def test_a_frame_is_what_segment_many_does(bundle, monkeypatch):
    """The stages are timed one by one: they must come to the same answers."""
    point = Point(PROMPTS, 3, str(bundle), "onnxruntime", 1, prompts=3)
    questions, answers = Questions(point), []
    with point.open() as segmenter:
        wanted = segmenter.segment_many(questions.photos[0], questions.sentences)
        real = segmenter.postprocess
        monkeypatch.setattr(segmenter, "postprocess", lambda *arguments: answers.append(real(*arguments)))
        times = run_once(segmenter, questions)
    for answer, other in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer.logits, other.logits, rtol=1e-5, atol=1e-5)
    assert times[FRAME] >= times[VISION] > 0 and times[TEXT] > 0


def test_pictures_together_have_their_own_sentences_and_boxes(bundle, monkeypatch):
    point = Point(BATCH, 2, str(bundle), "onnxruntime", 1, pictures=2, prompts=2)
    questions, answers = Questions(point), []
    assert len(set(questions.sentences)) == 2 and not np.array_equal(*questions.photos)
    questions.photos[1] = questions.photos[1][:320]
    with point.open() as segmenter:
        wanted = [segmenter(sentence, photo) for sentence, photo in
                  zip(questions.sentences, questions.photos, strict=True)]
        real = segmenter.postprocess
        monkeypatch.setattr(segmenter, "postprocess", lambda *arguments: answers.append(real(*arguments)))
        run_once(segmenter, questions)
        assert segmenter.stats().prompt_hits == 0, "the text is computed whenever it is timed"
    for answer, other in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer.logits, other.logits, rtol=1e-4, atol=1e-4)
        assert answer.mask.shape == other.mask.shape and np.mean(answer.mask != other.mask) < 1e-3


def test_more_prompts_than_the_backend_takes(bundle, monkeypatch):
    point = Point(PROMPTS, 3, str(bundle), "onnxruntime", 1, prompts=3)
    with point.open() as segmenter:
        monkeypatch.setattr(segmenter.backend, "most_expressions", 2)
        with pytest.raises(UserError, match="at most 2 prompts at once in onnxruntime, received 3"):
            run_once(segmenter, Questions(point))


def test_a_backend_that_takes_pictures_is_timed_as_a_whole(bundle, monkeypatch):
    point = Point(PROMPTS, 2, str(bundle), "onnxruntime", 1, prompts=2)
    with point.open() as segmenter:
        monkeypatch.setattr(segmenter.backend, "takes_pictures", True)
        asked = []
        monkeypatch.setattr(segmenter, "segment_many", lambda photo, prompts: asked.append((photo.shape, len(prompts))))
        times = run_once(segmenter, Questions(point))
    assert list(times) == [TEXT, FRAME] and asked == [((640, 640, 3), 2)] and scaling.judged(times) == FRAME


def test_the_points_of_one_curve_go_one_way(weights, bundle, expected, monkeypatch):
    """A single picture that went to the GPU as it is would be no measure of pictures that do not."""
    monkeypatch.setattr(OnnxRuntimeBackend, "takes_pictures", True)
    monkeypatch.setattr("deploy.runtime.segmenter.Segmenter.segment_many", lambda self, photo, prompts: None)
    monkeypatch.setattr(scaling, "curves", lambda loaded, names, progress: {name: expected[name] for name in names})
    result = benchmark(weights, values={PROMPTS: [1, 2], BATCH: [1, 2]}, bundles=[bundle], rounds=1, samples=1,
                       threads=1, in_own_process=False)
    stages = {row["name"]: list(row["stages"]) for row in result["rows"]}
    assert stages["prompts 1"] == stages["prompts 2"] == [TEXT, FRAME]
    assert stages["batch 1"] == stages["batch 2"] and VISION in stages["batch 1"]
    assert [result["settings"]["series"][name]["stage"] for name in (PROMPTS, BATCH)] == [FRAME, VISION]
    first = result["rows"][2]
    assert first["facts"]["predicted_ms"] == pytest.approx(first["stages"][VISION]["p50_ms"])
    assert result["notes"] == [ON_CPU]


def test_rounds_are_interleaved_and_rotated(monkeypatch):
    order = []

    class Opened:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            order.append("closed")

    class Bar:
        def update(self):
            pass

    points = [Point(PROMPTS, value, "bundle", "onnxruntime", 1) for value in (1, 2, 3)]
    monkeypatch.setattr(Point, "open", lambda self: Opened())
    monkeypatch.setattr(scaling, "Questions", lambda point: point.value)
    monkeypatch.setattr(scaling, "run_once", lambda opened, value: order.append(value) or {VISION: float(value)})
    found = measure(points, rounds=3, samples=2, progress=Bar())
    assert order == [1, 1, 2, 2, 3, 3, *[1, 1, 2, 2, 3, 3], *[2, 2, 3, 3, 1, 1], *[3, 3, 1, 1, 2, 2], "closed"]
    assert found[points[1]] == {VISION: [[2.0, 2.0]] * 3}


def test_memory_that_cannot_be_measured_is_said(tmp_path):
    failed = memory_alone(Point(PROMPTS, 1, str(tmp_path / "none"), "onnxruntime", 1))
    assert failed.peak_host_bytes is None and "no such bundle" in failed.failure
    broken = memory_alone(Point(PROMPTS, 1, str(tmp_path), "onnxruntime", threads="two"))
    assert "its own process failed with exit code 1: " in broken.failure


def test_memory_that_is_not_known_is_a_line_of_the_result(weights, bundle, monkeypatch):
    monkeypatch.setattr(scaling, "memory_alone", lambda point: Memory(failure="it was killed"))
    result = scaling.benchmark(weights, values={PROMPTS: [1]}, bundles=[bundle], rounds=1, samples=1, threads=1)
    assert result["not_run"] == [{"name": "prompts 1: memory", "reason": "it was killed"}]
    assert "memory_failure" not in result["rows"][0]["facts"] and "not run: prompts 1: memory" in table(result)


def test_sentences_differ_or_are_refused():
    class Scenes:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return dataclasses.make_dataclass("Scene", ["expressions"])(("a cup", f"cup {index}"))

    assert scaling_points.different_sentences(Scenes(), 3) == ["a cup", "cup 0", "cup 1"]
    with pytest.raises(UserError, match="expected 4 different sentences in 2 scenes of shapes, found 3"):
        scaling_points.different_sentences(Scenes(), 4)


def test_bundles_are_kept_until_something_changes(weights, bundle, tmp_path, monkeypatch):
    exported = []

    def export(source, output, options):
        exported.append((options.image_size, options.precision, options.engines))
        shutil.copytree(bundle, output)

    monkeypatch.setattr(scaling_bundles, "export_bundle", export)
    sources = [b"code"]
    monkeypatch.setattr(scaling_bundles, "_sources", lambda: sources)

    def ask(sizes, own=None):
        return bundles_of_sizes(weights, sizes, precision="fp32", own=own, cache=tmp_path / "kept")

    own = given_bundles(weights, [bundle], precision="fp32")
    assert list(ask([70, 224], own)) == [70, 224] and exported == [(224, "fp32", False)]
    ask([224])
    assert len(exported) == 1, "it is kept"
    sources.append(b"more code")
    ask([224])
    assert len(exported) == 2, "other code makes another bundle"


def test_bundles_of_others_are_refused(weights, bundle, tmp_path):
    with pytest.raises(UserError, match="expected an fp16 bundle"):
        given_bundles(weights, [bundle], precision="fp16")
    other = save_network(tmp_path / "other", dataclasses.replace(SMALL, dropout=0.2))
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes() + b"\0")
    with pytest.raises(UserError, match="exported from other weights"):
        given_bundles(other, [bundle], precision="fp32")
    with pytest.raises(UserError, match="no checkpoint at"):
        given_bundles(tmp_path / "nothing", [bundle], precision="fp32")


@pytest.mark.parametrize(("options", "message"), [
    ({"precision": "fp16"}, "expected an fp16 bundle"),
    ({"bundles": ["nothing"]}, "no such bundle: nothing"),
    ({"backend": "tensorrt", "values": {PROMPTS: [1], SIZE: [224, 238]}},
     r"received none for 224, 238 px; .* --fp32 --image-size 224 -o BUNDLE --no-engine, then talent-build BUNDLE "
     "--runtime tensorrt"),
    ({"backend": "tensorrt", "bundles": []}, "received none for 70 px"),
    ({"backend": "tensorrt"}, "tensorrt")])
def test_what_cannot_be_measured_is_refused_before_anything_is_done(options, message, weights, bundle, monkeypatch):
    def too_late(*arguments, **others):
        raise AssertionError("it takes time, and is done before the input is checked")

    monkeypatch.setattr(scaling, "curves", too_late)
    monkeypatch.setattr(scaling_bundles, "export_bundle", too_late)
    if "backend" not in options:
        monkeypatch.setattr(scaling, "load_checkpoint", too_late)
    monkeypatch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda device: None)
    with pytest.raises(UserError, match=message):
        benchmark(weights, **{"values": {PROMPTS: [1]}, "bundles": [bundle], **options})


def test_a_tensorrt_has_the_bundles_it_needs(bundle):
    own = {70: Bundle.load(bundle)}
    check_sizes(own, [70], checkpoint=bundle, precision="fp32", backend="tensorrt")
    check_sizes(own, [70, 224], checkpoint=bundle, precision="fp32", backend="onnxruntime")
    with pytest.raises(UserError, match="received none for 224 px"):
        check_sizes(own, [70, 224], checkpoint=bundle, precision="fp32", backend="tensorrt_rtx")


def test_what_engines_do_not_take_at_once_is_not_run(bundle):
    loaded = Bundle.load(bundle)
    assert most_at_once(loaded, "onnxruntime", 1) == 64
    values, not_run = divide({PROMPTS: [1, 4, 6, 8, 32], SIZE: [224], BATCH: [5]}, most=4, bundle=loaded,
                             backend="tensorrt")
    assert values == {PROMPTS: [1, 4], SIZE: [224]}
    reasons = {entry["name"]: entry["reason"] for entry in not_run}
    assert list(reasons) == ["prompts 6", "prompts 8", "prompts 32", "batch 5"]
    assert reasons["prompts 6"] == reasons["prompts 8"] == reasons["batch 5"] == (
        f"the engines of {bundle} take at most 4 at once; build larger ones: talent-build {bundle} --runtime tensorrt "
        "--batch 8")
    assert reasons["prompts 32"].endswith("at most 4 at once, and none can be built for more than 8; measure fewer")
    _, (entry,) = divide({PROMPTS: [1, 65]}, most=64, bundle=loaded, backend="onnxruntime")
    assert entry == {"name": "prompts 65", "reason": f"the graphs of {bundle} take at most 64 at once; measure fewer"}
    with pytest.raises(UserError, match="nothing is left to measure: batch 2: the engines of .* take at most 1"):
        divide({BATCH: [2]}, most=1, bundle=loaded, backend="tensorrt")


def test_the_others_are_measured(weights, bundle, expected, monkeypatch):
    monkeypatch.setattr(OnnxRuntimeBackend, "most_expressions", 2)
    monkeypatch.setattr(scaling, "curves", lambda loaded, names, progress: {name: expected[name] for name in names})
    result = benchmark(weights, values={PROMPTS: [1, 2, 3], BATCH: [4]}, bundles=[bundle], rounds=1, samples=1,
                       threads=1, in_own_process=False)
    assert [row["name"] for row in result["rows"]] == ["prompts 1", "prompts 2"]
    assert [entry["name"] for entry in result["not_run"]] == ["prompts 3", "batch 4"]
    assert list(result["settings"]["series"]) == [PROMPTS]
    assert "not run: prompts 3, batch 4: the graphs of " in table(result)


def test_the_predicted_parts_add_up_to_the_curve():
    series = {"terms": {"once a picture": 3.0, "for each expression": 1.0}, "anchor": 1}
    parts = predicted_parts(series, PROMPTS, np.array([1, 5]), anchor_ms=8.0)
    np.testing.assert_allclose(parts["once a picture"], [6, 6])
    np.testing.assert_allclose(parts["for each expression"], [2, 10])
    nothing = {"terms": {"once": 0.0, "for each picture": 2.0}, "anchor": 2}
    assert list(predicted_parts(nothing, BATCH, np.array([2]), anchor_ms=1.0)) == ["for each picture"]


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """A function: (made values of each series, whether there is memory) -> (what was made, the panels drawn of it)."""
    curves = {PROMPTS: Curve(PROMPTS, (10.0, 5.0)), SIZE: Curve(SIZE, (0.0, 0.1, 0.001, 0.001)),
              BATCH: Curve(BATCH, (0.0, 15.0))}
    drawn = []

    def draw(values, memory=True):
        rows, series = [], {}
        for name in values:
            curve, times = curves[name], {}
            for place, value in enumerate(values[name]):
                took = curve.gflop(value) * (1 + 0.1 * place)
                times[value] = summary([[took * (1 + 0.02 * number)] for number in range(6)])
            anchor, predicted = predict(curve, {value: time["p50_ms"] for value, time in times.items()}, usual=1)
            rows += [{"stages": {VISION: time}, "facts": {
                "series": name, "value": value, "deviation": time["p50_ms"] / predicted[value] - 1,
                "predicted_ms": predicted[value], "peak_host_bytes": 2**30 if memory else None,
                "python_host_bytes": 2**27}} for value, time in times.items()]
            series[name] = {"stage": VISION, "anchor": anchor, "terms": dict(zip(TERMS[name], curve.coefficients,
                                                                                 strict=True))}
        monkeypatch.setattr(plt, "close", drawn.append)
        draw_chart({"title": "made", "rows": rows, "machine": {"gpus": [], "board": None, "cpu": "a processor"},
                    "settings": {"series": series, "threads": 2, "image_size": 448}}, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").stat().st_size > 10_000
        return rows, drawn[-1].axes

    yield draw
    monkeypatch.undo()
    for figure in drawn:
        plt.close(figure)


def numbers(axes):
    """The numbers at the ticks of a panel, by where they are."""
    return {place: label.get_text() for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}


def test_a_chart_of_the_usual_values(panels):
    rows, (prompts, size, batch, *_) = panels({PROMPTS: [1, 2, 4, 8, 16, 32], SIZE: [224, 336, 518], BATCH: [1, 2, 8]})
    assert {axes.get_xscale() for axes in (prompts, size, batch)} == {"linear"}, "what grows evenly is a straight line"
    assert [axes.get_title("left") for axes in (prompts, size, batch)] == [
        "prompts per picture", "input, pixels a side", "pictures together"]
    assert numbers(prompts) == {value: str(value) for value in (1, 4, 8, 16, 32)}
    assert numbers(size) == {224: "224", 336: "336", 518: "518"} and list(prompts.get_xticks(minor=True)) == [2]
    texts = {text.xy[0]: text for text in prompts.texts}
    assert list(texts) == [4, 8, 16, 32], "the anchor is what the others are measured by; 2 has no room"
    for row in rows[2:6]:
        facts, times, text = row["facts"], row["stages"][VISION], texts[row["facts"]["value"]]
        assert text.get_text() == f"{facts['deviation']:+.0%}" and text.get_ha() == "center"
        assert text.xy[1] >= times["ci_high_ms"] and text.xyann == (0, 6), "above its interval"


def test_a_chart_has_the_prediction_as_a_curve_and_intervals_as_bars(panels):
    rows, (prompts, *_) = panels({PROMPTS: [1, 2, 32]})
    dashed, = (one for one in prompts.lines if one.get_linestyle() == "--")
    assert len(dashed.get_xdata()) > 100
    for row in rows:
        predicted = np.interp(row["facts"]["value"], *dashed.get_data())
        assert predicted == pytest.approx(row["facts"]["predicted_ms"], rel=1e-3)
    (bars,) = prompts.containers[0].lines[2]
    for row, (low, high) in zip(rows, bars.get_segments(), strict=True):
        assert (low[1], high[1]) == pytest.approx([row["stages"][VISION][f"ci_{end}_ms"] for end in ("low", "high")])


def test_a_chart_of_many_values_has_room_for_its_numbers(panels):
    values = list(range(1, 33))
    rows, (axes, memory) = panels({PROMPTS: values})
    shown = sorted(numbers(axes))
    assert shown[0] <= 3 and shown[-1] == 32 and np.diff(shown).min() >= 31 / 12
    assert set(axes.get_xticks(minor=True)) == set(values) - set(shown), "marks, without numbers"
    assert list(numbers(memory).values()) == [str(value) for value in range(2, 33, 3)]
    assert {text.xy[0] for text in axes.texts} == set(shown) - {1}
    tops = {row["facts"]["value"]: row["stages"][VISION]["ci_high_ms"] for row in rows}
    for text in axes.texts:
        near = [top for value, top in tops.items() if abs(value - text.xy[0]) <= 31 / 24]
        assert text.xy[1] == pytest.approx(max(near)), "it covers no other point"


def test_numbers_that_have_room():
    assert spread([1, 2, 3]) == [0, 1, 2] and spread([7]) == [0]
    assert spread([0, 1, 50, 99, 100]) == [1, 2, 4] and spread(range(25)) == list(range(0, 25, 2))


def test_a_chart_without_memory_has_no_panels_of_it(panels):
    values = {PROMPTS: [1, 2], BATCH: [1, 4]}
    with_memory, without = panels(values)[1], panels(values, memory=False)[1]
    assert len(with_memory) == 4 and len(without) == 2
    assert without[0].figure.get_figheight() < 0.7 * with_memory[0].figure.get_figheight()
    assert not any("memory" in text.get_text() for axes in without for text in axes.texts)


def test_points_lie_below_the_legend(panels):
    """Where a curve begins high, there is room above it."""
    _, (axes, size, *_) = panels({PROMPTS: [1], SIZE: [504, 518]})
    for panel, wanted in ((axes, 15.75), (size, 54.0)):
        box = panel.get_legend().get_window_extent().transformed(panel.transData.inverted())
        assert box.y0 > wanted


def test_values_of_the_command_line():
    def read(*words):
        return read_values(scaling.parser().parse_args(["checkpoint", *words]))

    assert read("--prompts", "4, 1,4", "--sizes", "none", "--batch", "2") == {PROMPTS: [1, 4], BATCH: [2]}
    everything = read()
    assert max(everything[PROMPTS]) == 32 and (min(everything[SIZE]), max(everything[SIZE])) == (224, 518)


def test_the_usual_rounds_are_enough_for_their_intervals():
    default = inspect.signature(benchmark).parameters["rounds"].default
    assert scaling.parser().parse_args(["checkpoint"]).rounds == default == 6
    assert "95 % of cases" in " ".join(scaling.parser().format_help().split())


@pytest.mark.parametrize(("arguments", "message"), [
    (["--prompts", "0,1"], "--prompts: expected numbers of at least 1"), (["--batch", "x"], "or none, received 'x'"),
    (["--sizes", "225"], "--sizes: expected 224 to 518 pixels in steps of 14, received 225"),
    (["--prompts", "none", "--batch", "none", "--sizes", "none"], "received none for all of them"),
    (["--rounds", "0"], "--rounds: expected at least 1"), (["--samples", "0"], "--samples: expected at least 1"),
    (["--threads", "0"], "--threads: expected at least 1"), (["--png", "a.xyz"], "a.xyz"),
    (["--json", "none/a.json"], "mkdir -p none"), ([], "no checkpoint at nothing")])
def test_bad_input(arguments, message, capsys):
    assert main(["nothing", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("scaling.py: error: ") and message in printed.err and printed.out == ""


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "python benchmarks/scaling.py base/" in capsys.readouterr().out


def test_the_result_says_how_it_was_measured(run):
    assert run[0]["title"] == "Cost as work grows, smallest" and run[0]["notes"] == []
    assert run[0]["command"][:2] == ["benchmarks/scaling.py", run[0]["settings"]["checkpoint"]["name"]]
    assert run[0]["machine"]["before"] and run[0]["machine"]["after"]
