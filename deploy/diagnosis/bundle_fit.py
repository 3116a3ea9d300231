"""Which engines of a bundle this machine can run, why not the others, and the command that builds what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bundle import GRAPHS, PORTABLE, Bundle, EngineRecord
from deploy.diagnosis.capabilities import Capability
from deploy.targets import RTX_PORTABLE_FROM, build_command


@dataclass(frozen=True)
class EngineFit:
    """One engine of the bundle. reason: why it does not fit, None where it does."""

    graph: str
    precision: str
    runtime: str
    version: str
    arch: str
    path: str
    plugin: bool
    fits: bool
    reason: str | None


@dataclass(frozen=True)
class BundleFit:
    """A bundle on this machine.

    runners: the programs that can run it here. rebuild: the command that makes engines which fit; None where there is
    nothing to gain, or where no engine can be built and run.
    """

    path: str
    preset: str
    precision: str
    image_size: int
    engines: tuple[EngineFit, ...]
    runners: tuple[str, ...]
    rebuild: str | None


def fit(bundle: Bundle, capabilities: Sequence[Capability], arch: str | None, *, plugin: bool) -> BundleFit:
    """Compare a bundle with a machine whose GPU is `arch` ("sm87"; None: no GPU). plugin: its library is here."""
    known = {capability.name: capability for capability in capabilities}
    engines = tuple(_engine_fit(bundle, record, known.get(record.runtime), arch, plugin) for record in bundle.engines)
    usable = [capability for capability in capabilities if capability.run and capability.run.possible]
    fitting = {(engine.runtime, engine.graph) for engine in engines if engine.fits}
    ready = [capability.name for capability in usable
             if not capability.build or all((capability.name, graph) in fitting for graph in GRAPHS)]
    missing = [capability for capability in usable if capability.name not in ready and capability.build.possible]
    return BundleFit(
        path=str(bundle.directory), preset=bundle.preset, precision=bundle.precision, image_size=bundle.image_size,
        engines=engines, runners=tuple(ready),
        rebuild=build_command(bundle.directory, runtime=missing[0].name, arch=arch) if missing else None)


def _engine_fit(bundle: Bundle, record: EngineRecord, capability: Capability | None, arch: str | None,
                plugin: bool) -> EngineFit:
    reason = _why_not(bundle, record, capability, arch, plugin)
    return EngineFit(graph=record.graph, precision=record.precision, runtime=record.runtime, version=record.version,
                     arch=record.arch, path=record.path, plugin=record.plugin, fits=reason is None, reason=reason)


def _why_not(bundle: Bundle, record: EngineRecord, capability: Capability | None, arch: str | None,
             plugin: bool) -> str | None:
    if capability is None or capability.run is None:
        return f"no such runtime: {record.runtime}"
    if not (bundle.directory / record.path).is_file():
        return "its file was left out of this copy"
    if changed := bundle.changed_since(record):
        return f"it was built from another {' and '.join(changed)}"
    if not capability.run.possible:
        return f"{capability.title} cannot run here: {capability.run.reason}"
    reasons = []
    if record.version != capability.version:
        reasons.append(f"it needs {capability.title} {record.version}, {capability.version} is installed")
    if not record.fits(runtime=record.runtime, version=record.version, arch=arch):
        made_for = f"sm{RTX_PORTABLE_FROM} and later" if record.arch == PORTABLE else record.arch
        reasons.append(f"it was built for {made_for}, this GPU is {arch}")
    if record.plugin and not plugin:
        reasons.append("it needs the RCA plugin, which was not found")
    return "; ".join(reasons) or None
