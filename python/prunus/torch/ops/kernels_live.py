"""Products over a liveness mask: who computes, and by which of the exact routes.

A mask has a boolean for each row and branch. On host memory a product takes one of these routes, whose
results are the same up to the order of sums:

* by units: the engine's ``dots``, which computes what is live of each row;
* by blocks: the engine's ``dsd``, over live branches as blocks of one row;
* dense: torch's product of all units that are live in any row, and what is dead cleared before or after.

Which one is chosen depends on dtype, width of a branch and share of what is live: nothing is timed. Where
torch has no fast product (half precision without matrix units), and on engines other than the CPU's, the
engine's ``dots`` and ``combine`` stand in for the dense one.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
import torch

from prunus import engines
from prunus._device import on_device
from prunus.engines import Blocks
from prunus.pruning.policies import largest as largest_on_host
from prunus.torch.ops.kernels import host

__all__ = [
    "above",
    "largest",
    "live_combine",
    "live_linear",
    "live_outer",
    "live_sums",
    "spread",
    "write_combine",
    "write_linear",
    "write_outer",
]

# Branches of so many units fill vectors.
_WIDE: Final = 4
# Features from which on a product's sums are long.
_LONG: Final = 512


class _Limits(NamedTuple):
    """Up to which share of live branches a route that skips pays, for narrow and for wide branches.

    Measured on two cores of an AMD EPYC (AVX2) with 1024 rows, 256 to 1024 features and random masks, beside
    torch's dense product; in half precision beside the engine's ``combine``.
    """

    narrow: float
    wide: float

    def of(self, branch: int, dtype: torch.dtype, features: int) -> float:
        share = self.wide if branch >= _WIDE else self.narrow
        share *= min(features / _LONG, 1)  # what skipping costs by itself, a short sum does not pay
        # Matrix units multiply many times as fast as vectors do.
        return share / 5 if dtype.itemsize == 2 and _dense_is_fast(dtype) else share


_UNITS: Final = _Limits(0.1, 0.5)
_ROWS: Final = _Limits(0.06, 0.2)
_OUTER: Final = _Limits(0.06, 0.3)
_HALF: Final = _Limits(0.03, 0.1)
# Units that are dead in all rows are left out of a dense product if they are so many.
_DEAD: Final = 0.25


@cache
def _dense_is_fast(dtype: torch.dtype) -> bool:
    """Say whether torch multiplies a dtype as fast as the machine can."""
    if dtype.itemsize > 2:
        return True
    return dtype == torch.bfloat16 and bool(torch.cpu._is_amx_tile_supported())


def _dense_serves(dtype: torch.dtype) -> bool:
    return engines.active() is engines.CPU and _dense_is_fast(dtype)


def spread(live: torch.Tensor, branch: int, units: int) -> torch.Tensor:
    """Return the liveness of every unit (rows, units) from that of branches."""
    if branch == 1:
        return live
    rows, branches = live.shape
    wide = live[:, :, None].expand(rows, branches, branch)
    return wide.reshape(rows, branches * branch)[:, :units]


def live_linear(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, live: torch.Tensor | None, branch: int
) -> torch.Tensor:
    """Return ``x @ w.T + bias`` where it is live, and 0 elsewhere; see :mod:`prunus.torch.ops.live`."""
    out = x.new_empty((x.shape[0], w.shape[0]))
    _units(x, w, bias, live, branch, out)
    return out


def live_sums(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return ``x @ w.T + bias`` in the dtype that sums are kept in."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_empty((x.shape[0], w.shape[0]), dtype=kind)
    _units(x, w, bias, None, 1, out)
    return out


def _units(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    live: torch.Tensor | None,
    branch: int,
    out: torch.Tensor,
) -> None:
    if 0 in out.shape:
        return
    if on_device(x):
        from prunus.cuda.rows import dots
        from prunus.cuda.runtime import place_of

        dots(place_of(x), x, w, out, live, branch, bias)
        return
    write_linear(x, w, bias, live, branch, out)


def live_combine(
    h: torch.Tensor, w: torch.Tensor, live: torch.Tensor | None, branch: int, zeroed: bool
) -> torch.Tensor:
    """Return ``h @ w`` where only live units take part; see :mod:`prunus.torch.ops.live`."""
    out = h.new_empty((h.shape[0], w.shape[1]))
    if 0 in out.shape:
        return out
    if on_device(h):
        from prunus.cuda.rows import combine
        from prunus.cuda.runtime import place_of

        combine(place_of(h), h, w, out, live, branch, zeroed=zeroed)
        return out
    write_combine(h, w, live, branch, zeroed, out)
    return out


def live_outer(
    h: torch.Tensor, x: torch.Tensor, live: torch.Tensor | None, branch: int, zeroed: bool, flip: bool
) -> torch.Tensor:
    """Return ``h.T @ x`` where only live units take part; see :mod:`prunus.torch.ops.live`."""
    out = h.new_empty((x.shape[1], h.shape[1]) if flip else (h.shape[1], x.shape[1]))
    if 0 in out.shape:
        return out
    if on_device(h):
        from prunus.cuda.rows import combine
        from prunus.cuda.runtime import place_of

        view = out.mT if flip else out  # (units, d), however it lies
        units = None if live is None else spread(live, branch, h.shape[1]).mT.contiguous()
        made = view.new_empty(view.shape) if flip else out
        combine(place_of(h), h.mT.contiguous(), x, made, units, zeroed=zeroed)
        return view.copy_(made).mT if flip else out
    write_outer(h, x, live, branch, zeroed, flip, out)
    return out


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return where each row has its ``count`` largest values; of equal ones the first, NaN before all."""
    if on_device(values):
        from prunus.cuda.policies import largest as there

        return there(values, count)
    rows = values.shape[0]
    live = largest_on_host(host(values.contiguous()), np.full(rows, min(count, values.shape[1])), None)
    return torch.from_numpy(live)


