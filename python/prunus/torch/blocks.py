"""Patterns and blocks in plain torch operations, which differentiate, compile and run on any device."""

from __future__ import annotations

from typing import Final

import torch

from prunus._layout import blocks_along
from prunus._mask import BlockMask

__all__ = [
    "check_floats",
    "check_pattern",
    "check_values",
    "from_mask",
    "gather",
    "keys_of",
    "pattern_of",
    "rows_of",
    "scatter",
]

_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def rows_of(indices: torch.Tensor, indptr: torch.Tensor) -> torch.Tensor:
    """Return the row of blocks that each block is in, in int64, counted through all members of a batch."""
    starts = indptr[..., 1:].reshape(-1).contiguous()
    count = torch.arange(indices.shape[0], device=indices.device, dtype=indptr.dtype)
    return torch.searchsorted(starts, count, right=True)


def keys_of(indices: torch.Tensor, indptr: torch.Tensor, across: int) -> torch.Tensor:
    """Return each block's place: its row, as :func:`rows_of` counts, times ``across`` plus its column."""
    return rows_of(indices, indptr) * across + indices


def from_mask(mask: BlockMask, device: torch.device | str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and indptr of a mask as tensors of their own: a mask does not change."""
    # Compilers take arrays for tensors, of which torch.tensor warns.
    indices, indptr = (torch.asarray(part, device=device, copy=True) for part in (mask.indices, mask.indptr))
    return indices, indptr


def pattern_of(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and indptr, in int32, of a boolean grid (rows, cols), or (members, rows, cols).

    How many blocks there are is data.
    """
    indices = grid.nonzero()[:, -1].to(torch.int32)
    ends = grid.sum(-1).reshape(-1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    rows = grid.shape[-2]
    if grid.ndim > 2:
        first = torch.arange(grid.shape[0], device=grid.device)[:, None] * rows
        starts = starts[first + torch.arange(rows + 1, device=grid.device)]
    return indices, starts.to(torch.int32)


def scatter(
    data: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Return the dense matrix (*members, m, n) of some blocks; duplicates add."""
    (m, n), (br, bc) = shape, data.shape[-2:]
    down, across = blocks_along(m, br), blocks_along(n, bc)
    keys = keys_of(indices, indptr, across)
    if indptr.ndim > 1:
        lead: tuple[int, ...] = (indptr.shape[0],)
        flat = data.new_zeros((lead[0] * down * across, br, bc)).index_add(0, keys, data)
    else:
        lead = tuple(data.shape[:-3])
        flat = data.new_zeros((*lead, down * across, br, bc)).index_add(len(lead), keys, data)
    tiled = flat.reshape(*lead, down, across, br, bc).transpose(-2, -3)
    return tiled.reshape(*lead, down * br, across * bc)[..., :m, :n]


def gather(
    dense: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, block: tuple[int, int]
) -> torch.Tensor:
    """Return the blocks (*members, n, br, bc) of a dense matrix at a pattern, padded with zeros.

    With a pattern for each member, (n, br, bc).
    """
    (m, n), (br, bc) = dense.shape[-2:], block
    down, across = blocks_along(m, br), blocks_along(n, bc)
    lead = tuple(dense.shape[:-2])
    padded = torch.nn.functional.pad(dense, (0, across * bc - n, 0, down * br - m))
    tiled = padded.reshape(*lead, down, br, across, bc).transpose(-2, -3)
    keys = keys_of(indices, indptr, across)
    if indptr.ndim > 1:
        return tiled.reshape(-1, br, bc)[keys]
    return tiled.reshape(*lead, down * across, br, bc).index_select(len(lead), keys)


def check_floats(dtype: torch.dtype, name: str) -> None:
    """Raise TypeError unless a dtype is one that operands have."""
    if dtype not in _FLOATS:
        raise TypeError(f"{name} must hold float32, float64, float16 or bfloat16, got {dtype}")


def check_pattern(
    data: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, shape: tuple[int, ...]
) -> None:
    """Raise unless component tensors fit each other and a shape, as far as shapes and dtypes tell.

    Raises
    ------
    ValueError, TypeError
        Saying what was expected, and what came.
    """
    check_floats(data.dtype, "data")
    for part, name in ((indices, "indices"), (indptr, "indptr")):
        if part.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {part.dtype}")
        if part.device != data.device:
            raise ValueError(f"data lives on {data.device}, {name} on {part.device}: expected one device")
    if indices.dtype != indptr.dtype:
        raise TypeError(f"indices are {indices.dtype} and indptr {indptr.dtype}: expected one dtype")
    if len(shape) < 2:
        raise ValueError(f"expected a shape of two dimensions at least, got {shape}")
    batch, m = shape[:-2], shape[-2]
    if data.ndim < 3 or indices.ndim != 1 or 0 in data.shape[-2:]:
        raise ValueError(
            "expected data (*batch, n, br, bc) in blocks of at least one value, and indices (n,); got "
            f"{tuple(data.shape)} and {tuple(indices.shape)}"
        )
    if data.shape[-3] != indices.shape[0]:
        raise ValueError(f"data has {data.shape[-3]} blocks, indices {indices.shape[0]}")
    own = indptr.ndim > 1
    rows = blocks_along(m, data.shape[-2]) + 1
    expected = (*batch, rows) if own else (rows,)
    if tuple(indptr.shape) != expected:
        raise ValueError(
            f"indptr must have shape {expected} for {m} rows in blocks of {data.shape[-2]}, got "
            f"{tuple(indptr.shape)}"
        )
    values = () if own else tuple(batch)
    if tuple(data.shape[:-3]) != values:
        raise ValueError(
            f"data has the batch dimensions {tuple(data.shape[:-3])}, expected {values}"
            + (": members with patterns of their own share one list of blocks" if own else "")
        )


def check_values(indices: torch.Tensor, indptr: torch.Tensor, across: int) -> None:
    """Raise unless offsets ascend from 0 to the number of blocks, and columns are in range; reads them.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    flat = indptr.reshape(-1)
    rows = indptr.shape[-1]
    ends = indptr.reshape(-1, rows)
    wrong = (
        bool(flat[0] != 0)
        or bool(flat[-1] != indices.shape[0])
        or bool((ends[:, 1:] < ends[:, :-1]).any())
        or bool((ends[1:, 0] != ends[:-1, -1]).any())
    )
    if wrong:
        raise ValueError(
            f"indptr must ascend from 0 to the number of blocks, {indices.shape[0]}, member after member"
        )
    if indices.shape[0] and not (int(indices.min()) >= 0 and int(indices.max()) < across):
        raise ValueError(
            f"indices must lie in [0, {across}), got {int(indices.min())} to {int(indices.max())}"
        )
