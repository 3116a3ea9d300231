"""benchmarks/latency.py on a small random network: which rows there are, what is reported, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import latency, latency_view, peak, results_file
from benchmarks.compare import compare_results
from benchmarks.contenders import (
    EAGER,
    MERGED,
    ONNX_RUNTIME,
    BundleStages,
    Contender,
    Opened,
    bundle_contenders,
    checkpoint_contenders,
    named_apart,
)
from benchmarks.latency import main
from benchmarks.measured import networks
from benchmarks.timing import FRAME, STAGES, TIMED, WHOLE
from deploy import export
from deploy.bundle import Bundle, EngineRecord
from talent.errors import UserError
from talent.image import mask_on_photo
from tests.networks import save_tiny

FEW = ["--samples", "2", "--rounds", "2", "--threads", "1", "--warm-up", "2"]
QUICK = {"samples": 1, "rounds": 1, "threads": 1, "most_warm_up": 1, "in_own_process": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "lora", lora_rank=2)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "half"
    assert export.main([str(checkpoint), "--fp16", "--no-engine", "--allow-drop", "--data", "shapes",
                        "--calibration", "2", "--parity", "1", "-o", str(path)]) == 0
    return path


def without_gpu(patch) -> None:
    """The same rows on every machine, and no seconds for its peak."""
    patch.setitem(peak.SIDE, "cpu", 64)
    patch.setattr("deploy.runtime.tensorrt.gpu_architecture", lambda device: None)
    patch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    without_gpu(monkeypatch)


@pytest.fixture(scope="module")
def run(bundle, checkpoint, tmp_path_factory):
    """(the result file, the PNG) of one run of the command."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        without_gpu(patch)
        assert main([str(bundle), "--checkpoint", str(checkpoint), *FEW, "--prompts", "1,3", "--batch", "2",
                     "--not-alone", "--json", str(directory / "latency.json"),
                     "--png", str(directory / "latency.png")]) == 0
    return results_file.read(directory / "latency.json"), (directory / "latency.png").read_bytes()


def test_every_row_has_every_stage_with_ordered_percentiles(run):
    rows = run[0]["rows"]
    assert [(row["backend"], row["precision"]) for row in rows] == [(EAGER, "fp32"), (MERGED, "fp32"),
                                                                    (ONNX_RUNTIME, "fp16")]
    for row in rows:
        assert list(row["stages"]) == [*TIMED, "frame, 3 prompts", "vision, batch of 2"]
        for times in row["stages"].values():
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
            assert times["ci_low_ms"] <= times["p50_ms"] <= times["ci_high_ms"]
            assert [len(samples) for samples in times["samples_ms"]] == [2, 2]


def test_the_whole_is_its_stages_and_a_frame_is_a_part_of_it(run):
    for row in run[0]["rows"]:
        stages = {stage: np.array(times["samples_ms"]) for stage, times in row["stages"].items()}
        np.testing.assert_allclose(sum(stages[stage] for stage in STAGES), stages[WHOLE], rtol=1e-6)
        np.testing.assert_allclose(stages[WHOLE] - stages["read"] - stages["text"], stages[FRAME], rtol=1e-6)


def test_a_frame_as_a_share_of_eager(run):
    shares = latency_view.of_eager(run[0])
    frames = {row["name"]: row["stages"][FRAME]["p50_ms"] for row in run[0]["rows"]}
    assert shares == {name: frame / frames["PyTorch eager FP32"] for name, frame in frames.items()}


def test_the_share_of_the_peak_of_what_is_not_emulated(run):
    result = run[0]
    assert list(result["machine"]["peak_gflop_per_second"]) == ["cpu fp32"]
    fastest = result["machine"]["peak_gflop_per_second"]["cpu fp32"]
    for row in result["rows"]:
        facts = row["facts"]
        if row["emulated"]:
            assert facts["peak_share"] is None and facts["gflop_per_second"] > 0
        else:
            assert facts["peak_share"] == facts["gflop_per_second"] / fastest > 0
    assert f"peak, of a product of large matrices: {fastest:.0f} GFLOP/s (cpu fp32)" in latency.table(result)


