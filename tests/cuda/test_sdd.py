"""Dense times dense at a pattern's blocks, of tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from prunus.cuda.runtime import RECORDER, Place, place
from prunus.cuda.sdd import sdd


def made(rng, shape, dtype, where):
    x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return x.to(dtype).to(where.device)


def pattern(mask, where):
    return (torch.from_numpy(part.copy()).to(where.device) for part in (mask.indices, mask.indptr))


def expected(a, b, mask):
    exact = np.where(mask.toarray(), a.double().cpu().numpy() @ b.double().cpu().numpy(), 0)
    br, bc = mask.blocksize
    rows, cols = mask.to_blocks().shape
    wide = np.zeros((rows * br, cols * bc))
    wide[: exact.shape[0], : exact.shape[1]] = exact
    return wide.reshape(rows, br, cols, bc).swapaxes(1, 2)[mask.to_blocks()]


def check(where, rng, sizes, blocksize, density, dtype, rtol):
    m, k, n = sizes
    a, b = made(rng, (m, k), dtype, where), made(rng, (k, n), dtype, where)
    mask = pr.BlockMask.random((m, n), blocksize, density, rng)
    out = torch.full((mask.nnzb, *blocksize), 7.0, dtype=torch.float32, device=where.device)
    sdd(where, a, b, *pattern(mask, where), out)
    np.testing.assert_allclose(out.cpu().numpy(), expected(a, b, mask), rtol=rtol, atol=rtol * 10)


@pytest.mark.parametrize("blocksize", [(1, 16), (4, 32), (16, 4), (24, 40), (130, 20), (16, 300)], ids=str)
def test_tiles_go_through_rows_of_blocks(rng, place, blocksize):
    # Rows of blocks end within tiles, and blocks end outside of them.
    height = 20 if blocksize[0] < 16 else 270
    check(place, rng, (height, 20, 610), blocksize, 0.6, torch.bfloat16, 1e-4)


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(1, 70)] * 3),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float16]),
    st.integers(0, 99),
)
def test_any_shape(sizes, blocksize, density, dtype, seed):
    check(place(), np.random.default_rng(seed), sizes, blocksize, density, dtype, 1e-4)


@pytest.mark.parametrize("blocksize", [(4, 4), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=str)
def test_results_of_another_dtype(place, blocksize, dtype):
    a = torch.arange(-32, 32, device=place.device).reshape(16, 4).to(dtype)
    mask = pr.BlockMask.full((16, 16), blocksize)
    out = torch.empty(mask.nnzb, *blocksize, dtype=torch.bfloat16, device=place.device)
    sdd(place, a, a.T, *pattern(mask, place), out)
    np.testing.assert_allclose(out.double().cpu().numpy(), expected(a, a.T, mask), rtol=2**-7)


@pytest.mark.parametrize("blocksize", [(8, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("own", [False, True])
def test_room_for_more_is_left_alone(rng, place, blocksize, own):
    a, b = made(rng, (2, 40, 12), torch.float32, place), made(rng, (2, 12, 50), torch.float32, place)
    mask = pr.BlockMask.random((2, 40, 50) if own else (40, 50), blocksize, 0.5, rng)
    indices, indptr = pattern(mask, place)
    wrong = indices.new_full((5,), 10**6)
    lead, count = () if own else (2,), len(indices)
    out = torch.full((*lead, count + 5, *blocksize), 7.0, device=place.device)
    sdd(place, a, b, torch.cat([indices, wrong]), indptr, out)
    assert (out[..., count:, :, :] == 7).all()
    dense = pr.sddmm(a.cpu().numpy(), b.cpu().numpy(), mask)
    np.testing.assert_array_equal(out[..., :count, :, :].cpu().numpy(), dense.data)


@pytest.mark.parametrize("blocksize", [(8, 8), (64, 64)], ids=str)
def test_nothing_is_read_back(blocksize):
    # Tensors without values: what asked for one would raise.
    where = Place(torch.device("meta"), "sm_90", "none", 132, 232448)
    x = torch.empty(512, 512, dtype=torch.bfloat16, device="meta")
    rows = 512 // blocksize[0]
    indices = torch.empty(100, dtype=torch.int32, device="meta")
    indptr = torch.empty(rows + 1, dtype=torch.int32, device="meta")
    noted = []
    token = RECORDER.set(noted)
    try:
        sdd(where, x, x.T, indices, indptr, torch.empty(100, *blocksize, device="meta"))
    finally:
        RECORDER.reset(token)
    assert len(noted) == 1
