"""What one caller needs to run both engines without waiting for another one, and the set of those."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from deploy.runtime.cuda import CudaDevice, CudaError
from deploy.runtime.device_array import DevicePicture, device_picture, is_device_array
from deploy.runtime.execution import Execution
from deploy.runtime.interface import IMAGE, LOGITS, TOKENS, check_prompt, rows
from deploy.runtime.loaded_engine import LoadedEngine
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
    """A stream, both engines ready to run on it, and buffers for the host's side.

    One caller at a time, who is in the device's context. The prompt tensors stay on the GPU: only those that are other
    ones than at the call before are copied there.
    """

    def __init__(self, cuda: CudaDevice, text: LoadedEngine, vision: LoadedEngine, *, graphs: bool,
                 kernels: PictureKernels | None) -> None:
        self._cuda, self._kernels = cuda, kernels
        # of each prompt tensor, its shape for one expression
        self._prompt_shapes = {name: vision.shape(name)[1:] for name in vision.inputs if name != IMAGE}
        self._pieces: dict[str, tuple[int, _Memory]] = {}
        self._placed: dict[int, Tensors] = {}  # by row of the prompt tensors: whose values lie there
        with contextlib.ExitStack() as stack:
            self._stream = cuda.stream()
            stack.callback(self._stream.close)
            self._text = Execution(text, cuda, self._stream, graphs=False)  # it runs once for many frames
            stack.callback(self._text.close)
            self._vision = Execution(vision, cuda, self._stream, graphs=graphs)
            stack.callback(self._vision.close)
            self._stack = stack.pop_all()

    @property
    def note(self) -> str | None:
        """What is slower than it could be."""
        return self._vision.no_graph and f"no CUDA graph: {self._vision.no_graph}"

    def holds(self, prompts: Sequence[Tensors]) -> bool:
        """Whether these are the prompts that lie on the GPU."""
        return len(prompts) == len(self._placed) and all(
            asked is placed for asked, placed in zip(prompts, self._placed.values(), strict=True))

    def text(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B, L] -> the prompt tensors by name."""
        shapes = self._text.prepare({TOKENS: tokens.shape})
        self._copy_in(self._text, TOKENS, tokens)
        self._text.run()
        outputs = {name: np.empty(shape, self._text.dtypes[name]) for name, shape in shapes.items()}
        for name, output in outputs.items():
            self._cuda.copy_to_host(output, self._text.addresses[name], self._stream)
        self._stream.synchronise()
        return outputs

    def vision(self, image: np.ndarray, prompts: Sequence[Tensors]) -> np.ndarray:
        """float32 [B or 1, 3, S, S] and the prompt tensors of B expressions -> logits float32 [B, 1, h, w]."""
        shape = self._prepare(image.shape, prompts)
        self._copy_in(self._vision, IMAGE, image)
        self._vision.run()
        logits = self._pinned("logits", shape, self._vision.dtypes[LOGITS])
        self._cuda.copy_to_host(logits, self._vision.addresses[LOGITS], self._stream)
        self._stream.synchronise()
        return logits.astype(np.float32)

    def answer(self, photo: object, prompts: Sequence[Tensors], *, size: int, threshold: float,
               after: int | None) -> Answers:
        """A photo (uint8 [H, W, 3] RGB, on the host or the GPU) -> the answers about all prompts, without the CPU.

        after: a cudaStream_t whose work so far comes first, None for none. size: S.
        """
        if after is not None:
            self._cuda.wait_for(self._stream, after)
        picture = device_picture(photo, self._cuda, self._stream) if is_device_array(photo) else self._upload(photo)
        batch, _, h, w = self._prepare((1, 3, size, size), prompts)
        letterbox = Letterbox(height=picture.height, width=picture.width, size=size)
        image, source, stream = self._vision.addresses[IMAGE], self._vision.addresses[LOGITS], self._stream.handle
        self._kernels.to_input(picture, output=image, size=size, dtype=self._vision.dtypes[IMAGE], stream=stream)
        self._vision.run()
        masks = self._pinned("masks", (batch, letterbox.height, letterbox.width), np.dtype(np.uint8))
        totals = self._pinned("totals", (batch,), TOTALS)
        logits = self._pinned("logits", (batch, h, w), self._vision.dtypes[LOGITS])
        masks_on_gpu, totals_on_gpu = self._on_gpu("masks", masks.nbytes), self._on_gpu("totals", totals.nbytes)
        self._kernels.to_masks(source, dtype=logits.dtype, shape=(batch, h, w), letterbox=letterbox,
                               threshold=threshold, masks=masks_on_gpu, totals=totals_on_gpu, stream=stream)
        for target, address in ((masks, masks_on_gpu), (totals, totals_on_gpu), (logits, source)):
            self._cuda.copy_to_host(target, address, self._stream)
        self._stream.synchronise()
        return Answers(masks=masks.copy().view(np.bool_), logits=logits.astype(np.float32), totals=totals.copy(),
                       letterbox=letterbox)

    def _prepare(self, image: tuple[int, ...], prompts: Sequence[Tensors]) -> tuple[int, ...]:
        """The vision engine for these shapes, with the prompts in their buffers; the shape of its logits."""
        counts, wanted = [rows(prompt) for prompt in prompts], self._prompt_shapes
        batch = sum(counts)
        shape = self._vision.prepare({IMAGE: image} | {name: (batch, *own) for name, own in wanted.items()})[LOGITS]
        row, before, placed = 0, self._placed, {}
        self._placed = {}  # until all of it is known to be right
        for prompt, count in zip(prompts, counts, strict=True):
            if before.get(row) is not prompt:
                check_prompt(prompt, wanted)
                for name, own in wanted.items():
                    offset = row * math.prod(own) * self._vision.dtypes[name].itemsize
                    self._copy_in(self._vision, name, prompt[name], offset=offset)
            placed[row] = prompt
            row += count
        self._placed = placed
        return shape

    def _upload(self, photo: np.ndarray) -> DevicePicture:
        height, width, channels = photo.shape
        staged = self._pinned("photo", photo.shape, np.dtype(np.uint8))
        np.copyto(staged, photo)
        address = self._on_gpu("photo", staged.nbytes)
        self._cuda.copy_to_device(address, staged, self._stream)
        return DevicePicture(address=address, height=height, width=width, stride=width * channels, channels=channels,
                             keep=None, device=self._cuda.index)

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
        if piece is None or size < nbytes:
            if piece is not None:
                piece.close()
            size, piece = nbytes, make()
        self._pieces[use] = size, piece
        return piece

    def settle(self) -> bool:
        """Wait for what is queued, after an error; whether the lane can be used again."""
        try:
            self._stream.synchronise()
        except CudaError:
            return False
        return not (self._text.failed or self._vision.failed)

    def close(self) -> None:
        """Free everything, when nothing is queued any more. Twice is fine."""
        for _, piece in self._pieces.values():
            piece.close()
        self._pieces.clear()
        self._stack.close()


