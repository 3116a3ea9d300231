"""Nothing of ours unpickles what a stranger made, which would run their code: only weights-only reading is allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("talent", "deploy", "calibration", "benchmarks", "demo")
                 for path in (ROOT / folder).rglob("*.py"))
RESTRICTED_READER = ROOT / "talent" / "data" / "refs_pickle.py"  # builds plain values and runs nothing
PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HARMLESS = {"PickleError", "PicklingError", "UnpicklingError"}  # exceptions of the pickle module


def faults(source: str) -> Iterator[str]:
    """What reads or writes a pickle in a Python file, each with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                renamed = alias.name == "pickle" and alias.asname  # its uses would not be found below
                if renamed or alias.name.partition(".")[0] in PICKLING - {"pickle"}:
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLING:
            yield from (f"line {node.lineno}: from {node.module} import {alias.name}" for alias in node.names
                        if alias.name not in HARMLESS)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr not in HARMLESS:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("torch.load", "torch.hub.load_state_dict_from_url") and options.get("weights_only") != "True":
                yield f"line {node.lineno}: {called} without weights_only=True"
            if options.get("allow_pickle", "False") != "False":
                yield f"line {node.lineno}: {called} with allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_pickle(path):
    found = list(faults(path.read_text(encoding="utf-8")))
    assert bool(found) == (path == RESTRICTED_READER), found


@pytest.mark.parametrize("source", [
    "import pickle\npickle.load(file)", "import pickle as p", "from pickle import loads", "import dill",
    "import joblib.x", "torch.load(path)", "torch.load(path, weights_only=False)",
    "numpy.load(path, allow_pickle=True)", "import pickle\nclass Reader(pickle.Unpickler): pass"])
def test_what_would_be_found(source):
    assert list(faults(source))
