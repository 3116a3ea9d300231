"""What this machine can build and run, what is wrong with it, and the command that mends it. Imports no torch.

    machine, GPUs, software --> what can be built and run here --> findings, each with a remedy
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.diagnosis import gpus, software, system
from deploy.diagnosis.capabilities import Capability, Verdict, capabilities, read_libraries
from deploy.diagnosis.findings import ERROR, SEVERITIES, Facts, Finding, findings
from deploy.diagnosis.system import NO_ANSWER, Reader
from talent.errors import UserError, command
from talent.files import atomic_write, check_writable
from talent.native import BUILD

if TYPE_CHECKING:
    from deploy.bundle import Bundle

EXIT_ERROR_FOUND = 1
STDOUT = Path("-")
EXAMPLE = """\
exit code: 0 where no error is found (warnings and notes do not count), 1 where one is, 2 for bad input

examples:
  talent-doctor                      what this machine can do, and what is wrong with it
  talent-doctor bundle/              also: which engines of the bundle run here
  talent-doctor --json report.json   the same for programs, and for bug reports
"""
_WIDEST = 110
_LABEL = 14


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="talent-doctor", description=__doc__.splitlines()[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundle", nargs="?", type=Path, help="directory that talent-export wrote: do its engines fit?")
    result.add_argument("--json", nargs="?", type=Path, const=STDOUT, metavar="FILE",
                        help="write the report as JSON to FILE, or to the standard output in the place of the text")
    return result


def diagnose(reader: Reader, bundle: Bundle | None = None) -> Facts:
    """Look at the machine behind `reader`. Takes about two seconds at most, however long a command hangs."""
    outcomes = reader.run_all({**system.COMMANDS, **gpus.COMMANDS, **software.COMMANDS})
    machine, cards = system.read_machine(reader, outcomes), gpus.read_gpus(outcomes)
    installed = software.read_software(reader, outcomes)
    able = capabilities(machine, cards, installed)
    facts = Facts(machine=machine, gpus=cards, software=installed, capabilities=able,
                  libraries=read_libraries(reader),
                  unanswered=tuple(name for name, outcome in outcomes.items() if outcome.failure == NO_ANSWER))
    if bundle is None:
        return facts
    from deploy.diagnosis.bundle_fit import fit  # needs NumPy and OpenCV, which may be what is broken here

    return dataclasses.replace(facts, bundle=fit(bundle, able, cards.arch, plugin=bool(facts.libraries.plugin)))


def to_dict(facts: Facts) -> dict[str, Any]:
    """The report for programs. bundle: None without one."""
    everything = dataclasses.asdict(facts)
    return {
        "machine": {**everything["machine"], "gpu_arch": facts.gpus.arch, "gpu_failure": facts.gpus.failure},
        "gpus": everything["gpus"]["gpus"],
        "software": {**everything["software"], "driver": facts.gpus.driver, "cuda": facts.gpus.cuda},
        "capabilities": everything["capabilities"], "libraries": everything["libraries"],
        "findings": [dataclasses.asdict(finding) for finding in findings(facts)], "bundle": everything["bundle"]}


def render(facts: Facts, *, width: int = _WIDEST) -> str:
    """The report for people, in lines of at most `width` characters (commands that are longer stay whole words)."""
    sections = {"Machine": _machine(facts), "GPUs": _gpus(facts), "Software": _software(facts),
                "What can be built and run here": _capabilities(facts.capabilities),
                "RCA in CUDA": _libraries(facts)}
    if facts.bundle:
        sections[f"Bundle {facts.bundle.path}"] = _bundle(facts)
    found = findings(facts)
    sections["Findings"] = _findings(found) or [("none", "nothing wrong was found")]
    lines = [f"talent-edge {facts.software.talent_edge}"]
    for title, rows in sections.items():
        lines += ["", title]
        for label, text in rows:
            indent = {"initial_indent": f"  {label:{_LABEL}}", "subsequent_indent": " " * (2 + _LABEL)}
            wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, **indent)
            lines += wrapped or [f"  {label}"]
    counts = Counter(finding.severity for finding in found)
    summary = ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES)
    return "\n".join([*lines, "", summary])


Rows = Iterator[tuple[str, str]]


def _machine(facts: Facts) -> Rows:
    machine = facts.machine
    yield "system", ", ".join(filter(None, (machine.system, machine.architecture, machine.distribution)))
    if machine.jetson:
        jetson = machine.jetson
        yield "board", ", ".join(filter(None, (
            jetson.model, f"JetPack {jetson.jetpack or 'unknown'} (L4T {jetson.l4t or 'unknown'})")))
        yield "power mode", jetson.power_mode or "unknown: nvpmodel -q does not say"
    yield "processor", ", ".join(filter(None, (machine.processor, f"{machine.cores} cores")))
    if machine.memory_bytes is None:
        yield "memory", "unknown"
    else:
        swap = f"{_gib(machine.swap_bytes)} of swap" if machine.swap_bytes else "no swap"
        free = f"{_gib(machine.memory_available_bytes)} free, " if machine.memory_available_bytes is not None else ""
        yield "memory", f"{_gib(machine.memory_bytes)}, {free}{swap}"
    yield "disk", f"{_gib(machine.temporary_free_bytes)} free for temporary files"


def _gpus(facts: Facts) -> Rows:
    if not facts.gpus.gpus:
        yield "none", facts.gpus.failure
    several = len(facts.gpus.gpus) > 1
    for index, gpu in enumerate(facts.gpus.gpus):
        capability = f"compute capability {gpu.compute_capability or 'unknown'}"
        memory = f"{_gib(gpu.memory_bytes)} of memory" if gpu.memory_bytes else None
        free = f"{_gib(gpu.memory_free_bytes)} free" if gpu.memory_free_bytes is not None else None
        limits = [f"{gpu.power_limit_watts:.0f} W" if gpu.power_limit_watts else None,
                  f"{gpu.max_clock_mhz} MHz" if gpu.max_clock_mhz else None,
                  f"{gpu.temperature_celsius} C" if gpu.temperature_celsius is not None else None]
        facts_of_it = filter(None, (gpu.name, capability, memory, free, *limits))
        yield f"GPU {index}" if several else "GPU", ", ".join(facts_of_it)
    if facts.gpus.arch:
        yield "engines for", facts.gpus.arch
    if facts.gpus.driver or facts.gpus.cuda:
        yield "driver", f"{facts.gpus.driver or 'version unknown'}, serves CUDA {facts.gpus.cuda or 'unknown'}"


def _software(facts: Facts) -> Rows:
    yield "Python", facts.software.python
    for title, names in software.GROUPS.items():
        present = [f"{name} {facts.software.packages[name]}" for name in names if facts.software.packages[name]]
        yield title, ", ".join(present) or "none"
    yield "CUDA toolkit", facts.software.cuda_toolkit or "none (no nvcc on the PATH)"


def _capabilities(able: Sequence[Capability]) -> Rows:
    for capability in able:
        yield f"{capability.title} {capability.version or ''}".rstrip(), ""
        if capability.build == capability.run:
            yield from _verdict("build, run", capability.build)
            continue
        for label, verdict in (("build", capability.build), ("run", capability.run)):
            if verdict:
                yield from _verdict(label, verdict)


def _verdict(label: str, verdict: Verdict) -> Rows:
    yield f"  {label}", f"{'yes' if verdict.possible else 'no'}: {verdict.reason}"
    if verdict.remedy:
        yield "", f"-> {verdict.remedy}"


def _libraries(facts: Facts) -> Rows:
    found = facts.libraries
    for label, path, without in (
            ("kernels", found.kernels, "PyTorch computes RCA with its own operators"),
            ("plugin", found.plugin, "RCA runs as standard operators, which every TensorRT takes")):
        yield label, f"found: {path}" if path else f"not built: {without}"
    if not (found.kernels and found.plugin):
        yield "", f"-> {BUILD}"


def _bundle(facts: Facts) -> Rows:
    bundle = facts.bundle
    yield "network", f"preset {bundle.preset}, {bundle.precision}, {bundle.image_size} px"
    titles = {capability.name: capability.title for capability in facts.capabilities}
    yield "runs with", ", ".join(titles[name] for name in bundle.runners) or "nothing on this machine"
    for engine in bundle.engines:
        made_for = f"{engine.precision}, {titles.get(engine.runtime, engine.runtime)} {engine.version}, {engine.arch}"
        made_for += ", with the RCA plugin" if engine.plugin else ""
        yield f"{engine.graph} engine", f"fits: {made_for}" if engine.fits else f"no: {made_for}; {engine.reason}"
    if not bundle.engines:
        yield "engines", "none"
    if bundle.rebuild:
        yield "build them", f"-> {bundle.rebuild}"


def _findings(found: Sequence[Finding]) -> list[tuple[str, str]]:
    return [row for finding in found
            for row in ((finding.severity, finding.sentence), ("", f"-> {finding.remedy}"))]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _read_bundle(path: Path) -> Bundle:
    try:
        from deploy.bundle import Bundle
    except ImportError as error:
        raise UserError(f"cannot read the bundle {path}: {error}; talent-doctor without a bundle says what is wrong, "
                        "pip install talent-edge brings what is missing") from error
    return Bundle.load(path)


@command("talent-doctor")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.json and arguments.json.is_dir():
        raise UserError(f"expected --json to name a file, received the directory {arguments.json}; "
                        f"a bundle comes first: talent-doctor {arguments.json} --json")
    if arguments.json and arguments.json != STDOUT:
        check_writable(arguments.json)
    bundle = _read_bundle(arguments.bundle) if arguments.bundle else None
    facts = diagnose(Reader(), bundle)
    report = to_dict(facts)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if arguments.json == STDOUT:
        print(text)
    else:
        print(render(facts, width=min(_WIDEST, shutil.get_terminal_size().columns)))
    if arguments.json and arguments.json != STDOUT:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(f"wrote the report to {arguments.json}")
    return EXIT_ERROR_FOUND if any(finding["severity"] == ERROR for finding in report["findings"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
