"""pr.matmul and pr.sddmm: shapes, dtypes, out=, bias and activation, on the reference and the CPU engine."""

import contextvars
import math
import threading

import ml_dtypes
import numpy as np
import pytest

import prunus as pr
from prunus import engines

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64, I8, I32 = (np.dtype(t) for t in (np.float16, np.float32, np.float64, np.int8, np.int32))
RESULTS = {
    (F32, F32): F32, (F64, F64): F64, (F16, F16): F16, (BF16, BF16): BF16, (I8, I8): I32, (F64, F32): F64,
    (F64, F16): F64, (F64, BF16): F64, (F32, F16): F32, (F32, BF16): F32, (F16, BF16): F32, (I8, F16): F16,
    (I8, BF16): BF16, (I8, F32): F32, (I8, F64): F64,
}  # fmt: skip


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def engine(request):
    with pr.device(request.param) as engine:
        yield engine


def small(shape, dtype=np.float32, density=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(-2, 3, shape) * (rng.random(shape) < density)).astype(dtype)


def exact(a, b):
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("pair", RESULTS, ids=str)
def test_result_dtypes(pair):
    for a, b in {pair, pair[::-1]}:
        w, x = small((5, 6), a), small((6, 4), b, seed=1)
        W, X = pr.BSR(w, blocksize=(2, 3)), pr.BSR(x, blocksize=(3, 2))
        for got in (W @ x, w @ X, (W @ X).toarray(), pr.matmul(w, x), pr.matmul(W, x, densify=True)):
            assert got.dtype == RESULTS[pair]
            np.testing.assert_array_equal(got.astype(np.float64), exact(w, x))
        scores = pr.sddmm(w, x, pr.BlockMask.full((5, 4), 2))
        assert scores.dtype == RESULTS[pair]
        np.testing.assert_array_equal(scores.toarray().astype(np.float64), exact(w, x))


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("operand", [F16, BF16, F32, F64, I8])
def test_dtype_overrides(operand, dtype):
    w, x = small((5, 6), operand), small((6, 4), operand, seed=1)
    got = pr.matmul(pr.BSR(w, blocksize=2), x, dtype=dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.float64), exact(w, x))
    with pytest.raises(TypeError, match="result"):
        pr.matmul(pr.BSR(w, blocksize=2), x, dtype=np.int64)


@pytest.mark.parametrize("wide", [(), (2,), (3, 2)])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (2, 6, 4), (3, 1, 6, 4), (3, 2, 6, 4), (0, 6, 4), (2, 6, 0)])
@pytest.mark.parametrize("shared", [True, False])
def test_broadcasting_follows_numpy(wide, shape, shared):
    w, x = small((*wide, 5, 6)), small(shape, seed=1)
    if shared and wide:
        W = pr.BSR.from_mask(pr.BlockMask.random((5, 6), 2, 0.6, 0), w)
        w = W.toarray()
    else:
        W = pr.BSR(w, blocksize=2)
    flipped = x if x.ndim == 1 else x.swapaxes(-1, -2)
    try:
        expected = np.matmul(w, x)
    except ValueError:
        with pytest.raises(ValueError, match="broadcast"):
            W @ x
        with pytest.raises(ValueError, match="broadcast"):
            flipped @ W.T
        return
    np.testing.assert_array_equal(W @ x, expected)
    np.testing.assert_array_equal(flipped @ W.T, np.matmul(flipped, w.swapaxes(-1, -2)))
    np.testing.assert_array_equal(W.T.T @ x, expected)
    out = np.full(expected.shape, 9, np.float32)
    assert pr.matmul(W, x, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_tokens_need_one_call(monkeypatch, engine):
    W, x = pr.BSR(small((5, 6)), blocksize=2), small((3, 4, 6), seed=1)
    calls = []
    monkeypatch.setattr(type(engine), "dsd", lambda self, *args: calls.append(args))
    x @ W.T
    assert len(calls) == 1
    assert calls[0][1].shape == (6, 12)
    assert np.shares_memory(calls[0][1], x)
    np.moveaxis(x, 0, 1) @ W.T  # strides allow no wide matrix: a batch
    assert len(calls) == 2
    assert calls[1][1].shape == (4, 6, 3)


def strided(x):
    """Yield arrays equal to ``x`` with other strides."""
    yield np.asfortranarray(x)
    yield np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3]
    yield x[::-1, ::-1].copy()[::-1, ::-1]
    raw = np.zeros(x.nbytes + 1, np.uint8)
    odd = raw[1:].view(x.dtype).reshape(x.shape)  # not aligned
    odd[...] = x
    yield odd


