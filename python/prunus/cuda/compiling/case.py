"""What a case is: a call with typical shapes, and what its kernels must have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda.blocks import Operand
from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Case", "Units", "blocks", "dtype_of", "float32_as", "tensor"]


class Units(Enum):
    """What multiplies in a kernel.

    Values are what a table calls them.
    """

    #: The architecture's own instructions: ``mma.sync`` on sm_80, ``wgmma`` on sm_90, ``tcgen05`` on sm_100.
    NATIVE = "native"
    #: Any tensor-core instruction: tiles of fewer than 64 rows, and int8, are ``mma.sync`` on all.
    MATRIX = "mma.sync"
    #: Multiply-adds of vector units: float32 as IEEE has it, and kernels that memory bounds.
    PLAIN = "FMA"
    #: float64: ``DMMA`` where Triton uses it, multiply-adds elsewhere; there is no other.
    DOUBLE = "DMMA or FMA"


class Case(NamedTuple):
    """A call whose kernels are compiled ahead of time.

    Attributes
    ----------
    name : str
        Operation and sizes, for people.
    dtype : str
        Of the operands.
    call : callable
        Given a place, makes meta tensors (:func:`tensor`, :func:`blocks`) and calls functions on them as a
        public operation would.
    units : dict
        By a kernel's name, what must multiply in it. Each must be launched by the call; of kernels that are
        not named (sorting, merging), only what all must keep is checked: no spills, and memory.
    copies : str
        "TMA": on sm_90 and later, kernels in ``units`` must load by it.
    more : bool
        Only compiled when all are asked for.
    archs : tuple of str
        Which architectures it is for; empty: all.
    """

    name: str
    dtype: str
    call: Callable[[Place], object]
    units: dict[str, Units]
    copies: str = ""
    more: bool = False
    archs: tuple[str, ...] = ()


def dtype_of(name: str) -> Any:
    """Return torch's dtype of that name."""
    return getattr(libraries().torch, name)


def tensor(where: Place, *shape: int, dtype: str) -> torch.Tensor:
    """Return a meta tensor."""
    return libraries().torch.empty(shape, dtype=dtype_of(dtype), device=where.device)


def blocks(
    where: Place,
    shape: tuple[int, int],
    blocksize: tuple[int, int],
    dtype: str,
    density: float = 0.1,
    members: int | None = None,
    index: str = "int32",
) -> Operand:
    """Return a block-sparse operand of meta tensors; with ``members``, of patterns of their own."""
    down, across = (blocks_along(size, block) for size, block in zip(shape, blocksize, strict=True))
    count = max(int(down * across * density), 1) * (members or 1)
    return Operand(
        tensor(where, count, *blocksize, dtype=dtype),
        tensor(where, count, dtype=index),
        tensor(where, *(() if members is None else (members,)), down + 1, dtype=index),
        shape,
    )


@contextlib.contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Have float32 taken as "highest" (IEEE) or "high" (tf32), as torch's own setting does."""
    torch = libraries().torch
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
