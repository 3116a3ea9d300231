"""libtalent's reader of bundles against deploy/bundle.py: what it takes and says, and what it refuses and why."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from deploy.bundle import PORTABLE, Bundle, EngineRecord
from talent.errors import UserError
from tests.deploy.cpp_programs import answers, build_programs
from tests.deploy.engines import record, with_engines
from tests.deploy.test_bundle import DESCRIBED, cut_short, flip_last_bit
from tests.deploy.test_manifest import damaged

RTX = {"runtime": "tensorrt_rtx", "version": "1.7.1.116"}
TOO_LARGE = re.compile(r"expected .+ to be an integer below 2\^63, received ")
"""What only libtalent says: Python's integers have no end."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    return build_programs(tmp_path_factory)


@pytest.fixture
def ask(programs) -> Callable[[Iterable[tuple]], list[str]]:
    """ask(commands): what read_bundles answers to each, "ok\\t..." or "error\\t..."."""

    def ask_all(commands: Iterable[tuple]) -> list[str]:
        lines = "".join("\t".join(map(str, command)) + "\n" for command in commands)
        return answers(programs / "read_bundles", said=lines).split("\0")[:-1]

    return ask_all


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    """With external data, and engines for a Jetson, for all RTX GPUs and for one."""
    (toy_bundle.directory / "vision.onnx.data").write_bytes(b"weights")
    written = Bundle.write_manifest(toy_bundle.directory, **DESCRIBED, parity={"iou": 1.0})
    return with_engines(written, record("text"), record("vision", plugin=True), record("text", **RTX, arch=PORTABLE),
                        record("text", **RTX, arch="sm89"))


def summary(bundle: Bundle) -> str:
    """As read_bundles tells it."""
    words = [bundle.preset, bundle.precision, str(bundle.image_size), str(bundle.context_length),
             f"{bundle.threshold:.17g}", bundle.commit, bundle.created]
    words += [f"{name}={version}" for name, version in sorted(bundle.versions.items())]
    words += [f"{name} {file.bytes} {file.sha256}" for name, file in bundle.records.items()]
    return "\t".join([*words, *map(_engine_summary, bundle.engines)])


def _engine_summary(engine: EngineRecord) -> str:
    peak = -1 if engine.peak_memory_bytes is None else engine.peak_memory_bytes
    words = [engine.graph, engine.precision, engine.runtime, engine.version, engine.arch, engine.path,
             f"{float(engine.seconds):.17g}", engine.batch, peak, int(engine.plugin), engine.bytes, engine.sha256]
    return " ".join(map(str, [*words, *(f"{name}={digest}" for name, digest in sorted(engine.built_from.items()))]))


def in_python(command: str, directory: Path, *query: str) -> str:
    """The answer that read_bundles should give."""
    try:
        if command == "read":
            return f"ok\t{summary(Bundle.read(directory))}"
        bundle = Bundle.load(directory, verify=command == "verify")
        if command == "engine":
            graph, runtime, version, arch = query
            return f"ok\t{bundle.engine(graph, runtime=runtime, version=version, arch=arch) or ''}"
        if command == "graphs":
            paths = bundle.text_onnx, bundle.vision_onnx, bundle.tokenizer_json, bundle.context_length
            return "\t".join(map(str, ("ok", *paths)))
        return f"ok\t{summary(bundle)}"
    except UserError as error:
        return f"error\t{error}"


def comparable(answer: str) -> str:
    """Without each JSON parser's own words."""
    return re.sub(r"malformed JSON \(.*\): the file", "malformed JSON: the file", answer)


def check_same(ask: Callable, commands: list[tuple]) -> tuple[int, int]:
    """Both give the same answers; how many commands succeeded, and how many not."""
    received = ask(commands)
    expected = [in_python(*command) for command in commands]
    assert len(received) == len(commands)
    for command, ours, python in zip(commands, received, expected, strict=True):
        if TOO_LARGE.search(ours):
            assert python.startswith("ok\t"), command
        else:
            assert comparable(ours) == comparable(python), command
    taken = sum(answer.startswith("ok\t") for answer in received)
    return taken, len(received) - taken


def copies(bundle: Bundle, damages: dict[str, Callable[[Path], object]]) -> list[Path]:
    """A copy of the bundle for each damage, done to it."""
    directories = []
    for name, damage in damages.items():
        directory = bundle.directory.parent / name
        shutil.copytree(bundle.directory, directory)
        damage(directory)
        directories.append(directory)
    return directories


