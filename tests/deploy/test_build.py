"""talent-build: for real with TensorRT-RTX, which needs no GPU, and with modules of full TensorRT's shapes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploy import build, builders, engine
from deploy.build import BuildOptions, build_engines, graph_profiles, main, read_bundle
from deploy.build_progress import Phases
from deploy.builders import Runtime
from deploy.bundle import GRAPHS, Bundle
from deploy.engine_notes import EngineNotes, bundle_digest
from deploy.inspect_bundle import not_recorded
from talent.errors import UserError
from tests.deploy.engines import record, with_engines
from tests.deploy.fake_tensorrt import SHAPES, fake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rtx(monkeypatch) -> str:
    """TensorRT-RTX's version, on a machine without a GPU."""
    version = pytest.importorskip("tensorrt_rtx").__version__
    monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime("tensorrt_rtx", version)])
    for place in (builders, engine, build):
        monkeypatch.setattr(place, "gpu_architecture", lambda: None)
    return version


@pytest.fixture
def board(monkeypatch):
    """board(version, arch): a machine with that full TensorRT. For graphs with one input "x" [-1, 2], as it parses."""

    def make(version: str = "10.3.0", arch: str = "sm87"):
        module = fake(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(builders, "installed_runtimes", lambda: [Runtime("tensorrt", version)])
        for place in (builders, engine, build):
            monkeypatch.setattr(place, "gpu_architecture", lambda: arch)
        monkeypatch.setattr(build, "graph_profiles", lambda bundle, graph, batch: {"x": ((1, 2), (1, 2), (batch, 2))})
        return module

    return make


def plans(bundle: Bundle) -> dict[str, bytes]:
    return {path.relative_to(bundle.directory).as_posix(): path.read_bytes()
            for path in sorted(bundle.directory.rglob("*.plan"))}


def last_line(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


# With TensorRT-RTX, for real


def test_engines_are_built_recorded_and_noted(rtx, toy_bundle, capsys):
    assert main([str(toy_bundle.directory), "--batch", "2", "--workspace", "64"]) == 0
    folder = toy_bundle.directory / f"engines/tensorrt_rtx-{rtx}-portable"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"built 2 engines for tensorrt_rtx {rtx}, portable: {folder}"
    assert lines[0].startswith("text fp32, batch 1 to 2: 0.4 MB in ") and "peak memory of this process" in lines[0]
    bundle = Bundle.load(toy_bundle.directory, verify=True)
    assert sorted(path.name for path in folder.iterdir()) == ["text.json", "text.plan", "vision.json", "vision.plan"]
    assert not_recorded(bundle) == [] and [engine.graph for engine in bundle.engines] == ["text", "vision"]
    for made in bundle.engines:
        notes = json.loads((folder / f"{made.graph}.json").read_text())
        for name in ("graph", "precision", "runtime", "version", "arch", "batch", "seconds", "peak_memory_bytes",
                     "bytes", "sha256"):
            assert notes[name] == getattr(made, name), name
        assert (made.batch, notes["workspace_bytes"], notes["onnx"]) == (2, 64 << 20, dict(made.built_from))
        assert notes["versions"]["tensorrt_rtx"] == rtx and notes["commit"] and notes["created"]
        assert bundle.engine(made.graph, runtime="tensorrt_rtx", version=rtx, arch="sm89")


def test_the_digest_of_a_bundle_is_one_that_a_shell_can_make(rtx, toy_bundle):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum")
    done = subprocess.run("LC_ALL=C; sha256sum $(ls *.onnx tokenizer.json | sort) | sha256sum", shell=True, check=True,
                          cwd=toy_bundle.directory, capture_output=True, text=True)
    assert done.stdout.split()[0] == bundle_digest(toy_bundle.files)


def test_an_engine_that_fits_is_kept(rtx, toy_bundle, capsys):
    directory = str(toy_bundle.directory)
    assert main([directory]) == 0
    before = plans(toy_bundle)
    for arguments in ([], ["--batch", "2"], ["--precision", "fp32"], ["--arch", "portable"]):
        assert main([directory, *arguments]) == 0
        assert last_line(capsys).startswith("built 0 engines (kept 2)") and plans(toy_bundle) == before
    for arguments in (["--force"], ["--batch", "8"], ["--workspace", "1"]):
        assert main([directory, *arguments]) == 0
        assert last_line(capsys).startswith("built 2 engines for")
    Bundle.load(directory, verify=True)


def test_engines_for_named_gpus_lie_beside_the_portable_ones(rtx, toy_bundle):
    for arguments in ([], ["--arch", "sm75"], ["--arch", "sm89,sm86"], ["--arch", "sm86+sm89"]):
        assert main([str(toy_bundle.directory), *arguments]) == 0
    bundle = Bundle.load(toy_bundle.directory)
    assert [engine.arch for engine in bundle.engines[::2]] == ["portable", "sm75", "sm86+sm89"]
    assert bundle.engine("text", runtime="tensorrt_rtx", version=rtx, arch="sm75").parent.name.endswith("-sm75")
    assert bundle.engine("text", runtime="tensorrt_rtx", version=rtx, arch="sm87") is None


def test_a_bundle_without_its_manifests_records_takes_its_engines_back(rtx, toy_bundle, capsys):
    """bundle.json was copied again from where it was made, the engines stayed."""
    fresh = (toy_bundle.directory / "bundle.json").read_bytes()
    assert main([str(toy_bundle.directory)]) == 0
    built = Bundle.load(toy_bundle.directory).engines
    (toy_bundle.directory / "bundle.json").write_bytes(fresh)
    assert main([str(toy_bundle.directory)]) == 0 and last_line(capsys).startswith("built 0 engines (kept 2)")
    assert Bundle.load(toy_bundle.directory).engines == built


def test_engines_of_another_bundle_are_built_again(rtx, make_bundle, tmp_path, capsys):
    main([str(make_bundle().directory)])
    (tmp_path / "bundle").rename(tmp_path / "first")
    second = make_bundle(scale=2.0)
    shutil.copytree(tmp_path / "first" / "engines", second.directory / "engines")
    before = plans(second)
    capsys.readouterr()
    assert main([str(second.directory)]) == 0 and last_line(capsys).startswith("built 2 engines for")
    assert plans(second) != before


@pytest.mark.parametrize("damage", [lambda plan: plan.write_bytes(plan.read_bytes()[:-1]), Path.unlink,
                                    lambda plan: plan.write_bytes(plan.read_bytes()[:-1] + b"?"),
                                    lambda plan: plan.with_suffix(".json").unlink(),
                                    lambda plan: plan.with_suffix(".json").write_text("{}"),
                                    lambda plan: plan.with_suffix(".json").write_text("[")],
                         ids=["cut short", "missing", "changed", "no notes", "empty notes", "broken notes"])
def test_a_damaged_engine_is_built_again_and_the_other_one_kept(rtx, toy_bundle, capsys, damage):
    main([str(toy_bundle.directory)])
    damage(toy_bundle.directory / f"engines/tensorrt_rtx-{rtx}-portable" / "vision.plan")
    assert main([str(toy_bundle.directory)]) == 0
    assert last_line(capsys).startswith("built 1 engine (kept 1) for")
    Bundle.load(toy_bundle.directory, verify=True)


def test_a_damaged_engine_of_another_machine_is_told_before_anything_is_built(rtx, toy_bundle):
    bundle = with_engines(toy_bundle, record("text"))
    (bundle.directory / bundle.engines[0].path).write_bytes(b"p")
    with pytest.raises(UserError, match=r"sm87/text\.plan was cut short .*copy it again or remove it"):
        build_engines(read_bundle(bundle.directory), BuildOptions())
    assert len(plans(bundle)) == 1


def test_a_damaged_graph_is_never_built(rtx, toy_bundle, capsys):
    vision = toy_bundle.directory / "vision.onnx"
    vision.write_bytes(vision.read_bytes()[:-1] + b"?")
    assert main([str(toy_bundle.directory)]) == 2
    assert "vision.onnx was changed" in capsys.readouterr().err and list(plans(toy_bundle)) == [
        f"engines/tensorrt_rtx-{rtx}-portable/text.plan"]
    Bundle.load(toy_bundle.directory)


def test_ctrl_c_leaves_the_engines_that_were_whole_before_it(rtx, toy_bundle, monkeypatch, capsys):
    builds = []

    class Impatient(Phases):
        """Ctrl-C comes in the first phase of the second graph."""

        def start(self, name: str, parent: str | None, steps: int) -> None:
            super().start(name, parent, steps)
            builds.extend([name] if parent is None else [])
            if parent is None and len(builds) == 2:
                os.kill(os.getpid(), signal.SIGINT)
                assert self.cancelled.wait(30)

    monkeypatch.setattr(engine, "Phases", Impatient)
    assert main([str(toy_bundle.directory)]) == 130
    assert capsys.readouterr().err.strip() == "talent-build: interrupted"
    bundle = Bundle.load(toy_bundle.directory, verify=True)
    assert [engine.graph for engine in bundle.engines] == ["text"] and not_recorded(bundle) == []
    assert sorted(path.name for path in bundle.directory.rglob("*.*") if path.parent.name.endswith("portable")) == [
        "text.json", "text.plan"]
    monkeypatch.setattr(engine, "Phases", Phases)
    assert main([str(toy_bundle.directory)]) == 0 and last_line(capsys).startswith("built 1 engine (kept 1)")


def test_it_needs_no_torch_no_onnx_and_no_polygraphy(toy_bundle):
    pytest.importorskip("tensorrt_rtx")
    code = ("import sys\n"
            "for name in ('torch', 'onnx', 'onnxruntime', 'polygraphy', 'modelopt', 'timm'): sys.modules[name] = None\n"
            "from deploy.cli import build; sys.exit(build(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, str(toy_bundle.directory), "--runtime", "tensorrt_rtx"],
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Bundle.load(toy_bundle.directory).engines) == 2


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--precision", "fp16"], "expected an fp16 bundle, received .* which is fp32: .*talent-export toy.pt --fp16 -o"),
    (["--batch", "0"], "--batch to be 1 to 8, received 0"), (["--batch", "9"], "--batch to be 1 to 8, received 9"),
    (["--workspace", "0"], "--workspace to be at least 1 MB"),
    (["--arch", "sm87"], "does not build for sm87.*full TensorRT"),
    (["--arch", "ampere"], "such as sm86"), (["--runtime", "tensorrt"], "tensorrt is not installed; run: pip install"),
    (["--timing-cache", "t.cache"], "TensorRT-RTX has no timing cache")])
