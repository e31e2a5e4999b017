"""``linear`` of tensors, against the reference engine's of the same values."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus as pr
from prunus import PrunusError
from prunus.cuda.compaction import compact
from prunus.cuda.compiling.recording import ahead, record
from prunus.interop.torch import as_array

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 4e-2}
FLOATS = list(TOLERANCE)
UNITS, FEATURES = 45, 20


def weights(rng, where, dtype=torch.float32, lead=(19,)):
    """Return x, w and b, of few bits: no rounding turns a decision over."""
    shapes = (*lead, FEATURES), (UNITS, FEATURES), (UNITS,)
    made = (np.round(rng.standard_normal(shape) * 4) / 4 for shape in shapes)
    return [torch.from_numpy(one).to(dtype).to(where.device) for one in made]


def host(value):
    if isinstance(value, pr.cuda.BSR):
        return value.to("cpu")
    return as_array(value.cpu()) if isinstance(value, torch.Tensor) else value


def expected(*parts, **options):
    with pr.device("reference"):
        return pr.linear(*map(host, parts), **options)


def near(got, exact, dtype=torch.float32):
    """Compare with an ndarray, or with a BSR: the same blocks too."""
    assert got.dtype == dtype
    assert tuple(got.shape) == tuple(exact.shape)
    if isinstance(exact, pr.BSR):
        assert isinstance(got, pr.cuda.BSR)
        got = got.to("cpu")
        got.check_format()
        assert got.blocksize == exact.blocksize
        np.testing.assert_array_equal(got.indptr, exact.indptr)
        np.testing.assert_array_equal(got.indices, exact.indices)
        got, exact = got.data.astype(float), exact.data.astype(float)
    else:
        assert isinstance(got, torch.Tensor)
        got, exact = got.double().cpu().numpy(), exact.astype(float)
    atol = TOLERANCE[dtype] * 4 * np.abs(exact).max(initial=1e-3)
    np.testing.assert_allclose(got, exact, rtol=0, atol=atol)


def policies(rng, rows, branches):
    return [
        pr.Threshold(4.0),
        pr.Threshold(9.0, norm="l2"),
        pr.Threshold(1e9),
        pr.Threshold(6.0, rows=3),
        pr.TopK(fraction=0.3),
        pr.Fixed(np.arange(branches) % 3 == 0),
        pr.Fixed(rng.random((rows, branches)) < 0.2),
        pr.Fixed(np.zeros(branches, bool)),
    ]


@pytest.mark.parametrize(("branch", "blockrows"), [(1, 1), (8, 4), (11, 16), (32, 16), (64, 3)])
def test_every_policy(rng, place, branch, blockrows):
    x, w, b = weights(rng, place)
    for prune in policies(rng, 19, -(-UNITS // min(branch, UNITS))):
        options = {"activation": "relu", "prune": prune, "branch": branch, "blockrows": blockrows}
        near(pr.linear(x, w, b, **options), expected(x, w, b, **options))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_dtypes_and_activations(rng, place, dtype, sparse):
    x, w, b = weights(rng, place, dtype)
    if sparse:
        w = pr.BSR.from_dense(host(w), blocksize=(8, 16), density=0.5).to("cuda")
    for activation in ("relu", "gelu", "silu", None):
        near(pr.linear(x, w, b, activation=activation), expected(x, w, b, activation=activation), dtype)
    options = {"activation": "relu", "prune": pr.Threshold(2.0), "branch": 8}
    near(pr.linear(x, w, **options), expected(x, w, **options), dtype)


@pytest.mark.parametrize("prune", [None, pr.Threshold(4.0)], ids=str)
def test_operands_of_several_dtypes(rng, place, prune):
    x, w, b = weights(rng, place)
    for left, right in ((torch.float16, torch.float32), (torch.bfloat16, torch.float16)):
        near(pr.linear(x.to(left), w.to(right), b.half(), prune=prune), expected(x, w, b, prune=prune))
    near(pr.linear(x, w.double(), b, prune=prune), expected(x, w.double(), b, prune=prune), torch.float64)


@pytest.mark.parametrize("transposed", [False, True])
def test_block_sparse_weights(rng, place, transposed):
    x, w, b = weights(rng, place)
    if transposed:
        w = pr.BSR.from_dense(host(w).T.copy(), blocksize=(16, 8), density=0.4).to("cuda").T
    else:
        w = pr.BSR.from_dense(host(w), blocksize=(8, 16), density=0.4).to("cuda")
    for prune in (None, *policies(rng, 19, 6)):
        options = {"activation": "silu", "prune": prune, "branch": 8}
        near(pr.linear(x, w, b, **options), expected(x, w, b, **options))
    near(pr.linear(x[3], w, b), expected(x[3], w, b))


@pytest.mark.parametrize("block", [(4, 8), (8, 16), (16, 16), (32, 4)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_dead_blocks_of_weights_are_not_read(rng, place, block, transposed):
    """What is dead for a tile of rows holds NaN: whoever read it could not hide it from live neighbours."""
    x, w, b = weights(rng, place, lead=(300,))
    dense = host(w)
    W = pr.BSR.from_dense(dense.T.copy() if transposed else dense, blocksize=block, density=0.6)
    height = block[1] if transposed else block[0]
    for branch in (1, 8, 11):
        branches = -(-UNITS // branch)
        kept = np.zeros((300, branches), bool)
        kept[:, : branches // 2] = rng.random((300, branches // 2)) < 0.5
        for mask in (kept, kept[0]):
            poisoned = W.copy()
            used = (
                int(np.flatnonzero(kept.any(axis=0) if mask is kept else mask).max(initial=-1) + 1) * branch
            )
            first = -(-min(used, UNITS) // height)  # of the lines that nobody needs
            lines = np.repeat(np.arange(len(poisoned.indptr) - 1), np.diff(poisoned.indptr))
            poisoned.data[(poisoned.indices if transposed else lines) >= first] = np.nan
            options = {"activation": "relu", "prune": pr.Fixed(mask), "branch": branch}
            turned = poisoned.T if transposed else poisoned
            with pr.trace() as t:
                got = pr.linear(x, turned.to("cuda"), b, **options)
            near(got, expected(x, W.T if transposed else W, b, **options))
            walked = next(one for one in t.records if one.name == "matmul")
            assert walked.flops <= 2 * 300 * int(np.isfinite(poisoned.data).sum())


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 5), (3, 0), (0, 3), (2, 3, 4)], ids=str)
def test_leading_dimensions(rng, place, lead):
    x, w, b = weights(rng, place, lead=lead)
    near(pr.linear(x, w, b), expected(x, w, b))
    for prune in (pr.Threshold(5.0), pr.TopK(count=2)):
        options = {"prune": prune, "branch": 8, "blockrows": 2}
        got = pr.linear(x, w, b, **options)
        near(got, expected(x, w, b, **options))
        dense = got.toarray()
        assert tuple(dense.shape) == (lead or (1,)) + (UNITS,)


@pytest.mark.parametrize(("units", "features"), [(0, FEATURES), (UNITS, 0), (0, 0)])
def test_nothing_to_multiply(rng, place, units, features):
    x, w, b = weights(rng, place)
    parts = (x[:, :features], w[:units, :features], b[:units])
    for prune in (None, pr.Threshold(0.5), pr.TopK(count=2)):
        near(pr.linear(*parts, prune=prune, branch=8), expected(*parts, prune=prune, branch=8))


def test_strides(rng, place):
    x, w, b = weights(rng, place)
    wide = torch.zeros((2 * UNITS, 2 * FEATURES), device=w.device)
    wide[::2, ::2] = w
    for prune in (None, pr.Threshold(4.0), pr.Fixed(np.arange(6) % 2 == 0)):
        exact = expected(x, w, b, prune=prune, branch=8)
        turned = x.T.contiguous().T
        near(pr.linear(turned, wide[::2, ::2], b, prune=prune, branch=8), exact)
        near(pr.linear(x, w.T.contiguous().T, b.repeat_interleave(2)[::2], prune=prune, branch=8), exact)


def test_what_follows(rng, place):
    """The result is an operand like any other, whose room for blocks is not looked at."""
    x, w, b = weights(rng, place)
    h = pr.linear(x, w, b, activation="relu", prune=pr.Threshold(11.0), branch=8, blockrows=4)
    assert len(h.data) > h.nnzb
    h.data[h.nnzb :] = float("nan")
    dense = h.toarray()
    v = torch.from_numpy(rng.standard_normal((7, UNITS))).float().to(x.device)
    torch.testing.assert_close(h @ v.T, dense @ v.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v[:, :19] @ h, v[:, :19] @ dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h.sum(1), dense.sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h.pack().T @ v[:2, :19].T, dense.T @ v[:2, :19].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite(rng, place, value):
    x, w, b = weights(rng, place)
    w[3, 2] = value
    x[5, 4] = value
    for prune in (pr.Threshold(6.0), pr.TopK(count=1), pr.Fixed(rng.random((19, 6)) < 0.5)):
        options = {"activation": "relu", "prune": prune, "branch": 8}
        got, exact = host(pr.linear(x, w, b, **options)), expected(x, w, b, **options)
        np.testing.assert_array_equal(got.indices, exact.indices)
        np.testing.assert_allclose(got.data, exact.data, rtol=1e-5, atol=1e-4)


def test_a_function_decides(rng, place):
    x, w, b = weights(rng, place)

    def best(statistics):
        assert isinstance(statistics.norms, torch.Tensor)
        return statistics.norms >= statistics.norms.amax(1, keepdim=True)

    got = pr.linear(x, w, b, prune=best, branch=9)
    near(got, expected(x, w, b, prune=lambda s: s.norms >= s.norms.max(1, keepdims=True), branch=9))


def test_a_trace_counts_as_on_the_host(rng, place):
    x, w, b = weights(rng, place, lead=(140,))
    blocks = pr.BSR.from_dense(host(w), blocksize=8, density=0.5).to("cuda")
    for prune in (None, pr.Threshold(5.0), pr.Fixed(rng.random((140, 6)) < 0.2)):
        options = {"prune": prune, "branch": 8}
        for weight in (w, blocks):
            with pr.device("reference"), pr.trace() as want:
                pr.linear(*map(host, (x, weight, b)), **options)
            with pr.trace() as got:
                pr.linear(x, weight, b, **options)
            assert [one.name for one in got.records] == [one.name for one in want.records]
            for name in ("flops", "flops_skipped", "bytes_loaded", "bytes_skipped"):
                assert getattr(got, name) == getattr(want, name), name
            assert got.live_fraction == want.live_fraction
            assert got.union_fraction == want.union_fraction


@given(
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 70),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_compaction(place, members, height, units, branch, block, density, seed):
    rng = np.random.default_rng(seed)
    branches = -(-units // branch)
    h = rng.standard_normal((members, height, units)).astype(np.float32)
    live = rng.random((members, height, branches)) < density
    kept = np.repeat(live, branch, axis=2)[:, :, :units]
    given = np.where(kept, h, np.nan).reshape(members * height, units)  # what is dead may be anything
    parts = (
        torch.from_numpy(one).to(place.device) for one in (given, live.reshape(members * height, branches))
    )
    operand, batch = compact(place, *parts, (members, height), branch, block, torch.float32)
    made = pr.cuda.BSR._wrap(operand, batch, place).to("cpu")
    made.check_format()
    np.testing.assert_array_equal(made.toarray(), np.where(kept, h, 0))
    block = max(min(block, height), 1)
    assert made.nnzb == sum(
        np.logical_or.reduce(live[:, at : at + block], axis=1).sum() for at in range(0, height, block)
    )


def test_faults(rng, place):
    x, w, b = weights(rng, place)
    with pytest.raises(ValueError, match="x has 19 features, the weights expect 20"):
        pr.linear(x[:, 1:], w)
    with pytest.raises(ValueError, match=r"w must have two dimensions \(out, in\), got shape \(20,\)"):
        pr.linear(x, w[0])
    with pytest.raises(ValueError, match=r"w must have two dimensions \(out, in\), got shape \(2, 8, 8\)"):
        pr.linear(x, pr.BSR(np.ones((2, 8, 8), np.float32), blocksize=8).to("cuda"))
    with pytest.raises(ValueError, match=r"b must have shape \(45,\), got \(44,\)"):
        pr.linear(x, w, b[1:])
    with pytest.raises(ValueError, match="activation must be one of"):
        pr.linear(x, w, activation="tanh")
    with pytest.raises(ValueError, match="branch must be at least 1"):
        pr.linear(x, w, branch=0)
    with pytest.raises(ValueError, match="blockrows must be at least 1"):
        pr.linear(x, w, blockrows=0)
    with pytest.raises(TypeError, match="x must hold floats"):
        pr.linear(x.int(), w)
    with pytest.raises(TypeError, match="prune must be a policy"):
        pr.linear(x, w, prune=3)
    with pytest.raises(PrunusError, match=r"x \(numpy.ndarray\) is in host memory"):
        pr.linear(x.numpy(), w)
    with pytest.raises(PrunusError, match="w is a BSR in host memory"):
        pr.linear(x, pr.BSR(np.ones((8, FEATURES), np.float32), blocksize=4))
    with pytest.raises(TypeError, match="x must be a tensor on the GPU, got a BSR"):
        pr.linear(pr.BSR(np.ones((8, FEATURES), np.float32), blocksize=4).to("cuda"), w)
    with pytest.raises(ValueError, match="there are 19 rows of 6 branches"):
        pr.linear(x, w, prune=pr.Fixed(np.ones(7, bool)), branch=8)


@pytest.mark.parametrize("rows", [1, 300])
def test_nothing_is_read_back(rows):
    """Tensors without values: whoever asked for one would raise."""

    def call(where):
        x, w, b = (
            torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((rows, 64), (96, 64), (96,))
        )
        for prune in (None, pr.Threshold(0.1), pr.TopK(count=2), pr.Fixed(np.ones(3, bool))):
            got = pr.linear(x, w, b, activation="relu", prune=prune)
            assert tuple(got.shape) == (rows, 96)
        assert tuple(pr.linear(x[None], w, prune=pr.Threshold(0.1)).shape) == (1, rows, 96)

    names = [one.kernel.__name__ for one in record(call, ahead("sm_90"))]
    assert names[:3] == ["dots_few" if rows == 1 else "dots", "needed", "gather"]