def test_any_strides_in_and_out():
    w, x = small((5, 6)), small((6, 4), seed=1)
    W = pr.BSR(w, blocksize=(2, 4))
    for operand in strided(x):
        np.testing.assert_array_equal(W @ operand, w @ x)
        np.testing.assert_array_equal(operand.T @ W.T, x.T @ w.T)
    same = np.broadcast_to(x[:, :1], (6, 4))
    np.testing.assert_array_equal(W @ same, w @ same)
    for out in strided(np.zeros((5, 4), np.float32)):
        out.flags.writeable = True
        assert pr.matmul(W, x, out=out) is out
        np.testing.assert_array_equal(out, w @ x)
        assert pr.matmul(x.T, W.T, out=out.T) is not None
        np.testing.assert_array_equal(out, w @ x)


def test_out_is_checked():
    W, x = pr.BSR(small((6, 6)), blocksize=2), small((6, 6), seed=1)
    expected = W.toarray() @ x
    with pytest.raises(ValueError, match="shape"):
        pr.matmul(W, x, out=np.empty((6, 5), np.float32))
    with pytest.raises(TypeError, match="dtype"):
        pr.matmul(W, x, out=np.empty((6, 6)))
    with pytest.raises(TypeError, match="ndarray"):
        pr.matmul(W, x, out=[[0.0] * 6] * 6)
    frozen = np.empty((6, 6), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        pr.matmul(W, x, out=frozen)
    looped = np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (6, 6), (0, 4))
    with pytest.raises(ValueError, match="overlaps itself"):
        pr.matmul(W, x, out=looped)
    sliding = np.lib.stride_tricks.as_strided(np.zeros(40, np.float32), (6, 6), (4, 4))
    pr.matmul(W, x, out=sliding)  # ambiguous, but harmless
    with pytest.raises(TypeError, match="out="):
        pr.matmul(W, W, out=frozen)
    # Overlap with an operand.
    both = x.copy()
    assert pr.matmul(W, both, out=both) is both
    np.testing.assert_array_equal(both, expected)
    buffer = np.zeros((8, 6), np.float32)
    buffer[:6] = x
    pr.matmul(W, buffer[:6], out=buffer[2:])
    np.testing.assert_array_equal(buffer[2:], expected)
    own = W.data.reshape(-1)
    target = np.zeros((6, 6), np.float32) if own.size < 36 else own[:36].reshape(6, 6)
    pr.matmul(W, x, out=target)
    np.testing.assert_array_equal(target, expected)


def erf(value):
    return np.vectorize(math.erf, otypes=[float])(value)


