"""Block-sparse times block-sparse at chosen blocks: each merges a row of ``a`` with a column of ``b``."""

import triton
import triton.language as tl

from prunus.cuda.kernels.common import cast


@triton.jit(do_not_specialize=["lines"])
def ssd_at(
    a,
    b,
    a_inner,
    a_starts,
    a_stored,
    b_inner,
    b_starts,
    b_stored,
    rows,
    cols,
    out,
    M,
    N,
    K,
    lines,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    COMPUTE: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    TM: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """Write a tile of a block of ``a @ b``, zeros where no pair of stored blocks meets.

    ``rows`` and ``cols`` say where the blocks are; what is past the last of ``lines`` rows is 0. A row of
    ``a`` has the entries from ``a_starts`` on, whose columns ``a_inner`` ascend, and ``a_stored`` says where
    their blocks are; so it is with the columns of ``b``. Of two lists that ascend, what is less than the
    other's first meets nothing.
    """
    DOWN: tl.constexpr = (BR + TM - 1) // TM
    ACROSS: tl.constexpr = (BC + TN - 1) // TN
    pid = tl.program_id(0)
    o = (pid // (DOWN * ACROSS)).to(tl.int64)
    part = pid % (DOWN * ACROSS)
    r = (part // ACROSS) * TM + tl.arange(0, TM)
    c = (part % ACROSS) * TN + tl.arange(0, TN)
    row = tl.load(rows + o).to(tl.int64)
    col = tl.load(cols + o).to(tl.int64)
    known = row < lines
    valid = (r < BR) & (row * BR + r < M)
    keep = (c < BC) & (col * BC + c < N)
    i = tl.load(a_starts + row, known, 0).to(tl.int64)
    last = tl.load(a_starts + row + 1, known, 0).to(tl.int64)
    j = tl.load(b_starts + col, known, 0).to(tl.int64)
    end = tl.load(b_starts + col + 1, known, 0).to(tl.int64)
    # Equal columns of ``a`` meet the same run of ``b``, which begins at ``j``.
    at = j
    acc = tl.zeros((TM, TN), SUMS)
    while (i < last) & (j < end):
        left = tl.load(a_inner + i)
        right = tl.where(at < end, tl.load(b_inner + at, at < end, 0), left + 1)
        if left == right:
            first = a + tl.load(a_stored + i) * (BR * BI)
            second = b + tl.load(b_stored + at) * (BI * BC)
            for step in range(0, BI, TK):
                off = step + tl.arange(0, TK)
                there = (off < BI) & (left * BI + off < K)
                if A_TRANSPOSED:
                    x = tl.load(first + off[None, :] * BR + r[:, None], valid[:, None] & there[None, :], 0)
                else:
                    x = tl.load(first + r[:, None] * BI + off[None, :], valid[:, None] & there[None, :], 0)
                if B_TRANSPOSED:
                    y = tl.load(second + c[None, :] * BI + off[:, None], there[:, None] & keep[None, :], 0)
                else:
                    y = tl.load(second + off[:, None] * BC + c[None, :], there[:, None] & keep[None, :], 0)
                x, y = cast(x, COMPUTE), cast(y, COMPUTE)
                acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=SUMS)
            at += 1
        else:
            j = tl.where(right < left, at + 1, j)
            i = tl.where(right < left, i, i + 1)
            at = j
    # A 0 that stands for what is past the edge may have met an infinity.
    acc = tl.where(valid[:, None] & keep[None, :], acc, 0)
    place = out + o * (BR * BC) + r[:, None] * BC + c[None, :]
    tl.store(place, cast(acc, out.dtype.element_ty), (r < BR)[:, None] & (c < BC)[None, :])


@triton.jit(do_not_specialize=["lines", "room"])
def ssd_at_small(
    a,
    b,
    a_inner,
    a_starts,
    a_stored,
    b_inner,
    b_starts,
    b_stored,
    rows,
    cols,
    out,
    M,
    N,
    K,
    lines,
    room,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    SUMS: tl.constexpr,
    TN: tl.constexpr,
    TK: tl.constexpr,
):
    """As ``ssd_at``, for blocks that matrix units cannot fill: each value of ``room`` blocks is its own sum.

    The values of a tile merge their lists side by side: a step moves each of them on by one entry.
    """
    position = tl.program_id(0).to(tl.int64) * TN + tl.arange(0, TN)
    o = position // (BR * BC)
    rest = (position % (BR * BC)).to(tl.int32)
    r = rest // BC
    c = rest % BC
    exists = o < room
    row = tl.load(rows + o, exists, 0).to(tl.int64)
    col = tl.load(cols + o, exists, 0).to(tl.int64)
    keep = exists & (row < lines) & (row * BR + r < M) & (col * BC + c < N)
    i = tl.load(a_starts + row, keep, 0).to(tl.int64)
    last = tl.load(a_starts + row + 1, keep, 0).to(tl.int64)
    j = tl.load(b_starts + col, keep, 0).to(tl.int64)
    end = tl.load(b_starts + col + 1, keep, 0).to(tl.int64)
    at = j
    acc = tl.zeros((TN,), SUMS)
    active = (i < last) & (j < end)
    while tl.max(active.to(tl.int32), 0) > 0:
        left = tl.load(a_inner + i, active, 0)
        right = tl.where(at < end, tl.load(b_inner + at, active & (at < end), 0), left + 1)
        meets = active & (left == right)
        if tl.max(meets.to(tl.int32), 0) > 0:
            first = a + tl.load(a_stored + i, meets, 0) * (BR * BI)
            second = b + tl.load(b_stored + at, meets, 0) * (BI * BC)
            for step in range(0, BI, TK):
                off = step + tl.arange(0, TK)
                there = meets[:, None] & (off < BI)[None, :] & (left[:, None] * BI + off[None, :] < K)
                if A_TRANSPOSED:
                    x = tl.load(first[:, None] + off[None, :] * BR + r[:, None], there, 0)
                else:
                    x = tl.load(first[:, None] + r[:, None] * BI + off[None, :], there, 0)
                if B_TRANSPOSED:
                    y = tl.load(second[:, None] + c[:, None] * BI + off[None, :], there, 0)
                else:
                    y = tl.load(second[:, None] + off[None, :] * BC + c[:, None], there, 0)
                acc += tl.sum(cast(x, SUMS) * cast(y, SUMS), 1)
        less = ~meets & (right < left)
        j = tl.where(less, at + 1, j)
        i = tl.where(meets | less, i, i + 1)
        at = tl.where(meets, at + 1, j)
        active = (i < last) & (j < end)
    tl.store(out + position, cast(acc, out.dtype.element_ty), exists)
