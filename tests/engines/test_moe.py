"""Mixtures of experts on every engine, against plain NumPy in float64."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, declared, interpreted, widest, worst

TOLERANCE = {F32: 1e-5, F64: 1e-12, F16: 5e-3, BF16: 4e-2}
NAMES = ["relu", "gelu", "silu", None]


def act(z, name):
    from math import erf

    if name == "relu":
        return np.maximum(z, 0)
    if name == "silu":
        return z / (1 + np.exp(-z))
    if name == "gelu":
        return z * 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2)))
    return z


def plain(x, logits, k, w_up, w_down, w_gate=None, activation="silu", renormalize=True, shared=(), tau=None):
    """The definition, one row and one expert after the other."""
    x, logits = x.astype(float), logits.astype(float)
    out = np.zeros((len(x), w_down[0].shape[0]))

    def expert(row, up, down, gate):
        up, down = up.astype(float), down.astype(float)
        first = act((up if gate is None else gate.astype(float)) @ row, activation)
        h = first if gate is None else first * (up @ row)
        if tau is not None:
            h = np.where(np.abs(first) > tau, h, 0)
        return down @ h

    for t, row in enumerate(x):
        p = np.exp(logits[t] - logits[t].max())
        p /= p.sum()
        chosen = np.argsort(-logits[t], kind="stable")[:k]
        chosen = chosen[logits[t, chosen] > -np.inf]
        scale = p[chosen].sum() if renormalize else 1.0
        for e in sorted(chosen):
            gate = None if w_gate is None else w_gate[e]
            out[t] += p[e] / scale * expert(row, w_up[e], w_down[e], gate)
        for one in shared:
            out[t] += expert(row, one[0], one[1], one[2] if len(one) > 2 else None)
    return out


def weights(rng, experts, d, f, out, dtype=F32):
    return (
        rng.standard_normal((experts, d)).astype(dtype),
        (rng.standard_normal((experts, f, d)) / np.sqrt(d)).astype(dtype),
        (rng.standard_normal((experts, out, f)) / np.sqrt(f)).astype(dtype),
        (rng.standard_normal((experts, f, d)) / np.sqrt(d)).astype(dtype),
    )


def near(got, expected, dtype):
    assert got.dtype == dtype
    size = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(
        got.astype(float), expected, rtol=0, atol=(TOLERANCE[dtype] + worst()) * 4 * size
    )


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_stacked_weights(rng, dtype, gated, renormalize):
    router, up, down, gate = weights(rng, 6, 20, 35, 13, dtype)
    x = rng.standard_normal((17, 20)).astype(dtype)
    gate = gate if gated else None
    logits = x.astype(float) @ router.astype(float).T
    got = pr.moe(x, router, up, down, gate, top_k=3, renormalize=renormalize)
    near(got, plain(x, logits, 3, up, down, gate, renormalize=renormalize), dtype)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_activations_and_top_k(rng, activation, top_k):
    router, up, down, gate = weights(rng, 5, 12, 18, 12)
    x = rng.standard_normal((9, 12)).astype(np.float32)
    got = pr.moe(x, router, up, down, gate, top_k, activation=activation)
    near(got, plain(x, x.astype(float) @ router.T, top_k, up, down, gate, activation), F32)


def test_every_form_of_weights_is_the_same(rng):
    router, up, down, gate = weights(rng, 5, 24, 32, 16)
    x = rng.standard_normal((11, 24)).astype(np.float32)
    expected = plain(x, x.astype(float) @ router.T, 2, up, down, gate)
    stacked = pr.moe(x, router, up, down, gate)
    near(stacked, expected, F32)
    np.testing.assert_array_equal(pr.moe(x, router, list(up), tuple(down), list(gate)), stacked)
    sparse = [[pr.BSR.from_dense(w, blocksize=8) for w in part] for part in (up, down, gate)]
    near(pr.moe(x, router, *sparse), expected, F32)
    near(
        pr.moe(x, router, *(pr.BSR.from_dense(part, blocksize=8) for part in (up, down, gate))), expected, F32
    )
    near(pr.moe(x, router, up, sparse[1], gate), expected, F32)
    ffns = [pr.FFN.pack(*parts) for parts in zip(up, down, gate, strict=True)]
    near(pr.moe(x, router, ffns), expected, F32)
    # Any strides: transposed storage of w_down and w_up, every other expert.
    near(pr.moe(x, router, up, np.swapaxes(np.swapaxes(down, 1, 2).copy(), 1, 2), gate), expected, F32)
    near(pr.moe(x, router, np.swapaxes(np.swapaxes(up, 1, 2).copy(), 1, 2), down, gate), expected, F32)
    twice = np.repeat(up, 2, axis=0)
    np.testing.assert_array_equal(pr.moe(x, router, twice[::2], down, gate), stacked)


def test_dtypes_mix(rng):
    router, up, down, gate = weights(rng, 4, 12, 18, 10, BF16)
    x = rng.standard_normal((7, 12)).astype(np.float32)
    expected = plain(x, x.astype(float) @ router.astype(float).T, 2, up, down, gate)
    near(pr.moe(x, router, up, down, gate), expected, F32)
    with declared(F64):
        assert pr.moe(x.astype(np.float64), router, up, down).dtype == F64
    assert pr.moe(x.astype(np.float16), router, up, down).dtype == F32


def test_shapes(rng):
    router, up, down, gate = weights(rng, 4, 12, 18, 10)
    x = rng.standard_normal((2, 3, 12)).astype(np.float32)
    got = pr.moe(x, router, up, down, gate)
    assert got.shape == (2, 3, 10)
    one = pr.moe(x[1, 2], router, up, down, gate)
    assert one.shape == (10,)
    np.testing.assert_array_equal(one, got[1, 2])
    assert pr.moe(x[:0], router, up, down, gate).shape == (0, 3, 10)
    assert pr.moe(x[:0], router, list(up), list(down)).shape == (0, 3, 10)
    np.testing.assert_array_equal(pr.moe(np.asfortranarray(x), router, up, down, gate), got)


@pytest.mark.parametrize("form", ["stacked", "ffn"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_row_does_not_depend_on_its_batch_mates(rng, form, dtype):
    router, up, down, gate = weights(rng, 5, 40, 70, 33, dtype)
    x = rng.standard_normal((37, 40)).astype(dtype)
    if form == "ffn":
        parts = ([pr.FFN.pack(*p) for p in zip(up, down, gate, strict=True)],)
    else:
        parts = (up, down, gate)
    for prune in (None, pr.Threshold(0.3), pr.TopK(fraction=0.4)):
        whole = pr.moe(x, router, *parts, prune=prune)
        several = ([3], [36, 3], list(range(0, 37, 2)), list(range(36, -1, -1)))
        for rows in several[: 2 if interpreted() else 4]:
            np.testing.assert_array_equal(pr.moe(x[rows], router, *parts, prune=prune), whole[rows])


class Untouchable:
    """Raises at everything."""

    def __getattribute__(self, name):
        raise AssertionError(f"{name} of an expert that nobody chose")


def test_experts_nobody_chose_are_not_touched(rng):
    _, up, down, gate = weights(rng, 6, 12, 18, 12)
    x = rng.standard_normal((5, 12)).astype(np.float32)
    logits = np.full((5, 6), -np.inf)
    logits[:, [1, 4]] = rng.standard_normal((5, 2))
    expected = plain(x, logits, 2, up, down, gate)
    lists = [[part[e] if e in (1, 4) else Untouchable() for e in range(6)] for part in (up, down, gate)]
    with pr.trace() as t:
        got = pr.moe(x, None, *lists, logits=logits)
    near(got, expected, F32)
    assert t.union_fraction == pytest.approx(2 / 6)
    ffns = [pr.FFN.pack(up[e], down[e], gate[e]) if e in (1, 4) else Untouchable() for e in range(6)]
    near(pr.moe(x, None, ffns, logits=logits), expected, F32)
    # Nor is what a stack holds for them, be it NaN.
    for part in (up, down, gate):
        part[[0, 2, 3, 5]] = np.nan
    near(pr.moe(x, None, up, down, gate, logits=logits), expected, F32)


def test_shared_experts(rng):
    router, up, down, gate = weights(rng, 4, 12, 18, 12)
    x = rng.standard_normal((6, 12)).astype(np.float32)
    logits = x.astype(float) @ router.T
    more = [(up[0], down[1], gate[2]), (up[3], down[3])]
    near(
        pr.moe(x, router, up, down, gate, shared=more), plain(x, logits, 2, up, down, gate, shared=more), F32
    )
    one = pr.FFN.pack(*more[0])
    near(
        pr.moe(x, router, up, down, gate, shared=one),
        plain(x, logits, 2, up, down, gate, shared=more[:1]),
        F32,
    )
    near(
        pr.moe(x, router, up, down, gate, shared=more[0]),
        plain(x, logits, 2, up, down, gate, shared=more[:1]),
        F32,
    )


@pytest.mark.parametrize("form", ["stacked", "in line", "bsr", "ffn"])
@pytest.mark.parametrize("gated", [False, True])
def test_hidden_units_are_pruned(rng, form, gated):
    dtype = widest()
    # Values of few bits, so that no engine's rounding turns a decision over.
    router, up, down, gate = (w.astype(BF16).astype(dtype) for w in weights(rng, 4, 12, 30, 10, dtype))
    x = rng.standard_normal((8, 12)).astype(BF16).astype(dtype)
    tau = 0.3
    expected = plain(x, x @ router.T, 2, up, down, gate if gated else None, "relu", tau=tau)
    if form == "in line":
        down = np.swapaxes(np.ascontiguousarray(np.swapaxes(down, 1, 2)), 1, 2)
    parts = (up, down, gate) if gated else (up, down)
    if form == "bsr":
        parts = [[pr.BSR.from_dense(w, blocksize=4) for w in part] for part in parts]
    if form == "ffn":
        decides = "gate" if gated else "up"
        parts = ([pr.FFN.pack(*p, decide=decides) for p in zip(*parts, strict=True)],)
    near(pr.moe(x, router, *parts, activation="relu", prune=pr.Threshold(tau)), expected, dtype)
    # Branches, one policy for each expert, a mask that is known; nothing pruned by any of them.
    full = plain(x, x @ router.T, 2, up, down, gate if gated else None, "relu")
    for prune in (pr.TopK(fraction=1.0), [pr.Threshold(0.0, norm="l2")] * 4, pr.Fixed(np.ones(8, bool))):
        near(pr.moe(x, router, *parts, activation="relu", prune=prune, branch=4), full, dtype)
    # All dead: zeros.
    got = pr.moe(x, router, *parts, activation="relu", prune=pr.Threshold(1e9))
    np.testing.assert_array_equal(got, np.zeros((8, 10)))


def test_dead_units_do_not_meet_infinities(rng):
    dtype = widest()
    router, up, down, _ = weights(rng, 3, 12, 20, 10, dtype)
    x = rng.standard_normal((4, 12)).astype(dtype)
    mask = np.arange(20) % 3 != 0
    expected = pr.moe(x, router, up[:, mask], down[:, :, mask])
    down[:, :, ~mask] = np.inf
    up[:, ~mask] = np.nan
    near(pr.moe(x, router, up, down, prune=pr.Fixed(mask)), expected, dtype)


def test_counters(rng):
    _, up, down, gate = weights(rng, 5, 16, 32, 8)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    logits = np.full((4, 5), -1.0)
    logits[:3, [0, 3]], logits[3, [3, 4]] = 1.0, 1.0
    with pr.trace() as t:
        pr.moe(x, None, up, down, gate, logits=logits)
    each, size = 2 * (2 * 16 * 32 + 32 * 8), 4 * (2 * 16 * 32 + 32 * 8)
    assert (t.flops, t.flops_skipped) == (8 * each, 12 * each)
    assert (t.bytes_loaded, t.bytes_skipped) == (3 * size, 2 * size)
    assert t.live_fraction == 8 / 20
    assert t.union_fraction == 3 / 5
    # Every second unit known to be dead: its share of the matrices is not multiplied.
    line = np.swapaxes(np.ascontiguousarray(np.swapaxes(down, 1, 2)), 1, 2)
    with pr.trace() as t:
        pr.moe(x, None, up, line, gate, logits=logits, prune=pr.Fixed(np.arange(32) % 2 == 0))
    assert (t.flops, t.flops_skipped) == (4 * each, 16 * each)
    assert t.bytes_loaded == 3 * size // 2
