"""Block-sparse times block-sparse, of tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.cuda.blocks import Operand
from prunus.cuda.runtime import RECORDER, Place, place
from prunus.cuda.ssd import Capacity, ssd
from support.cuda_operands import operand


def toarray(found, shape):
    """Return the dense product, and check that its blocks are sorted and distinct."""
    data, indices, indptr = (part.double().cpu().numpy() for part in found[:3])
    br, bc = data.shape[1:]
    m, n = shape
    rows = len(indptr) - 1
    out = np.zeros((rows * br, -(-n // bc) * bc))
    for i in range(rows):
        mine = slice(int(indptr[i]), int(indptr[i + 1]))
        assert (np.diff(indices[mine]) > 0).all()
        for block, j in zip(data[mine], indices[mine].astype(int), strict=True):
            out[i * br : (i + 1) * br, j * bc : (j + 1) * bc] = block
    assert (out[m:] == 0).all()
    assert (out[:, n:] == 0).all()
    return out[:m, :n]


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(1, 60)] * 3),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.tuples(*[st.integers(0, 30)] * 2),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_any_operands(sizes, blocks, counts, turned, seed):
    where, rng = place(), np.random.default_rng(seed)
    (m, k, n), (br, bi, bc) = sizes, blocks
    a, x = (
        operand(rng, (k, m), (bi, br), counts[0], where, room=3)
        if turned[0]
        else operand(rng, (m, k), (br, bi), counts[0], where, room=3)
    )
    b, y = (
        operand(rng, (n, k), (bc, bi), counts[1], where)
        if turned[1]
        else operand(rng, (k, n), (bi, bc), counts[1], where)
    )
    a, x = (a.T, x.T) if turned[0] else (a, x)
    b, y = (b.T, y.T) if turned[1] else (b, y)
    found = ssd(where, a, b, torch.float32)
    np.testing.assert_allclose(toarray(found, (m, n)), x @ y, rtol=1e-4, atol=1e-4)
    assert len(found.data) == int(found.indptr[-1]) == int(found.needed[1])
    # With room for more nothing is read back, and the blocks are the same.
    pairs, made = found.needed.tolist()
    roomy = ssd(where, a, b, torch.float32, Capacity(pairs + 7, made + 5))
    assert roomy.needed.tolist() == [pairs, made]
    for name in ("data", "indices"):
        assert torch.equal(getattr(roomy, name)[:made], getattr(found, name))
    assert torch.equal(roomy.indptr, found.indptr)


def test_too_little_room_is_told(rng, place):
    a, _ = operand(rng, (64, 64), (16, 16), 12, place)
    full = ssd(place, a, a, torch.float32)
    pairs, blocks = full.needed.tolist()
    found = ssd(place, a, a, torch.float32, Capacity(pairs, blocks - 3))
    assert found.needed.tolist() == [pairs, blocks]
    assert int(found.indptr[-1]) == blocks - 3
    assert torch.equal(found.data, full.data[: blocks - 3])


@pytest.mark.parametrize("blocksize", [8, 64])
def test_nothing_is_read_back_with_a_capacity(blocksize):
    # Tensors without values: what asked for one would raise.
    where = Place(torch.device("meta"), "sm_90", "none", 132, 232448)
    rows = 1024 // blocksize
    w = Operand(
        torch.empty(99, blocksize, blocksize, dtype=torch.bfloat16, device="meta"),
        torch.empty(99, dtype=torch.int32, device="meta"),
        torch.empty(rows + 1, dtype=torch.int32, device="meta"),
        (1024, 1024),
    )
    noted = []
    token = RECORDER.set(noted)
    try:
        found = ssd(where, w, w.T, torch.bfloat16, Capacity(1000, 200))
        with pytest.raises(RuntimeError):
            ssd(where, w, w, torch.bfloat16)
    finally:
        RECORDER.reset(token)
    assert len(noted) == 1
    assert found.data.shape == (200, blocksize, blocksize)