def above(norms: torch.Tensor, tau: float) -> torch.Tensor:
    """Return ``not (norms <= tau)``, compared in double precision.

    A threshold that single precision cannot hold must not become another one: norms are at most that where
    they are at most the largest value of theirs below it.
    """
    if norms.dtype != torch.float64:
        with np.errstate(over="ignore"):
            near = np.float32(tau)
        # As Python's floats: NumPy would round the threshold before it compares.
        tau = float(near if float(near) <= tau else np.nextafter(near, np.float32(-np.inf)))
    return (norms <= tau).logical_not_().contiguous()  # whatever strides norms have


# Host memory ---------------------------------------------------------------------------------------------


def write_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    live: torch.Tensor | None,
    branch: int,
    out: torch.Tensor,
) -> None:
    """Write :func:`live_linear` into ``out`` (rows, units), of x's dtype or wider."""
    if _dense_serves(x.dtype) and (live is None or _share(live) > _UNITS.of(branch, x.dtype, x.shape[1])):
        _dense_linear(x, w, bias, live, branch, out)
        return
    engine, mask = engines.active(), None if live is None else host(live.contiguous())
    engine.dots(host(x), host(_rowwise(w)), host(out), mask, branch, None if bias is None else host(bias))


def write_combine(
    h: torch.Tensor,
    w: torch.Tensor,
    live: torch.Tensor | None,
    branch: int,
    zeroed: bool,
    out: torch.Tensor,
) -> None:
    """Write :func:`live_combine` into ``out`` (rows, d)."""
    dense = _dense_serves(h.dtype)
    if live is None:
        if dense:
            torch.mm(h, w, out=out)
            return
    elif _share(live) <= (_ROWS if dense else _HALF).of(branch, h.dtype, w.shape[1]):
        _by_blocks(h, w, out, live, branch, False)
        return
    elif dense:
        _dense_combine(h, w, live, branch, zeroed, out)
        # A dead unit's 0 is harmless unless it meets an infinity or NaN.
        if not _is_finite(out):
            _by_blocks(h, w, out, live, branch, False)
        return
    mask = None if live is None else host(live.contiguous())
    engines.active().combine(host(_rowwise(h)), host(_rowwise(w)), host(out), mask, branch)


def write_outer(
    h: torch.Tensor,
    x: torch.Tensor,
    live: torch.Tensor | None,
    branch: int,
    zeroed: bool,
    flip: bool,
    out: torch.Tensor,
) -> None:
    """Write :func:`live_outer` into ``out`` (units, d), with ``flip`` (d, units)."""
    view = out.mT if flip else out  # (units, d), however it lies
    dense = _dense_serves(h.dtype)
    if live is None:
        if dense:
            torch.mm(*((x.mT, h) if flip else (h.mT, x)), out=out)
            return
    elif _share(live) <= (_OUTER if dense else _HALF).of(branch, h.dtype, x.shape[1]):
        _by_blocks(h, x, view, live, branch, True)
        return
    elif dense:
        _dense_outer(h, x, live, branch, zeroed, flip, out)
        if not _is_finite(out):
            _by_blocks(h, x, view, live, branch, True)
        return
    # A unit's row of the result is a sum over rows of x: the same product, with roles swapped.
    mask = None if live is None else host(spread(live, branch, h.shape[1]).mT.contiguous())
    made = view.new_empty(view.shape) if flip else out
    engines.active().combine(host(h.mT.contiguous()), host(_rowwise(x)), host(made), mask, 1)
    if flip:
        view.copy_(made)


