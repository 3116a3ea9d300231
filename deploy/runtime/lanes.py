"""What one caller needs to run both engines without waiting for another one, and the set of those."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from deploy.runtime.cuda import CudaDevice, CudaError
from deploy.runtime.device_array import DevicePicture, device_picture, is_device_array
from deploy.runtime.execution import Execution, LoadedEngine
from deploy.runtime.interface import IMAGE, LOGITS, TOKENS
from deploy.runtime.picture_kernels import TOTALS, PictureKernels
from talent.errors import UserError
from talent.image import Letterbox

Tensors = Mapping[str, np.ndarray]


class _Memory(Protocol):
    def close(self) -> None: ...


Piece = TypeVar("Piece", bound=_Memory)


@dataclass(frozen=True)
class Answers:
    """What the GPU made of one photo and B expressions. masks: bool [B, H, W]; logits: float32 [B, h, w]; totals:
    TOTALS [B]."""

    masks: np.ndarray
    logits: np.ndarray
    totals: np.ndarray
    letterbox: Letterbox


class Lane:
    """A stream, an execution context of both engines (made when they are first needed) and buffers for the host's side.

    One caller at a time, who is in the device's context. The prompt tensors stay on the GPU: only those that are other
    ones than at the call before are copied there.
    """

    def __init__(self, cuda: CudaDevice, text: LoadedEngine, vision: LoadedEngine, *, graphs: bool,
                 kernels: PictureKernels | None) -> None:
        self._cuda, self._kernels = cuda, kernels
        self._engines, self._graphs = {"text": text, "vision": vision}, graphs
        self._stack = contextlib.ExitStack()
        self._executions: dict[str, Execution] = {}
        self._pieces: dict[str, tuple[int, _Memory]] = {}
        self._placed: dict[int, Tensors] = {}  # by row of the prompt tensors: whose values lie there
        self._stream = cuda.stream()
        self._stack.callback(self._stream.close)
        self.notes: dict[str, None] = {}

    def holds(self, prompts: Sequence[Tensors]) -> bool:
        """Whether these are the prompts that lie on the GPU."""
        return len(prompts) == len(self._placed) and all(
            asked is placed for asked, placed in zip(prompts, self._placed.values(), strict=True))

    def text(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B, L] -> the prompt tensors by name."""
        text = self._execution("text")
        shapes = {TOKENS: tokens.shape}
        text.prepare(shapes)
        self._copy_in(text, TOKENS, tokens)
        text.run(shapes)
        outputs = {name: np.empty(text.shape(name), text.dtypes[name]) for name in text.outputs}
        for name, output in outputs.items():
            self._cuda.copy_to_host(output, text.addresses[name], self._stream)
        self._finish(text)
        return outputs

    def vision(self, image: np.ndarray, prompts: Sequence[Tensors]) -> np.ndarray:
        """float32 [B or 1, 3, S, S] and the prompt tensors of B expressions -> logits float32 [B, 1, h, w]."""
        vision, shapes = self._prepare(image.shape, prompts)
        self._copy_in(vision, IMAGE, image)
        vision.run(shapes)
        logits = self._pinned("logits", vision.shape(LOGITS), vision.dtypes[LOGITS])
        self._cuda.copy_to_host(logits, vision.addresses[LOGITS], self._stream)
        self._finish(vision)
        return logits.astype(np.float32)

    def answer(self, photo: object, prompts: Sequence[Tensors], *, size: int, threshold: float,
               after: int | None) -> Answers:
        """A photo (uint8 [H, W, 3] RGB, on the host or the GPU) -> the answers about all prompts, without the CPU.

        after: a cudaStream_t whose work so far comes first, None for none. size: S.
        """
        if after is not None:
            self._cuda.wait_for(self._stream, after)
        picture = device_picture(photo, self._cuda, self._stream) if is_device_array(photo) else self._upload(photo)
        vision, shapes = self._prepare((1, 3, size, size), prompts)
        letterbox = Letterbox(height=picture.height, width=picture.width, size=size)
        stream, batch = self._stream.handle, sum(rows(prompt) for prompt in prompts)
        self._kernels.to_input(picture, output=vision.addresses[IMAGE], size=size, dtype=vision.dtypes[IMAGE],
                               stream=stream)
        vision.run(shapes)
        _, _, h, w = vision.shape(LOGITS)
        masks = self._pinned("masks", (batch, letterbox.height, letterbox.width), np.dtype(np.uint8))
        totals = self._pinned("totals", (batch,), TOTALS)
        logits = self._pinned("logits", (batch, h, w), vision.dtypes[LOGITS])
        masks_on_gpu, totals_on_gpu = self._on_gpu("masks", masks.nbytes), self._on_gpu("totals", totals.nbytes)
        self._kernels.to_masks(vision.addresses[LOGITS], dtype=logits.dtype, shape=(batch, h, w), letterbox=letterbox,
                               threshold=threshold, masks=masks_on_gpu, totals=totals_on_gpu, stream=stream)
        for target, address in ((masks, masks_on_gpu), (totals, totals_on_gpu), (logits, vision.addresses[LOGITS])):
            self._cuda.copy_to_host(target, address, self._stream)
        self._finish(vision)
        return Answers(masks=masks.copy().view(np.bool_), logits=logits.astype(np.float32), totals=totals.copy(),
                       letterbox=letterbox)

    def _prepare(self, image: tuple[int, ...], prompts: Sequence[Tensors]) -> tuple[Execution, dict]:
        """The vision engine for these shapes, with the prompts in their buffers."""
        vision, batch = self._execution("vision"), sum(rows(prompt) for prompt in prompts)
        shapes = {IMAGE: image} | {name: (batch, *tensor.shape[1:]) for name, tensor in prompts[0].items()}
        vision.prepare(shapes)
        row, before, placed = 0, self._placed, {}
        self._placed = {}  # until all of it is known to be right
        for prompt in prompts:
            if before.get(row) is not prompt:
                for name, tensor in prompt.items():
                    self._copy_in(vision, name, tensor, offset=row * (tensor.nbytes // len(tensor)))
            placed[row] = prompt
            row += rows(prompt)
        self._placed = placed
        return vision, shapes

    def _upload(self, photo: np.ndarray) -> DevicePicture:
        height, width, channels = photo.shape
        staged = self._pinned("photo", photo.shape, np.dtype(np.uint8))
        np.copyto(staged, photo)
        address = self._on_gpu("photo", staged.nbytes)
        self._cuda.copy_to_device(address, staged, self._stream)
        return DevicePicture(address=address, height=height, width=width, stride=width * channels, channels=channels,
                             keep=None, device=self._cuda.index)

    def _execution(self, graph: str) -> Execution:
        if graph not in self._executions:
            graphs = self._graphs and graph == "vision"  # text runs once for many frames
            execution = Execution(self._engines[graph], self._cuda, self._stream, graphs=graphs)
            self._executions[graph] = execution
            self._stack.callback(execution.close)
        return self._executions[graph]

    def _copy_in(self, execution: Execution, name: str, array: np.ndarray, *, offset: int = 0) -> None:
        staged = self._pinned(f"{name} {offset}", array.shape, execution.dtypes[name])
        np.copyto(staged, array)  # in the engine's type
        self._cuda.copy_to_device(execution.addresses[name] + offset, staged, self._stream)

    def _pinned(self, use: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Page-locked memory of the host, kept for the next call; what it held is no longer needed."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        piece = self._piece(f"pinned {use}", nbytes, lambda: self._cuda.pinned((nbytes,), np.uint8))
        return piece.array[:nbytes].view(dtype).reshape(shape)

    def _on_gpu(self, use: str, nbytes: int) -> int:
        return self._piece(f"GPU {use}", nbytes, lambda: self._cuda.allocate(nbytes)).address

    def _piece(self, use: str, nbytes: int, make: Callable[[], Piece]) -> Piece:
        """One that is large enough: the one of the call before, or a larger one in its place."""
        size, piece = self._pieces.pop(use, (0, None))
        if size < nbytes:
            if piece is not None:
                piece.close()
            size, piece = nbytes, make()
        self._pieces[use] = size, piece
        return piece

    def _finish(self, execution: Execution) -> None:
        self._stream.synchronise()
        if execution.no_graph is not None:
            self.notes[f"no CUDA graph: {execution.no_graph}"] = None

    def settle(self) -> bool:
        """Wait for what is queued, after an error; whether the lane can be used again."""
        try:
            self._stream.synchronise()
        except CudaError:
            return False
        return not any(execution.failed for execution in self._executions.values())

    def close(self) -> None:
        """Free everything, when nothing is queued any more. Twice is fine."""
        for _, piece in self._pieces.values():
            piece.close()
        self._pieces.clear()
        self._stack.close()


class Lanes:
    """Every caller gets a lane of its own: one that is free, or a new one. make: makes one."""

    def __init__(self, make: Callable[[], Lane]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._free: list[Lane] = []

    @contextlib.contextmanager
    def lane(self, prompts: Sequence[Tensors] = ()) -> Iterator[Lane]:
        """A lane for the length of a block; one that holds these prompts where there is one.

        One in which TensorRT or CUDA failed is closed, and the next caller gets a new one.
        """
        with self._lock:
            free = next((lane for lane in self._free if lane.holds(prompts)), None) or (self._free or [None])[-1]
            if free is not None:
                self._free.remove(free)
        lane = free or self._make()
        try:
            yield lane
        except BaseException:
            if lane.settle():
                self._put_back(lane)
            else:
                with contextlib.suppress(CudaError):  # the error that is raised already is the one to tell
                    lane.close()
            raise
        self._put_back(lane)

    def _put_back(self, lane: Lane) -> None:
        with self._lock:
            self._free.append(lane)

    def notes(self) -> list[str]:
        """What the lanes have to tell."""
        with self._lock:
            return sorted({note for lane in self._free for note in lane.notes})

    def close(self) -> None:
        """Close all of them, when no caller is inside any more."""
        with self._lock:
            while self._free:
                self._free.pop().close()


def rows(prompt: Tensors) -> int:
    """Expressions that prompt tensors are of. Raises UserError where they differ."""
    counts = {len(tensor) for tensor in prompt.values()}
    if len(counts) != 1:
        raise UserError(f"expected prompt tensors of as many expressions each, received {sorted(counts)}; encode the "
                        "sentence again")
    return counts.pop()