ACTIVATIONS = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "gelu": lambda v: v * 0.5 * (1 + erf(v / math.sqrt(2))),
    "silu": lambda v: v / (1 + np.exp(-v)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
def test_bias_and_activation(activation, with_bias, dtype):
    w, x = small((5, 6), dtype), small((3, 4, 6), dtype, seed=1)
    W = pr.BSR(w, blocksize=2)
    bias = np.array([0.5, -1, 2, 0, -3], dtype) if with_bias else None
    sums = exact(x, w.T) + (0 if bias is None else bias.astype(np.float64))
    tolerance = {F32: 1e-6, F64: 1e-12, F16: 2e-3, BF16: 1e-2}[dtype]
    got = pr.matmul(x, W.T, bias=bias, activation=activation)
    np.testing.assert_allclose(
        got.astype(float), ACTIVATIONS[activation](sums), rtol=tolerance, atol=tolerance
    )
    left = pr.matmul(W, x[0].T, bias=bias, activation=activation)
    np.testing.assert_array_equal(left, got[0].T)
    vector = pr.matmul(W, x[0, 0], bias=bias, activation=activation)
    np.testing.assert_array_equal(vector, got[0, 0])


def test_bias_and_activation_are_checked():
    W, x = pr.BSR(small((5, 6)), blocksize=2), small((6, 4), seed=1)
    with pytest.raises(ValueError, match="activation"):
        pr.matmul(W, x, activation="tanh")
    with pytest.raises(ValueError, match="5 output features"):
        pr.matmul(W, x, bias=np.ones(4, np.float32))
    with pytest.raises(TypeError, match="astype"):
        pr.matmul(W, x, bias=np.ones(5, complex))
    with pytest.raises(TypeError, match="dense result"):
        pr.matmul(W, W.T, bias=np.ones(5, np.float32))
    with pytest.raises(TypeError, match="BSR operand"):
        pr.matmul(x, x.T, activation="relu")
    whole, v = W.astype(np.int8), x.astype(np.int8)
    with pytest.raises(TypeError, match="float32"):
        pr.matmul(whole, v, activation="silu")
    with pytest.raises(TypeError, match="int32"):
        pr.matmul(whole, v, bias=np.ones(5, np.float32))
    sums = exact(whole.toarray(), v)
    got = pr.matmul(whole, v, bias=np.arange(5, dtype=np.int32), activation="relu")
    np.testing.assert_array_equal(got, np.maximum(sums + np.arange(5)[:, None], 0))
    assert pr.matmul(whole, v, bias=np.ones(5, np.float32), dtype=np.float32).dtype == F32


def test_int8_sums_are_exact():
    w = np.full((2, 4096), -128, np.int8)
    x = np.full((4096, 3), -128, np.int8)
    np.testing.assert_array_equal(pr.BSR(w, blocksize=(2, 64)) @ x, np.full((2, 3), 4096 * 128 * 128))


@pytest.mark.parametrize("wide", [((), ()), ((2,), ()), ((), (2,)), ((3, 1), (2,))])
def test_sparse_times_sparse(wide):
    a, b = small((*wide[0], 5, 6), density=0.2), small((*wide[1], 6, 7), density=0.2, seed=1)
    A, B = pr.BSR(a, blocksize=(2, 4)), pr.BSR(b, blocksize=(4, 3))
    got = A @ B
    assert type(got) is pr.BSR
    assert got.blocksize == (2, 3)
    np.testing.assert_array_equal(got.toarray(), a @ b)
    assert got.has_canonical_format
    got.check_format()
    np.testing.assert_array_equal((B.T @ A.T).toarray(), (a @ b).swapaxes(-1, -2))
    np.testing.assert_array_equal(pr.matmul(A, B, dtype=np.float64, densify=True), a @ b)


def test_sparse_times_sparse_limits():
    A = pr.BSR(small((4, 6)), blocksize=(2, 3))
    with pytest.raises(ValueError, match="reblock"):
        A @ pr.BSR(small((6, 4)), blocksize=2)
    with pytest.raises(ValueError, match="inner"):
        A @ A
    assert (A @ pr.BSR(small((6, 4)), blocksize=2).reblock((3, 2))).shape == (4, 4)
    shared = pr.BSR((np.ones((2, 1, 2, 2)), [1], [0, 1, 1]), shape=(2, 4, 4))
    both = shared @ pr.BSR(np.eye(4), blocksize=2).T
    np.testing.assert_array_equal(both.toarray(), shared.toarray())


SIZES = [
    ((), (), ()), ((3,), (), ()), ((), (3,), ()), ((3,), (3,), (3,)), ((2, 3), (3,), (3,)), ((), (), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_sddmm(sizes):
    lead_a, lead_b, lead_m = sizes
    a, b = small((*lead_a, 5, 4), density=1), small((*lead_b, 4, 7), density=1, seed=1)
    mask = pr.BlockMask.random((*lead_m, 5, 7), (2, 3), 0.4, 0)
    got = pr.sddmm(a, b, mask)
    assert type(got) is pr.BSR
    np.testing.assert_array_equal(got.toarray(), np.where(mask.toarray(), a @ b, 0))
    assert got.mask.shape == (5, 7) if not lead_m else got.shape
    got.check_format()
    if not lead_m:
        weights = pr.sddmm(a, b, pr.BSR.from_mask(mask, np.zeros((5, 7))))
        np.testing.assert_array_equal(weights.toarray(), got.toarray())
    assert pr.sddmm(a, b, mask, dtype=np.float64).dtype == F64
    turned = pr.sddmm(b.swapaxes(-1, -2), a.swapaxes(-1, -2), mask.T)
    np.testing.assert_array_equal(turned.toarray(), got.toarray().swapaxes(-1, -2))


def test_sddmm_is_checked():
    a, b, mask = small((4, 6)), small((6, 4)), pr.BlockMask.full((4, 4), 2)
    with pytest.raises(TypeError, match="BlockMask"):
        pr.sddmm(a, b, np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="inner"):
        pr.sddmm(a, a, mask)
    with pytest.raises(ValueError, match="mask"):
        pr.sddmm(a, b, pr.BlockMask.full((4, 6), 2))
    with pytest.raises(ValueError, match="two dimensions"):
        pr.sddmm(a[0], b, mask)
    with pytest.raises(TypeError, match="astype"):
        pr.sddmm(a.astype(int), b, mask)
    with pytest.raises(TypeError, match="dense"):
        pr.sddmm(pr.BSR(a, blocksize=2), b, mask)
    with pytest.raises(ValueError, match="broadcast"):
        pr.sddmm(np.stack([a, a]), np.stack([b, b, b]), mask)


def test_absent_blocks_against_infinities():
    W = pr.BSR(np.diag([1.0, 0.0, 2.0]), blocksize=1)
    x = np.array([[1.0], [np.inf], [np.nan]])
    np.testing.assert_array_equal(W @ x, [[1], [0], [np.nan]])
    present = pr.BSR((np.zeros((1, 1, 1)), [1], [0, 1]), shape=(1, 3))
    assert np.isnan((present @ x)[0, 0])


def test_devices_are_found_by_name(engine):
    assert engine.name in engines.names()
    assert isinstance(engine, engines.Engine)
    with pytest.raises(pr.PrunusError, match="cpu, reference"):
        pr.device("abacus")
    with pytest.raises(TypeError):
        pr.device(3)
    with pr.device("reference"):
        assert engines.active().name == "reference"
        with pr.device("cpu"):
            assert engines.active().name == "cpu"
        assert engines.active().name == "reference"
    assert engines.active() is engine or engine.name == "cpu"


def padded(shape, blocksize, t, seed):
    """A BSR of a ragged shape that holds NaN in its padding, lazily transposed if ``t``, and its values."""
    dense = small(shape, seed=seed)
    stored = pr.BSR.from_mask(
        pr.BlockMask.from_dense(dense.T if t else dense, blocksize), dense.T if t else dense
    )
    (m, n), (br, bc) = stored.shape, stored.blocksize
    rows = np.repeat(np.arange(len(stored.indptr) - 1), np.diff(stored.indptr))
    for block, i, j in zip(stored.data, rows, stored.indices, strict=True):
        block[max(0, m - i * br) :] = np.nan
        block[:, max(0, n - j * bc) :] = np.nan
    return (stored.T if t else stored), dense


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_engines_take_transposes_and_ignore_padding(engine, ta, tb):
    A, a = padded((5, 7), (3, 2) if not ta else (2, 3), ta, 1)
    B, b = padded((7, 9), (2, 4) if not tb else (4, 2), tb, 2)
    C = A @ B
    assert C.blocksize == (3, 4)
    np.testing.assert_array_equal(C.toarray(), a @ b)
    C.check_format()
    np.testing.assert_array_equal(A @ b, a @ b)
    np.testing.assert_array_equal(a @ B, a @ b)


@pytest.mark.parametrize("form", ["shared", "own"])
@pytest.mark.parametrize("t", [False, True])
def test_a_batch_is_one_call(engine, monkeypatch, form, t):
    w = small((2, 1, 5, 6), seed=3)
    w[0, 0, :2] = 0
    if form == "own":
        W = pr.BSR(w, blocksize=(2, 3))
    else:
        W = pr.BSR.from_mask(pr.BlockMask.from_dense(w[1, 0], (2, 3)), w)
    W, w = (W.T, W.toarray().swapaxes(-1, -2)) if t else (W, W.toarray())
    x = small((3, w.shape[-1], 4), seed=4)
    calls = []
    run = type(engine).dsd
    monkeypatch.setattr(type(engine), "dsd", lambda self, *args: (calls.append(1), run(self, *args))[1])
    np.testing.assert_array_equal(W @ x, w @ x)
    np.testing.assert_array_equal(W @ x[0, :, 0], w @ x[0, :, 0])
    np.testing.assert_array_equal(small((4, w.shape[-2])) @ W, small((4, w.shape[-2])) @ w)
    assert len(calls) == 3


def test_many_members_with_patterns_of_their_own(engine):
    rng = np.random.default_rng(5)
    w = small((40, 8, 8), seed=6) * (rng.random((40, 8, 8)) < 0.1)
    W = pr.BSR(w.astype(np.float32), blocksize=2)
    x = small((40, 8, 3), seed=7)
    np.testing.assert_array_equal(W[5:] @ x[5:], w[5:] @ x[5:])
    S = pr.sddmm(x, x.swapaxes(-1, -2), W.mask)
    expected = (x @ x.swapaxes(-1, -2)) * W.mask.toarray()
    np.testing.assert_array_equal(S.toarray(), expected)


def test_engines_can_be_added(monkeypatch, engine):
    class Counting(type(engine)):
        name = "counting"

        def dsd(self, *args):
            self.calls = getattr(self, "calls", 0) + 1
            super().dsd(*args)

    monkeypatch.setattr(engines, "_MAKERS", dict(engines._MAKERS))
    engines.register("counting", Counting)
    W = pr.BSR(np.eye(4), blocksize=2)
    with pr.device("counting") as chip:
        np.testing.assert_array_equal(W @ np.ones(4), np.ones(4))
        np.testing.assert_array_equal(np.ones(4) @ W, np.ones(4))
    assert chip.calls == 2


def test_threads():
    before = pr.get_num_threads()
    assert before >= 1
    with pr.num_threads(3) as used:
        assert pr.get_num_threads() == 3
        assert repr(used) == "num_threads(3)"
        with pr.num_threads(1):
            assert pr.get_num_threads() == 1
        assert pr.get_num_threads() == 3
        seen = []
        thread = threading.Thread(target=lambda: seen.append(pr.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [before]
    assert pr.get_num_threads() == before
    contextvars.copy_context().run(lambda: pr.num_threads(2))
    assert pr.get_num_threads() == before
    with used:
        assert pr.get_num_threads() == 3
    assert pr.get_num_threads() == before
    for bad in (0, -1, 10**9):
        with pytest.raises(ValueError, match="from 1"):
            pr.num_threads(bad)
    for bad in (1.0, "2", None, True):
        with pytest.raises(TypeError):
            pr.num_threads(bad)
    assert pr.get_num_threads() == before
