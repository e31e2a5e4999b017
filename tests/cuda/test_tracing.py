"""trace() of operations on the device: numbers that it has are read back when somebody looks."""

import numpy as np
import torch

import prunus as pr
from helpers import F32, sparse, values
from prunus import _trace
from prunus.cuda.transfer import upload


def test_a_product_is_counted_when_asked(rng, place, monkeypatch):
    W, x = sparse(rng, (45, 70), (16, 16)), upload(values(rng, (70, 9), F32), place)
    with pr.trace() as want:
        W @ values(rng, (70, 9), F32)
    G = W.to("cuda")
    G @ x  # known beforehand: the trace must see it all the same
    asked = []
    numbers = _trace.Later.numbers
    monkeypatch.setattr(_trace.Later, "numbers", lambda self: asked.append(self) or numbers(self))
    with pr.trace() as outer, pr.trace() as inner:
        got = G @ x
    assert isinstance(got, torch.Tensor)
    assert not asked
    for t in (inner, outer):
        assert (t.flops, t.bytes_loaded) == (want.flops, want.bytes_loaded)
        assert [one.name for one in t.records] == ["matmul"]
        assert t.records[0].path == str(place)
        assert t.records[0].seconds > 0
    assert len(asked) >= 2
    first = inner.flops
    assert inner.flops == first  # asking twice does not add twice
    assert "matmul" in inner.table()


def test_own_patterns(rng, place):
    W = pr.BSR.from_dense(sparse(rng, (3, 20, 30), (8, 8), poison=False).toarray(), blocksize=8)
    x = values(rng, (3, 30, 4), F32)
    with pr.trace() as want:
        W @ x
    with pr.trace() as got:
        W.to("cuda") @ upload(x, place)
    assert got.flops == want.flops == 2 * 4 * W.nnz
    assert got.bytes_loaded == W.nnz * 4
    assert np.isclose(got.flops_skipped, want.flops_skipped)