def rewrite(**changes: object) -> Callable[[Path], object]:
    """A change of the manifest's fields."""

    def apply(directory: Path) -> None:
        path = directory / "bundle.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def test_a_good_bundle_is_read_alike(bundle, ask):
    for directory in (bundle.directory, f"{bundle.directory}/", bundle.directory / ".." / bundle.directory.name):
        commands = [(command, directory) for command in ("read", "load", "verify", "graphs")]
        assert check_same(ask, commands) == (4, 0)
    assert "\t17\t" in ask([("read", bundle.directory)])[0]


def test_manifests_are_taken_and_refused_alike(bundle, ask, tmp_path):
    """Every value of a manifest left out, renamed and replaced."""
    content = json.loads((bundle.directory / "bundle.json").read_text())
    content["files"] = dict(list(content["files"].items())[:3])
    content["engines"], content["versions"] = content["engines"][1:2], {"python": "3.11"}
    commands = []
    for index, (_, changed) in enumerate(damaged(content)):
        directory = tmp_path / f"manifest {index}"
        directory.mkdir()
        (directory / "bundle.json").write_text(json.dumps(changed), encoding="utf-8")
        commands.append(("read", directory))
    taken, refused = check_same(ask, commands)
    assert taken > 100 and refused > 1000


def test_only_integers_of_more_than_63_bits_are_refused_by_libtalent_alone(bundle, ask):
    engine = dataclasses.asdict(bundle.engines[0])
    largest, = copies(bundle, {"largest": rewrite(image_size=2**63 - 1, context_length=2.0**62,
                                                  engines=[{**engine, "batch": 2**63 - 1, "seconds": 10**30}])})
    assert check_same(ask, [("read", largest)]) == (1, 0)
    changes = {"image_size": {"image_size": 2**63}, "context_length": {"context_length": 1e300},
               "engines[0].batch": {"engines": [{**engine, "batch": 10**30}]}}
    for index, (name, change) in enumerate(changes.items()):
        directory, = copies(bundle, {f"larger {index}": rewrite(**change)})
        assert Bundle.read(directory)
        assert f"bundle.json: expected {name} to be an integer below 2^63, received " in ask([("read", directory)])[0]


@pytest.mark.parametrize("text", [
    b"", b"{", b'{"schema": 1', b"[]", b"3", b"null", b"\xff\xfe{", b'{"threshold": NaN}', b'{"threshold": 1e999}',
    b'{"image_size": ' + b"9" * 5000 + b"}", b"[" * 200_000, b"[" * 5000 + b"]" * 5000, b"\xef\xbb\xbf{}", b"{}\x00{}",
    b"{} {}", b'{"a": 1,}', b'{"a": 01}', b"{'a': 1}", b'{"a\n": 1}', b'{"\\ud83d\\ude00\\u0007": 1}', b'{"": 1}',
    b'{"schema": 2}', b'{"schema": 7.0, "novelty": 1}', b'{"schema": 1e30}', b'{"schema": 2, "schema": 0}',
    b'{"schema": -3}', b'{"schema": -0.0}', b'{"schema": -1e30}', b'{"schema": 1.5e-7}', b'{"schema": [[[[[[[1]]]]]]]}',
    b'{"schema": {"b": {"c": [1, 2, 3, 4, 5, 6, 7]}, "a": "' + b"x" * 99 + b'"}}', b'{"precison": 1, "presets": 2}',
    b'{"' + b"threshold" * 40 + b'": 1}', '{"schéma": 1}'.encode(), '{"schema": "ab\u200b\u00e9\U0001f600"}'.encode(),
    b'{"schema": "\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\u0008\\u000e"}'])
def test_texts_that_are_no_manifest_are_refused_alike(ask, tmp_path, text):
    (tmp_path / "bundle.json").write_bytes(text)
    assert check_same(ask, [("read", tmp_path)]) == (0, 1)


def test_a_manifest_with_windows_line_ends_and_a_name_twice_is_read_alike(bundle, ask):
    def change(directory: Path) -> None:
        text = (directory / "bundle.json").read_text().replace('"preset": "toy"', '"preset": "a", "preset": "größe"')
        (directory / "bundle.json").write_bytes(text.replace("\n", "\r\n").encode())

    directory, = copies(bundle, {"changed": change})
    assert check_same(ask, [("read", directory)]) == (1, 0)
    assert "größe" in ask([("read", directory)])[0]


def test_half_of_a_surrogate_pair_is_no_text_to_libtalent(bundle, ask):
    """Python reads it; it has no UTF-8."""
    directory, = copies(bundle, {"half": rewrite(preset="\ud800")})
    assert "malformed JSON" in ask([("read", directory)])[0]


