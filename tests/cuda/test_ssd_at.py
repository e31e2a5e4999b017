"""Block-sparse times block-sparse at chosen blocks, of tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.cuda.blocks import Operand
from prunus.cuda.runtime import RECORDER, Place, place
from prunus.cuda.ssd import ssd
from prunus.cuda.ssd_at import ssd_at
from support.cuda_operands import operand


@settings(max_examples=20)
@given(
    st.tuples(*[st.integers(1, 60)] * 3),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.tuples(*[st.integers(0, 30)] * 3),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_any_operands(sizes, blocks, counts, turned, seed):
    where, rng = place(), np.random.default_rng(seed)
    (m, k, n), (br, bi, bc) = sizes, blocks

    def side(shape, block, count, turn):
        if not turn:
            return operand(rng, shape, block, count, where, room=3)
        one, dense = operand(rng, shape[::-1], block[::-1], count, where, room=3)
        return one.T, dense.T

    a, x = side((m, k), (br, bi), counts[0], turned[0])
    b, y = side((k, n), (bi, bc), counts[1], turned[1])
    at, _ = operand(rng, (m, n), (br, bc), counts[2], where, room=2)
    out = torch.full_like(at.data, torch.nan)
    ssd_at(where, a, b, at.indices, at.indptr, out)
    assert (out[counts[2] :] == 0).all()
    rows, cols = -(-m // br), -(-n // bc)
    whole = np.zeros((rows * br, cols * bc))
    whole[:m, :n] = x @ y
    tiled = whole.reshape(rows, br, cols, bc).swapaxes(1, 2)
    row = np.repeat(np.arange(rows), np.diff(at.indptr.cpu().numpy()))
    column = at.indices.cpu().numpy()[: counts[2]]
    np.testing.assert_allclose(out.cpu().numpy()[: counts[2]], tiled[row, column], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("blocksize", [4, 16])
def test_the_same_as_the_whole_product(rng, place, blocksize, dtype):
    a, _ = operand(rng, (60, 50), (blocksize, blocksize), 20, place, torch.float32)
    b, _ = operand(rng, (50, 70), (blocksize, blocksize), 20, place, torch.float32)
    scale = 20 if dtype == torch.int8 else 1
    a, b = (one._replace(data=torch.nan_to_num(one.data * scale, 0).to(dtype)) for one in (a, b))
    kind = torch.int32 if dtype == torch.int8 else dtype
    whole = ssd(place, a, b, kind)
    out = torch.empty_like(whole.data)
    ssd_at(place, a, b, whole.indices, whole.indptr, out)
    torch.testing.assert_close(out, whole.data)


@pytest.mark.parametrize("blocksize", [8, 64])
def test_nothing_is_read_back(blocksize):
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
        for a, b in ((w, w), (w.T, w), (w, w.T)):
            ssd_at(where, a, b, w.indices, w.indptr, torch.empty_like(w.data))
    finally:
        RECORDER.reset(token)
    assert len(noted) == 3


def test_batches_are_refused(rng, place):
    a, _ = operand(rng, (8, 8), (4, 4), 3, place)
    many = a._replace(data=a.data[None])
    with pytest.raises(ValueError, match="two dimensions"):
        ssd_at(place, many, a, a.indices, a.indptr, torch.empty_like(a.data))
