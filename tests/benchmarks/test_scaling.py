"""benchmarks/scaling.py on a small random network: what is predicted, measured, reported, and refused."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import pytest

from benchmarks import results_file, scaling, scaling_bundles, scaling_points
from benchmarks.scaling import line, main, measure, predict, read_values, table
from benchmarks.scaling_bundles import bundles_of_sizes
from benchmarks.scaling_chart import draw_chart, predicted_parts
from benchmarks.scaling_cost import (
    BATCH,
    PROMPTS,
    SERIES,
    SIZE,
    SUPPORT,
    TERMS,
    Curve,
    count,
    curves,
    exported_network,
    variable,
)
from benchmarks.scaling_points import FRAME, TEXT, VISION, Memory, Point, Questions, memory_alone, run_once
from deploy.pipeline import shrink
from talent.errors import UserError
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
    assert not {3, 7} & set(SUPPORT[PROMPTS]) and 294 not in SUPPORT[SIZE]
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
    assert "prompts: vision differs by" in text and "ms for each" in text and "2 rounds x 1 runs" in text
    assert printed[-1].startswith("wrote the numbers to ") and printed[-1].endswith("s.png")


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

    def ask(sizes, given=()):
        return bundles_of_sizes(weights, sizes, precision="fp32", given=given, cache=tmp_path / "kept")

    assert list(ask([70, 224], [bundle])) == [70, 224] and exported == [(224, "fp32", False)]
    ask([224])
    assert len(exported) == 1, "it is kept"
    sources.append(b"more code")
    ask([224])
    assert len(exported) == 2, "other code makes another bundle"


def test_bundles_of_others_are_refused(weights, bundle, tmp_path):
    with pytest.raises(UserError, match="expected an fp16 bundle"):
        bundles_of_sizes(weights, [70], precision="fp16", given=[bundle])
    other = save_network(tmp_path / "other", dataclasses.replace(SMALL, dropout=0.2))
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes() + b"\0")
    with pytest.raises(UserError, match="exported from other weights"):
        bundles_of_sizes(other, [70], precision="fp32", given=[bundle])


def test_the_predicted_parts_add_up_to_the_curve():
    series = {"terms": {"once a picture": 3.0, "for each expression": 1.0}, "anchor": 1}
    parts = predicted_parts(series, PROMPTS, np.array([1, 5]), anchor_ms=8.0)
    np.testing.assert_allclose(parts["once a picture"], [6, 6])
    np.testing.assert_allclose(parts["for each expression"], [2, 10])
    nothing = {"terms": {"once": 0.0, "for each picture": 2.0}, "anchor": 2}
    assert list(predicted_parts(nothing, BATCH, np.array([2]), anchor_ms=1.0)) == ["for each picture"]


def test_a_chart_without_memory(run, tmp_path):
    result = copy.deepcopy(run[0])
    for row in result["rows"]:
        row["facts"]["peak_host_bytes"] = None
    draw_chart(result, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes() != run[1]


def test_values_of_the_command_line():
    def read(*words):
        return read_values(scaling.parser().parse_args(["checkpoint", *words]))

    assert read("--prompts", "4, 1,4", "--sizes", "none", "--batch", "2") == {PROMPTS: [1, 4], BATCH: [2]}
    everything = read()
    assert max(everything[PROMPTS]) == 32 and (min(everything[SIZE]), max(everything[SIZE])) == (224, 518)


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
    assert run[0]["command"][:2] == ["benchmarks/scaling.py", run[0]["settings"]["checkpoint"]]
    assert run[0]["machine"]["before"] and run[0]["machine"]["after"]
