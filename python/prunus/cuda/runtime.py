"""Where kernels run: GPUs by index, or Triton's interpreter; memory there, and how kernels are launched."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from prunus._errors import PrunusError
from prunus.cuda.versions import installed, launch_options, libraries

if TYPE_CHECKING:
    import torch

__all__ = [
    "AHEAD",
    "RECORDER",
    "Launch",
    "Place",
    "current",
    "empty",
    "is_captured",
    "is_likely",
    "is_traced",
    "is_usable",
    "launch",
    "memory",
    "named",
    "on",
    "place",
    "place_of",
    "watched",
    "zeros",
]

# Compute capabilities that Triton's kernels and this package's tables are for.
_OLDEST: Final = 80
_NAMES: Final = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Place:
    """Where kernels run.

    Attributes
    ----------
    device : torch.device
        Where operands live: a GPU, or the host's memory under the interpreter.
    arch : str
        Whose configurations serve: "sm_80", "sm_90", "sm_100", or "interpreter".
    name : str
        As the driver has it.
    multiprocessors : int
    shared : int
        Bytes of shared memory that a program may use.
    """

    device: torch.device
    arch: str
    name: str
    multiprocessors: int
    shared: int

    @property
    def interpreted(self) -> bool:
        """Whether kernels run in Triton's interpreter."""
        return self.arch == "interpreter"

    def __str__(self) -> str:
        return "cuda (interpreted)" if self.interpreted else str(self.device)


class Launch(NamedTuple):
    """A kernel that would have been launched."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


#: Where launches are noted in place of being done: kernels are compiled ahead of time for what calls launch,
#: or become part of a graph that torch traces (prunus.torch.ops.visible).
RECORDER: Final[ContextVar[list[Launch] | None]] = ContextVar("prunus_launches", default=None)
_WATCHER: Final[ContextVar[list[Launch] | None]] = ContextVar("prunus_watched", default=None)

#: What torch's meta tensors, which have shapes and no memory, stand for meanwhile; or fake ones on a GPU.
AHEAD: Final[ContextVar[Place | None]] = ContextVar("prunus_ahead", default=None)


def is_likely() -> bool:
    """Say whether it is worth importing torch to look for a GPU."""
    if not installed():
        return False
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
    if interpreted or "torch" in sys.modules or sys.platform == "win32":
        return True
    return any(os.path.exists(name) for name in _NAMES)


def is_usable() -> bool:
    """Say whether ``pr.device("cuda")`` would work; torch is only imported where that is likely."""
    if not is_likely():
        return False
    try:
        place()
    except PrunusError:
        return False
    return True


@cache
def place(index: int | None = None) -> Place:
    """Return the GPU of that index, torch's current one by default.

    Raises
    ------
    PrunusError
        If torch or Triton is missing, there is no GPU or driver or none of that index, or it is too old.
    """
    torch, _, interpreted, versions = libraries()
    if interpreted:
        if index not in (None, 0):
            raise PrunusError(f"no device 'cuda:{index}': Triton's interpreter is one device, 'cuda'")
        return Place(torch.device("cpu"), "interpreter", "Triton's interpreter", 1, sys.maxsize)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"torch {versions[0]} was built without CUDA"
            if built is None
            else f"torch {versions[0]} (CUDA {built}) finds no GPU, or no driver that serves it"
        )
        raise PrunusError(
            f"no device 'cuda': {why}; with TRITON_INTERPRET=1 in the environment, kernels are interpreted"
        )
    if torch.version.cuda is None:  # ROCm's torch calls its GPUs so as well, and numbers them alike
        raise PrunusError(f"no device 'cuda': torch {versions[0]} is built for other GPUs than NVIDIA's")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if index is None else index
    if not 0 <= number < count:
        raise PrunusError(f"no device 'cuda:{number}': there are {count}, from 0 on")
    found = torch.cuda.get_device_properties(number)
    capability = 10 * found.major + found.minor
    if capability < _OLDEST:
        raise PrunusError(
            f"cuda:{number} ({found.name}) has compute capability {found.major}.{found.minor}, expected 8.0 "
            "or later (Ampere)"
        )
    # 12.x, the GPUs of desktops, has the matrix instructions and the shared memory of 8.x.
    family = 80 if capability >= 120 else max(one for one in (80, 90, 100) if one <= capability)
    shared = int(getattr(found, "shared_memory_per_block_optin", 99 * 1024))
    return Place(
        torch.device("cuda", number), f"sm_{family}", found.name, found.multi_processor_count, shared
    )


def current(index: int | None = None) -> Place:
    """Return where calls run that name no GPU: torch's current one, as it may change between calls."""
    ahead = AHEAD.get()
    if index is None and ahead is not None:
        return ahead
    if index is None and not libraries().interpreted and libraries().torch.cuda.is_available():
        index = libraries().torch.cuda.current_device()
    return place(index)


