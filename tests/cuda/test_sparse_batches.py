"""Block-sparse times block-sparse, with batches."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, bound, close, dense, natural, poisoned, sparse, values
from prunus.cuda import ssd as module
from prunus.cuda.blocks import Operand
from prunus.cuda.dtypes import torch_of
from prunus.cuda.runtime import RECORDER, Place
from prunus.cuda.ssd import Capacity, ssd

# Batch dimensions of the operands.
BATCHES = [((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 1), (3,)), ((2, 3), (3,)), ((1,), (3,)), ((0,), ())]


def operand(rng, batch, shape, blocksize, own, dtype=F32):
    """A BSR on the host, whose members share a pattern, or have ``own`` ones."""
    if not (own and batch):
        return sparse(rng, (*batch, *shape), blocksize, dtype)
    mask = pr.BlockMask.random((*batch, *shape), blocksize, 0.4, rng)
    data = values(rng, (len(mask.indices), *blocksize), dtype)
    return poisoned(pr.BSR((data, mask.indices.copy(), mask.indptr.copy()), shape=(*batch, *shape)))


def pair(rng, batches, owns, turned=(False, False), sizes=(45, 70, 33), blocks=(16, 32, 16), dtype=F32):
    """Two BSRs on the host that can be multiplied; lazy transposes where ``turned``."""
    (m, k, n), (br, bi, bc) = sizes, blocks
    shapes = ((m, k), (br, bi)), ((k, n), (bi, bc))
    made = []
    for batch, own, turn, (shape, block) in zip(batches, owns, turned, shapes, strict=True):
        w = operand(rng, batch, shape[::-1] if turn else shape, block[::-1] if turn else block, own, dtype)
        made.append(w.T if turn else w)
    return made


def product(a, b):
    """What the product must be, in float64, and the error that it may have."""
    x, y = (np.swapaxes(dense(w.T), -1, -2) if w._t else dense(w) for w in (a, b))
    return x @ y, bound(x, y, natural(a.dtype, b.dtype))


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("blocks", [(16, 32, 16), (4, 8, 5)], ids=str)
def test_as_on_the_host(rng, batches, blocks):
    for owns in itertools.product([False, True], repeat=2):
        if any(own and not batch for own, batch in zip(owns, batches, strict=True)):
            continue
        for turned in [(False, True), (True, False)]:
            a, b = pair(rng, batches, owns, turned, blocks=blocks)
            with pr.device("cpu"):
                want = a @ b
            left, right = a.to("cuda"), b.to("cuda")
            got = left @ right
            assert isinstance(got, pr.cuda.BSR)
            assert (got.shape, got.blocksize) == (want.shape, want.blocksize)
            back = got.to("cpu")
            close(back.toarray(), *product(a, b))
            if 0 not in got.shape:
                np.testing.assert_array_equal(back.indices, want.indices)
                np.testing.assert_array_equal(back.indptr, want.indptr)
                assert back.data.shape == want.data.shape
    assert torch.equal((left.pack() @ right.pack()).toarray(), got.toarray())


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(1, 50)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.sampled_from(BATCHES),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_any_operands(sizes, blocks, batches, owns, turned, seed):
    a, b = pair(np.random.default_rng(seed), batches, owns, turned, sizes, blocks)
    close((a.to("cuda") @ b.to("cuda")).to("cpu").toarray(), *product(a, b))


@pytest.mark.parametrize("dtype", [F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("owns", [(False, False), (True, False)], ids=str)
def test_dtypes(rng, dtype, owns):
    a, b = pair(rng, ((2,), (2,)), owns, dtype=dtype)
    got = pr.matmul(a.to("cuda"), b.to("cuda"))
    assert got.dtype == torch_of(natural(dtype, dtype))
    close(got.to("cpu").toarray(), *product(a, b))


@pytest.mark.parametrize("own", [False, True])
def test_a_member_alone(rng, own):
    """NaN of one member stays there, and each has the bits that it has by itself."""
    a, b = pair(rng, ((3,), (3,)), (own, False))
    a.data[: a.indptr[0, -1] if own else 1] = np.nan
    got = (a.to("cuda") @ b.to("cuda")).to("cpu")
    for i in range(3):
        alone = (a[i].to("cuda") @ b[i].to("cuda")).to("cpu")
        np.testing.assert_array_equal(got[i].toarray(), alone.toarray())
    assert np.isnan(got[0].toarray()).any()
    assert np.isfinite(got.toarray()[1:]).all()


def test_results_multiply_again(rng):
    a, b = pair(rng, ((2, 1), (3,)), (False, True), blocks=(16, 16, 16))
    got = a.to("cuda") @ b.to("cuda")
    square = got @ got.T  # a pattern for each member, lazily transposed
    x = got.toarray()
    torch.testing.assert_close(square.toarray(), x @ x.mT, rtol=1e-4, atol=1e-3)
    y = torch.randn(33, 5, device=x.device)
    torch.testing.assert_close(got @ y, x @ y, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("own", [False, True])
def test_room_for_more(rng, place, own):
    """Members' lists with room between them, and more room in the result than it needs."""
    a, b = pair(rng, ((3,), ()), (own, False), blocks=(16, 16, 16))
    (full, _), (right, _) = ((w.to("cuda")._operand, w) for w in (a, b))
    want = ssd(place, full, right, torch.float32, batches=((3,), ()))
    pairs, blocks = want.needed.tolist()
    more = torch.full((*full.data.shape[:-3], 4, 16, 16), torch.nan, device=place.device)
    wrong = torch.full((4,), 10**6, dtype=full.indices.dtype, device=place.device)
    data, indices = torch.cat([full.data, more], -3), torch.cat([full.indices, wrong])
    roomy = Operand(data, indices, full.indptr, full.shape)
    got = ssd(place, roomy, right, torch.float32, Capacity(pairs + 5, blocks + 3), ((3,), ()))
    assert got.needed.tolist() == [pairs, blocks]
    assert torch.equal(got.indptr, want.indptr)
    assert torch.equal(got.data[..., :blocks, :, :], want.data)
    assert torch.equal(got.indices[:blocks], want.indices)


