"""Operands on disk on every engine: the same as in memory on that engine, up to where sums are cut."""

import numpy as np
import pytest

import prunus as pr
from helpers import F32, F64, sparse, values, worst
from prunus.paged import blocks, tables

MIB = 1 << 20


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(**arrays):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, arrays)
        opened.append(pr.open(path, budget=MIB))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def near(got, expected):
    assert got.dtype == expected.dtype
    # Sums that are put together later are operands once more.
    error = 1e-5 + 2 * worst()
    np.testing.assert_allclose(got.astype(F64), expected.astype(F64), rtol=error, atol=error)


@pytest.mark.parametrize("small", [False, True])
def test_products(rng, stored, monkeypatch, small):
    if small:
        monkeypatch.setattr(blocks, "GROUP", 500)
        monkeypatch.setattr(blocks, "SPREAD", 500)
        monkeypatch.setattr(tables, "SPAN", 500)
    W = sparse(rng, (37, 50), (4, 6), F32)
    x, z, bias = values(rng, (50, 7), F32), values(rng, (3, 37), F32), values(rng, 37, F32)
    file = stored(W=W, x=x, z=z)
    for activation in (None, "relu", "gelu", "silu"):
        how = {"bias": bias, "activation": activation}
        near(pr.matmul(file["W"], x, **how), pr.matmul(W, x, **how))
        near(pr.matmul(W, file["x"], **how), pr.matmul(W, x, **how))
    near(z @ file["W"], z @ W)
    near(file["z"] @ W, z @ W)
    near(file["W"].T @ file["z"].T, W.T @ z.T)


@pytest.mark.parametrize("small", [False, True])
def test_layers(rng, stored, monkeypatch, small):
    if small:
        monkeypatch.setattr(tables, "SPAN", 500)
    up, gate, down = values(rng, (48, 20), F32), values(rng, (48, 20), F32), values(rng, (12, 48), F32)
    layer = pr.FFN.pack(up, down, gate, "gate")
    file = stored(up=up, layer=layer)
    x = values(rng, (5, 20), F32)
    for policy in (None, pr.Threshold(0.5), pr.TopK(count=3), pr.Fixed(np.arange(48) % 3 == 0)):
        near(file["layer"](x, "silu", policy), layer(x, "silu", policy))
        got, want = (pr.linear(x, w, activation="relu", prune=policy, branch=1) for w in (file["up"], up))
        if policy is not None:
            got, want = got.toarray(), want.toarray()
        near(got, want)
