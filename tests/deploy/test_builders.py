"""Which TensorRT builds: looked up without an import, chosen by what is here."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import builders
from deploy.builders import Runtime, choose_runtime, installed_runtimes, load_runtime, usable_runtimes
from talent.errors import UserError

FULL, RTX = Runtime("tensorrt", "10.3.0"), Runtime("tensorrt_rtx", "1.7.1.116")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch):
    """machine(runtimes, arch): what is installed, and the GPU."""

    def have(*runtimes: Runtime, arch: str | None = None) -> None:
        monkeypatch.setattr(builders, "installed_runtimes", lambda: list(runtimes))
        monkeypatch.setattr(builders, "gpu_architecture", lambda: arch)

    return have


def install(monkeypatch, tmp_path: Path, name: str, source: str, version: str | None = None) -> None:
    """A package on the path, with the metadata of a distribution where it has a version."""
    (tmp_path / f"{name}.py").write_text(source)
    if version is not None:
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(builders, "RUNTIMES", {name: "rtx"})


@pytest.mark.parametrize(("runtimes", "arch", "name", "chosen"), [
    ([FULL, RTX], "sm89", None, FULL), ([FULL, RTX], None, None, RTX), ([RTX], None, None, RTX),
    ([RTX], "sm90", None, RTX),
    ([FULL, RTX], "sm89", "tensorrt_rtx", RTX), ([FULL], "sm87", "tensorrt", FULL)])
def test_the_first_that_can_build_is_chosen(machine, runtimes, arch, name, chosen):
    machine(*runtimes, arch=arch)
    assert choose_runtime(name) == chosen
    assert chosen in usable_runtimes()


@pytest.mark.parametrize(("runtimes", "arch", "name", "reason"), [
    ([], None, None, "tensorrt is not installed; tensorrt_rtx is not installed; run: pip install 'talent-edge.rtx.'"),
    ([FULL], None, None, "tensorrt builds only where its GPU is, .* tensorrt_rtx is not installed; run: .*JetPack"),
    ([RTX], "sm89", "tensorrt", "here: tensorrt is not installed; run"),
    ([FULL, RTX], None, "tensorrt", "here: tensorrt builds only where its GPU is"),
    ([FULL], "sm87", "tensorrt-rtx", "unknown runtime 'tensorrt-rtx'; did you mean 'tensorrt_rtx'")])
def test_where_none_can_build_the_reasons_are_told(machine, runtimes, arch, name, reason):
    machine(*runtimes, arch=arch)
    with pytest.raises(UserError, match=reason):
        choose_runtime(name)


def test_looking_up_imports_nothing_and_tells_the_version():
    pytest.importorskip("tensorrt_rtx")
    code = ("import sys; from deploy.builders import installed_runtimes; print(installed_runtimes())\n"
            "assert not {'tensorrt', 'tensorrt_rtx', 'polygraphy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"version='{importlib.metadata.version('tensorrt_rtx')}'" in done.stdout


def test_the_version_that_pip_knows_is_the_packages_own():
    trt = pytest.importorskip("tensorrt_rtx")
    assert Runtime("tensorrt_rtx", trt.__version__) in installed_runtimes()


def test_a_package_that_was_installed_without_pip_says_its_version_itself(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "jetpack_tensorrt", "print('noise')\n__version__ = '10.3.0'\n")
    assert installed_runtimes() == [Runtime("jetpack_tensorrt", "10.3.0")]
    assert "jetpack_tensorrt" not in sys.modules


@pytest.mark.parametrize("source", ["import no_such_library\n", "raise OSError('libnvinfer.so.10:\\n no file')\n", "",
                                    "import os; os._exit(3)\n"])
def test_a_package_that_cannot_say_its_version_is_an_error(monkeypatch, tmp_path, source):
    install(monkeypatch, tmp_path, "broken_tensorrt", source)
    with pytest.raises(UserError, match="broken_tensorrt is installed but does not load: .*; reinstall it"):
        installed_runtimes()


def test_a_package_that_does_not_load_is_not_taken_for_a_missing_one(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "broken_trt", "raise ImportError('libnvinfer.so.10:\\n no file')\n", "10.3.0")
    assert installed_runtimes() == [Runtime("broken_trt", "10.3.0")]
    with pytest.raises(UserError, match="broken_trt is installed but does not load: libnvinfer.so.10: no file; "):
        load_runtime("broken_trt")


def test_a_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "tensorrt_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builders, "RUNTIMES", {"tensorrt_folder": "rtx", "tensorrt_nowhere": "rtx"})
    assert installed_runtimes() == []


def test_a_probe_that_hangs_is_an_error(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "slow_tensorrt", "__version__ = '1'\n")

    def run(command, **options):
        assert options["timeout"] > 0
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(builders, "subprocess", SimpleNamespace(run=run, SubprocessError=subprocess.SubprocessError))
    with pytest.raises(UserError, match="does not load: .*timed out"):
        installed_runtimes()
