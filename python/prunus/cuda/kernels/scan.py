"""The selective scan of state-space models, and the norms of its gates.

A program has some channels of one member of the batch, whose states stay in registers while it walks the
steps. The recurrence is that of Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
Spaces" (2023), algorithm 2.
"""

import triton
import triton.language as tl


@triton.jit
def _inputs(
    u,
    delta,
    b,
    c,
    t,
    shift,
    here,
    states,
    u_row,
    delta_row,
    b_row,
    c_row,
    b_col,
    c_col,
    SOFTPLUS: tl.constexpr,
    SUMS: tl.constexpr,
    TS: tl.constexpr,
):
    """Return a step's inputs, step sizes, and what writes to and reads from the states."""
    t = tl.full((), t, tl.int64)
    state = tl.arange(0, TS)
    x = tl.load(u + t * u_row, here, 0).to(SUMS)
    size = tl.load(delta + t * delta_row, here, 0).to(SUMS) + shift
    if SOFTPLUS:
        # log1p(e), where 1 + e rounds: the rounding of 1 + e cancels (Higham, problem 1.5).
        e = tl.exp(-tl.abs(size))
        one = 1 + e
        size = tl.maximum(size, 0) + tl.where(one == 1, e, tl.log(one) * (e / tl.where(one == 1, 1, one - 1)))
    write = tl.load(b + t * b_row + state * b_col, state < states, 0).to(SUMS)
    read = tl.load(c + t * c_row + state * c_col, state < states, 0).to(SUMS)
    return x, size, write, read


@triton.jit
def _advance(h, x, size, write, read, rates, states, EVEN: tl.constexpr, TS: tl.constexpr):
    """Return the states (states, channels) after a step, and what is read from them."""
    h = tl.exp2(size[None, :] * rates) * h + (size * x)[None, :] * write[:, None]
    terms = h * read[:, None]
    if not EVEN:
        terms = tl.where((tl.arange(0, TS) < states)[:, None], terms, 0)
    return h, tl.sum(terms, 0)