def test_traced(rng):
    a, b = pair(rng, ((3,), ()), (False, False))
    with pr.trace() as t:
        _ = a.to("cuda") @ b.to("cuda")
    assert t.bytes_loaded == a.data.nbytes + b.data.nbytes


def test_refused(rng):
    a, b = pair(rng, ((3,), (2,)), (False, True))
    with pytest.raises(ValueError, match=r"batch dimensions \(3,\) and \(2,\) do not broadcast"):
        a.to("cuda") @ b.to("cuda")
    with pytest.raises(ValueError, match="must be equal"):
        a.to("cuda") @ pair(rng, ((3,), (3,)), (False, False), blocks=(16, 16, 16))[1].to("cuda")


@pytest.mark.parametrize("blocksize", [8, 64])
@pytest.mark.parametrize("own", [False, True])
def test_nothing_is_read_back_with_a_capacity(blocksize, own):
    # Tensors without values: what asked for one would raise.
    where = Place(torch.device("meta"), "sm_90", "none", 132, 232448)
    rows = 1024 // blocksize
    lead, members = ((), (6,)) if own else ((6,), ())
    w = Operand(
        torch.empty(*lead, 99, blocksize, blocksize, dtype=torch.bfloat16, device="meta"),
        torch.empty(99, dtype=torch.int32, device="meta"),
        torch.empty(*members, rows + 1, dtype=torch.int32, device="meta"),
        (1024, 1024),
    )
    one = w._replace(data=torch.empty(5, 99, blocksize, blocksize, dtype=torch.bfloat16, device="meta"))
    one = one._replace(indptr=torch.empty(rows + 1, dtype=torch.int32, device="meta"))
    noted = []
    token = RECORDER.set(noted)
    try:
        found = ssd(where, w, one.T, torch.bfloat16, Capacity(1000, 200), ((6, 1), (5,)))
    finally:
        RECORDER.reset(token)
    assert len(noted) == 1
    assert found.data.shape == (*(() if own else (30,)), 200, blocksize, blocksize)
    assert found.indptr.shape == (*((30,) if own else ()), rows + 1)


# Beyond 32 bits, and beyond 64 ------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(16, 16, 16), (16, 5, 16), (4, 4, 4)], ids=str)
def test_long_lists(rng, monkeypatch, blocks):
    """What a block's pairs run over is counted in 64 bits from some length on, with the same result."""
    a, b = (w.to("cuda") for w in pair(rng, ((), ()), (False, False), blocks=blocks))
    near = a @ b
    monkeypatch.setattr(module, "NEAR", 0)
    assert torch.equal((a @ b).data, near.data)


@pytest.mark.parametrize("pairs", [2**25 - 1024, 2**25])
@pytest.mark.parametrize("blocksize", [8, 64])
def test_lists_of_more_than_32_bits(pairs, blocksize):
    where = Place(torch.device("meta"), "sm_90", "none", 132, 232448)
    made = (torch.empty(n, dtype=torch.int64, device="meta") for n in (99, 2))
    w = Operand(torch.empty(99, blocksize, blocksize, device="meta"), *made, (blocksize, blocksize * 2**25))
    noted = []
    token = RECORDER.set(noted)
    try:
        ssd(where, w, w.T, torch.float32, Capacity(pairs * 64 // blocksize, 1))
    finally:
        RECORDER.reset(token)
    assert noted[0].options["FAR"] is (pairs == 2**25)


def test_positions_that_no_single_key_holds(place):
    """Rows x columns x inner rows of blocks of 1 x 1 are more than 64 bits: 2**21 x 2**21 x 2**22."""
    m, k, n = 2**21, 2**22, 2**21
    row, col = torch.tensor([0, 0, 5, m - 1]), torch.tensor([k - 1, 3, k - 1, 0])  # unsorted in the first row

    def made(row, col, values, shape):
        indptr = torch.searchsorted(row, torch.arange(shape[0] + 1))
        parts = torch.tensor(values)[:, None, None], col, indptr
        return pr.cuda.BSR(tuple(part.to(place.device) for part in parts), shape=shape)

    a = made(row, col, [2.0, 3.0, 5.0, 7.0], (m, k))
    b = made(
        torch.tensor([0, 3, k - 1, k - 1]), torch.tensor([n - 1, 8, 8, 9]), [1.0, 10.0, 100.0, 1000.0], (k, n)
    )
    got = a @ b
    rows = torch.searchsorted(got.indptr, torch.arange(got.nnzb, device=place.device), right=True) - 1
    found = list(zip(rows.tolist(), got.indices.tolist(), got.data.flatten().tolist(), strict=True))
    assert found == [(0, 8, 230.0), (0, 9, 2000.0), (5, 8, 500.0), (5, 9, 5000.0), (m - 1, n - 1, 7.0)]
