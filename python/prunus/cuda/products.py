"""Products of tensors with blocks: which kernel, cut how, on which lists."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import configs, dtypes
from prunus.cuda.blocks import Operand, lists
from prunus.cuda.branches import restrict
from prunus.cuda.described import describe
from prunus.cuda.runtime import Place, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["NEAR", "SMALLEST", "Walked", "Wanted", "dsd", "flat", "operands_of", "precision", "triton_of"]

#: Rows, columns and places in a list of so many, with those of a tile beyond, are counted in 32 bits.
NEAR: Final = 2**31 - 2**16


class Wanted(NamedTuple):
    """Which rows of a product are wanted: ``live`` of branches of neighbouring ones, (columns, branches)."""

    live: torch.Tensor
    branch: int


class Walked(NamedTuple):
    """Where lists that tiles walked begin and end, (tiles, rows of blocks, 2), and columns of a tile."""

    ends: torch.Tensor
    wide: int


#: Blocks that are smaller than this along a side leave matrix units mostly idle.
SMALLEST = 16


def operands_of(kind: Any, where: Place) -> Any:
    """Return Triton's dtype that operands of a dot are converted to, to be computed in ``kind``.

    The interpreter's dot takes bfloat16 for the whole numbers that it keeps it in; as float32, which holds
    the same values, products and sums are what they are on a GPU.
    """
    torch = libraries().torch
    return triton_of(torch.float32 if where.interpreted and kind == torch.bfloat16 else kind)


@cache
def triton_of(dtype: Any) -> Any:
    """Return Triton's dtype for torch's."""
    import triton.language as tl

    torch = libraries().torch
    return {
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.int8: tl.int8,
        torch.int32: tl.int32,
    }[dtype]


def precision() -> str:
    """Return how matrix units take float32: torch's own setting, ``torch.set_float32_matmul_precision``."""
    return "ieee" if libraries().torch.get_float32_matmul_precision() == "highest" else "tf32"


def flat(x: torch.Tensor, inner: int = 2) -> torch.Tensor:
    """Return a tensor with one batch dimension before the last ``inner``; a view where strides allow it."""
    if x.ndim == inner:
        return x[None]
    lead = x.ndim - inner
    return x if lead == 1 else x.reshape(math.prod(x.shape[:lead]), *x.shape[lead:])


def dsd(
    where: Place,
    w: Operand,
    x: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    add: bool = False,
    tile: configs.Tile | None = None,
    wanted: Wanted | None = None,
) -> Walked | None:
    """Write ``activation(w @ x + bias[:, None])``, or add ``w @ x`` to what ``out`` holds.

    Parameters
    ----------
    where : Place
        Where the operands live.
    w : Operand
        Shape (m, k) after its transposition.
    x : Tensor
        Shape (k, n), or (members, k, n), any strides.
    out : Tensor
        Shape (m, n), or (members, m, n), any strides: written.
    bias : Tensor, optional
        Shape (m,).
    activation : str, optional
        "relu", "gelu" or "silu".
    add : bool
        Go on from the sums in ``out``.
    tile : Tile, optional
        How to cut, in place of what :mod:`prunus.cuda.configs` says; for blocks of at least 16 x 16. One that
        loads by descriptors loads by pointers where operands cannot be described: see
        :func:`prunus.cuda.described.describe`.
    wanted : Wanted, optional
        Which rows of the result each column wants; all operands have two dimensions then. A tile of columns
        walks the lists of those rows of blocks alone of which any is wanted; other rows may hold anything.

    Returns
    -------
    Walked or None
        With ``wanted``, what was walked.
    """
    (m, k), n = w.size, int(x.shape[-1])
    if 0 in out.shape:
        return None
    sr, sc = w.stored
    br, bc = (sc, sr) if w.transposed else (sr, sc)
    x, out = flat(x), flat(out)
    members = len(out)
    found = lists(w)
    kind = dtypes.compute(w.data.dtype, x.dtype, out.dtype)
    sums = dtypes.sums(kind)
    torch = libraries().torch
    wide = torch.float64 if sums == torch.float64 else torch.float32
    if sums == torch.int32 and out.dtype == torch.int32:
        wide = torch.int32  # whole numbers, as relu and their biases are
    common = {
        "SR": sr,
        "SC": sc,
        "TRANSPOSED": w.transposed,
        "ORDERED": found.order is not None,
        "BIAS": bias is not None,
        "ACTIVATION": activation,
        "ADD": add,
        "SUMS": triton_of(sums),
        "WIDE": triton_of(wide),
    }
    where_blocks = (
        found.indices,
        found.indptr,
        found.indices if found.order is None else found.order,
    )
    results = (out, out if bias is None else bias.contiguous())
    indptr_batch = found.indptr.stride(0) if found.indptr.ndim > 1 else 0
    small = min(br, bc) < SMALLEST
    far = max(m, n, k, len(w.indices) * bc) > NEAR
    if small:
        tile = configs.dsd_small(where, (br, bc), n, kind.itemsize * 8)
        rows = blocks_along(m, tile.m)
        down = rows
    else:
        rows = blocks_along(m, br)
        if tile is None:
            lines = rows * (members if w.own else 1)
            tile = configs.dsd(
                where,
                (br, bc),
                n,
                kind.itemsize * 8,
                precision=precision(),
                rows=rows * members,
                blocks=blocks_along(len(w.indices), max(lines, 1)),
                activation=activation,
                add=add,
            )
        down = rows * blocks_along(br, tile.m)
    across = blocks_along(n, tile.n)
    grid = (down * across * members,)
    order = (rows, across, configs.group(where, k, n, tile.n, x.dtype.itemsize))
    sizes = {"TM": tile.m, "TN": tile.n, "TK": tile.k, **tile.options}
    walked = None
    if wanted is not None:
        ends = restrict(where, found.indptr, wanted.live, wanted.branch, m, br, tile.n)
        where_blocks = (where_blocks[0], ends, where_blocks[2])
        walked = Walked(ends, tile.n)
    if wanted is None and not (small or far) and tile.loads != "pointers":
        configs.check_loads(where, tile)
        by = describe(w, x, kind, tile)
        if by is not None:
            from prunus.cuda.kernels.dsd_described import dsd_described

            launch(
                where,
                dsd_described,
                grid,
                by.data,
                *where_blocks,
                by.x,
                *results,
                m,
                n,
                *order,
                by.data_rows,
                indptr_batch,
                by.x_rows,
                *out.stride(),
                **common,
                X_TRANSPOSED=by.x_transposed,
                COMPUTE=operands_of(kind, where),
                SPECIALISED=tile.loads == "warps",
                **sizes,
            )
            return None
    from prunus.cuda.kernels import dsd as kernels

    launch(
        where,
        kernels.dsd_small if small else kernels.dsd,
        grid,
        w.data,
        *where_blocks,
        x,
        *results,
        m,
        n,
        k,
        *order,
        w.data.stride(0) if w.data.ndim > 3 and len(w.data) > 1 else 0,
        indptr_batch,
        x.stride(0) if len(x) > 1 else 0,
        *x.stride()[1:],
        *out.stride(),
        **common,
        FAR=far,
        RESTRICTED=walked is not None,
        **({} if small else {"COMPUTE": operands_of(kind, where), "PRECISION": precision()}),
        **sizes,
    )
    return walked
