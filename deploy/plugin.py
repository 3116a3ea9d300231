"""Our TensorRT plugin (csrc/): where its library is, and how a TensorRT gets to know it. Linux only.

A TensorRT that knows the plugin takes it for every node of FUNCTIONS; one that does not takes the bodies of these ONNX
functions. So a process that builds with and without it registers the plugin and takes it out again.

Found by experiment with TensorRT-RTX 1.7.1: `load_library` returns None, and no more, where a library does not export
what it should or its plugin is registered already; `deregister_creator` refuses what came from a library, and
`deregister_library` with the handle takes it out and lets it be loaded again; the parser opens "libtensorrt_rtx.so" at
its first plugin and aborts the process where there is none, and the wheel has only libtensorrt_rtx.so.1; the logger's
virtual functions lie as in TensorRT 11. `init_libnvinfer_plugins` is for NVIDIA's own plugins, and keeps a pointer to
the logger that it is given: nothing here needs it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.loaded_alias import load_alias
from deploy.tensorrt_api import RTX
from talent import native
from talent.errors import UserError

LIBRARY = "talent_plugin"
NAME, VERSION, NAMESPACE = "RcaCostAggregation", "1", "talent"
"""As `deploy.fuse_rca` writes them onto a node; that needs onnx."""
FUNCTIONS = (NAME,)
"""The ONNX functions that the plugin computes."""
_RTX_LIKE_11 = (1, 7)


@dataclass(frozen=True)
class _Loaded:
    """What `load` did. handle: the registry's, to take it out again."""

    path: Path
    handle: Any


_loaded: dict[str, _Loaded] = {}
"""By the name of the TensorRT's module."""


def find() -> Path | None:
    """The plugin's library; None where none was built."""
    return native.find_library(LIBRARY)


def load(trt: ModuleType, logger: Any) -> Path:
    """Register the plugin with a TensorRT and return its library; once is enough for a process, more does no harm.

    trt: the module `tensorrt` or `tensorrt_rtx`. logger: is told which library it is; what the plugin has to say goes
    to the logger of the builder or runtime that is at work, without one to stderr. Must come before the ONNX parser is
    made and before an engine with the plugin is read.
    Raises UserError where the library is missing, damaged, made for another TensorRT, or not accepted.
    """
    registry = trt.get_plugin_registry()
    done = _loaded.get(trt.__name__)
    if done is not None and is_registered(registry):
        return done.path
    path = find()
    if path is None:
        places = " or ".join(map(str, native.places()))
        raise UserError(f"expected the TensorRT plugin lib{LIBRARY}.so in {places}, found none; run: {native.BUILD} "
                        "(with TensorRT's headers: cmake says where it looked)")
    _check_version(trt, path, _open(path))
    if trt.__name__ == RTX:
        _name_rtx(trt)
    handle = registry.load_library(str(path))
    if handle is None or not is_registered(registry):
        raise UserError(f"expected {trt.__name__} {trt.__version__} to register {NAME}, version {VERSION}, of "
                        f"namespace {NAMESPACE!r} from {path}, but it did not: the library is of another version of "
                        f"this project, or another library has a plugin of that name; run: {native.BUILD}")
    _loaded[trt.__name__] = _Loaded(path=path, handle=handle)
    logger.log(trt.ILogger.Severity.VERBOSE, f"{NAME} is computed by the plugin {path}")
    return path


def unload(trt: ModuleType) -> None:
    """Take the plugin out of a TensorRT's registry, so that its parser takes the bodies of FUNCTIONS.

    Engines that are loaded keep it; to read another one takes a `load`. Nothing happens where it is not registered.
    Raises UserError where it cannot be taken out, since another part of the process has put it there.
    """
    registry = trt.get_plugin_registry()
    done = _loaded.pop(trt.__name__, None)
    if done is not None and is_registered(registry):
        registry.deregister_library(done.handle)
    if is_registered(registry):
        raise UserError(f"expected a {trt.__name__} without the plugin {NAME}, but another part of this process has "
                        "registered it; build without it in a process of its own")


def is_registered(registry: Any) -> bool:
    """Whether a registry knows the plugin. (To ask it by name would log an error where it does not.)"""
    return any((creator.name, creator.plugin_version, creator.plugin_namespace) == (NAME, VERSION, NAMESPACE)
               for creator in registry.all_creators or ())


def _open(path: Path) -> ctypes.CDLL:
    """The library, which ctypes never closes: engines that use its code keep it whatever the registry does."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"expected a shared library for this machine at {path}, but it does not load: {error}; run: "
                        f"{native.BUILD}") from error
    if not hasattr(library, "talent_plugin_tensorrt"):
        raise UserError(f"expected this project's plugin at {path}, found a library without talent_plugin_tensorrt; "
                        f"run: {native.BUILD}")
    return library


def _check_version(trt: ModuleType, path: Path, library: ctypes.CDLL) -> None:
    """The logger that TensorRT hands over has another layout from 11 on, and one would call what is not there."""
    number = library.talent_plugin_tensorrt()
    built = (number // 10000, number // 100 % 100)
    here = tuple(map(int, trt.__version__.split(".")[:2]))
    if trt.__name__ == RTX:
        fits = built == here or (built[0] == 11 and here >= _RTX_LIKE_11)
        wanted = f"TensorRT-RTX {here[0]}.{here[1]}" + (" or TensorRT 11" if here >= _RTX_LIKE_11 else "")
    else:
        fits = built[0] == here[0]
        wanted = f"TensorRT {here[0]}"
    if not fits:
        raise UserError(f"expected a plugin that was built with the headers of {wanted} for {trt.__name__} "
                        f"{trt.__version__}, received {path}, built with those of {built[0]}.{built[1]}; run: cmake -B "
                        f"build -DTENSORRT_ROOT=/path/to/that/TensorRT && cmake --build build")


def _name_rtx(trt: ModuleType) -> None:
    """Give TensorRT-RTX the name by which its parser opens it."""
    name = "libtensorrt_rtx.so"
    library = f"{name}.{trt.__version__.split('.')[0]}"
    try:
        load_alias(name, library)
    except OSError as error:
        raise UserError(f"expected to load a second name for {library}, which TensorRT-RTX opens as {name}, but the "
                        f"loader refuses ({error}); link {name} to it in a directory of LD_LIBRARY_PATH, and start "
                        "again") from error