def test_fp16_on_a_cpu_is_marked_as_emulated(run):
    assert [row["name"] for row in run[0]["rows"] if row["emulated"]] == ["ONNX Runtime FP16 (emulated)"]
    text = latency.table(run[0])
    assert "ONNX Runtime FP16 (emulated)" in text and "casting to FP32" in text and "FP32 (emulated)" not in text


def test_a_tensorrt_that_cannot_run_says_why(run):
    not_run = run[0]["not_run"]
    assert [entry["name"] for entry in not_run] == ["TensorRT FP16", "TensorRT-RTX FP16"]
    assert all("needs an NVIDIA GPU" in entry["reason"] for entry in not_run)
    assert "not run: TensorRT-RTX FP16: tensorrt_rtx needs an NVIDIA GPU" in latency.table(run[0])


def test_the_file_says_how_it_was_measured(run, bundle):
    result = run[0]
    settings = result["settings"]
    assert [settings[name] for name in ("samples", "rounds", "threads", "data", "prompts", "batches")] == [
        2, 2, 1, "shapes", [1, 3], [2]]
    assert result["machine"]["cpu"] and result["machine"]["cores"] >= 1 and "load_average" in result["machine"]["after"]
    assert result["commit"] and result["versions"]["python"] and result["command"][:2] == ["benchmarks/latency.py",
                                                                                           str(bundle)]
    described, = settings["bundles"]
    assert described["name"] == str(bundle) and described["sha256"] == settings["checkpoint"]["sha256"]


def test_facts_of_the_rows(run, bundle):
    eager, merged, half = (row["facts"] for row in run[0]["rows"])
    sizes = Bundle.load(bundle).records
    assert half["onnx_bytes"] == sizes["text.onnx"].bytes + sizes["vision.onnx"].bytes and half["engine_bytes"] is None
    cost = json.loads((bundle / "export.json").read_text())["cost"]
    assert half["gflop"] == cost["after"]["vision"]["flop"] / 1e9
    assert eager["gflop"] == cost["before"]["vision"]["flop"] / 1e9 > merged["gflop"] >= half["gflop"] > 0
    for row in run[0]["rows"]:
        seconds = row["stages"]["vision"]["p50_ms"] / 1000
        assert row["facts"]["gflop_per_second"] == pytest.approx(row["facts"]["gflop"] / seconds)
        assert row["facts"]["warm_up_runs"] == 2 and not row["facts"]["warm_up_stable"]
        assert row["facts"]["preset"] == "tiny"
        assert (row["facts"]["energy_mj_per_frame"] is None) == bool(row["facts"]["energy_reason"])
    assert any("was not stable after 2 runs of warm-up" in note for note in run[0]["notes"])


def test_the_chart_is_a_picture(run):
    assert run[1].startswith(b"\x89PNG") and len(run[1]) > 10_000


def test_two_runs_can_be_compared(run):
    report = compare_results(run[0], run[0])
    assert len(report.lines) == 3 * (len(TIMED) + 2) and all(line.comparison.ratio == 1 for line in report.lines)


