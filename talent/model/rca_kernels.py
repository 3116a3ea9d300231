"""The CUDA kernels of RCA as Python calls them: deploy/csrc/talent_kernels.h through ctypes. Nothing is compiled here.

B batch, N image tokens, K words (1 in the neck), D channels.
"""

from __future__ import annotations

import functools
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from talent.native import BUILD, KERNELS, LIBRARIES, find_library, load_kernels

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # RcaType of rca_kernel.h
ACTIVATIONS = {"none": 0, "relu": 1}  # RcaActivation
METHODS = {"auto": 0, "simt": 1, "tensor_core": 2}  # RcaMethod
_FUNCTION = "talent_rca_cost_aggregation"
_ARGUMENTS = (*[c_void_p] * 5,  # visual, text, weight, bias, output
              *[c_int64] * 5,  # batch of visual, batch, tokens, words, width
              *[c_int32] * 3,  # type, activation, method
              c_void_p)  # stream


class RcaLibrary:
    """libtalent_kernels.so: a call queues one kernel on a stream of the device that is current.

    path: of the library. Raises UserError for a file that cannot be loaded, and for one of another interface.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._compute = load_kernels(self.path, [_FUNCTION])[_FUNCTION]
        self._compute.argtypes, self._compute.restype = _ARGUMENTS, c_char_p

    def __call__(self, visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, activation: str = "none", *,
                 method: str = "auto", stream: int = 0) -> Tensor:
        """`talent.model.rca.rca_reference` by one kernel.

        visual [B, N, D] (or [1, N, D], for all of B), text [B, K, D], weight [D, K], bias [D], on one device and of one
        type out of TYPES; returns [B, N, D]. What is not contiguous is copied, but for a visual that is expanded from
        one picture. method: one of METHODS. stream: the cudaStream_t that is current in PyTorch, 0 for the default one.
        Raises RuntimeError with the library's words for what it refuses and for CUDA's errors.
        """
        output = visual.new_empty(text.shape[0], *visual.shape[1:])
        self.compute(visual, text, weight, bias, output, activation=activation, method=method, stream=stream)
        return output

    def compute(self, visual: Tensor, text: Tensor, weight: Tensor, bias: Tensor, output: Tensor, *, activation: str,
                method: str = "auto", stream: int = 0) -> None:
        """The same into `output` [B, N, D], contiguous, which overlaps none of the others."""
        if visual.stride(0) == 0:
            visual = visual[:1]
        given = [tensor.contiguous() for tensor in (visual, text, weight, bias)]
        batch, words, width = text.shape
        error = self._compute(*(tensor.data_ptr() for tensor in (*given, output)), visual.shape[0], batch,
                              visual.shape[1], words, width, TYPES[visual.dtype], ACTIVATIONS[activation],
                              METHODS[method], stream)
        if error:
            raise RuntimeError(f"the RCA kernel failed: {error.decode()}; received visual {tuple(visual.shape)}, text "
                               f"{tuple(text.shape)}, {visual.dtype}, activation {activation!r}, method {method!r}; a "
                               f"library that was built for this GPU and driver helps where those are the reason "
                               f"({BUILD}), an empty directory in ${LIBRARIES} does without it")


@functools.cache
def installed_library() -> RcaLibrary | None:
    """The kernels, loaded at the first call; None where the library is not built. Raises UserError as RcaLibrary."""
    path = find_library(KERNELS)
    return RcaLibrary(path) if path else None


def are_computable(*tensors: Tensor) -> bool:
    """Whether the kernels know the type of these tensors, which are of one type and on one device."""
    first = tensors[0]
    return first.dtype in TYPES and all(tensor.dtype == first.dtype and tensor.device == first.device
                                        for tensor in tensors)