class Lanes:
    """Every caller gets a lane of its own: one that is free, or a new one. make: makes one; the first at once.

    Where the GPU has no room for another one, callers wait until one is free. Raises UserError as `make` for the first.
    """

    def __init__(self, make: Callable[[], Lane]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._free: list[Lane] = [make()]
        self._count = 1
        self._no_room: str | None = None

    @contextlib.contextmanager
    def lane(self, prompts: Sequence[Tensors] = ()) -> Iterator[Lane]:
        """A lane for the length of a block; one that holds these prompts where there is one.

        One in which TensorRT or CUDA failed is closed, and the next caller gets a new one.
        """
        lane = self._take(prompts)
        try:
            yield lane
        except BaseException:
            if lane.settle():
                self._put_back(lane)
            else:
                self._give_up(lane)
            raise
        self._put_back(lane)

    def _take(self, prompts: Sequence[Tensors]) -> Lane:
        with self._changed:
            while True:
                if self._free:
                    lane = next((lane for lane in self._free if lane.holds(prompts)), self._free[-1])
                    self._free.remove(lane)
                    return lane
                if self._no_room is None or self._count == 0:
                    break
                self._changed.wait()
            self._count += 1
        try:
            return self._make()
        except BaseException as error:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
                if not isinstance(error, UserError) or self._count == 0:
                    raise
                self._no_room = " ".join(str(error).split())
        return self._take(prompts)

    def _put_back(self, lane: Lane) -> None:
        with self._changed:
            self._free.append(lane)
            self._changed.notify()

    def _give_up(self, lane: Lane) -> None:
        with contextlib.suppress(CudaError):  # the error that is raised already is the one to tell
            lane.close()
        with self._changed:
            self._count -= 1
            self._no_room = None  # there is some now
            self._changed.notify_all()

    def notes(self) -> list[str]:
        """What is slower than it could be."""
        with self._changed:
            notes = {lane.note for lane in self._free if lane.note}
            if self._no_room is not None:
                notes.add(f"no more than {self._count} callers at once: {self._no_room}")
        return sorted(notes)

    def close(self) -> None:
        """Close all of them, when no caller is inside any more."""
        with self._changed:
            while self._free:
                self._free.pop().close()
