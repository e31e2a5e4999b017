"""Selective scans as a program.

Channels lie side by side in a tile, 1024 of them, and each core goes through time with its channels' states
in its L1. More states than that holds are cut into groups, one program after the other: what the first ones
add up comes back as what the next one's sums begin with, so that the order of sums stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from prunus import _core
from prunus._dtypes import F32, Array
from prunus.tensix.buffers import format_of, tile_bytes
from prunus.tensix.mapping import tiles
from prunus.tensix.mapping.job import CHUNK, Job, Outcome, Run, hand_over, in_turn

__all__ = ["Scan", "run"]

_LANES = tiles.TILE * tiles.TILE
# Circular buffers: what is read at every step, what is read once; what is written; what stays on the core.
_U, _DELTA, _Z, _B, _C, _MASK, _A, _D, _BIAS, _BEFORE, _SUMS = range(11)
_OUT, _AFTER, _H, _STEP, _GAIN, _Y = 16, 17, 24, 25, 26, 27


@dataclass(frozen=True)
class Scan:
    """Operands of :meth:`prunus.engines.base.Engine.scan`."""

    u: Array
    delta: Array
    a: Array
    b: Array
    c: Array
    d: Array | None
    z: Array | None
    bias: Array | None
    softplus: bool
    state: Array | None
    out: Array
    live: Array | None
    branch: int
    #: What sums of states begin with, as ``out``.
    sums: Array | None = None


def _lanes(x: Array, format: str | None = None) -> tiles.Tiles:
    """Return tiles of (..., channels): for each leading index the tiles of its channels, 1024 to a tile."""
    channels = x.shape[-1]
    flat = x.reshape(-1, channels)
    across = max(1, -(-channels // _LANES))
    padded = np.zeros((len(flat), across * _LANES), F32)
    padded[:, :channels] = flat
    return tiles.stacked(padded.reshape(-1, tiles.TILE, tiles.TILE), format or format_of(x.dtype))


def _step(job: Job, s: Scan, states: int) -> list[_core.Verb]:
    """Return the text of a step of time."""
    k = job.k
    streams = [_U, _DELTA] + ([_Z] if s.z is not None else []) + ([_MASK] if s.live is not None else [])
    text = [k.cb_wait_front(cb, 1) for cb in streams]
    text += [k.tile_regs_acquire(), k.copy_tile(_DELTA, 0, 0)]
    if s.bias is not None:
        text += [k.copy_tile(_BIAS, 0, 1), k.add_binary_tile(0, 1)]
    if s.softplus:
        text += [k.softplus_tile(0)]
    text += [k.copy_tile(_U, 0, 1), k.mul_binary_tile(1, 0), k.cb_pop_front(_DELTA, 1)]
    text += [*hand_over(k, (0, _STEP), (1, _GAIN)), k.cb_wait_front(_STEP, 1), k.cb_wait_front(_GAIN, 1)]
    for state in range(states):
        text += [
            k.cb_wait_front(_B, 1),
            k.cb_wait_front(_C, 1),
            k.cb_wait_front(_H, 1),
            k.tile_regs_acquire(),
            k.copy_tile(_A, state, 0),
            k.copy_tile(_STEP, 0, 1),
            k.mul_binary_tile(0, 1),
            k.exp_tile(0),
            k.copy_tile(_H, 0, 1),
            k.mul_binary_tile(0, 1),
            k.unary_bcast("scalar", _B, 0, 1),
            k.copy_tile(_GAIN, 0, 2),
            k.mul_binary_tile(1, 2),
            k.add_binary_tile(0, 1),
            k.unary_bcast("scalar", _C, 0, 1),
            k.mul_binary_tile(1, 0),
        ]
        so_far = _Y if state else None if s.sums is None else _SUMS
        if so_far is not None:
            text += [k.cb_wait_front(so_far, 1), k.copy_tile(so_far, 0, 2), k.add_binary_tile(1, 2)]
            text += [k.cb_pop_front(so_far, 1)]
        text += [k.cb_pop_front(cb, 1) for cb in (_B, _C, _H)]
        text += hand_over(k, (0, _H), (1, _Y))
    text += [k.tile_regs_acquire()]
    if states:
        text[-1:] = [k.cb_wait_front(_Y, 1), k.tile_regs_acquire(), k.copy_tile(_Y, 0, 0)]
    if s.d is not None:
        text += [
            k.copy_tile(_U, 0, 1),
            k.copy_tile(_D, 0, 2),
            k.mul_binary_tile(1, 2),
            k.add_binary_tile(0, 1),
        ]
    if s.z is not None:
        text += [k.copy_tile(_Z, 0, 1), k.silu_tile(1), k.mul_binary_tile(0, 1)]
    if s.live is not None:
        text += [k.copy_tile(_MASK, 0, 1), k.mask_tile(0, 1)]
    done = [_U, _STEP, _GAIN] + ([_Y] if states else []) + streams[2:]
    return [*text, *(k.cb_pop_front(cb, 1) for cb in done), *hand_over(k, (0, _OUT))]


@dataclass
class _Streams:
    """Numbers of a job's streams."""

    #: Of each step of time.
    steps: list[int]
    #: Of each step of time and state.
    scalars: list[int]
    #: Once: with how many pages.
    once: list[tuple[int, int]]
    before: int | None
    out: int
    after: int | None