@triton.jit
def _output(
    y,
    x,
    t,
    skip,
    z,
    live,
    out,
    here,
    z_row,
    out_row,
    branches,
    SKIP: tl.constexpr,
    GATED: tl.constexpr,
    LIVE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Store a step's output."""
    t = tl.full((), t, tl.int64)
    if SKIP:
        y += skip * x
    if GATED:
        gate = tl.load(z + t * z_row, here, 0).to(SUMS)
        y *= gate / (1 + tl.exp(-gate))
    if LIVE:
        y = tl.where(tl.load(live + t * branches, here, 0) != 0, y, 0)
    if out.dtype.element_ty != SUMS:
        # Halves by way of float32, also from float64: no chip converts these at once.
        y = y.to(tl.float32)
    tl.store(out + t * out_row, y.to(out.dtype.element_ty), here)


@triton.jit
def scan(
    u,
    delta,
    a,
    b,
    c,
    d,
    z,
    bias,
    state,
    out,
    live,
    ends,
    length,
    channels,
    states,
    branch,
    branches,
    tiles,
    chunks,
    chunk,
    u_batch,
    u_row,
    u_col,
    delta_batch,
    delta_row,
    delta_col,
    a_row,
    a_col,
    b_batch,
    b_row,
    b_col,
    c_batch,
    c_row,
    c_col,
    d_col,
    z_batch,
    z_row,
    z_col,
    bias_col,
    state_batch,
    state_row,
    state_col,
    out_batch,
    out_row,
    out_col,
    starts,
    SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr,
    SKIP: tl.constexpr,
    GATED: tl.constexpr,
    STATE: tl.constexpr,
    LIVE: tl.constexpr,
    CHUNKED: tl.constexpr,
    EVEN: tl.constexpr,
    AHEAD: tl.constexpr,
    SUMS: tl.constexpr,
    TC: tl.constexpr,
    TS: tl.constexpr,
):
    """Write the outputs of ``TC`` channels of a member, step by step.

    With ``STATE``, states are read from and written to ``state``. Without, and with ``LIVE``, a program ends
    with its channels' last live step, ``ends`` (members, branches).

    With ``CHUNKED``, a program has ``chunk`` steps, and its states before them come from ``starts``,
    (members, chunks + 1, states, channels); whoever wrote those has written the state after the last step.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    part = pid // tiles % chunks
    member = (pid // tiles // chunks).to(tl.int64)
    channel = tile * TC + tl.arange(0, TC)
    here = channel < channels
    away = channel.to(tl.int64)
    s = tl.arange(0, TS)
    both = (s < states)[:, None] & here[None, :]
    rates = tl.load(a + away[None, :] * a_row + s[:, None] * a_col, both, 0).to(SUMS) * 1.4426950408889634
    shift = tl.zeros((TC,), SUMS)
    if BIAS:
        shift += tl.load(bias + away * bias_col, here, 0).to(SUMS)
    skip = tl.zeros((TC,), SUMS)
    if SKIP:
        skip += tl.load(d + away * d_col, here, 0).to(SUMS)
    u += member * u_batch + away * u_col
    delta += member * delta_batch + away * delta_col
    b += member * b_batch
    c += member * c_batch
    z += member * z_batch + away * z_col
    out += member * out_batch + away * out_col
    live += member * length * branches + channel // branch
    place = state + member * state_batch + away[None, :] * state_row + s[:, None] * state_col
    begin = 0
    stop = length
    if LIVE and not STATE:
        stop = tl.minimum(tl.max(tl.load(ends + member * branches + channel // branch, here, 0), 0), length)
    h = tl.zeros((TS, TC), SUMS)
    if CHUNKED:
        begin = part * chunk
        stop = tl.minimum(begin + chunk, stop)
        first = starts + ((member * (chunks + 1) + part) * states + s)[:, None] * channels + channel[None, :]
        h = tl.load(first, both, 0)
    elif STATE:
        h = tl.load(place, both, 0)
    whole = begin
    if AHEAD:
        whole += tl.maximum(stop - begin, 0) // 4 * 4
    for t in range(begin, whole, 4):
        # The inputs of four steps first, so that they are on their way together; of float64, registers do
        # not hold that many.
        x0, size0, write0, read0 = _inputs(
            u, delta, b, c, t, shift, here, states,
            u_row, delta_row, b_row, c_row, b_col, c_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        x1, size1, write1, read1 = _inputs(
            u, delta, b, c, t + 1, shift, here, states,
            u_row, delta_row, b_row, c_row, b_col, c_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        x2, size2, write2, read2 = _inputs(
            u, delta, b, c, t + 2, shift, here, states,
            u_row, delta_row, b_row, c_row, b_col, c_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        x3, size3, write3, read3 = _inputs(
            u, delta, b, c, t + 3, shift, here, states,
            u_row, delta_row, b_row, c_row, b_col, c_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        h, y0 = _advance(h, x0, size0, write0, read0, rates, states, EVEN, TS)
        h, y1 = _advance(h, x1, size1, write1, read1, rates, states, EVEN, TS)
        h, y2 = _advance(h, x2, size2, write2, read2, rates, states, EVEN, TS)
        h, y3 = _advance(h, x3, size3, write3, read3, rates, states, EVEN, TS)
        _output(y0, x0, t, skip, z, live, out, here, z_row, out_row, branches, SKIP, GATED, LIVE, SUMS)
        _output(y1, x1, t + 1, skip, z, live, out, here, z_row, out_row, branches, SKIP, GATED, LIVE, SUMS)
        _output(y2, x2, t + 2, skip, z, live, out, here, z_row, out_row, branches, SKIP, GATED, LIVE, SUMS)
        _output(y3, x3, t + 3, skip, z, live, out, here, z_row, out_row, branches, SKIP, GATED, LIVE, SUMS)
    for t in range(whole, stop):
        x, size, write, read = _inputs(
            u, delta, b, c, t, shift, here, states,
            u_row, delta_row, b_row, c_row, b_col, c_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        h, y = _advance(h, x, size, write, read, rates, states, EVEN, TS)
        _output(y, x, t, skip, z, live, out, here, z_row, out_row, branches, SKIP, GATED, LIVE, SUMS)
    if STATE and not CHUNKED:
        tl.store(place, h, both)


@triton.jit
def pieces(
    u,
    delta,
    a,
    b,
    bias,
    starts,
    decays,
    length,
    channels,
    states,
    tiles,
    chunks,
    chunk,
    u_batch,
    u_row,
    u_col,
    delta_batch,
    delta_row,
    delta_col,
    a_row,
    a_col,
    b_batch,
    b_row,
    b_col,
    bias_col,
    SOFTPLUS: tl.constexpr,
    BIAS: tl.constexpr,
    SUMS: tl.constexpr,
    TC: tl.constexpr,
    TS: tl.constexpr,
):
    """Write what a chunk of steps makes of states of zeros, and the sums of its step sizes.

    The first go to ``starts`` (members, chunks + 1, states, channels), one chunk on; the second to ``decays``
    (members, chunks, channels): a chunk multiplies states by ``exp(sum * rate)``.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    part = pid // tiles % chunks
    member = (pid // tiles // chunks).to(tl.int64)
    channel = tile * TC + tl.arange(0, TC)
    here = channel < channels
    away = channel.to(tl.int64)
    s = tl.arange(0, TS)
    both = (s < states)[:, None] & here[None, :]
    rates = tl.load(a + away[None, :] * a_row + s[:, None] * a_col, both, 0).to(SUMS) * 1.4426950408889634
    shift = tl.zeros((TC,), SUMS)
    if BIAS:
        shift += tl.load(bias + away * bias_col, here, 0).to(SUMS)
    u += member * u_batch + away * u_col
    delta += member * delta_batch + away * delta_col
    b += member * b_batch
    h = tl.zeros((TS, TC), SUMS)
    span = tl.zeros((TC,), SUMS)
    for t in range(part * chunk, tl.minimum(part * chunk + chunk, length)):
        x, size, write, _ = _inputs(
            u, delta, b, b, t, shift, here, states,
            u_row, delta_row, b_row, b_row, b_col, b_col, SOFTPLUS, SUMS, TS,
        )  # fmt: skip
        h = tl.exp2(size[None, :] * rates) * h + (size * x)[None, :] * write[:, None]
        span += size
    last = starts + ((member * (chunks + 1) + part + 1) * states + s)[:, None] * channels + channel[None, :]
    tl.store(last, h, both)
    tl.store(decays + (member * chunks + part) * channels + channel, span, here)


@triton.jit
def chain(
    a,
    state,
    starts,
    decays,
    channels,
    states,
    tiles,
    chunks,
    a_row,
    a_col,
    state_batch,
    state_row,
    state_col,
    STATE: tl.constexpr,
    SUMS: tl.constexpr,
    TC: tl.constexpr,
    TS: tl.constexpr,
):
    """Make of what each chunk does to zeros the states before each, in order; the last go to ``state``."""
    pid = tl.program_id(0)
    channel = pid % tiles * TC + tl.arange(0, TC)
    member = (pid // tiles).to(tl.int64)
    here = channel < channels
    away = channel.to(tl.int64)
    s = tl.arange(0, TS)
    both = (s < states)[:, None] & here[None, :]
    rates = tl.load(a + away[None, :] * a_row + s[:, None] * a_col, both, 0).to(SUMS) * 1.4426950408889634
    place = state + member * state_batch + away[None, :] * state_row + s[:, None] * state_col
    h = tl.zeros((TS, TC), SUMS)
    if STATE:
        h = tl.load(place, both, 0)
    at = starts + (member * (chunks + 1) * states + s)[:, None] * channels + channel[None, :]
    tl.store(at, h, both)
    for part in range(0, chunks):
        at += tl.full((), channels, tl.int64) * states
        span = tl.load(decays + (member * chunks + part) * channels + channel, here, 0)
        h = tl.exp2(span[None, :] * rates) * h + tl.load(at, both, 0)
        tl.store(at, h, both)
    if STATE:
        tl.store(place, h, both)


@triton.jit
def ends(live, out, length, branches, tiles, TB: tl.constexpr, TT: tl.constexpr):
    """Write how many steps it is to the last live one of (members, length, branches), for each branch."""
    pid = tl.program_id(0)
    branch = pid % tiles * TB + tl.arange(0, TB)
    member = (pid // tiles).to(tl.int64)
    here = branch < branches
    live += member * length * branches
    most = tl.zeros((TB,), tl.int32)
    for at in range(0, length, TT):
        t = at + tl.arange(0, TT)
        there = (t < length)[:, None] & here[None, :]
        bits = tl.load(live + t.to(tl.int64)[:, None] * branches + branch[None, :], there, 0) != 0
        most = tl.maximum(most, tl.max(tl.where(bits, t[:, None] + 1, 0), 0))
    tl.store(out + member * branches + branch, most, here)


@triton.jit
def gates(
    z,
    norms,
    rows,
    length,
    channels,
    branch,
    branches,
    tiles,
    z_batch,
    z_row,
    z_col,
    SQUARES: tl.constexpr,
    SUMS: tl.constexpr,
    TR: tl.constexpr,
    TB: tl.constexpr,
    TW: tl.constexpr,
):
    """Write the norms (rows, branches) of ``silu(z)`` over neighbouring channels; NaN where one is.

    Squares are summed in float64: those of float32 neither overflow nor vanish.
    """
    pid = tl.program_id(0)
    at = pid % tiles * TB + tl.arange(0, TB)
    row = pid // tiles * TR + tl.arange(0, TR)
    first = z + (row // length).to(tl.int64) * z_batch + (row % length).to(tl.int64) * z_row
    worst = tl.zeros((TR, TB), tl.float64 if SQUARES else SUMS)
    some = tl.zeros((TR, TB), tl.int32)
    for ahead in range(0, branch, TW):
        within = ahead + tl.arange(0, TW)
        channel = at[:, None] * branch + within[None, :]
        there = (row < rows)[:, None, None] & ((channel < channels) & (within < branch)[None, :])[None, :, :]
        value = tl.load(first[:, None, None] + channel.to(tl.int64)[None, :, :] * z_col, there, 0).to(SUMS)
        gate = value / (1 + tl.exp(-value))
        if SQUARES:
            wide = gate.to(tl.float64)
            worst += tl.sum(wide * wide, 2)
        else:
            broken = tl.max((gate != gate).to(tl.int32), 2) > 0
            largest = tl.where(broken, float("nan"), tl.max(tl.where(gate != gate, 0, tl.abs(gate)), 2))
            worst = tl.where((worst != worst) | broken, float("nan"), tl.maximum(worst, largest))
        some = tl.maximum(some, tl.max((value != 0).to(tl.int32), 2))
    if SQUARES:
        worst = tl.sqrt(worst)
    norm = worst.to(tl.float32)
    # What contributes is not dead at threshold 0, be it below what float32 holds: the least of it stands in.
    norm = tl.where((norm == 0) & (some > 0), 1.401298464324817e-45, norm)
    keep = (row < rows)[:, None] & (at < branches)[None, :]
    tl.store(norms + row.to(tl.int64)[:, None] * branches + at[None, :], norm, keep)
