"""talent-build: the TensorRT engines of a bundle, built on the machine that will run them. Needs no torch and no onnx.

What a network computes in (FP32, FP16, INT8) is in the bundle's ONNX files, where talent-export wrote and measured it;
an engine computes in just that, with every TensorRT. So --precision only makes sure that it is the one you want.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import plugin
from deploy.builders import choose_runtime, load_runtime
from deploy.bundle import GRAPHS, MANIFEST, PORTABLE, PRECISIONS, Bundle, EngineRecord, engine_directory
from deploy.diagnosis.capabilities import WRONG_TENSORRTS
from deploy.engine import EngineBuild, Profile, build_engine, check_timing_cache, engine_arch
from deploy.engine_notes import TIMING_CACHE, EngineNotes, bundle_digest
from deploy.onnx_summary import summarise
from deploy.plugin_choice import (
    REQUESTS,
    Decision,
    build_chosen,
    decide,
    describe_choice,
    engine_loader,
    random_inputs,
)
from deploy.runtime.gpu import gpu_architecture
from deploy.runtime.interface import TOKENS
from deploy.runtime.tensorrt import RUNTIMES
from deploy.targets import build_advice, portable_covers
from deploy.tensorrt_api import has_timing_cache
from talent import provenance
from talent.errors import UserError, command
from talent.files import check_writable

AUTO = "auto"
LARGEST_BATCH = 8
EXAMPLE = """\
examples:
  talent-build bundle/                                       for the GPU here, or (TensorRT-RTX) for RTX cards
  talent-build bundle/ --batch 1 --workspace 512             for a board with little memory
  talent-build bundle/ --runtime tensorrt_rtx --arch sm75    for Turing, which must be named

Full TensorRT builds for the GPU that it runs on. TensorRT-RTX needs no GPU, and by default builds for every RTX card
from Ampere (sm80) on, but not for Jetson boards. It has no timing cache: its kernels are compiled when an engine is
first loaded. An engine that is here already and fits is kept. Ctrl-C stops at the builder's next step, a second one at
once; what was there before stays.

