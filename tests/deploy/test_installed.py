"""The installed package alone, far from the repository: what the wheel holds, and a bundle that runs with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.manifest import json_schema
from talent.image import save_image

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("setup.py", "pyproject.toml", "README.md", "talent", "deploy", "calibration")
SEGMENT = """
import sys, deploy, talent
from pathlib import Path
site, bundle, picture = sys.argv[1:]
assert all(Path(package.__file__).is_relative_to(site) for package in (deploy, talent)), deploy.__file__
with deploy.Segmenter(bundle, "onnxruntime", threads=1) as segmenter:
    print(*segmenter("g", picture).box)
assert not {"torch", "timm", "onnx"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What the wheel holds, laid out by setuptools from a copy of the sources, as site-packages has it."""
    copy, site = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    done = subprocess.run([sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", site], cwd=copy,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


def installed(site: Path, cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs Python with `site` before every other package, in a directory that is not the repository's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True,
                          text=True, check=False)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return directory


def test_the_schema_is_in_the_wheel(site, elsewhere):
    code = "import json; from deploy.manifest import json_schema; print(json.dumps(json_schema()))"
    done = installed(site, elsewhere, "-c", code)
    assert done.returncode == 0 and json.loads(done.stdout) == json_schema(), done.stderr
    assert (site / "deploy" / "bundle.schema.json").is_file()


def test_a_copied_bundle_runs_without_the_repository(site, toy_bundle, picture, elsewhere):
    bundle = shutil.copytree(toy_bundle.directory, elsewhere / "copied")
    shutil.rmtree(toy_bundle.directory)
    save_image(elsewhere / "picture.png", picture)
    done = installed(site, elsewhere, "-c", SEGMENT, site, bundle.name, "picture.png")
    assert done.returncode == 0, done.stderr
    box = list(map(int, done.stdout.split()))
    assert box == pytest.approx([60, 30, 90, 80], abs=5)  # the green rectangle of the picture
    done = installed(site, elsewhere, "-m", "deploy.inspect_bundle", bundle.name, "--verify")
    assert done.returncode == 0 and done.stdout.endswith("every SHA-256 is right\n"), done.stderr
