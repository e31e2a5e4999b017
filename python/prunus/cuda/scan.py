"""Selective scans of tensors: how they are cut, and over how many chunks of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda.configs import Tile, power
from prunus.cuda.products import flat, triton_of
from prunus.cuda.runtime import Place, empty, launch
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Plan", "gates", "plan", "scan"]

# Chunks of a sequence on a GPU: steps of each, and which sequences are cut. A cut takes every exponential
# twice, which pays where the channels alone leave most of the chip idle.
_CHUNK: Final = 256
_LONG: Final = 1024
_FEW: Final = 8192


class Plan(NamedTuple):
    """How a scan is cut.

    Attributes
    ----------
    channels : int
        Of a program.
    warps : int
    chunk : int
        Steps of a program; 0: all of them.
    """

    channels: int
    warps: int
    chunk: int


def plan(where: Place, length: int, channels: int, states: int, bits: int) -> Plan:
    """Return how a scan is cut: by the sizes of a member alone, so that it does not depend on the batch.

    A thread has a channel with all its states, which it sums without a word to others; where they are too
    many for its registers, it has some of them.
    """
    if where.interpreted:
        return Plan(128, 4, 0)
    chunk = _CHUNK if length >= _LONG and channels <= _FEW else 0
    return Plan(32, min(max(power(states, 1, 256) * bits // 512, 1), 8), chunk)


def scan(
    where: Place,
    u: torch.Tensor,
    delta: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    bias: torch.Tensor | None,
    softplus: bool,
    state: torch.Tensor | None,
    out: torch.Tensor,
    live: torch.Tensor | None = None,
    branch: int = 1,
    wide: bool = False,
) -> None:
    """Write ``(c . h + d * u) * silu(z)``, with ``h = exp(delta * a) * h + delta * b * u`` step by step.

    Each channel's values are the same whatever else is computed with it. On a GPU, long sequences of few
    channels are cut into chunks: what each makes of states of zeros, then the states before each, then all of
    them at once; there, bits are not those of one step after the other.

    Parameters
    ----------
    where : Place
        Where the operands live.
    u, delta, z : Tensor
        Shape (*batch, length, channels), any strides; without ``z`` there is no gate.
    a : Tensor
        Shape (channels, states).
    b, c : Tensor
        Shape (*batch, length, states).
    d, bias : Tensor, optional
        Shape (channels,).
    softplus : bool
        Take ``log(1 + exp(delta + bias))`` in place of ``delta + bias``.
    state : Tensor, optional
        Shape (*batch, channels, states), with one stride for the batch: read, and overwritten.
    out : Tensor
        Shape (*batch, length, channels), with one stride for the batch: written.
    live : Tensor of bool, optional
        Shape (rows, branches) in C order.
    branch : int
        Channels in a branch of ``live``.
    wide : bool
        Compute in float64, although no operand is.
    """
    from prunus.cuda.kernels import scan as kernels

    if 0 in out.shape:
        return
    torch = libraries().torch
    given = [x for x in (u, delta, a, b, c, d, z, bias, state) if x is not None]
    sums = torch.float64 if wide or any(x.dtype == torch.float64 for x in given) else torch.float32
    u, delta, b, c, out = (flat(x) for x in (u, delta, b, c, out))
    z = None if z is None else flat(z)
    after = None if state is None else flat(state)
    members, length, channels = u.shape
    states = int(a.shape[1])
    cut = plan(where, length, channels, states, 8 * sums.itemsize)
    tiles = blocks_along(channels, cut.channels)
    chunks = blocks_along(length, cut.chunk) if cut.chunk else 1
    branches = blocks_along(channels, branch)
    last = out
    if live is not None and after is None:
        out.zero_()
        last = _ends(where, live, members, length, branches)
    shape = {"TC": cut.channels, "TS": power(states, 1, 1 << 20)}
    options = {"num_warps": cut.warps, "num_stages": 1}
    kind = triton_of(sums)
    of_state = _strides(after, members)
    flags = {"SOFTPLUS": softplus, "BIAS": bias is not None, "SUMS": kind, **shape}
    starts: Any = out
    of_b, of_bias = _strides(b, members), 0 if bias is None else bias.stride(0)
    if chunks > 1:
        starts = empty((members, chunks + 1, states, channels), sums, where)
        spans = empty((members, chunks, channels), sums, where)
        launch(
            where,
            kernels.pieces,
            (members * chunks * tiles,),
            u,
            delta,
            a,
            b,
            a if bias is None else bias,
            starts,
            spans,
            length,
            channels,
            states,
            tiles,
            chunks,
            cut.chunk,
            *_strides(u, members),
            *_strides(delta, members),
            *a.stride(),
            *of_b,
            of_bias,
            **flags,
            **options,
        )
        launch(
            where,
            kernels.chain,
            (members * tiles,),
            a,
            starts if after is None else after,
            starts,
            spans,
            channels,
            states,
            tiles,
            chunks,
            *a.stride(),
            *of_state,
            STATE=after is not None,
            SUMS=kind,
            **shape,
            **options,
        )
    launch(
        where,
        kernels.scan,
        (members * chunks * tiles,),
        u,
        delta,
        a,
        b,
        c,
        a if d is None else d,
        u if z is None else z,
        a if bias is None else bias,
        starts if after is None else after,
        out,
        out if live is None else live,
        last,
        length,
        channels,
        states,
        branch,
        branches,
        tiles,
        chunks,
        cut.chunk,
        *_strides(u, members),
        *_strides(delta, members),
        *a.stride(),
        *of_b,
        *_strides(c, members),
        0 if d is None else d.stride(0),
        *_strides(z, members),
        of_bias,
        *of_state,
        *_strides(out, members),
        starts,
        SKIP=d is not None,
        GATED=z is not None,
        STATE=after is not None,
        LIVE=live is not None,
        CHUNKED=chunks > 1,
        EVEN=shape["TS"] == states,
        AHEAD=sums == torch.float32,
        **flags,
        **options,
    )


def _strides(x: torch.Tensor | None, members: int) -> tuple[int, ...]:
    """Return three strides, the first of no matter where there is one member."""
    if x is None:
        return (0, 0, 0)
    return (0 if members == 1 else x.stride(0), x.stride(1), x.stride(2))


def _ends(where: Place, live: torch.Tensor, members: int, length: int, branches: int) -> torch.Tensor:
    """Return how many steps it is to the last live one, (members, branches)."""
    from prunus.cuda.kernels import scan as kernels

    found = empty((members, branches), libraries().torch.int32, where)
    wide = power(branches, 16, 128)
    tile = Tile(wide, 1024 // wide, 1, 4, 2)
    tiles = blocks_along(branches, tile.m)
    launch(
        where,
        kernels.ends,
        (members * tiles,),
        live,
        found,
        length,
        branches,
        tiles,
        TB=tile.m,
        TT=tile.n,
        **tile.options,
    )
    return found


def gates(where: Place, z: torch.Tensor, branch: int, norm: str, norms: torch.Tensor) -> None:
    """Write the norms of ``silu(z)`` over branches of neighbouring channels.

    Parameters
    ----------
    where : Place
        Where the operands live.
    z : Tensor
        Shape (*batch, length, channels), any strides.
    branch : int
        Channels in a branch; the last one may have fewer.
    norm : str
        "max" or "l2".
    norms : Tensor of float32
        Shape (rows, branches) in C order: written; 0 only where every gate is 0.
    """
    from prunus.cuda.kernels import scan as kernels

    if 0 in norms.shape:
        return
    torch = libraries().torch
    z = flat(z)
    members, length, channels = z.shape
    rows, branches = members * length, blocks_along(channels, branch)
    wide = power(branch, 1, 64)
    across = power(branches, 1, max(256 // wide, 1))
    down = power(1, max((4096 if where.interpreted else 1024) // (wide * across), 1))
    tiles = blocks_along(branches, across)
    launch(
        where,
        kernels.gates,
        (blocks_along(rows, down) * tiles,),
        z,
        norms,
        rows,
        length,
        channels,
        branch,
        branches,
        tiles,
        *_strides(z, members),
        SQUARES=norm == "l2",
        SUMS=triton_of(torch.float64 if z.dtype == torch.float64 else torch.float32),
        TR=down,
        TB=across,
        TW=wide,
        num_warps=4,
        num_stages=2,
    )