def _streams(job: Job, s: Scan, across: int) -> _Streams:
    """Put operands into DRAM."""
    *batch, length, channels = s.out.shape
    states, members = s.a.shape[-1], math.prod(batch)
    steps = [(_U, s.u), (_DELTA, s.delta)] + ([(_Z, s.z)] if s.z is not None else [])
    of_step = [job.input(cb, _lanes(x)) for cb, x in steps]
    if s.live is not None:
        live = np.repeat(s.live, s.branch, axis=1)[:, :channels].astype(F32)
        of_step.append(job.input(_MASK, _lanes(live.reshape(s.out.shape), "bfloat16")))
    if s.sums is not None:
        of_step.append(job.input(_SUMS, _lanes(s.sums)))
    # What stays on the core for a piece is read once: there is no room for that of the next piece beside it.
    once, before, after = [], None, None
    if states:
        once.append((job.input(_A, _lanes(s.a.T), states), states))
        job.cb(_H, "float32", states)
    once += [(job.input(cb, _lanes(x), 1), 1) for cb, x in ((_D, s.d), (_BIAS, s.bias)) if x is not None]
    for cb in (_STEP, _GAIN, _Y):
        job.cb(cb, "float32", 1)
    out = job.output(_OUT, format_of(s.out.dtype), (members * length * across, 1))
    if s.state is not None and states:
        before = job.input(_BEFORE, _lanes(s.state.swapaxes(-1, -2)))
        after = job.output(_AFTER, "float32", (members * states * across, 1))
    scalars = [job.scalars(cb, x) for cb, x in ((_B, s.b), (_C, s.c))] if states else []
    return _Streams(of_step, scalars, once, before, out, after)


def _text(job: Job, s: Scan, streams: _Streams) -> None:
    """Write the text: states come, steps of time pass, states go."""
    k, states = job.k, s.a.shape[-1]
    held = [(_A, states)] * bool(states) + [
        (cb, 1) for cb, x in ((_D, s.d), (_BIAS, s.bias)) if x is not None
    ]
    job.first = [k.cb_wait_front(cb, count) for cb, count in held]
    for _ in range(states):
        if streams.before is None:
            job.first += [k.tile_regs_acquire(), *hand_over(k, (0, _H))]
        else:
            job.first += [k.cb_wait_front(_BEFORE, 1), k.tile_regs_acquire(), k.copy_tile(_BEFORE, 0, 0)]
            job.first += [k.cb_pop_front(_BEFORE, 1), *hand_over(k, (0, _H))]
    job.again = _step(job, s, states)
    for _ in range(states):
        job.last += [k.cb_wait_front(_H, 1)]
        if streams.after is not None:
            job.last += [k.tile_regs_acquire(), k.copy_tile(_H, 0, 0), *hand_over(k, (0, _AFTER))]
        job.last += [k.cb_pop_front(_H, 1)]
    job.last += [k.cb_pop_front(cb, count) for cb, count in held]