def test_bad_requests_are_one_line_and_change_nothing(rtx, toy_bundle, capsys, arguments, reason):
    before = (toy_bundle.directory / "bundle.json").read_bytes()
    assert main([str(toy_bundle.directory), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("talent-build: error: ")
    assert re.search(reason, error), error
    assert (toy_bundle.directory / "bundle.json").read_bytes() == before
    assert not (toy_bundle.directory / "engines").exists()


def test_where_nothing_can_build_it_says_what_to_install(toy_bundle, monkeypatch, capsys):
    monkeypatch.setattr(builders, "installed_runtimes", list)
    assert main([str(toy_bundle.directory)]) == 2
    assert "no engine can be built here: tensorrt is not installed; tensorrt_rtx is not" in capsys.readouterr().err


def test_a_gpu_that_portable_engines_leave_out_is_told(rtx, toy_bundle, monkeypatch, capsys):
    advice = {"sm75": "--runtime tensorrt_rtx --arch sm75\n", "sm87": "--runtime tensorrt\n", "sm89": None}
    for arch, command in advice.items():
        monkeypatch.setattr(build, "gpu_architecture", lambda arch=arch: arch)
        assert main([str(toy_bundle.directory)]) == 0
        warning = capsys.readouterr().err
        if command is None:
            assert warning == ""
        else:
            assert f"do not run on the GPU here ({arch})" in warning and warning.endswith(command)


# With full TensorRT, by its shapes


@pytest.mark.parametrize("version", SHAPES)
def test_full_tensorrt_builds_for_this_gpu_with_one_timing_cache(board, toy_bundle, capsys, version):
    trt = board(version)
    assert main([str(toy_bundle.directory), "--batch", "1"]) == 0
    folder = toy_bundle.directory / f"engines/tensorrt-{version}-sm87"
    assert last_line(capsys) == f"built 2 engines for tensorrt {version}, sm87: {folder}"
    assert (folder / "timing.cache").read_bytes() == b"+measured+measured"  # the second graph began with the first's
    bundle = Bundle.load(toy_bundle.directory, verify=True)
    assert not_recorded(bundle) == [] and len(trt.Builder.made) == 2
    assert bundle.engine("vision", runtime="tensorrt", version=version, arch="sm87") == folder / "vision.plan"
    for other in ({"version": "10.4.0"}, {"arch": "sm89"}, {"runtime": "tensorrt_rtx"}):
        assert bundle.engine("vision", **{"runtime": "tensorrt", "version": version, "arch": "sm87"} | other) is None


def test_a_timing_cache_of_ones_own(board, toy_bundle, tmp_path, capsys):
    board()
    assert main([str(toy_bundle.directory), "--timing-cache", str(tmp_path / "none" / "t")]) == 2
    assert "mkdir -p" in capsys.readouterr().err
    assert main([str(toy_bundle.directory), "--timing-cache", str(tmp_path / "t.cache")]) == 0
    assert (tmp_path / "t.cache").read_bytes() == b"+measured+measured"
    assert not list(toy_bundle.directory.rglob("timing.cache"))


@pytest.mark.parametrize(("version", "warned"), [("10.3.0", True), ("10.7.0.23", True), ("10.16.1.11", False),
                                                 ("11.1.0.106", False)])
def test_versions_that_compile_transformers_wrongly_are_told(board, toy_bundle, capsys, version, warned):
    board(version)
    assert main([str(toy_bundle.directory)]) == 0
    assert (f"TensorRT {version} compiles vision transformers wrongly" in capsys.readouterr().err) is warned


def test_the_text_graph_of_an_int8_bundle_is_fp16(board, toy_bundle):
    board()
    manifest = toy_bundle.directory / "bundle.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"precision": "int8"}))
    engines = build_engines(Bundle.load(toy_bundle.directory), BuildOptions())
    assert {graph: engines.built[graph].precision for graph in GRAPHS} == {"text": "fp16", "vision": "int8"}


# Its parts


def test_profiles_are_read_from_the_graphs(toy_bundle):
    assert graph_profiles(toy_bundle, "text", batch=8) == {"tokens": ((1, 8), (1, 8), (8, 8))}
    assert graph_profiles(toy_bundle, "vision", batch=2) == {
        "image": ((1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 64, 64)), "colour": ((1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 1, 1)),
        "bias": ((1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1))}


@pytest.mark.parametrize("shape", [[1, 3, 64, 64], ["B", 3, "H", 64]])
def test_a_graph_that_varies_otherwise_is_refused(toy_bundle, shape):
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    onnx.save(helper.make_model(graph), toy_bundle.directory / "vision.onnx")
    with pytest.raises(UserError, match="image to vary in its batch alone, received .*talent-export"):
        graph_profiles(toy_bundle, "vision", batch=2)


def test_notes_of_another_kind_are_none(tmp_path):
    for content in ("", "[]", "1", '{"graph": "text"}', '{"graph": "text", "surprise": 1}'):
        (tmp_path / "x.json").write_text(content)
        assert EngineNotes.read(tmp_path / "x.plan") is None
    assert EngineNotes.read(tmp_path / "y.plan") is None


def test_the_digest_of_a_bundle_changes_with_names_and_contents():
    digests = {bundle_digest(files) for files in ({"a": "1"}, {"b": "1"}, {"a": "2"}, {"a": "1", "b": "1"}, {})}
    assert len(digests) == 5
    assert bundle_digest({"b": "1", "a": "2"}) == hashlib.sha256(b"2  a\n1  b\n").hexdigest()
