"""What the suites share: operands of every kind, and how far a product may be from exact arithmetic.

Bounds
------
A product is compared with the same sum in float64 over the operands' stored values, element by element. With
``K`` terms, whatever their order, with or without fused multiply-adds, the error is at most

    (K + 2) * eps(sums) * (|a| @ |b|)  +  eps(result) * |exact|  +  tiny(result)
    + rounding(operands) * (|a| @ |b|)

(Higham, *Accuracy and Stability of Numerical Algorithms*, 3.1; eps is twice the unit roundoff, which covers
the second-order terms). ``sums`` is float32, or float64 where an operand or the result is float64; the
second term is the one rounding of the result, and ``tiny`` what it loses among subnormal numbers.
``rounding`` is what the active engine declares that its products lose of their operands: nothing but on
simulated chips. Integers are exact.
"""

import contextlib
import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import prunus as pr
from prunus import engines

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64, I8, I32 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int8, np.int32))
FLOATS = [F32, F64, F16, BF16]
OPERANDS = [*FLOATS, I8]


def natural(a, b):
    """DESIGN "Types": the dtype of a product, said once more and independently of the package."""
    if a == b:
        return I32 if a == I8 else a
    if I8 in (a, b):
        return b if a == I8 else a
    return F64 if F64 in (a, b) else F32


def values(rng, shape, dtype):
    """Random values: normal floats, the whole range of int8."""
    if dtype == I8:
        return rng.integers(-128, 128, shape, dtype=np.int8)
    return rng.standard_normal(shape).astype(dtype)


def sparse(rng, shape, blocksize, dtype=F32, density=0.4, poison=True):
    """A BSR with random blocks; with ``poison`` its padding holds NaN, or 99 where there is none."""
    br, bc = blocksize
    *batch, m, k = shape
    mask = pr.BlockMask.random((m, k), blocksize, density, rng)
    data = values(rng, (*batch, len(mask.indices), br, bc), dtype)
    W = pr.BSR((data, mask.indices.copy(), mask.indptr.copy()), shape=shape)
    return poisoned(W) if poison else W


def poisoned(W):
    """Write what must never be seen into the parts of blocks that hang over the edge."""
    bad = 99 if W.dtype.kind == "i" else np.nan
    br, bc = W.data.shape[-2:]
    (m, k), indptr = W.shape[-2:], W.indptr.reshape(-1, W.indptr.shape[-1])
    for offsets in indptr:
        for row in range(len(offsets) - 1):
            for e in range(offsets[row], offsets[row + 1]):
                W.data[..., e, max(m - row * br, 0) :, :] = bad
                W.data[..., e, :, max(k - W.indices[e] * bc, 0) :] = bad
    return W


def dense(W):
    """W as float64, block by block in plain Python: absent blocks are 0."""
    br, bc = W.data.shape[-2:]
    *batch, m, k = W.shape
    out = np.zeros((*batch, m + br, k + bc))
    for at in np.ndindex(*batch):
        own = W.indptr.ndim > 1
        offsets, data = (W.indptr[at], W.data) if own else (W.indptr, W.data[at])
        for row in range(len(offsets) - 1):
            for e in range(offsets[row], offsets[row + 1]):
                i, j = row * br, W.indices[e] * bc
                out[(*at, slice(i, i + br), slice(j, j + bc))] += data[e].astype(np.float64)
    return out[..., :m, :k]


def eps(dtype):
    return 0.0 if dtype.kind == "i" else float(ml_dtypes.finfo(dtype).eps)


def rounding(dtype):
    """What products of the active engine lose of operands of ``dtype``, before they are summed."""
    return engines.active().rounding(dtype)


def worst():
    """The largest rounding of any operands."""
    engine = engines.active()
    return max(engine.rounding(dtype) for dtype in OPERANDS if dtype in engine.dtypes)