def test_damaged_bundles_are_refused_alike(bundle, ask, monkeypatch):
    plan = record("text").path
    damages: dict[str, Callable[[Path], object]] = {"whole": lambda directory: None}
    for name in ("text.onnx", "vision.onnx", "vision.onnx.data", "tokenizer.json", plan):
        stem = name.replace("/", " ")
        damages |= {f"{stem} missing": lambda directory, name=name: (directory / name).unlink(),
                    f"{stem} cut": lambda directory, name=name: cut_short(directory / name),
                    f"{stem} longer": lambda directory, name=name: (directory / name).write_bytes(b"x" * 9999),
                    f"{stem}'s changed": lambda directory, name=name: flip_last_bit(directory / name),
                    f"{stem} a folder": lambda directory, name=name: ((directory / name).unlink(),
                                                                      (directory / name).mkdir()),
                    f"{stem} a loop": lambda directory, name=name: ((directory / name).unlink(),
                                                                    (directory / name).symlink_to(name))}
    longest = "x" * 300
    damages |= {
        "no manifest": lambda directory: (directory / "bundle.json").unlink(),
        "manifest a folder": lambda directory: ((directory / "bundle.json").unlink(),
                                                (directory / "bundle.json").mkdir()),
        "no engines": lambda directory: shutil.rmtree(directory / "engines"),
        "a name too long": rewrite(files={**json.loads((bundle.directory / "bundle.json").read_text())["files"],
                                          longest: {"bytes": 1, "sha256": "0" * 64}})}
    directories = [*copies(bundle, damages), bundle.directory / "none", bundle.directory / "bundle.json"]
    commands = [(command, directory) for directory in directories for command in ("read", "load", "verify", "graphs")]
    taken, refused = check_same(ask, commands)
    assert taken > 40 and refused > 60
    monkeypatch.chdir(bundle.directory.parent)
    shown = [Path("bundle") / "..", Path("."), Path("no bundle's")]
    assert check_same(ask, [("load", path) for path in shown]) == (0, 3)


def test_engines_are_chosen_and_refused_alike(bundle, ask):
    plan, rtx = record("text").path, record("text", **RTX, arch="sm89").path
    old = {**dataclasses.asdict(bundle.engines[0]), "built_from": {"text.onnx": "0" * 64, "more.onnx": "1" * 64}}
    directories = copies(bundle, {
        "it's whole": lambda directory: None, "changed plan": lambda directory: flip_last_bit(directory / plan),
        "no plan": lambda directory: (directory / plan).unlink(),
        "no RTX plan": lambda directory: (directory / rtx).unlink(),
        "built from others": rewrite(engines=[old]),
        "the same twice": rewrite(engines=[{**old, "bytes": 1}, dataclasses.asdict(bundle.engines[0])])})
    queries = [(graph, runtime, version, arch) for graph in ("text", "vision") for runtime, version in
               (("tensorrt", "10.3.0"), ("tensorrt", "10.4.0"), ("tensorrt_rtx", RTX["version"]))
               for arch in ("sm8", "sm75", "sm80", "sm87", "sm89", "sm90", "sm110", "sm120")]
    commands = [("engine", directory, *query) for directory in directories for query in queries]
    taken, refused = check_same(ask, commands)
    assert taken > 200 and refused >= 3
    found = ask([("engine", bundle.directory, "text", "tensorrt_rtx", RTX["version"], arch) for arch in
                 ("sm89", "sm120", "sm75")])
    assert [answer.split("/")[-2] for answer in found[:2]] == ["tensorrt_rtx-1.7.1.116-sm89",
                                                               "tensorrt_rtx-1.7.1.116-portable"]
    assert found[2] == "ok\t"
    assert ask([("engine", bundle.directory, "text", "tensorrt", "10.3.0", "8.7")]) == [
        "error\texpected a GPU such as sm87, received '8.7'"]


def test_whether_an_engine_needs_the_plugin_may_be_left_out(bundle, ask):
    engines = [{name: value for name, value in dataclasses.asdict(engine).items() if name != "plugin"}
               for engine in bundle.engines]
    directory, = copies(bundle, {"before": rewrite(engines=engines)})
    assert check_same(ask, [("load", directory), ("load", bundle.directory)]) == (2, 0)
    for path, needs in ((bundle.directory, [False, True, False, False]), (directory, [False] * 4)):
        engines = ask([("read", path)])[0].split("\t")[-4:]
        assert [engine.split(" ")[9] == "1" for engine in engines] == needs