With --plugin auto, where the GPU of the engines and the plugin for RCA (make plugin) are here, the vision engine is
built with the plugin and without it, both are run, and the faster one is kept; elsewhere it is built without.
"""


@dataclass(frozen=True)
class BuildOptions:
    """runtime: of RUNTIMES, None for the first that can build here. archs: GPUs ("sm86") of a TensorRT-RTX engine.

    batch: the largest; engines are tuned for 1. workspace_bytes: limit on what a layer may borrow, None for TensorRT's
    own. timing_cache: file of full TensorRT, None for the one beside the engines. plugin: of
    `deploy.plugin_choice.REQUESTS`, for the graphs with RCA. force: build what fits, too.
    """

    runtime: str | None = None
    archs: tuple[str, ...] = ()
    batch: int = 4
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    plugin: str = AUTO
    force: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Target:
    """What engines belong to: one TensorRT (name and version) and `arch`, the GPUs."""

    runtime: str
    version: str
    arch: str

    def plan(self, graph: str) -> str:
        """Where the engine of a graph lies, relative to the bundle."""
        return f"{engine_directory(self.runtime, self.version, self.arch)}/{graph}.plan"


@dataclass(frozen=True)
class Engines:
    """What `build_engines` made. built, kept: notes of the engines by graph."""

    bundle: Bundle
    target: Target
    built: Mapping[str, EngineNotes]
    kept: Mapping[str, EngineNotes]


def build_engines(bundle: Bundle, options: BuildOptions) -> Engines:
    """Build both graphs into the bundle; an engine that fits already is kept. bundle.json is rewritten after each.

    Raises UserError as `build_engine` does, for a batch that is not 1 to LARGEST_BATCH, for a graph whose shapes vary
    in more than the batch, where the plugin is asked for and cannot be had, and where the bundle cannot be written to.
    """
    check_batch(options.batch)
    runtime = choose_runtime(options.runtime).name
    arch = engine_arch(runtime, options.archs)
    if options.timing_cache is not None:
        check_timing_cache(runtime)
        check_writable(options.timing_cache)
    target = Target(runtime, load_runtime(runtime).__version__, arch)
    check_writable(bundle.directory / MANIFEST)
    decisions = _decisions(bundle, target, options.plugin)
    _remove_damaged(bundle, [target.plan(graph) for graph in GRAPHS])
    built, kept = {}, {}
    for graph in GRAPHS:
        notes = None if options.force else _fitting(bundle, target, graph, options, decisions[graph])
        if notes is None:
            notes = built[graph] = _build(bundle, target, graph, options, decisions[graph])
        else:
            kept[graph] = notes
        bundle = bundle.with_engines([EngineRecord(
            graph=graph, precision=notes.precision, runtime=target.runtime, version=target.version, arch=target.arch,
            path=target.plan(graph), seconds=notes.seconds, batch=notes.batch,
            peak_memory_bytes=notes.peak_memory_bytes, plugin=notes.plugin)])
    return Engines(bundle=bundle, target=target, built=built, kept=kept)


def check_batch(batch: int) -> None:
    """Raise UserError where it is not 1 to LARGEST_BATCH."""
    if not 1 <= batch <= LARGEST_BATCH:
        raise UserError(f"expected --batch to be 1 to {LARGEST_BATCH}, received {batch}")


def graph_profiles(bundle: Bundle, graph: str, *, batch: int) -> dict[str, Profile]:
    """Batch 1 to `batch` (tuned for 1) for every input of a graph. A sentence has the bundle's context length.

    Raises UserError for a graph whose batch is fixed, and for one that varies in more.
    """
    path = bundle.directory / f"{graph}.onnx"
    profiles = {}
    for tensor in summarise(path).inputs:
        first, *rest = tensor.shape
        if tensor.name == TOKENS:
            rest = [bundle.context_length if isinstance(size, str) else size for size in rest]
        if not isinstance(first, str) or any(isinstance(size, str) for size in rest):
            raise UserError(f"{path}: expected the input {tensor.name} to vary in its batch alone, received "
                            f"{list(tensor.shape)}; export the bundle again with talent-export")
        profiles[tensor.name] = ((1, *rest), (1, *rest), (batch, *rest))
    return profiles


def _decisions(bundle: Bundle, target: Target, requested: str) -> dict[str, Decision | None]:
    """Whether each graph is to take the plugin for RCA; None for one that has no RCA."""
    with_rca = [graph for graph in GRAPHS if summarise(bundle.directory / f"{graph}.onnx").rca]
    decision = decide(requested, runtime=target.runtime, arch=target.arch) if with_rca else None
    return {graph: decision if graph in with_rca else None for graph in GRAPHS}


def _build(bundle: Bundle, target: Target, graph: str, options: BuildOptions, decision: Decision | None) -> EngineNotes:
    """Build one graph into the bundle, and write its notes."""
    onnx = bundle.text_onnx if graph == "text" else bundle.vision_onnx
    plan = bundle.directory / target.plan(graph)
    cache = options.timing_cache or (plan.parent / TIMING_CACHE if has_timing_cache(target.runtime) else None)
    profiles = graph_profiles(bundle, graph, batch=options.batch)

    def build(path: Path, with_plugin: bool) -> EngineBuild:
        return build_engine(
            onnx, path, profiles=profiles, runtime=target.runtime, archs=options.archs,
            workspace_bytes=options.workspace_bytes, timing_cache=cache,
            plugins=plugin.FUNCTIONS if with_plugin else (), progress=options.progress)

    if decision is None:
        built, choice = build(plan, False), None
    else:
        inputs = random_inputs(summarise(onnx).inputs, {name: usual for name, (_, usual, _) in profiles.items()})
        built, choice = build_chosen(build, plan, decision, load=engine_loader(target.runtime, inputs),
                                     scratch=bundle.directory, extra=RUNTIMES[target.runtime],
                                     progress=options.progress)
    notes = EngineNotes(
        graph=graph, precision="fp16" if graph == "text" and bundle.precision == "int8" else bundle.precision,
        **dataclasses.asdict(target), batch=options.batch, bundle=bundle_digest(bundle.files),
        onnx={name: digest for name, digest in bundle.files.items() if name.startswith(onnx.name)},
        bytes=built.bytes, sha256=provenance.sha256(plan), seconds=round(built.seconds, 2),
        peak_memory_bytes=built.peak_memory_bytes, peak_gpu_memory_bytes=built.peak_gpu_memory_bytes,
        workspace_bytes=options.workspace_bytes, plugin=built.plugin_layers > 0, plugin_layers=built.plugin_layers,
        plugin_choice=choice, commit=provenance.commit(),
        versions=provenance.versions(target.runtime),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    notes.write(plan)
    return notes


def _fitting(bundle: Bundle, target: Target, graph: str, options: BuildOptions,
             decision: Decision | None) -> EngineNotes | None:
    """The notes of an engine that is here already and does what is asked for; None where there is none."""
    plan = bundle.directory / target.plan(graph)
    notes = EngineNotes.read(plan)
    if notes is None or notes.graph != graph or notes.bundle != bundle_digest(bundle.files):
        return None
    if (notes.runtime, notes.version, notes.arch) != (target.runtime, target.version, target.arch):
        return None
    if notes.batch < options.batch or options.workspace_bytes not in (None, notes.workspace_bytes):
        return None
    if decision is not None and not decision.fits(notes):
        return None
    return notes if notes.are_of(plan) else None


def _remove_damaged(bundle: Bundle, about_to_build: Sequence[str]) -> None:
    """Plans that were cut short make way for the new ones. UserError for one that does not: no bundle loads with it."""
    for engine in bundle.engines:
        if engine.path in bundle.present() and (wrong := bundle.problem(engine.path, digest=False)):
            if engine.path not in about_to_build:
                raise UserError(f"{bundle.directory / engine.path} {wrong}, and is not one of the engines to build "
                                f"here; copy it again or remove it")
            (bundle.directory / engine.path).unlink()


def read_bundle(directory: Path) -> Bundle:
    """A bundle whose graphs and tokenizer are whole; its engines may be damaged."""
    bundle = Bundle.read(directory)
    for name in bundle.records:
        bundle.checked(name, digest=False)
    return bundle


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="talent-build", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("bundle", type=Path, help="directory that talent-export wrote")
    result.add_argument("--precision", choices=PRECISIONS, help="refuse a bundle that is not in this precision")
    result.add_argument("--batch", type=int, default=4, metavar=f"1..{LARGEST_BATCH}",
                        help="largest batch of the engines, which are tuned for 1 (default: %(default)s)")
    result.add_argument("--workspace", type=int, metavar="MB", help="device memory that a layer may borrow, in MB "
                                                                    "of 2^20 bytes (default: TensorRT's own limit)")
    result.add_argument("--runtime", choices=(AUTO, *RUNTIMES), default=AUTO,
                        help="what builds (default: %(default)s, the first that can build here)")
    result.add_argument("--arch", metavar="SM,SM", help="GPUs of TensorRT-RTX engines, such as sm86,sm89 (default: "
                                                        f"{PORTABLE}, every RTX card from Ampere on)")
    result.add_argument("--timing-cache", type=Path, metavar="FILE",
                        help="what full TensorRT measured, kept to build faster the next time (default: "
                             f"{TIMING_CACHE} beside the engines)")
    result.add_argument("--plugin", choices=REQUESTS, default=AUTO,
                        help="on: RCA by our TensorRT plugin; off: by TensorRT's own layers; auto: by what is faster "
                             "here (default: %(default)s)")
    result.add_argument("--force", action="store_true", help="build again what is here already and fits")
    return result


def _options(arguments: argparse.Namespace) -> BuildOptions:
    check_batch(arguments.batch)
    if arguments.workspace is not None and arguments.workspace < 1:
        raise UserError(f"expected --workspace to be at least 1 MB, received {arguments.workspace}")
    archs = tuple(re.split("[,+]", arguments.arch.lower())) if arguments.arch not in (None, PORTABLE) else ()
    return BuildOptions(
        runtime=None if arguments.runtime == AUTO else arguments.runtime, archs=archs, batch=arguments.batch,
        workspace_bytes=None if arguments.workspace is None else arguments.workspace << 20,
        timing_cache=arguments.timing_cache, plugin=arguments.plugin, force=arguments.force)


@command("talent-build")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    options = _options(arguments)
    bundle = read_bundle(arguments.bundle)
    bundle.check_precision(arguments.precision)
    engines = build_engines(bundle, options)
    for graph in GRAPHS:
        notes = engines.built.get(graph) or engines.kept[graph]
        print(describe(notes, kept=graph in engines.kept))
        if notes.plugin_choice is not None:
            print(describe_choice(notes))
    for warning in warnings(bundle, engines.target):
        print(f"talent-build: warning: {warning}", file=sys.stderr)
    target = engines.target
    made_for = f"{target.runtime} {target.version}, {target.arch}"
    kept = f" (kept {len(engines.kept)})" if engines.kept else ""
    plural = "" if len(engines.built) == 1 else "s"
    print(f"built {len(engines.built)} engine{plural}{kept} for {made_for}: "
          f"{(bundle.directory / target.plan(GRAPHS[0])).parent}")
    return 0


def describe(notes: EngineNotes, *, kept: bool = False) -> str:
    """One line about an engine: size, time, memory."""
    batch = "batch 1" if notes.batch == 1 else f"batch 1 to {notes.batch}"
    line = f"{notes.graph} {notes.precision}, {batch}: {notes.bytes / 1e6:.1f} MB"
    if kept:
        return f"{line}, kept: it fits (--force builds it again)"
    line += f" in {notes.seconds:.1f} s"
    if notes.peak_memory_bytes is not None:
        line += f", peak memory of this process {notes.peak_memory_bytes / 1e9:.2f} GB"
    if notes.peak_gpu_memory_bytes:
        line += f", of the builder on the GPU {notes.peak_gpu_memory_bytes / 1e9:.2f} GB"
    return line


def warnings(bundle: Bundle, target: Target) -> list[str]:
    """What is known to go wrong with these engines on this machine."""
    found = []
    numbers = tuple(map(int, re.findall(r"\d+", target.version)[:2]))
    if target.runtime == "tensorrt" and WRONG_TENSORRTS[0] <= numbers < WRONG_TENSORRTS[1]:
        found.append(f"TensorRT {target.version} compiles vision transformers wrongly, silently (talent-doctor says "
                     "more); compare these engines with ONNX Runtime before you trust them: talent-eval "
                     f"{bundle.directory} --backend tensorrt")
    here = gpu_architecture()
    if target.arch == PORTABLE and here is not None and not portable_covers(here):
        found.append(f"these engines do not run on the GPU here ({here}); "
                     + build_advice(bundle.directory, runtime=target.runtime, arch=here))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
