"""Inference needs NumPy, OpenCV and tokenizers only: proven in a virtual environment that has nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "tokenizers")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
MODULES = ("talent.image", "talent.tokenizer", "talent.metrics", "talent.evaluate", "talent.worst_cases",
           "talent.files", "talent.provenance", "talent.cli", "deploy", "deploy.runtime.segmenter",
           "deploy.runtime.onnxruntime", "deploy.runtime.tensorrt", "deploy.bundle", "deploy.predict",
           "deploy.evaluate", "deploy.doctor", "deploy.build", "deploy.inspect_bundle", "deploy.manifest",
           "deploy.onnx_summary", "deploy.bag", "deploy.ros.worker", "deploy.ros.messages", "deploy.cli")


def _lend(package: str, site_packages: Path) -> None:
    """Link one installed distribution into another environment (installing it there would need a network)."""
    distribution = importlib.metadata.distribution(package)
    tops = {file.parts[0] for file in distribution.files or ()}
    for top in tops - {"..", "__pycache__"}:
        (site_packages / top).symlink_to(Path(distribution.locate_file(top)).resolve())


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    site_packages = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                                   capture_output=True, text=True).stdout.strip()
    opencv = next(name for name in OPENCV if _installed(name))
    for package in (*PACKAGES, opencv):
        _lend(package, Path(site_packages))
    return python


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _run(python: Path, code: str) -> subprocess.CompletedProcess:
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PYTHONPATH": str(ROOT),
                   "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([python, "-c", code], env=environment, cwd=python.parent, capture_output=True, text=True,
                          check=False)


def test_the_environment_is_bare(bare_python):
    for absent in ("torch", "onnx", "onnxruntime", "timm", "open_clip", "polygraphy"):
        done = _run(bare_python, f"import {absent}")
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr, absent


@pytest.mark.parametrize("module", MODULES)
def test_imports(bare_python, module):
    done = _run(bare_python, f"import sys, {module}; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_preprocessing_and_back_run(bare_python):
    code = ("import numpy as np; from talent.image import preprocess, probability_on_photo\n"
            "tensor, box = preprocess(np.zeros((30, 50, 3), np.uint8), 56)\n"
            "print(tensor.shape, probability_on_photo(np.zeros((8, 8), np.float32), box).shape)")
    assert _run(bare_python, code).stdout.strip() == "(1, 3, 56, 56) (30, 50)"


def test_missing_runner_names_the_extra(bare_python):
    code = ("from talent.errors import UserError; from talent.require import require\n"
            "try: require('onnxruntime', extra='cpu')\n"
            "except UserError as error: print(error)")
    assert "pip install 'talent-edge[cpu]'" in _run(bare_python, code).stdout


@pytest.mark.parametrize(("call", "extra"), [
    ("talent.cli import train", "train"), ("talent.cli import pack", "train"),
    ("talent.cli import import_official", "train"), ("deploy.cli import export", "export")])
def test_a_command_without_its_extra_is_one_line_and_exit_code_2(bare_python, call, extra):
    done = _run(bare_python, f"import sys; from {call} as main; sys.exit(main(['--help']))")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"pip install 'talent-edge[{extra}]'" in done.stderr


def test_building_on_a_bare_machine_says_what_to_install(bare_python):
    done = _run(bare_python, "from deploy.builders import choose_runtime; from talent.errors import UserError\n"
                             "try: choose_runtime()\n"
                             "except UserError as error: print(error)")
    assert "tensorrt_rtx is not installed; run: pip install 'talent-edge[rtx]'" in done.stdout
    done = _run(bare_python, "import sys; from deploy.cli import build; sys.exit(build(['--help']))")
    assert done.returncode == 0 and "talent-build bundle/" in done.stdout


def test_the_doctor_works_on_a_bare_machine(bare_python):
    """What it says of this machine's GPU is not asked here: there may be one."""
    done = _run(bare_python, "import sys; from deploy.cli import doctor; code = doctor([])\n"
                             "assert 'torch' not in sys.modules; sys.exit(code)")
    assert done.returncode == 0 and done.stderr == ""
    assert "pip install 'talent-edge[cpu]'" in done.stdout and "pip install 'talent-edge[export]'" in done.stdout
