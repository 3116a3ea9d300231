"""ModelOpt, tamed: imported when needed, quiet, its files in a directory that goes away, its name matching exact."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from talent.errors import UserError
from talent.require import require


def modelopt(module: str):
    """A ModelOpt module, imported without its log lines."""
    with quiet():
        return require(module, extra="export")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for all that is written meanwhile, also by libraries that make temporary files of their own."""
    with tempfile.TemporaryDirectory() as directory:
        before, tempfile.tempdir = tempfile.tempdir, directory
        try:
            yield Path(directory)
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ModelOpt's and ONNX Runtime's chatter off the terminal; errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every node has a name of its own, as ModelOpt's selections need."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_unnamed_{index}"
        seen.add(node.name)
    return copy


def known_nodes(model: onnx.ModelProto, names: Iterable[str], *, argument: str) -> set[str]:
    names, known = set(names), {node.name for node in model.graph.node}
    if names - known:
        raise UserError(f"{argument} names nodes that the graph {model.graph.name!r} does not have: "
                        f"{', '.join(sorted(names - known))}")
    return names


def patterns(names: Iterable[str]) -> list[str]:
    """ModelOpt matches names as regular expressions from the start; these match exactly."""
    return [re.escape(name) + r"\Z" for name in sorted(names)]
