"""Block-sparse times block-sparse: each block of the result walks its list of pairs of blocks."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit(do_not_specialize=["room"])
def ssd(
    a,
    b,
    left,
    right,
    inner_of,
    starts,
    rows,
    cols,
    a_starts,
    b_starts,
    out,
    M,
    N,
    K,
    room,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    MEMBERS: tl.constexpr,
    FAR: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of a block of ``a @ b``: of its pairs of stored blocks, ``left`` times ``right``.

    ``starts`` says which pairs a block of the result has, ``rows`` and ``cols`` where it is, and ``inner_of``
    which columns of ``a`` a pair's product runs over. With ``MEMBERS``, those of a batch have the same pairs:
    blocks of a member's operands begin at ``a_starts`` and ``b_starts``, and it has ``room`` blocks of the
    result. With ``FAR``, what a block's pairs run over is counted beyond 32 bits.
    """
    DOWN: tl.constexpr = (BR + TM - 1) // TM
    ACROSS: tl.constexpr = (BC + TN - 1) // TN
    pid = tl.program_id(0)
    o = (pid // (DOWN * ACROSS)).to(tl.int64)
    part = pid % (DOWN * ACROSS)
    if MEMBERS:
        a += tl.load(a_starts + o // room) * (BR * BI)
        b += tl.load(b_starts + o // room) * (BI * BC)
        out += o // room * room * (BR * BC)
        o = o % room
    r = (part // ACROSS) * TM + tl.arange(0, TM)
    c = (part % ACROSS) * TN + tl.arange(0, TN)
    begin = tl.load(starts + o)
    end = tl.load(starts + o + 1)
    valid = (r < BR) & (tl.load(rows + o) * BR + r < M)
    keep = (c < BC) & (tl.load(cols + o) * BC + c < N)
    acc = tl.zeros((TM, TN), SUMS)
    length = (end - begin) * BI
    if not FAR:
        length = length.to(tl.int32)
    for at in range(0, length, TK):
        if BI % TK == 0:
            # A step lies within one pair.
            pair = begin + at // BI
            off = at % BI + tl.arange(0, TK)
            there = tl.load(inner_of + pair) * BI + off < K
            first = a + tl.load(left + pair).to(tl.int64) * (BR * BI)
            second = b + tl.load(right + pair).to(tl.int64) * (BI * BC)
        else:
            flat = at + tl.arange(0, TK)
            there = flat < length
            pair = begin + flat // BI
            off = flat % BI
            there = there & (tl.load(inner_of + pair, there, 0) * BI + off < K)
            first = a + tl.load(left + pair, there, 0).to(tl.int64)[None, :] * (BR * BI)
            second = b + tl.load(right + pair, there, 0).to(tl.int64)[:, None] * (BI * BC)
        if A_TRANSPOSED:
            x = tl.load(first + off[None, :] * BR + r[:, None], valid[:, None] & there[None, :], 0)
        else:
            x = tl.load(first + r[:, None] * BI + off[None, :], valid[:, None] & there[None, :], 0)
        if B_TRANSPOSED:
            y = tl.load(second + c[None, :] * BI + off[:, None], there[:, None] & keep[None, :], 0)
        else:
            y = tl.load(second + off[:, None] * BC + c[None, :], there[:, None] & keep[None, :], 0)
        acc = tl.dot(cast(x, COMPUTE), cast(y, COMPUTE), acc, input_precision=PRECISION, out_dtype=SUMS)
    # A 0 that stands for what is past the edge may have met an infinity.
    acc = tl.where(valid[:, None] & keep[None, :], acc, 0)
    place = out + o * (BR * BC) + r[:, None] * BC + c[None, :]
    # What there is only room for has no pairs, and is left alone.
    height = tl.where(begin < end, BR, 0)
    tl.store(place, cast(acc, out.dtype.element_ty), (r < height)[:, None] & (c < BC)[None, :])


@triton.jit(do_not_specialize=["room", "members"])
def ssd_small(
    a,
    b,
    left,
    right,
    inner_of,
    starts,
    rows,
    cols,
    a_starts,
    b_starts,
    out,
    M,
    N,
    K,
    room,
    members,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    MEMBERS: tl.constexpr,
    FAR: tl.constexpr,
    SUMS: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """As ``ssd``, for blocks that matrix units cannot fill: each value of the result is a sum of its own.

    A step takes ``TK`` positions of each value's list; there are as many as the longest list of a tile needs.
    """
    position = tl.program_id(0).to(tl.int64) * TN + tl.arange(0, TN)
    o = position // (BR * BC)
    rest = (position % (BR * BC)).to(tl.int32)
    r = rest // BC
    c = rest % BC
    member = o // room
    exists = member < members
    o = o % room
    first_a = tl.zeros((TN,), tl.int64)
    first_b = first_a
    if MEMBERS:
        first_a = tl.load(a_starts + member, exists, 0)
        first_b = tl.load(b_starts + member, exists, 0)
    begin = tl.load(starts + o, exists, 0)
    end = tl.load(starts + o + 1, exists, 0)
    exists = exists & (begin < end)
    keep = exists & (tl.load(rows + o, exists, 0) * BR + r < M) & (tl.load(cols + o, exists, 0) * BC + c < N)
    length = tl.where(keep, (end - begin) * BI, 0)
    if not FAR:
        length = length.to(tl.int32)
    most = tl.max(length, 0)
    acc = tl.zeros((TN,), SUMS)
    for at in range(0, most, TK):
        flat = at + tl.arange(0, TK)
        there = flat[None, :] < length[:, None]
        pair = begin[:, None] + (flat // BI)[None, :]
        off = (flat % BI)[None, :]
        there = there & (tl.load(inner_of + pair, there, 0) * BI + off < K)
        first = a + (first_a[:, None] + tl.load(left + pair, there, 0)) * (BR * BI)
        second = b + (first_b[:, None] + tl.load(right + pair, there, 0)) * (BI * BC)
        if A_TRANSPOSED:
            x = tl.load(first + off * BR + r[:, None], there, 0)
        else:
            x = tl.load(first + r[:, None] * BI + off, there, 0)
        if B_TRANSPOSED:
            y = tl.load(second + c[:, None] * BI + off, there, 0)
        else:
            y = tl.load(second + off * BC + c[:, None], there, 0)
        acc += tl.sum(cast(x, SUMS) * cast(y, SUMS), 1)
    tl.store(out + position, cast(acc, out.dtype.element_ty), exists)