def named(name: str) -> Place:
    """Return the place called "cuda" or "cuda:1".

    Raises
    ------
    PrunusError
        If there is none.
    """
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise PrunusError(f"no device {name!r}: expected 'cuda', or 'cuda:' and a number")
    return current(int(index) if index else None)


def place_of(tensor: torch.Tensor) -> Place:
    """Return where a tensor lives.

    Raises
    ------
    PrunusError
        If no kernels run there.
    """
    kind = tensor.device
    ahead = AHEAD.get()
    if ahead is not None and kind.type == ahead.device.type:
        return ahead
    if kind.type == "cuda":
        return place(kind.index)
    if kind.type == "cpu" and libraries().interpreted:
        return place()
    raise PrunusError(f"a tensor lives on {kind}, where no kernels run; move it with .to('cuda')")


def is_traced() -> bool:
    """Say whether launches become part of a graph: tensors then have neither memory nor addresses."""
    return bool(getattr(RECORDER.get(), "traced", False))


def launch(where: Place, kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the current stream of a place.

    Parameters
    ----------
    where : Place
        Where its operands live.
    kernel : JITFunction
        The kernel.
    grid : sequence of int
        Programs along up to three axes; nothing happens where one is 0.
    *arguments, **options
        The kernel's arguments, and ``num_warps``, ``num_stages`` and the like.

    Raises
    ------
    PrunusError
        If the kernel does not fit the GPU; what the compiler said is the cause.
    """
    if 0 in grid:
        return
    options = {**launch_options(where.interpreted), **options}
    noted = RECORDER.get()
    if noted is not None:
        noted.append(Launch(kernel, tuple(grid), arguments, options))
        return
    seen = _WATCHER.get()
    if seen is not None:
        seen.append(Launch(kernel, tuple(grid), arguments, options))
    try:
        if not where.interpreted and libraries().torch.cuda.current_device() == where.device.index:
            kernel[grid](*arguments, **options)  # what most launches are, without a context of their own
            return
        with on(where), _quiet(where):
            kernel[tuple(grid)](*arguments, **options)
    except Exception as error:
        if type(error).__name__ != "OutOfResources":
            raise
        raise PrunusError(f"a kernel does not fit {where.name}: {error}") from error


@contextlib.contextmanager
def watched() -> Iterator[list[Launch]]:
    """Note launches as they are done."""
    seen: list[Launch] = []
    token = _WATCHER.set(seen)
    try:
        yield seen
    finally:
        _WATCHER.reset(token)


@contextlib.contextmanager
def _quiet(where: Place) -> Iterator[None]:
    """Have the interpreter, which computes in NumPy, not warn of what is IEEE's rule."""
    if not where.interpreted:
        yield
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The largest of NaN alone is NaN, and NumPy says so in spite of errstate.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def on(where: Place) -> contextlib.AbstractContextManager[Any]:
    """Make a place the current one, where it is not."""
    cuda = libraries().torch.cuda
    if where.device.type != "cuda" or cuda.current_device() == where.device.index:
        return contextlib.nullcontext()
    guard: contextlib.AbstractContextManager[Any] = cuda.device(where.device)
    return guard


def is_captured(where: Place) -> bool:
    """Say whether what the current stream of a place is told is captured in a CUDA graph, not done."""
    if where.device.type != "cuda":
        return False
    with on(where):  # torch asks of the current device alone
        return bool(libraries().torch.cuda.is_current_stream_capturing())


@contextlib.contextmanager
def memory(shape: Sequence[int], dtype: Any, where: Place) -> Iterator[None]:
    """Have an allocation that fails say how much was asked for.

    Raises
    ------
    MemoryError
        In place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        _tell(error, shape, dtype, where)
        raise


def _tell(error: RuntimeError, shape: Sequence[int], dtype: Any, where: Place) -> None:
    """Raise MemoryError if that is what torch's error is."""
    text = str(error)
    if "out of memory" not in text and "allocate" not in text:
        return
    size = dtype.itemsize
    for length in shape:
        size *= length
    free = re.search(r"[\d.]+ [KMGT]iB is free", text)
    raise MemoryError(
        f"{where} has no room for {size} bytes (an array of shape {tuple(shape)}, {dtype})"
        + (f": {free[0]}" if free else "")
    ) from error


def empty(shape: Sequence[int], dtype: Any, where: Place) -> torch.Tensor:
    """Return new memory at a place.

    Raises
    ------
    MemoryError
        If there is not that much; the message has the size.
    """
    try:
        return libraries().torch.empty(shape, dtype=dtype, device=where.device)
    except RuntimeError as error:
        _tell(error, shape, dtype, where)
        raise


def zeros(shape: Sequence[int], dtype: Any, where: Place) -> torch.Tensor:
    """Return new memory at a place, of zeros; see :func:`empty`."""
    return empty(shape, dtype, where).zero_()
