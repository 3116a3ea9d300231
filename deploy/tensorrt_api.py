"""Where TensorRT 10, TensorRT 11 and TensorRT-RTX differ in what a build needs. No other file asks for a version.

                         TensorRT 10                   TensorRT 11                  TensorRT-RTX 1
    strong typing        a flag at creation            always; the flag is ignored  a flag at creation
    FP16 and INT8 flags  refused with strong typing    gone                         gone
    EXPLICIT_BATCH       ignored                       gone                         gone
    a plugin's function  its body until 10.6           the plugin                   the plugin
    timing cache         yes                           yes                          none, and to ask takes a GPU
    GPUs                 the one that is here          the one that is here         those named, or all from Ampere on

Networks are always strongly typed: the ONNX file says what every tensor is (deploy/precision.py, calibration/). The
FP16 flag of a weakly typed TensorRT 10 lets the builder choose, LayerNorm and softmax included: so do ViTs collapse.

Sources: the Python bindings of TensorRT 10.0 - 10.16, 11.0 and 11.1 (python/src/infer/pyCore.cpp); the migration guide
from 10.x to 11.x; the release notes of 10.7; "Timing Cache Migration" of TensorRT-RTX; RTX 1.7.1 itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.build_progress import Phases
from deploy.protobuf import fields, parts, text
from talent.errors import UserError

RTX = "tensorrt_rtx"
_BODIES_UNTIL = (10, 7)
_MODEL_FUNCTIONS, _FUNCTION_NAME = 25, 1  # field numbers in onnx.proto


def network_flags(trt: ModuleType) -> int:
    """Flags for `create_network` that make a strongly typed network, which a TensorRT without such a flag always does.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse(trt: ModuleType, parser: Any, path: Path, *, plugins: Collection[str] = ()) -> bool:
    """Read the ONNX file at `path`, and external data beside it, into the parser's network; False where it cannot.

    plugins: names of ONNX functions for which a plugin is registered, which is to be taken in the place of the body.
    """
    if plugins and takes_function_bodies(trt):
        return parser.parse(without_functions(path.read_bytes(), plugins), str(path))
    return parser.parse_from_file(str(path))


def plugin_layers(trt: ModuleType, network: Any) -> int:
    """How many layers of a network a plugin computes."""
    return sum(network.get_layer(index).type == trt.LayerType.PLUGIN_V3 for index in range(network.num_layers))


def takes_function_bodies(trt: ModuleType) -> bool:
    """Whether the parser takes the body of an ONNX function even where a plugin of its name is registered."""
    return trt.__name__ != RTX and tuple(map(int, re.findall(r"\d+", trt.__version__)[:2])) < _BODIES_UNTIL


def without_functions(model: bytes, names: Collection[str]) -> bytes:
    """A serialized ONNX model without the bodies of these functions; the nodes that call them stay.

    Raises UserError for what is no ONNX model, and for a name that is no function of it.
    """
    kept, found = [], set()
    try:
        for number, value, content in parts(memoryview(model)):
            name = text(dict(fields(value)).get(_FUNCTION_NAME)) if number == _MODEL_FUNCTIONS else None
            if name in names:
                found.add(name)
            else:
                kept.append(content)
    except ValueError as error:
        raise UserError(f"expected an ONNX model, received one that is damaged ({error}); export the bundle again with "
                        "talent-export") from error
    if missing := sorted(set(names) - found):
        raise UserError(f"expected the ONNX functions {', '.join(sorted(names))}, received a model without "
                        f"{', '.join(missing)}; export the bundle again with talent-export")
    return b"".join(kept)


def set_targets(trt: ModuleType, config: Any, archs: Sequence[str]) -> None:
    """Tell TensorRT-RTX which GPUs ("sm86") to build for; none leaves it at all from Ampere on.

    Raises UserError for a GPU that it does not build for.
    """
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if unknown := [arch for arch in archs if arch not in known]:
        raise UserError(f"TensorRT-RTX {trt.__version__} does not build for {', '.join(unknown)}, only for "
                        f"{', '.join(known)}; on another GPU take full TensorRT")
    if archs:
        config.num_compute_capabilities = len(archs)
    for index, arch in enumerate(archs):
        if not config.set_compute_capability(known[arch], index):
            raise UserError(f"TensorRT-RTX {trt.__version__} refused the architecture {arch}; take full TensorRT")


def has_timing_cache(runtime: str) -> bool:
    """TensorRT-RTX times nothing: it has the calls, which do nothing but look for a GPU, and will lose them."""
    return runtime != RTX


def attach_timing_cache(config: Any, content: bytes) -> Any:
    """Give the builder a timing cache that begins with `content`, or empty where that is of another GPU or version.

    Returns the cache, which must live until the engine is built.
    """
    for known in dict.fromkeys((content, b"")):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def read_timing_cache(config: Any) -> bytes:
    """What the builder's timing cache holds after a build; nothing where there is none."""
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(memoryview(cache.serialize()))


def progress_monitor(trt: ModuleType, phases: Phases) -> Any | None:
    """A monitor for the builder's configuration that tells `phases`; None where this TensorRT has none."""
    interface = getattr(trt, "IProgressMonitor", None)
    if interface is None:
        return None

    class Monitor(interface):
        def __init__(self) -> None:
            interface.__init__(self)

        def phase_start(self, phase_name, parent_phase, num_steps) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name, step) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name) -> None:
            phases.finish(phase_name)

    return Monitor()
