"""Engine records for tests, and files that stand for their plans."""

from __future__ import annotations

from pathlib import Path

from deploy.bundle import Bundle, EngineRecord, engine_directory

PLAN = b"plan"


def record(graph: str = "text", *, runtime: str = "tensorrt", version: str = "10.3.0", arch: str = "sm87",
           plugin: bool = False) -> EngineRecord:
    path = f"{engine_directory(runtime, version, arch)}/{graph}.plan"
    return EngineRecord(graph=graph, precision="fp16", runtime=runtime, version=version, arch=arch, path=path,
                        seconds=1.5, plugin=plugin)


def put_plan(bundle: Bundle, engine: EngineRecord, content: bytes = PLAN) -> Path:
    plan = bundle.directory / engine.path
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(content)
    return plan


def with_engines(bundle: Bundle, *engines: EngineRecord) -> Bundle:
    """The bundle with these engines, their plans written."""
    for engine in engines:
        put_plan(bundle, engine)
    return bundle.with_engines(engines)