def _piece(job: Job, streams: _Streams, sizes: tuple[int, int, int], member: int, lane: int) -> None:
    """Add the scan of a tile of channels of one member; ``sizes`` are steps, states and tiles of channels."""
    length, states, across = sizes
    time, numbers = np.arange(length), np.arange(states)
    kinds, pages = [], []
    for stream, count in streams.once:
        kinds += [stream] * count
        pages += list(np.arange(count) * across + lane)
    own = (member * states + numbers) * across + lane
    if streams.before is not None:
        kinds += [streams.before] * states
        pages += list(own)
    places = (member * length + time) * across + lane
    each = [places[:, None]] * len(streams.steps)
    again = list(streams.steps)
    if states:
        both = (member * length + time)[:, None, None] * states + numbers[None, :, None]
        each.append(np.repeat(both, 2, axis=2).reshape(length, 2 * states))
        again += streams.scalars * states
    table = np.concatenate(each, axis=1).reshape(-1)
    reads = np.concatenate([kinds, np.tile(again, length)]), np.concatenate([pages, table])
    outs, written = [streams.out] * length, places
    if streams.after is not None:
        outs, written = outs + [streams.after] * states, np.concatenate([places, own])
    job.piece(reads, (outs, written), length)


def _groups(l1: int, s: Scan) -> int:
    """Return in how many groups states fit a core's L1, beside what is read and written as time passes."""
    tile, states = tile_bytes("float32"), s.a.shape[-1]
    streams = 5 + (s.z is not None) + (s.live is not None) + 2 * (s.state is not None)
    # What is there once: steps, gains, sums, D, the bias, and room for what lies at a boundary.
    fixed = [tile * (2 * CHUNK * (streams + sums) + 8) for sums in (0, 1)]
    whole, part = (max(1, (l1 - taken) // (2 * tile)) for taken in fixed)
    return 1 if states <= whole else -(-states // part)


def run(where: Run, s: Scan) -> Iterator[Outcome]:
    """Write what :meth:`prunus.engines.base.Engine.scan` says; yield what ran."""
    states = s.a.shape[-1]
    groups = _groups(where.chip.l1_bytes(), s)
    each = -(-states // groups)
    sums = None
    for number in range(groups):
        own = slice(number * each, (number + 1) * each)
        state = None if s.state is None else s.state[..., own]
        part = replace(s, a=s.a[..., own], b=s.b[..., own], c=s.c[..., own], state=state, sums=sums)
        if number + 1 < groups:
            # The last group has what comes after the sums.
            sums = np.zeros(s.out.shape, F32)
            part = replace(part, d=None, z=None, live=None, out=sums)
        outcome = _run(where, part)
        if outcome is not None:
            yield outcome


@in_turn
def _run(where: Run, s: Scan) -> Outcome | None:
    """Run the scan of states that one core holds; return None where there is nothing to do."""
    *batch, length, channels = s.out.shape
    states, members = s.a.shape[-1], math.prod(batch)
    if not channels * members or not length:
        return None
    across = -(-channels // _LANES)
    job = Job(where)
    streams = _streams(job, s, across)
    _text(job, s, streams)
    for member in range(members):
        for lane in range(across):
            _piece(job, streams, (length, states, across), member, lane)
    outcome = job.run()
    if outcome.outputs:
        whole = outcome.outputs[0].reshape(-1, across * _LANES)[:, :channels]
        s.out[...] = whole.reshape(s.out.shape)
        if streams.after is not None and s.state is not None:
            last = outcome.outputs[1].reshape(-1, across * _LANES)[:, :channels]
            s.state[...] = last.reshape(*s.state.shape[:-2], states, channels).swapaxes(-1, -2)
    return outcome
