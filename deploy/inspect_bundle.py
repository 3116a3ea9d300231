"""talent-inspect: what is in a bundle, where it came from, whether it is whole, and what of it runs on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy import plugin
from deploy.builders import installed_runtimes
from deploy.bundle import GRAPHS, MANIFEST, SCHEMA, Bundle, EngineRecord
from deploy.engine_notes import SUFFIX, TIMING_CACHE
from deploy.integrity import measure
from deploy.onnx_summary import Tensor, summarise
from deploy.runtime.gpu import gpu_architecture
from deploy.targets import build_advice, build_command
from talent.errors import UserError, command
from talent.native import BUILD
from talent.require import require

EXAMPLE = """\
example:
  talent-inspect bundle/ --verify
"""
WIDTH = 120
DIGITS = 12  # of a SHA-256 that people compare by eye


@dataclass(frozen=True)
class Machine:
    """What engines have to fit. arch: "sm87", None without a GPU. versions: of each TensorRT by name. failure: why
    those are not known. plugin: whether the library of the plugin for RCA is here.
    """

    arch: str | None
    versions: Mapping[str, str]
    failure: str | None = None
    plugin: bool = False


def this_machine() -> Machine:
    """Asks the driver, and for the TensorRTs only where there is a GPU to use them."""
    arch = gpu_architecture()
    if arch is None:
        return Machine(None, {})
    try:
        return Machine(arch, {runtime.name: runtime.version for runtime in installed_runtimes()},
                       plugin=plugin.find() is not None)
    except UserError as error:  # the package is there, its libraries are not
        return Machine(arch, {}, failure=str(error))


def hindrance(engine: EngineRecord, bundle: Bundle, machine: Machine) -> str | None:
    """Why an engine of the bundle does not run on a machine; None where it does."""
    if engine.path not in bundle.present():
        return "its file was left out of this copy"
    if changed := bundle.changed_since(engine):
        return f"it was built from another {' and '.join(changed)}; run: {build_command(bundle.directory)}"
    if machine.arch is None:
        return "no NVIDIA GPU was found"
    if machine.failure:
        return machine.failure
    version = machine.versions.get(engine.runtime)
    if version is None:
        return f"{engine.runtime} is not installed"
    if not engine.fits(runtime=engine.runtime, version=version, arch=machine.arch):
        return (f"this machine has {engine.runtime} {version} and {machine.arch}; "
                + build_advice(bundle.directory, runtime=engine.runtime, arch=machine.arch))
    if engine.plugin and not machine.plugin:
        without = build_command(bundle.directory, runtime=engine.runtime, arch=machine.arch, plugin="off")
        return (f"it needs the RCA plugin, whose library was not found; build that: {BUILD}; or engines without it: "
                f"{without}")
    return None


def check_files(bundle: Bundle) -> Iterator[tuple[str, str | None]]:
    """Name of every file that is recorded, and what is wrong with it. Reads them all, with a progress bar."""
    tqdm = require("tqdm", extra="cpu").tqdm
    present = bundle.present()
    with tqdm(total=sum(record.bytes for record in present.values()), desc="verify", unit="B", unit_scale=True,
              leave=False, disable=None) as bar:
        for name in present:
            yield name, bundle.problem(name, digest=True, progress=bar.update)


def describe(bundle: Bundle, machine: Machine) -> dict[str, Any]:
    """Everything that is told about a bundle, as JSON takes it. Raises UserError for a graph that cannot be read."""
    content = {"bundle": str(bundle.directory), "schema": SCHEMA, "preset": bundle.preset,
               "precision": bundle.precision, "image_size": bundle.image_size, "context_length": bundle.context_length,
               "threshold": bundle.threshold, "preprocessing": dict(bundle.preprocessing),
               "source": dict(bundle.source), "commit": bundle.commit, "created": bundle.created,
               "versions": dict(bundle.versions), "parity": dict(bundle.parity)}
    files = {**bundle.records, MANIFEST: measure(bundle.directory / MANIFEST)}
    content["files"] = {name: dataclasses.asdict(record) for name, record in files.items()}
    content["graphs"] = {}
    for graph in GRAPHS:
        summary = summarise(bundle.directory / f"{graph}.onnx")
        content["graphs"][graph] = {**dataclasses.asdict(summary), "nodes": summary.nodes, "rca": summary.rca}
    content["machine"] = dataclasses.asdict(machine)
    content["engines"] = [{**dataclasses.asdict(engine), "hindrance": hindrance(engine, bundle, machine)}
                          for engine in bundle.engines]
    content["not_recorded"] = not_recorded(bundle)
    return content


def not_recorded(bundle: Bundle) -> list[str]:
    """Files in the directory that neither bundle.json knows nor a build of its engines leaves: nothing reads them."""
    known = {MANIFEST, *bundle.records}
    for engine in map(PurePosixPath, (record.path for record in bundle.engines)):
        known |= {str(path) for path in (engine, engine.with_suffix(SUFFIX), engine.with_name(TIMING_CACHE))}
    names = (path.relative_to(bundle.directory).as_posix() for path in bundle.directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in known)


def report(content: Mapping[str, Any]) -> str:
    """What `describe` found, for people."""
    lines = [f"bundle {content['bundle']} (schema {content['schema']})", "",
             f"network   {content['preset']}, {content['precision']}, {content['image_size']} px, sentences of "
             f"{content['context_length']} tokens, threshold {content['threshold']:g}",
             *_list("source    ", content["source"]), *_list("parity    ", content["parity"]),
             f"made      {content['created']} by commit {_short(content['commit'])}",
             *_list("with      ", {name: version for name, version in content["versions"].items()
                                   if version != "not installed"}),
             "", "files"]
    lines += [f"  {name:24}{size(entry['bytes']):>10}  sha256 {entry['sha256'][:DIGITS]}"
              for name, entry in content["files"].items()]
    lines += [f"  {name:24}      not in {MANIFEST}" for name in content["not_recorded"]]
    for name, graph in content["graphs"].items():
        lines += ["", *_graph(name, graph)]
    lines += ["", "engines" if content["engines"] else "engines   none"]
    for engine in content["engines"]:
        lines += [f"  {engine['path']}  {engine['precision']}, {size(engine['bytes'])}, sha256 "
                  f"{engine['sha256'][:DIGITS]}, built in {engine['seconds']:g} s"
                  + (", with the RCA plugin" if engine["plugin"] else ""),
                  f"    {engine['runtime']} {engine['version']} on {engine['arch']}: "
                  + (f"does not run here: {engine['hindrance']}" if engine["hindrance"] else "fits this machine")]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes for people."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"


def _list(head: str, values: Mapping[str, Any]) -> list[str]:
    """`head` and `name value, name value` in lines that break between pairs."""
    pairs = ", ".join(f"{name} {_short(value)}".replace(" ", "\0") for name, value in values.items())
    lines = textwrap.wrap(head + (pairs or "nothing is recorded"), WIDTH, subsequent_indent=" " * len(head),
                          break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _short(value: Any) -> str:
    """Numbers rounded; digests and commits cut, `-dirty` kept."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return re.sub(rf"\b([0-9a-f]{{{DIGITS}}})[0-9a-f]+\b", r"\1", str(value))


