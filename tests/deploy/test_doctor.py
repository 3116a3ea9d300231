"""talent-doctor: what four machines can do, every known-bad combination with its remedy, bundles, and the command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import doctor
from deploy.bundle import GRAPHS, Bundle, EngineRecord
from deploy.diagnosis.capabilities import EXPORT, KERNELS, PLUGIN
from deploy.diagnosis.findings import ERROR, NOTE, SEVERITIES, WARNING, findings
from deploy.diagnosis.gpus import Gpu
from deploy.diagnosis.system import NO_ANSWER, NOT_FOUND, Outcome
from deploy.doctor import diagnose, main, render, to_dict
from talent.native import BUILD
from tests.deploy import machines
from tests.deploy.engines import record
from tests.deploy.engines import with_engines as put_engines

ROOT = Path(__file__).resolve().parents[2]


def named(facts) -> dict[str, str]:
    """Severity of each finding by its name."""
    return {finding.name: finding.severity for finding in findings(facts)}


def able(facts) -> dict[str, tuple[bool | None, bool | None]]:
    """(build, run) of each capability."""
    return {c.name: (c.build and c.build.possible, c.run and c.run.possible) for c in facts.capabilities}


def finding(facts, name: str):
    return next(found for found in findings(facts) if found.name == name)


# Machines ------------------------------------------------------------------------------------------------------------


def test_a_bare_machine_hears_what_to_install(tmp_path):
    facts = diagnose(machines.bare(tmp_path))
    assert able(facts) == {"onnxruntime": (None, False), "tensorrt": (False, False), "tensorrt_rtx": (False, False),
                           "export": (False, None)}
    assert named(facts) == {"no-runner": WARNING}
    remedies = " ".join(filter(None, (v.remedy for c in facts.capabilities for v in (c.build, c.run) if v)))
    assert all(f"pip install 'talent-edge[{extra}]'" in remedies for extra in ("cpu", "rtx", "export"))


def test_a_desktop_builds_and_runs_portable_engines(tmp_path):
    facts = diagnose(machines.desktop(tmp_path))
    assert able(facts) == {"onnxruntime": (None, True), "tensorrt": (False, False), "tensorrt_rtx": (True, True),
                           "export": (True, None)}
    assert named(facts) == {}


def test_a_desktop_without_a_gpu_builds_for_others(tmp_path):
    gone = {"nvidia-smi": Outcome(failure=NOT_FOUND), "cuda": machines.NO_DRIVER}
    facts = diagnose(machines.desktop(tmp_path, answers=gone))
    assert able(facts)["tensorrt_rtx"] == (True, False) and able(facts)["tensorrt"] == (False, False)
    assert named(facts) == {}


def test_a_server_takes_full_tensorrt(tmp_path):
    facts = diagnose(machines.server(tmp_path))
    assert able(facts) == {"onnxruntime": (None, True), "tensorrt": (True, True), "tensorrt_rtx": (False, False),
                           "export": (True, None)}
    assert named(facts) == {}


def test_an_orin_with_jetpack_6_has_a_tensorrt_that_compiles_wrongly(tmp_path):
    facts = diagnose(machines.orin(tmp_path))
    assert able(facts) == {"onnxruntime": (None, True), "tensorrt": (True, True), "tensorrt_rtx": (False, False),
                           "export": (False, None)}
    assert named(facts) == {"tensorrt-10.3-10.7": ERROR, "power-mode": NOTE}
    wrong = finding(facts, "tensorrt-10.3-10.7")
    assert "#4723" in wrong.sentence and "FP32" in wrong.sentence and "JetPack 7.2" in wrong.remedy
    assert finding(facts, "power-mode").remedy == "sudo nvpmodel -m 0 && sudo jetson_clocks"
    assert "not to be trusted" in facts.capabilities[1].build.reason


def test_a_jetson_in_a_virtual_environment_hears_how_to_see_jetpacks_tensorrt(tmp_path):
    facts = diagnose(machines.orin(tmp_path, packages={"tensorrt": None}))
    assert able(facts)["tensorrt"] == (False, False)
    assert "--system-site-packages" in facts.capabilities[1].build.remedy


# Known-bad combinations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "expected"), [
    ("8.6.1", {"tensorrt-too-old": ERROR}), ("10.2.0", {"tensorrt-too-old": ERROR}),
    ("10.3.0.26", {"tensorrt-10.3-10.7": ERROR}), ("10.7.0.23", {"tensorrt-10.3-10.7": ERROR}),
    ("10.8.0.43", {}), ("10.16.1", {}), ("11.0.0", {})])
def test_versions_of_tensorrt(tmp_path, version, expected):
    facts = diagnose(machines.server(tmp_path, packages={"tensorrt": version}))
    assert named(facts) == expected
    assert able(facts)["tensorrt"] == (("tensorrt-too-old" not in expected,) * 2)


@pytest.mark.parametrize(("start", "changes", "name", "severity", "remedy"), [
    ("desktop", {"packages": {"onnxruntime": "1.24.4"}}, "two-onnxruntimes", ERROR, "pip uninstall -y onnxruntime"),
    ("desktop", {"packages": {"torch": "2.15.0+cpu"}}, "torchvision-of-another-build", ERROR, "install both"),
    ("desktop", {"python": "3.13.1"}, "python", ERROR, "python3.12 -m venv"),
    ("desktop", {"python": "3.9.2"}, "python", ERROR, "python3.12 -m venv"),
    ("desktop", {"answers": {"cuda": machines.cuda("RTX 4090", "8.9", "12.4")}}, "driver-too-old", ERROR,
     "driver to 580"),
    ("desktop", {"answers": {"cuda": {"cuda": "13.0", "gpus": []}}}, "gpu-hidden", ERROR, "CUDA_VISIBLE_DEVICES"),
    ("desktop", {"answers": {"cuda": machines.cuda("RTX 2080", "7.5")}}, "rtx-turing", WARNING, "--arch sm75"),
    ("desktop", {"answers": {"cuda": machines.cuda("H100", "9.0")}}, "rtx-no-target", WARNING, "talent-edge[tensorrt]"),
    ("desktop", {"answers": {"cuda": machines.cuda("GTX 1080", "6.1")}}, "rtx-no-target", WARNING, "onnxruntime"),
    ("server", {"packages": {"tensorrt_rtx": "1.7.1"}}, "rtx-no-target", NOTE, "--backend tensorrt"),
    ("server", {"packages": {"tensorrt_rtx": "1.7.1"}}, "two-tensorrts", NOTE, "--backend tensorrt_rtx"),
    ("server", {"packages": {"tensorrt": None}}, "no-cuda-toolkit", WARNING, "pip install tensorrt polygraphy tqdm"),
    ("server", {"answers": {"cuda": machines.cuda("RTX 5090", "12.0")}}, "fp16-attention-sm120", NOTE, "--fp32"),
    ("server", {"answers": {"import tensorrt": {"failure": "OSError: libnvinfer.so.10"}}}, "tensorrt-does-not-load",
     ERROR, "reinstall"),
    ("server", {"answers": {"import cv2": {"failure": "ImportError: libGL.so.1"}}}, "cv2-does-not-load", ERROR,
     "opencv-python-headless"),
    ("server", {"answers": {"nvml": Outcome(failure=NO_ANSWER)}}, "no-answer", WARNING, "nvidia-smi -pm 1"),
    ("bare", {"packages": {"numpy": None}}, "inference-packages", ERROR, "pip install talent-edge"),
    ("bare", {"answers": {"import cv2": machines.NOT_INSTALLED}}, "inference-packages", ERROR,
     "pip install talent-edge"),
    ("bare", {"memory": 4 * machines.GIB}, "low-memory", WARNING, "export elsewhere"),
    ("bare", {"disk": machines.GIB}, "low-disk", WARNING, "TMPDIR"),
    ("bare", {"files": {"sys/bus/pci/devices/a/vendor": "0x10de", "sys/bus/pci/devices/a/class": "0x030000"}},
     "no-driver", WARNING, "NVIDIA's driver"),
    ("orin", {"memory": 7 * machines.GIB}, "low-memory", WARNING, "--no-engine"),
    ("orin", {"answers": {"cuda": machines.NO_DRIVER, "nvidia-smi": Outcome(failure=NOT_FOUND)}}, "no-driver", WARNING,
     "nvidia-jetpack"),
    ("orin", {"packages": {"tensorrt": "10.13.3.9"},
              "files": {"etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 1\n"}}, "tensorrt-10.13-orin",
     ERROR, "10.16"),
])
def test_known_bad_combinations(tmp_path, start, changes, name, severity, remedy):
    facts = diagnose(getattr(machines, start)(tmp_path, **changes))
    found = finding(facts, name)
    assert found.severity == severity and remedy in found.remedy and found.sentence


@pytest.mark.parametrize(("start", "changes", "name"), [
    ("desktop", {"packages": {"torch": "2.15.0+cpu", "torchvision": "0.29.2+cpu"}}, "torchvision-of-another-build"),
    ("orin", {"packages": {"torch": "2.8.0+cpu", "torchvision": "0.23.0"}}, "torchvision-of-another-build"),
    ("server", {"packages": {"tensorrt": None}, "answers": {"nvcc": Outcome("release 13.0, V13.0.88")}},
     "no-cuda-toolkit"),
    ("desktop", {"answers": {"nvidia-smi": Outcome(failure=NOT_FOUND)}}, "gpu-hidden"),
    ("orin", {"answers": {"nvpmodel": Outcome("NV Power Mode: MAXN\n0\n")}}, "power-mode"),
    ("bare", {"memory": 8 * machines.GIB}, "low-memory"),
])
def test_what_is_fine_is_not_a_finding(tmp_path, start, changes, name):
    assert name not in named(diagnose(getattr(machines, start)(tmp_path, **changes)))


def test_the_worst_comes_first(tmp_path):
    facts = diagnose(machines.orin(tmp_path, disk=0, python="3.8.10"))
    severities = [SEVERITIES.index(found.severity) for found in findings(facts)]
    assert severities == sorted(severities) and len(set(severities)) == 3


def test_turing_runs_engines_that_name_it(tmp_path):
    facts = diagnose(machines.desktop(tmp_path, answers={"cuda": machines.cuda("RTX 2080", "7.5")}))
    assert able(facts)["tensorrt_rtx"] == (True, True)
    assert "sm75 where it is named" in facts.capabilities[2].build.reason


def test_engines_do_not_run_without_polygraphy(tmp_path):
    for start in (machines.desktop, machines.server):
        facts = diagnose(start(tmp_path, packages={"polygraphy": None}))
        capability = facts.capabilities[1 if start is machines.server else 2]
        assert capability.build.possible and not capability.run.possible
        assert capability.run.remedy == "pip install polygraphy"


def test_export_is_what_setup_says():
    extras = (ROOT / "setup.py").read_text()
    assert all(f'"{name}' in extras for name in EXPORT)


# Our compiled libraries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("libraries", "missing"), [
    ([], "CUDA kernels and TensorRT plugin"), ([KERNELS], "TensorRT plugin"), ([PLUGIN], "CUDA kernels"),
    ([KERNELS, PLUGIN], None)])
def test_the_libraries_that_are_not_built_are_a_note_with_the_command(tmp_path, libraries, missing):
    facts = diagnose(machines.server(tmp_path, libraries=libraries))
    assert named(facts) == ({"libraries-not-built": NOTE} if missing else {})
    if missing:
        note = finding(facts, "libraries-not-built")
        assert f"RCA's {missing} are not built" in note.sentence and note.remedy == BUILD


def test_where_no_gpu_is_the_libraries_are_looked_for_and_not_missed(tmp_path):
    facts = diagnose(machines.bare(tmp_path, libraries=[PLUGIN]))
    assert named(facts) == {"no-runner": WARNING}
    assert to_dict(facts)["libraries"] == {"kernels": None, "plugin": str(tmp_path / "build/libtalent_plugin.so")}
    words = " ".join(render(facts).split())
    assert f"plugin found: {tmp_path / 'build/libtalent_plugin.so'} -> {BUILD}" in words
    assert "kernels not built: PyTorch computes RCA with its own operators" in words
    assert BUILD not in " ".join(render(diagnose(machines.bare(tmp_path))).split())


def test_an_engine_with_the_plugin_fits_where_the_library_is(tmp_path, toy_bundle):
    engines = [record(graph, runtime="tensorrt_rtx", version="1.7.1.116", arch="sm89", plugin=graph == "vision")
               for graph in GRAPHS]
    bundle = put_engines(toy_bundle, *engines)
    for libraries, reason in (([PLUGIN], None), ([KERNELS], "it needs the RCA plugin, which was not found")):
        facts = diagnose(machines.desktop(tmp_path / "machine", libraries=libraries), bundle)
        assert [engine.reason for engine in facts.bundle.engines] == [None, reason]
        assert (facts.bundle.rebuild is None) is (reason is None)
        assert "1.7.1.116, sm89, with the RCA plugin" in " ".join(render(facts).split())


# Bundles -------------------------------------------------------------------------------------------------------------


def with_engines(bundle: Bundle, *kinds: tuple[str, str, str], graphs=GRAPHS) -> Bundle:
    """Add engine files of (runtime, version, arch), for both graphs."""
    records = []
    for runtime, version, arch in kinds:
        for graph in graphs:
            path = f"engines/{runtime}-{version}-{arch}/{graph}.plan"
            (bundle.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (bundle.directory / path).write_bytes(b"plan")
            records.append(EngineRecord(graph=graph, precision="fp32", runtime=runtime, version=version, arch=arch,
                                        path=path, bytes=4, seconds=1.0))
    return bundle.with_engines(records)


def test_which_engines_of_a_bundle_fit(tmp_path, toy_bundle):
    bundle = with_engines(toy_bundle, ("tensorrt_rtx", "1.7.1.116", "portable"), ("tensorrt_rtx", "1.6.0", "portable"),
                          ("tensorrt_rtx", "1.7.1.116", "sm86"), ("tensorrt", "10.16.1", "sm89"))
    facts = diagnose(machines.desktop(tmp_path / "machine"), bundle)
    reasons = {(e.runtime, e.version, e.arch): e.reason for e in facts.bundle.engines}
    assert reasons["tensorrt_rtx", "1.7.1.116", "portable"] is None
    assert reasons["tensorrt_rtx", "1.6.0", "portable"] == "it needs TensorRT-RTX 1.6.0, 1.7.1.116 is installed"
    assert "built for sm86, this GPU is sm89" in reasons["tensorrt_rtx", "1.7.1.116", "sm86"]
    assert reasons["tensorrt", "10.16.1", "sm89"] == "TensorRT cannot run here: not installed"
    assert [e.fits for e in facts.bundle.engines] == [e.reason is None for e in facts.bundle.engines]
    assert facts.bundle.runners == ("onnxruntime", "tensorrt_rtx") and facts.bundle.rebuild is None
    assert named(facts) == {}


@pytest.mark.parametrize(("start", "kinds", "graphs", "warned"), [
    ("desktop", [], GRAPHS, True), ("desktop", [("tensorrt_rtx", "1.0.0", "portable")], GRAPHS, True),
    ("desktop", [("tensorrt_rtx", "1.7.1.116", "portable")], ["text"], True),
    ("server", [("tensorrt_rtx", "1.7.1.116", "portable")], GRAPHS, True), ("bare", [], GRAPHS, False)])
def test_a_bundle_without_fitting_engines_names_the_command_that_builds_them(tmp_path, toy_bundle, start, kinds, graphs,
                                                                            warned):
    bundle = with_engines(toy_bundle, *kinds, graphs=graphs)
    reader = getattr(machines, start)(tmp_path / "machine", packages={"onnxruntime-gpu": "1.24.4"})
    facts = diagnose(reader, bundle)
    assert facts.bundle.runners == ("onnxruntime",)
    assert named(facts) == ({"bundle-lacks-engines": WARNING} if warned else {})
    if warned:
        runtime = "tensorrt" if start == "server" else "tensorrt_rtx"
        assert shlex.split(facts.bundle.rebuild) == ["talent-build", str(bundle.directory), "--runtime", runtime]
        assert finding(facts, "bundle-lacks-engines").remedy == facts.bundle.rebuild


def test_the_command_that_builds_engines_names_turing(tmp_path, toy_bundle):
    facts = diagnose(machines.desktop(tmp_path / "machine", answers={"cuda": machines.cuda("GPU", "7.5")}), toy_bundle)
    assert facts.bundle.rebuild.endswith(" --runtime tensorrt_rtx --arch sm75")
    assert "talent-build BUNDLE --runtime tensorrt_rtx --arch sm75" in finding(facts, "rtx-turing").remedy


def test_a_portable_engine_does_not_fit_where_tensorrt_rtx_has_no_target(tmp_path, toy_bundle):
    bundle = with_engines(toy_bundle, ("tensorrt_rtx", "1.7.1.116", "portable"))
    for capability in ("7.5", "8.7", "9.0"):
        changes = {"answers": {"cuda": machines.cuda("GPU", capability)}}
        facts = diagnose(machines.desktop(tmp_path / "machine", **changes), bundle)
        assert not any(engine.fits for engine in facts.bundle.engines)


def test_engines_that_a_copy_left_out_do_not_fit(tmp_path, toy_bundle):
    bundle = with_engines(toy_bundle, ("tensorrt_rtx", "1.7.1.116", "portable"))
    for engine in bundle.engines:
        (bundle.directory / engine.path).unlink()
    facts = diagnose(machines.desktop(tmp_path / "machine"), Bundle.load(bundle.directory))
    assert {engine.reason for engine in facts.bundle.engines} == {"its file was left out of this copy"}


def test_a_bundle_that_nothing_can_run_is_an_error(tmp_path, toy_bundle):
    facts = diagnose(machines.bare(tmp_path / "machine"), toy_bundle)
    assert named(facts) == {"bundle-cannot-run": ERROR}
    assert "talent-edge[cpu]" in finding(facts, "bundle-cannot-run").remedy


# The report and the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["bare", "desktop", "server", "orin"])
def test_the_report_is_one_of_two_forms_of_the_same(tmp_path, toy_bundle, start):
    facts = diagnose(getattr(machines, start)(tmp_path / "machine"), toy_bundle)
    report = json.loads(json.dumps(to_dict(facts)))
    assert list(report) == ["machine", "gpus", "software", "capabilities", "libraries", "findings", "bundle"]
    assert {key for found in report["findings"] for key in found} <= {"severity", "name", "sentence", "remedy"}
    assert [c["name"] for c in report["capabilities"]] == ["onnxruntime", "tensorrt", "tensorrt_rtx", "export"]
    assert report["machine"]["gpu_arch"] == facts.gpus.arch and len(report["gpus"]) == len(facts.gpus.gpus)
    text = render(facts, width=100)
    words = " ".join(text.split())
    for found in report["findings"]:
        assert found["sentence"] in words and found["remedy"] in words
    for title in ("Machine", "GPUs", "Software", "What can be built and run here", "RCA in CUDA", "Bundle", "Findings"):
        assert f"\n{title}" in text
    assert all(len(line) <= 100 or " " not in line.strip() for line in text.splitlines())


def test_several_gpus_are_numbered(tmp_path):
    row = "NVIDIA A100, 8.0, 40960, 40000, 580.95.05, 400.00, 1410, 30\n"
    facts = diagnose(machines.desktop(tmp_path, answers={"nvidia-smi": Outcome(2 * row)}))
    assert facts.gpus.gpus[1] == Gpu("NVIDIA A100", "8.0", 40 * machines.GIB, 40000 * 2**20, 400.0, 1410, 30)
    assert "GPU 0" in render(facts) and "GPU 1" in render(facts)


@pytest.fixture
def playing(monkeypatch):
    """playing(reader): main() sees that machine."""
    return lambda reader: monkeypatch.setattr(doctor, "Reader", lambda: reader)


@pytest.mark.parametrize(("start", "code"), [("bare", 0), ("desktop", 0), ("server", 0), ("orin", 1)])
def test_the_exit_code_says_whether_there_is_an_error(tmp_path, playing, capsys, start, code):
    playing(getattr(machines, start)(tmp_path))
    assert main([]) == code
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.splitlines()[-1].startswith(f"{code} error")


def test_json_goes_to_the_standard_output_alone(tmp_path, playing, capsys, toy_bundle):
    playing(machines.desktop(tmp_path / "machine"))
    assert main([str(toy_bundle.directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"]["preset"] == "toy"


def test_json_goes_to_a_file_beside_the_report(tmp_path, playing, capsys):
    playing(machines.orin(tmp_path / "machine"))
    target = tmp_path / "report.json"
    assert main(["--json", str(target)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote the report to {target}"
    assert json.loads(target.read_text())["machine"]["jetson"]["jetpack"] == "6.1"


@pytest.mark.parametrize(("arguments", "reason"), [
    (["nowhere"], "no such bundle"), (["."], "not a bundle"), (["--json", "."], "a bundle comes first"),
    (["--json", "nowhere/report.json"], "does not exist")])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, playing, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    playing(machines.bare(tmp_path / "machine"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("talent-doctor: error: ")
    assert printed.err.count("\n") == 1 and reason in printed.err


def test_a_bundle_is_bad_input_where_opencv_does_not_import(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "deploy.bundle", None)
    assert main([str(tmp_path)]) == 2
    assert "talent-doctor without a bundle says what is wrong" in capsys.readouterr().err


def test_help_says_what_the_exit_codes_mean(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "exit code: 0 where no error is found" in capsys.readouterr().out


def test_this_machine_is_reported_without_torch(tmp_path):
    code = ("import sys, deploy.doctor as doctor; code = doctor.main(['--json', 'report.json'])\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cv2'} & set(sys.modules)\n"
            "assert code in (0, 1) and not heavy, (code, heavy)")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
                          cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["software"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["machine"]["cores"] >= 1 and report["software"]["packages"]["numpy"]