def test_every_row_answers_the_same(bundle, checkpoint):
    """Else their times could not be compared: eager, merged, and ONNX Runtime but for FP16; one sentence or several."""
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    sentences = ["the red circle", "the big star on the left"]
    contenders = [*checkpoint_contenders(checkpoint), *bundle_contenders([Bundle.load(bundle)])[:1]]
    with Opened(contenders, image_size=Bundle.load(bundle).image_size, threads=1) as opened:
        answers = []
        for stages in opened.stages.values():
            tensor, box = stages.preprocess(image)
            several = stages.encode_many(sentences)
            logits = np.concatenate([stages.infer(tensor, stages.encode(sentence)) for sentence in sentences])
            together = stages.infer_batch(np.concatenate([tensor, tensor]), several)
            np.testing.assert_allclose(together, logits, atol=2e-2 * np.abs(logits).max())
            answers.append(logits)
    expected, merged, half = answers
    np.testing.assert_allclose(merged, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(half, expected, atol=2e-2 * np.abs(expected).max())
    assert mask_on_photo(expected[0, 0], box, 0.5)[0].shape == (90, 120)


def test_the_text_is_computed_whenever_it_is_timed(bundle):
    with Opened(bundle_contenders([Bundle.load(bundle)])[:1], image_size=1, threads=1) as opened:
        stages, = opened.stages.values()
        asked = []
        text = stages.segmenter.backend.text
        stages.segmenter.backend.text = lambda tokens: asked.append(tokens) or text(tokens)
        stages.encode("the cup")
        stages.encode("the cup")
    assert len(asked) == 2


def test_the_engines_that_are_measured_are_those_of_this_gpu(bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "built")
    records = []
    for arch, size in (("sm87", 100), ("sm89", 7000)):
        for graph in ("text", "vision"):
            path = f"engines/{arch}/{graph}.plan"
            (tmp_path / "built" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "built" / path).write_bytes(bytes(size))
            records.append(EngineRecord(graph=graph, precision="fp16", runtime="tensorrt", version="10.3.0", arch=arch,
                                        path=path, seconds=1.0))
    built = Bundle.load(tmp_path / "built").with_engines(records)
    monkeypatch.setattr("benchmarks.contenders.gpu_architecture", lambda: "sm87")
    monkeypatch.setattr("benchmarks.contenders.require", lambda *name, **extra: SimpleNamespace(__version__="10.3.0"))
    stages = BundleStages.__new__(BundleStages)
    stages.segmenter = SimpleNamespace(bundle=built, backend=SimpleNamespace(name="tensorrt"))
    assert stages.facts()["engine_bytes"] == 200


def test_more_pictures_than_an_engine_takes_are_refused(bundle):
    with Opened(bundle_contenders([Bundle.load(bundle)])[:1], image_size=1, threads=1) as opened:
        stages, = opened.stages.values()
        stages.segmenter.backend.most_expressions = 1
        with pytest.raises(UserError, match="takes 1 pictures at once in onnxruntime, received 2"):
            stages.infer_batch(np.zeros((2, 3, 4, 4), np.float32), stages.encode_many(["a", "b"]))


def test_without_a_checkpoint_pytorch_is_named_all_the_same(bundle):
    result = latency.benchmark([Bundle.load(bundle)], **QUICK)
    assert {row["backend"] for row in result["rows"]} == {ONNX_RUNTIME}
    assert f"not run: {EAGER} FP32, {MERGED} FP32: pass --checkpoint" in latency.table(result)


def test_a_checkpoint_without_lora_has_nothing_to_merge(bundle, tmp_path):
    plain = save_tiny(tmp_path / "plain", lora_rank=None)
    result = latency.benchmark([bundle], checkpoint=plain, **QUICK)
    assert {row["backend"] for row in result["rows"]} == {EAGER, ONNX_RUNTIME}
    assert "not run: PyTorch merged FP32: this checkpoint has no LoRA factors to merge" in latency.table(result)


def test_each_row_alone(bundle):
    result = latency.benchmark([bundle], **{**QUICK, "in_own_process": True})
    row, = result["rows"]
    facts = row["facts"]
    assert facts["load_seconds"] > 0 and facts["first_inference_ms"] > 0
    assert facts["peak_host_bytes"] > facts["python_host_bytes"] + facts["onnx_bytes"] / 2
    assert (facts["peak_gpu_bytes"], facts["peak_gpu_reason"]) == (None, "it runs on the CPU")
    assert "host MiB" in latency.table(result)


@dataclass(frozen=True, kw_only=True)
class Broken(Contender):
    """Cannot be opened anywhere."""

    def open(self, *, image_size, threads):
        raise UserError("no compiler is installed")


def test_further_contenders_and_what_keeps_them(bundle):
    further = [Broken(name="Peer FP32", precision="fp32")]
    result = latency.benchmark([bundle], further=further, **QUICK)
    assert result["not_run"][0] == {"name": "Peer FP32", "reason": "no compiler is installed", "backend": "",
                                    "precision": "fp32", "source": ""}


def test_who_failed_alone_is_not_opened_here():
    opened = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Contender):
        def open(self, *, image_size, threads):
            opened.append(self.name)
            raise UserError("opened")

    one, other = (Watched(name=name, precision="fp32") for name in ("one", "other"))
    with Opened([one, other], image_size=1, threads=1, failed={one: "killed by SIGKILL"}) as ready:
        assert {entry.name: entry.reason for entry in ready.not_run} == {"one": "killed by SIGKILL", "other": "opened"}
    assert opened == ["other"]


