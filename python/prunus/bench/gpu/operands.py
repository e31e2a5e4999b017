"""Operands that sections share: matrices with random blocks, and copies for calls with cold caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import prunus as pr
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import Bench, Entry, once
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import Call

__all__ = ["DENSE", "KIND", "Weights", "dense_product", "multiply", "own", "rotated", "weights"]

#: The dense contestant's name, and the dtype of all operands.
DENSE: Final = "torch dense"
KIND: Final = "bfloat16"


class Weights(NamedTuple):
    """A matrix of which some blocks are there, as everyone takes it.

    Attributes
    ----------
    density : float
        Share of blocks that is there, as asked for.
    values : Tensor
        The dense matrix, zeros where no block is.
    grid : Tensor of bool
        Which blocks are there.
    blocks, indices, indptr : Tensor
        As :class:`prunus.cuda.BSR` takes them.
    """

    density: float
    values: Any
    grid: Any
    blocks: Any
    indices: Any
    indptr: Any

    @property
    def nbytes(self) -> float:
        """Bytes of blocks and of the pattern."""
        parts = self.blocks, self.indices, self.indptr
        return float(sum(part.numel() * part.element_size() for part in parts))

    @property
    def stored(self) -> int:
        """How many values are stored."""
        return int(self.blocks.numel())

    def masked(self, whole: Any) -> Any:
        """Return a dense matrix with zeros where no block is."""
        (down, across), (br, bc) = self.grid.shape, self.blocks.shape[1:]
        tiles = whole.view(down, br, across, bc)
        return (tiles * self.grid[:, None, :, None]).view(whole.shape)

    def ours(self) -> Any:
        """Return a :class:`prunus.cuda.BSR` that shares the blocks."""
        return pr.cuda.BSR((self.blocks, self.indices, self.indptr), shape=tuple(self.values.shape))

    def torchs(self) -> Any:
        """Return a torch tensor of layout ``sparse_bsr`` that shares the blocks."""
        return peers.sparse_bsr(self.indptr, self.indices, self.blocks, tuple(self.values.shape))

    def copied(self, copied: bool) -> Weights:
        """Return the same, or the same in memory of its own."""
        return self._replace(blocks=self.blocks.clone()) if copied else self


def weights(bench: Bench, dense: Any, block: int, density: float) -> Weights:
    """Return a matrix with random blocks of ``dense``, made by torch alone."""
    torch = bench.torch
    down, across = dense.shape[0] // block, dense.shape[1] // block
    grid = bench.grid(down, across, density)
    tiles = dense.view(down, block, across, block).transpose(1, 2)
    row, column = grid.nonzero(as_tuple=True)
    indptr = torch.zeros(down + 1, dtype=torch.int32, device=bench.device)
    indptr[1:] = grid.sum(1).cumsum(0)
    made = Weights(density, dense, grid, tiles[row, column].contiguous(), column.to(torch.int32), indptr)
    return made._replace(values=made.masked(dense))


def multiply(bench: Bench, a: Any, b: Any) -> Any:
    """Return a product in float32, in which products of two halves are exact."""
    torch = bench.torch
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return torch.matmul(a.float(), b.float())
    finally:
        torch.set_float32_matmul_precision(before)


def rotated(bench: Bench, flops: float, nbytes: float, make: Callable[[bool], Call]) -> list[Call]:
    """Return calls on sets of operands: the first on those given, where it is called with True on copies."""
    return [make(bool(at)) for at in range(bench.sets(flops, nbytes))]


def own(tensor: Any, copied: bool) -> Any:
    """Return a tensor, or a copy with the same strides."""
    return tensor.clone() if copied else tensor


def dense_product(bench: Bench, case: Case, a: Any, b: Any) -> Entry:
    """Line up cuBLAS."""
    m, k = (int(length) for length in a.shape)
    n = int(b.shape[1])
    flops, nbytes = 2.0 * m * n * k, 2.0 * (m * k + k * n + m * n)

    def make(copied: bool) -> Call:
        left, right = own(a, copied), own(b, copied)
        return lambda: left @ right

    calls = partial(rotated, bench, flops, nbytes, make)
    return Entry(case, DENSE, "dense", calls, once(partial(multiply, bench, a, b)), flops, nbytes)