def _graph(name: str, graph: Mapping[str, Any]) -> list[str]:
    common = dict(sorted(graph["operators"].items(), key=lambda item: (-item[1], item[0])))
    tensors = [("in", Tensor(**tensor)) for tensor in graph["inputs"]]
    tensors += [("out", Tensor(**tensor)) for tensor in graph["outputs"]]
    width = max(len(tensor.name) for _, tensor in tensors) + 2 if tensors else 0
    return [f"{name}.onnx: opset {graph['opset']}, {graph['nodes']} operators, {graph['rca']} of them RCA",
            *_list("  ", common),
            *(f"  {side:5}{tensor.name:{width}}{tensor.dtype:10}[{', '.join(map(str, tensor.shape))}]"
              for side, tensor in tensors)]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="talent-inspect", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundle", type=Path, help="directory that talent-export wrote")
    result.add_argument("--verify", action="store_true", help="compare every file with its SHA-256 (reads them all)")
    result.add_argument("--json", action="store_true", help="print JSON instead of text, digests in full")
    return result


@command("talent-inspect")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    checked: dict[str, str | None] = {}
    if arguments.verify:
        bundle = Bundle.read(arguments.bundle)  # not loaded: that stops at the first damaged file
        checked = dict(check_files(bundle))
        if not arguments.json:
            print("\n".join(f"{'DAMAGED' if wrong else 'ok':9}{name}" + (f"  {wrong}" if wrong else "")
                            for name, wrong in checked.items()))
    else:
        bundle = Bundle.load(arguments.bundle)
    damaged = {name: wrong for name, wrong in checked.items() if wrong}
    if damaged and arguments.json:
        print(json.dumps({"bundle": str(bundle.directory), "damaged": damaged}, indent=2))
    if damaged:
        remedies = dict.fromkeys(bundle.remedy(name) for name in damaged)
        raise UserError(f"the bundle {bundle.directory} is damaged: "
                        f"{', '.join(f'{name} {wrong}' for name, wrong in damaged.items())}; {'; or '.join(remedies)}")
    content = describe(bundle, this_machine())
    if arguments.json:
        print(json.dumps({**content, "verified": sorted(checked)}, indent=2, ensure_ascii=False))
        return 0
    print(("\n" if checked else "") + report(content))
    total = size(sum(record.bytes for record in bundle.present().values()))
    print(f"\nread the bundle {bundle.directory}: {len(bundle.present())} files, {total}; "
          + ("every SHA-256 is right" if checked else "every size is right (--verify compares every SHA-256)"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