def test_names_tell_bundles_apart(bundle):
    loaded = Bundle.load(bundle)
    other = dataclasses.replace(loaded, preset="base")
    names = [contender.name for contender in bundle_contenders([loaded, other])]
    assert names[:2] == ["ONNX Runtime tiny FP16 (emulated)", "ONNX Runtime base FP16 (emulated)"]
    twice = named_apart(bundle_contenders([loaded, dataclasses.replace(loaded, directory=bundle / "copy")])[:2])
    assert [contender.name for contender in twice] == [f"ONNX Runtime FP16 (emulated), {path}"
                                                       for path in (bundle, bundle / "copy")]


def test_one_size_beside_a_checkpoint(bundle, checkpoint):
    loaded = Bundle.load(bundle)
    other = dataclasses.replace(loaded, image_size=84, directory=bundle / "copy")
    with pytest.raises(UserError, match="bundles of one image size beside --checkpoint"):
        latency.gather([loaded, other], checkpoint=checkpoint)
    assert len(latency.gather([loaded, other], checkpoint=None)[0]) == 6


@pytest.mark.parametrize(("arguments", "message"), [
    (["none"], "no such bundle"), (["{bundle}", "--samples", "0"], "--samples: expected at least 1"),
    (["{bundle}", "--rounds", "0"], "--rounds: expected at least 1"),
    (["{bundle}", "--threads", "0"], "--threads: expected at least 1"),
    (["{bundle}", "--warm-up", "0"], "--warm-up: expected at least 1"),
    (["{bundle}", "--prompts", "1,x"], "--prompts: expected numbers of at least 1"),
    (["{bundle}", "--batch", "0"], "--batch: expected numbers of at least 1"),
    (["{bundle}", "--data", "shape"], "did you mean 'shapes'?"),
    (["{bundle}", "--checkpoint", "none"], "no checkpoint at none"),
    (["{bundle}", "--json", "none/latency.json"], "mkdir -p none"),
    (["{bundle}", "--png", "latency.xyz"], "unknown picture type"),
    (["{bundle}", "--json", "same.png", "--png", "same.png"], "expected two files, received same.png")])
def test_bad_input(bundle, arguments, message, capsys):
    assert main([argument.format(bundle=bundle) for argument in arguments]) == 2
    printed = capsys.readouterr()
    line, = [line for line in printed.err.splitlines() if line]
    assert line.startswith("latency.py: error: ") and message in line
    assert printed.out == ""


def test_a_bundle_twice(bundle):
    with pytest.raises(UserError, match="expected every bundle once"):
        latency.gather([Bundle.load(bundle)] * 2, checkpoint=None)


def test_a_bundle_of_another_network_than_the_checkpoint(bundle, checkpoint):
    known = networks([Bundle.load(bundle)], checkpoint)
    assert latency.check_checkpoint(known) == [] == latency.check_checkpoint({**known, "checkpoint": None})
    other = {**known["checkpoint"], "sha256": "0"}
    assert latency.check_checkpoint({**known, "checkpoint": other}) == [
        f"{bundle} was exported from other weights than those of {checkpoint}"]
    with pytest.raises(UserError, match="a base, received .*, a tiny; measure them in a run of their own"):
        latency.check_checkpoint({**known, "checkpoint": {**other, "preset": "base"}})


def test_fewer_pictures_than_were_asked_for(bundle, monkeypatch):
    scenes = latency.open_dataset("shapes", split="test", size=64, length=1)
    monkeypatch.setattr(latency, "open_dataset", lambda *_, **__: scenes)  # as somebody's own file may have
    assert latency.benchmark([bundle], **QUICK | {"samples": 3})["settings"]["samples"] == 1


def test_whoever_stops_reading_has_the_files(bundle, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        latency.write_outputs(tmp_path / "a.json", None, write=lambda path: path.write_text("numbers"), draw=None,
                              otherwise="", table="")
    assert (tmp_path / "a.json").read_text() == "numbers"


def test_a_bundle_that_runs_nowhere(bundle, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bundle.iterdir():
        (broken / file.name).write_bytes(file.read_bytes() if file.suffix != ".onnx" else bytes(file.stat().st_size))
    assert main([str(broken), "--not-alone"]) == 2
    assert "no bundle runs here: cannot load the bundle" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python benchmarks/latency.py bundle-fp16/ bundle-int8/ --checkpoint" in capsys.readouterr().out