# The routes ----------------------------------------------------------------------------------------------


def _by_blocks(
    h: torch.Tensor, x: torch.Tensor, out: torch.Tensor, live: torch.Tensor, branch: int, transposed: bool
) -> torch.Tensor:
    """Write ``h @ x``, or ``h.T @ x``, over live branches as blocks of one row."""
    rows, units = h.shape
    branches = live.shape[1]
    if branches * branch > units:
        h = torch.nn.functional.pad(h, (0, branches * branch - units))
    alive = host(live.contiguous())
    flat = np.flatnonzero(alive)
    kind = np.int32 if alive.size < 2**31 else np.int64
    ends = np.zeros(rows + 1, kind)
    np.cumsum(np.count_nonzero(alive, axis=1), out=ends[1:])
    values = h.reshape(-1, branch).index_select(0, torch.from_numpy(flat))
    pattern = (flat % branches).astype(kind), ends
    blocks = Blocks(host(values.view(-1, 1, branch)), *pattern, (rows, units), transposed)
    engines.active().dsd(blocks, host(x), host(out), None, None)
    return out


def _dense_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    live: torch.Tensor | None,
    branch: int,
    out: torch.Tensor,
) -> None:
    at = None if live is None else _needed(live, branch, w.shape[0])
    if at is not None:
        assert live is not None
        some = torch.nn.functional.linear(
            x, w.index_select(0, at), None if bias is None else bias.index_select(0, at)
        )
        some.masked_fill_(~spread(live, branch, w.shape[0])[:, at], 0)
        out.zero_().index_copy_(1, at, some.to(out.dtype))
        return
    if out.dtype != x.dtype:
        out.copy_(torch.nn.functional.linear(x, w, bias))
    elif bias is None:
        torch.mm(x, w.mT, out=out)
    else:
        torch.addmm(bias, x, w.mT, out=out)
    if live is not None:
        out.masked_fill_(~spread(live, branch, w.shape[0]), 0)


def _dense_combine(
    h: torch.Tensor, w: torch.Tensor, live: torch.Tensor, branch: int, zeroed: bool, out: torch.Tensor
) -> None:
    at = _needed(live, branch, h.shape[1])
    h = _cleared(h, live, branch, at, zeroed)
    torch.mm(h, w if at is None else w.index_select(0, at), out=out)


def _dense_outer(
    h: torch.Tensor,
    x: torch.Tensor,
    live: torch.Tensor,
    branch: int,
    zeroed: bool,
    flip: bool,
    out: torch.Tensor,
) -> None:
    at = _needed(live, branch, h.shape[1])
    h = _cleared(h, live, branch, at, zeroed)
    if at is None:
        torch.mm(*((x.mT, h) if flip else (h.mT, x)), out=out)
        return
    made = x.mT @ h if flip else h.mT @ x
    out.zero_().index_copy_(1 if flip else 0, at, made)


def _cleared(
    h: torch.Tensor, live: torch.Tensor, branch: int, at: torch.Tensor | None, zeroed: bool
) -> torch.Tensor:
    """Return units, or those at some places, with 0 where they are dead."""
    if at is not None:
        h = h.index_select(1, at)
    if zeroed:
        return h
    alive = spread(live, branch, live.shape[1] * branch)
    alive = alive[:, : h.shape[1]] if at is None else alive.index_select(1, at)
    return h.masked_fill(~alive, 0)


def _is_finite(made: torch.Tensor) -> bool:
    """Say whether all values are finite; mostly their sum tells, which takes one pass."""
    return bool(made.sum().isfinite()) or bool(made.isfinite().all())


def _needed(live: torch.Tensor, branch: int, units: int) -> torch.Tensor | None:
    """Return which units any row needs, if few enough to leave out the others."""
    union = np.logical_or.reduce(host(live), axis=0)
    if np.count_nonzero(union) > (1 - _DEAD) * len(union):
        return None
    return torch.from_numpy(np.flatnonzero(np.repeat(union, branch)[:units]))


def _share(live: torch.Tensor) -> float:
    """Return the share of what is live."""
    return np.count_nonzero(host(live)) / max(live.numel(), 1)


def _rowwise(w: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last axis is contiguous, as the engine wants tables: itself, or a copy."""
    return w if w.shape[-1] < 2 or w.stride(-1) == 1 else w.contiguous()
