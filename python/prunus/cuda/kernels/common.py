"""What kernels share: activations, and reading the blocks of a pattern."""

import triton
import triton.language as tl


@triton.jit
def cast(value, DTYPE: tl.constexpr):
    """Convert a tile; bfloat16 by way of float32, as the interpreter knows no other."""
    if value.dtype == DTYPE:
        return value
    if value.dtype == tl.bfloat16 or tl.bfloat16 == DTYPE:
        return value.to(tl.float32).to(DTYPE)
    return value.to(DTYPE)


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """Return an activation of a tile by name; NaN stays NaN."""
    if ACTIVATION == "relu":
        value = tl.where(value < 0, 0, value)
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "silu":
        value = value / (1 + tl.exp(-value))
    return value


@triton.jit
def finish(acc, bias, row, rows, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr):
    """Return ``activation(acc + bias[row])`` in ``WIDE``, with one bias for each row of a tile."""
    if BIAS or ACTIVATION is not None:
        acc = cast(acc, WIDE)
    if BIAS:
        acc += cast(tl.load(bias + row, row < rows, 0), WIDE)[:, None]
    return activate(acc, ACTIVATION)


@triton.jit
def count_up_to(edges, n, value, WIDE: tl.constexpr):
    """Return how many of ``n`` ascending entries are at most ``value``; each look is at ``WIDE`` of them."""
    low = value * 0
    left = low + n
    while left > 0:
        step = (left + WIDE - 1) // WIDE
        at = (tl.arange(0, WIDE) + 1) * step - 1
        below = tl.load(edges + low + at, at < left, 0) <= value
        passed = tl.sum((below & (at < left)).to(tl.int32), 0)
        low += passed * step
        # The entries between the last pivot that is passed and the next one.
        left = tl.minimum(step - 1, left - passed * step)
    return low
