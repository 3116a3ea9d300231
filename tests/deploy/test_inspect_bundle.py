"""talent-inspect: what it says of a whole bundle, and that a damaged one costs one line and exit code 2."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploy import fuse_rca, inspect_bundle, plugin
from deploy.bundle import Bundle
from deploy.inspect_bundle import Machine, hindrance, main, this_machine
from deploy.integrity import measure
from deploy.onnx_summary import RCA, Tensor, summarise
from talent.errors import UserError
from talent.native import BUILD
from tests.deploy.engines import record, with_engines

NO_GPU = Machine(None, {})


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return with_engines(toy_bundle, record("text"), record("vision"))


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr(inspect_bundle, "gpu_architecture", lambda: None)


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def refused(capsys, *arguments) -> tuple[str, str]:
    """The standard output and the one line of the error."""
    code, out, err = run(capsys, *arguments)
    line, = err.splitlines()
    assert code == 2 and line.startswith("talent-inspect: error: ")
    return out, line


def flip_last_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


# What it says

def test_says_what_people_ask(bundle, capsys):
    (bundle.directory / "notes.txt").write_text("mine")
    code, out, err = run(capsys, bundle.directory)
    assert code == 0 and err == ""
    for wanted in ("network   toy, fp32, 64 px, sentences of 8 tokens, threshold 0.35",
                   "source    checkpoint toy.pt, sha256 000000000000\n", "parity    iou 1\n",
                   f"by commit {bundle.commit[:12]}", f"text.onnx{'':15}", bundle.files["text.onnx"][:12],
                   measure(bundle.directory / "bundle.json").sha256[:12], "notes.txt", "not in bundle.json",
                   "vision.onnx: opset 17, 7 operators, 0 of them RCA", "ReduceSum 2", "AveragePool 1",
                   "  in   image   float32   [P, 3, 64, 64]", "  out  logits  float32   [B, 1, 32, 32]",
                   "  in   tokens  int64     [B, L]", "engines/tensorrt-10.3.0-sm87/text.plan  fp16, 4 B",
                   "built in 1.5 s", "tensorrt 10.3.0 on sm87: does not run here: no NVIDIA GPU was found"):
        assert wanted in out, wanted
    assert out.splitlines()[-1] == (f"read the bundle {bundle.directory}: 5 files, "
                                    f"{sum(r.bytes for r in bundle.present().values()) / 1000:.1f} kB; every size is "
                                    "right (--verify compares every SHA-256)")
    assert max(map(len, out.splitlines()[:-1])) <= 120 + len(str(bundle.directory))


def test_json_has_all_of_it(bundle, capsys):
    code, out, err = run(capsys, bundle.directory, "--json")
    content = json.loads(out)
    assert code == 0 and err == "" and content["verified"] == [] and content["schema"] == 1
    manifest = json.loads((bundle.directory / "bundle.json").read_text())
    assert content["files"].pop("bundle.json")["sha256"] == measure(bundle.directory / "bundle.json").sha256
    for engine in content["engines"]:
        assert engine.pop("hindrance") == "no NVIDIA GPU was found"
    assert {name: content[name] for name in manifest} == manifest
    assert content["graphs"]["vision"]["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["B", 1, 32, 32]}]
    assert content["graphs"]["text"]["rca"] == 0 and content["machine"]["arch"] is None


def test_verify_reads_every_file(bundle, capsys):
    code, out, err = run(capsys, bundle.directory, "--verify")
    names = ["text.onnx", "vision.onnx", "tokenizer.json", record("text").path, record("vision").path]
    assert code == 0 and out.splitlines()[:5] == [f"ok       {name}" for name in names]
    assert out.endswith("every SHA-256 is right\n")
    code, out, err = run(capsys, bundle.directory, "--verify", "--json")
    assert code == 0 and json.loads(out)["verified"] == sorted(names)


def test_needs_no_heavy_package(bundle):
    code = ("import sys; from deploy.inspect_bundle import main\n"
            f"assert main([{str(bundle.directory)!r}]) == 0\n"
            "print(sorted({'torch', 'onnx', 'onnxruntime', 'jsonschema', 'polygraphy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


# What it refuses

def test_no_bundle_and_a_newer_one(bundle, capsys, tmp_path):
    assert "no such bundle" in refused(capsys, tmp_path / "none")[1]
    (tmp_path / "empty").mkdir()
    assert "has no bundle.json" in refused(capsys, tmp_path / "empty")[1]
    (bundle.directory / "bundle.json").write_text('{"schema": 2}')
    for options in ((), ("--verify",), ("--json",)):
        out, line = refused(capsys, bundle.directory, *options)
        assert out == "" and "pip install --upgrade talent-edge" in line


def test_truncated_without_verify(bundle, capsys):
    bundle.vision_onnx.write_bytes(b"half")
    out, line = refused(capsys, bundle.directory)
    assert out == "" and "vision.onnx was cut short" in line


def test_verify_lists_every_damaged_file(bundle, capsys):
    flip_last_bit(bundle.directory / "vision.onnx")
    flip_last_bit(bundle.directory / record("text").path)
    (bundle.directory / "tokenizer.json").write_bytes(b"{")
    (bundle.directory / "text.onnx").unlink()
    out, line = refused(capsys, bundle.directory, "--verify")
    assert [text.split()[:2] for text in out.splitlines()] == [
        ["DAMAGED", "text.onnx"], ["DAMAGED", "vision.onnx"], ["DAMAGED", "tokenizer.json"],
        ["DAMAGED", record("text").path], ["ok", record("vision").path]]
    for wanted in ("text.onnx is missing", "vision.onnx was changed", "tokenizer.json was cut short",
                   "text.plan was changed", "export the bundle again with talent-export", "remove it"):
        assert wanted in line, wanted
    assert "vision.plan" not in line
    out, _ = refused(capsys, bundle.directory, "--verify", "--json")
    assert sorted(json.loads(out)["damaged"]) == sorted(
        ["text.onnx", "vision.onnx", "tokenizer.json", record("text").path])


def test_a_graph_that_is_none_is_refused_even_where_its_size_is_right(bundle, capsys):
    path = bundle.directory / "text.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    _, line = refused(capsys, bundle.directory)
    assert "text.onnx: expected an ONNX file" in line


# Engines and this machine

ENGINE = record("text", runtime="tensorrt_rtx", version="1.7.1", arch="sm89")


@pytest.mark.parametrize("machine, reason", [
    (NO_GPU, "no NVIDIA GPU was found"), (Machine("sm89", {"tensorrt": "10.3.0"}), "tensorrt_rtx is not installed"),
    (Machine("sm89", {"tensorrt_rtx": "1.7.1"}), None),
    (Machine("sm89", {"tensorrt_rtx": "1.7.2"}), "has tensorrt_rtx 1.7.2 and sm89; run: talent-build "),
    (Machine("sm120", {"tensorrt_rtx": "1.7.1"}), "this machine has tensorrt_rtx 1.7.1 and sm120"),
    (Machine("sm89", {}, failure="tensorrt does not load: no libnvinfer.so.10"), "does not load: no libnvinfer.so.10"),
])
def test_which_engine_runs_where(toy_bundle, machine, reason):
    bundle = with_engines(toy_bundle, ENGINE)
    found = hindrance(bundle.engines[0], bundle, machine)
    assert found is None if reason is None else reason in found


def test_an_engine_with_the_plugin_says_so_and_needs_its_library(toy_bundle, capsys):
    fitting = Machine("sm89", {"tensorrt_rtx": "1.7.1"})
    bundle = with_engines(toy_bundle, dataclasses.replace(ENGINE, plugin=True), record("vision"))
    without, with_it = (hindrance(bundle.engines[0], bundle, machine)
                        for machine in (fitting, dataclasses.replace(fitting, plugin=True)))
    assert with_it is None and BUILD in without
    assert without.endswith(f"without it: talent-build {bundle.directory} --runtime tensorrt_rtx --plugin off")
    _, out, _ = run(capsys, bundle.directory)
    assert [line.endswith("with the RCA plugin") for line in out.splitlines() if ".plan  fp16" in line] == [True, False]
    engines = json.loads(run(capsys, bundle.directory, "--json")[1])["engines"]
    assert [engine["plugin"] for engine in engines] == [True, False]


def test_engines_that_are_not_here_or_out_of_date(toy_bundle, make_bundle):
    fitting = Machine("sm89", {"tensorrt_rtx": "1.7.1"})
    bundle = with_engines(toy_bundle, ENGINE)
    (bundle.directory / "text.onnx").write_bytes((bundle.directory / "vision.onnx").read_bytes())
    other = Bundle.write_manifest(bundle.directory, preset="toy", precision="fp32", image_size=64, context_length=8,
                                  source={}, engines=bundle.engines)
    assert "built from another text.onnx; run: talent-build " in hindrance(other.engines[0], other, fitting)
    (other.directory / ENGINE.path).unlink()
    assert hindrance(other.engines[0], other, fitting) == "its file was left out of this copy"


def test_this_machine(monkeypatch):
    monkeypatch.setattr(inspect_bundle, "installed_runtimes", lambda: pytest.fail("no GPU, no import"))
    assert this_machine() == NO_GPU
    monkeypatch.setattr(inspect_bundle, "gpu_architecture", lambda: "sm87")

    monkeypatch.setattr(inspect_bundle, "installed_runtimes", list)
    for library in (None, Path("plugin.so")):
        monkeypatch.setattr(plugin, "find", lambda library=library: library)
        assert this_machine() == Machine("sm87", {}, plugin=library is not None)

    def broken():
        raise UserError("tensorrt is installed but does not load")

    monkeypatch.setattr(inspect_bundle, "installed_runtimes", broken)
    assert this_machine() == Machine("sm87", {}, failure="tensorrt is installed but does not load")


# ONNX files without onnx

def test_rca_is_what_the_export_makes():
    assert RCA == f"{fuse_rca.DOMAIN}::{fuse_rca.OP_TYPE}"


def test_a_summary_is_what_onnx_reads(toy_bundle, tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 3, None])
    scalar = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [])
    nodes = [helper.make_node(fuse_rca.OP_TYPE, ["x"], [name], domain=fuse_rca.DOMAIN) for name in "ab"]
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    model = helper.make_model(helper.make_graph(nodes, "g", [value], [scalar]), opset_imports=[
        helper.make_opsetid(fuse_rca.DOMAIN, 1), helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "x.onnx")
    summary = summarise(tmp_path / "x.onnx")
    assert (summary.opset, summary.nodes, summary.rca) == (20, 3, 2)
    assert summary.inputs == (Tensor("x", "float16", ("batch", 3, "?")),)
    assert summary.outputs == (Tensor("y", "bfloat16", ()),)
    for path in (toy_bundle.text_onnx, toy_bundle.vision_onnx):
        graph, summary = onnx.load(path).graph, summarise(path)
        assert summary.operators == Counter(node.op_type for node in graph.node)
        assert [tensor.name for tensor in summary.inputs] == [tensor.name for tensor in graph.input]
        assert [tensor.name for tensor in summary.outputs] == [tensor.name for tensor in graph.output]


def test_a_damaged_onnx_file_never_crashes_the_reader(toy_bundle, tmp_path):
    content = toy_bundle.vision_onnx.read_bytes()
    path = tmp_path / "x.onnx"
    generator, refusals = random.Random(0), 0
    for _ in range(500):
        changed = bytearray(content[:generator.choice((len(content), generator.randrange(len(content))))])
        for _ in range(generator.randrange(4) if changed else 0):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(bytes(changed))
        try:
            summarise(path)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 100
    with pytest.raises(UserError, match="cannot read .*none"):
        summarise(tmp_path / "none.onnx")