def widest():
    """The widest float that the active engine has."""
    return F64 if F64 in engines.active().dtypes else F32


def interpreted():
    """Whether the active engine's kernels run in an interpreter, where every step takes its time."""
    return bool(getattr(getattr(engines.active(), "where", None), "interpreted", False))


def floats():
    """The floats that the active engine has."""
    return [dtype for dtype in FLOATS if dtype in engines.active().dtypes]


@contextlib.contextmanager
def declared(dtype):
    """What is done with a dtype: as usual where the active engine declares it, refused by name elsewhere."""
    if dtype in engines.active().dtypes:
        yield
        return
    with pytest.raises(pr.tensix.UnsupportedError, match=f"has no {dtype.name}"):
        yield


def bound(a, b, kind, sums=None, more=0):
    """The largest error of ``a @ b`` (float64 arrays) that is rounded to ``kind``, with ``more`` terms."""
    if kind.kind == "i":
        return 0.0
    # Operands of a result that was asked for may be of any dtype; and so may those of float32.
    lost = worst() if sums is not None or kind == F32 else rounding(kind)
    sums = sums or (F64 if kind == F64 else F32)
    terms = a.shape[-1] + more
    with np.errstate(all="ignore"):
        size = np.abs(a) @ np.abs(b)
        tiny = float(ml_dtypes.finfo(kind).smallest_normal)
        return ((terms + 2) * eps(sums) + lost) * size + eps(kind) * np.abs(a @ b) + tiny


def check(got, a, b, kind, sums=None):
    """Assert that ``got`` is ``a @ b`` (float64 arrays) in ``kind``, up to the bound."""
    assert type(got) is np.ndarray
    assert got.dtype == kind
    expected = a @ b
    assert got.shape == expected.shape
    close(got, expected, bound(a, b, kind, sums))


def close(got, expected, error):
    got = got.astype(np.float64)
    worst = np.abs(got - expected) - error
    assert not np.isnan(worst).any(), "NaN where there should be none"
    assert (worst <= 0).all(), f"off by {worst.max()} more than the bound"


def layouts(x):
    """Arrays equal to ``x`` (two dimensions) with every kind of strides, by name."""
    m, n = x.shape
    wide = np.full((2 * m + 1, 3 * n + 1), 77, x.dtype)
    wide[1 : 2 * m + 1 : 2, 1 : 3 * n + 1 : 3] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    odd = raw[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    return {
        "C": np.ascontiguousarray(x),
        "F": np.asfortranarray(x),
        "sliced": wide[1 : 2 * m + 1 : 2, 1 : 3 * n + 1 : 3],
        "reversed": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "reversed F": np.asfortranarray(x[::-1])[::-1],
        "unaligned": odd,
    }


def scan_operands(rng, batch=(2,), length=21, channels=19, states=5, dtype=F32, params=F32):
    """Operands of a selective scan in the ranges that trained models have."""
    return {
        "u": values(rng, (*batch, length, channels), dtype),
        "delta": rng.uniform(0.001, 0.3, (*batch, length, channels)).astype(dtype),
        "A": -rng.uniform(0.1, 8, (channels, states)).astype(params),
        "B": values(rng, (*batch, length, states), dtype),
        "C": values(rng, (*batch, length, states), dtype),
        "D": values(rng, channels, params),
        "z": values(rng, (*batch, length, channels), dtype),
        "delta_bias": rng.uniform(0, 0.3, channels).astype(params),
    }


def run_python(code, *arguments, timeout=120, **environment):
    """Run a script in a Python of its own; return (exit status, stdout, stderr).

    A script that hangs is ended with all its children and fails the test.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PRUNUS_") or k == "PRUNUS_SIMD"}
    posix = sys.platform != "win32"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**variables, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=posix,
    )
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if posix:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        out, error = process.communicate()
        pytest.fail(f"still running after {timeout} s; it said {out!r} and {error!r}")
    return process.returncode, out, error
