"""Mixtures of experts of any shape and kind against plain NumPy in float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64

TOLERANCE = {F32: 1e-5, F64: 1e-13, F16: 8e-3, BF16: 6e-2}
sizes = st.one_of(st.integers(1, 9), st.integers(10, 70))
forms = st.sampled_from(["stacked", "list", "in line", "bsr", "ffn"])


def silu(z):
    return z / (1 + np.exp(-z))


ACTIVATIONS = {"relu": lambda z: np.maximum(z, 0), "silu": silu, None: lambda z: z}


def as_form(form, up, down, gate, block):
    if form == "ffn":
        gates = [None] * len(up) if gate is None else gate
        decide = "up" if gate is None else "gate"
        return [[pr.FFN.pack(*p, decide=decide) for p in zip(up, down, gates, strict=True)], None, None]
    if form == "in line":
        down = np.swapaxes(np.ascontiguousarray(np.swapaxes(down, 1, 2)), 1, 2)
    parts = [up, down, gate]
    if form == "list":
        return [part if part is None else list(part) for part in parts]
    if form == "bsr":
        return [
            part if part is None else [pr.BSR.from_dense(w, blocksize=block) for w in part] for part in parts
        ]
    return parts


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([F32, F64, F16, BF16]))
    experts, rows = draw(st.integers(1, 7)), draw(st.integers(0, 20))
    d, f, out = draw(sizes), draw(sizes), draw(sizes)
    gated = draw(st.booleans())
    x = rng.standard_normal((rows, d)).astype(dtype)
    up, gate = (rng.standard_normal((experts, f, d)) / np.sqrt(d) for _ in range(2))
    down = rng.standard_normal((experts, out, f)) / np.sqrt(f)
    # Few distinct logits, so that there are ties, and some experts that cannot be chosen.
    logits = rng.integers(0, 4, (rows, experts)).astype(float) / 2
    logits[:, 1:][rng.random((rows, experts - 1)) < 0.2] = -np.inf
    parts = [part if part is None else part.astype(dtype) for part in (up, down, gate if gated else None)]
    return rng, dtype, x, logits, parts, draw(st.integers(1, experts))


@given(cases(), forms, st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.integers(1, 12), st.data())
@settings(max_examples=150)
def test_against_numpy(case, form, activation, renormalize, branch, data):
    rng, dtype, x, logits, parts, k = case
    up, down, gate = (part if part is None else part.astype(float) for part in parts)
    units = up.shape[1]
    fixed = data.draw(st.booleans())
    mask = rng.random(-(-units // branch)) < 0.5 if fixed else np.ones(-(-units // branch), bool)
    alive = np.repeat(mask, branch)[:units]
    exact, size = np.zeros((2, len(x), down.shape[1]))
    for t, row in enumerate(x.astype(float)):
        chosen = np.argsort(-logits[t], kind="stable")[:k]
        chosen = chosen[logits[t, chosen] > -np.inf]
        p = np.exp(logits[t])
        p /= p[chosen].sum() if renormalize else p.sum()
        for e in chosen:
            h = ACTIVATIONS[activation]((up if gate is None else gate)[e] @ row)
            h = (h if gate is None else h * (up[e] @ row)) * alive
            exact[t] += p[e] * (down[e] @ h)
            size[t] += p[e] * np.linalg.norm(down[e], axis=1) * (np.linalg.norm(h) + np.linalg.norm(row))
    weights = as_form(form, *parts, block=data.draw(st.integers(1, 9)))
    got = pr.moe(
        x,
        None,
        *weights,
        top_k=k,
        logits=logits,
        activation=activation,
        renormalize=renormalize,
        prune=pr.Fixed(mask) if fixed else None,
        branch=branch,
    )
    assert got.dtype == dtype
    assert (np.abs(got.astype(float) - exact) <= TOLERANCE[dtype] * (size + np.abs(exact) + 1e-3)).all()
    if len(x):
        # Alone, and among others in another order: the same bits.
        rows = rng.permutation(len(x))[: rng.integers(1, len(x) + 1)]
        if not fixed:
            part = pr.moe(
                x[rows],
                None,
                *weights,
                top_k=k,
                logits=logits[rows],
                activation=activation,
                renormalize=renormalize,
            )
            np.testing.assert_array_equal(part, got[rows])
