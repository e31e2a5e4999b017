"""Sizes, strides and lists that 32 bits do not count; no memory of such sizes is needed."""

import inspect

import numpy as np
import pytest
import torch

import prunus as pr
from prunus.cuda import sdd as sampled
from prunus.cuda.finishing import finish
from prunus.cuda.runtime import RECORDER, Place
from prunus.cuda.sdd import sdd

FAR = 2**31 + 8


@pytest.fixture
def touched(monkeypatch, place):
    """Run one program of what a call launches, and say which values of an argument it touched.

    Arguments can be told other than the call has them, such as strides. What lies outside of their memory
    reads as 0, and is not written.
    """
    if not place.interpreted:
        pytest.skip("addresses are those of Triton's interpreter")
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    real_load, real_store = builder.create_masked_load, builder.create_masked_store

    def run(call, number, name, **other):
        noted = []
        token = RECORDER.set(noted)
        try:
            call()
        finally:
            RECORDER.reset(token)
        (launch,) = noted
        names = list(inspect.signature(launch.kernel.fn).parameters)
        arguments = {**dict(zip(names, launch.arguments, strict=False)), **other}
        assert number < launch.grid[0]
        memory = [one.untyped_storage() for one in arguments.values() if isinstance(one, torch.Tensor)]
        base, size = arguments[name].data_ptr(), arguments[name].element_size()
        found = []

        def inside(pointers, mask):
            at = pointers.data.astype(np.int64)
            ours = [(s.data_ptr() <= at) & (at < s.data_ptr() + s.nbytes()) for s in memory]
            found.append(((at - base) // size)[mask.data])
            return interpreter.TensorHandle(mask.data & np.logical_or.reduce(ours), mask.dtype)

        def load(pointers, mask, other, *rest):
            return real_load(pointers, inside(pointers, mask), other, *rest)

        def store(pointers, value, mask, *rest):
            return real_store(pointers, value, inside(pointers, mask), *rest)

        def program(axis):
            return interpreter.TensorHandle(np.array([number], np.int32), interpreter.tl.int32)

        with monkeypatch.context() as patched, np.errstate(all="ignore"):
            patched.setattr(builder, "create_masked_load", load)
            patched.setattr(builder, "create_masked_store", store)
            patched.setattr(builder, "create_get_program_id", program)
            launch.kernel[(1,)](*arguments.values(), **launch.options)
        return {int(one) for part in found for one in part.reshape(-1)}

    return run


@pytest.mark.parametrize("turned", [False, True])
def test_finishing_rows_and_columns(place, touched, turned):
    """The last tile of a side of 2**31 + 8, and of members that lie further apart still."""
    one = torch.zeros(1, 1, 1, device=place.device)
    wide = one.expand(2, FAR, 3).mT if turned else one.expand(2, FAR, 3)
    last = (2 * -(-FAR // 512)) - 1
    strides = {"sums_batch": 2**40, "sums_row": 1, "sums_col": 2**36}
    if turned:
        strides = {"sums_batch": 2**40, "sums_row": 2**36, "sums_col": 1}

    def call():
        finish(place, wide, wide)

    found = touched(call, last, "sums", **strides)
    want = {2**40 + row + 2**36 * col for row in range(2**31, FAR) for col in range(3)}
    assert want <= found
    assert found - want <= {0}  # the results' strides are 0


def test_finishing_biases(place, touched):
    one, bias = torch.zeros(1, 1, device=place.device), torch.zeros(4, device=place.device)

    def call():
        finish(place, one.expand(FAR, 3), one[0, 0].clone().expand(FAR, 3), bias)

    found = touched(call, FAR // 512, "bias")
    assert set(range(2**31, FAR)) <= found


@pytest.mark.parametrize("blocksize", [(16, 16), (4, 4)], ids=str)
def test_sampled_strides(place, touched, blocksize):
    a, b = torch.ones(32, 3, device=place.device), torch.ones(3, 32, device=place.device)
    parts = [
        torch.tensor(x, device=place.device)
        for x in ([1, 0], [0, 1, 2] if blocksize[0] == 16 else [0] * 8 + [2])
    ]
    out = torch.empty(2, *blocksize, device=place.device)

    def call():
        sdd(place, a, b, *parts, out)

    row, col = 2**33, 2**40
    found = touched(call, 0, "a", a_row=row, a_col=col)
    first = 0 if blocksize[0] == 16 else 28
    assert {(first + i) * row + j * col for i in range(blocksize[0]) for j in range(3)} <= found
    found = touched(call, 0, "b", b_row=row, b_col=col)
    assert {(blocksize[1] + i) * col + j * row for i in range(blocksize[1]) for j in range(3)} <= found


@pytest.mark.parametrize("blocksize", [(16, 16), (4, 4)], ids=str)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_sampled_columns(place, blocksize, kind):
    """Of n = 2**31 + 8, the last block hangs over the edge by half where blocks have 16 columns."""
    br, bc = blocksize
    a, b = torch.full((br, 3), 2.0, device=place.device), torch.ones(1, 1, device=place.device).expand(3, FAR)
    indices = torch.tensor([0, (FAR - 1) // bc], dtype=kind, device=place.device)
    indptr = torch.tensor([0, 2], dtype=kind, device=place.device)
    out = torch.full((2, br, bc), 7.0, device=place.device)
    sdd(place, a, b, indices, indptr, out)
    assert (out[0] == 6).all()
    assert (out[1, :, : FAR % bc or bc] == 6).all()
    assert (out[1, :, FAR % bc or bc :] == 0).all()


@pytest.mark.parametrize("blocksize", [(16, 16), (4, 4)], ids=str)
def test_sampled_inner_sizes(rng, place, monkeypatch, blocksize):
    """Long sums are counted in 64 bits, with the same result."""
    mask = pr.BlockMask.random((40, 50), blocksize, 0.5, rng)
    a, b = torch.randn(40, 70, device=place.device), torch.randn(70, 50, device=place.device)
    near = pr.sddmm(a, b, mask)
    monkeypatch.setattr(sampled, "NEAR", 0)
    assert torch.equal(pr.sddmm(a, b, mask).data, near.data)


@pytest.mark.parametrize("blocksize", [(64, 64), (8, 8)], ids=str)
@pytest.mark.parametrize("k", [2**31 - 2**16, 2**31 - 8, 2**31 + 8])
def test_sampled_sums_of_more_than_32_bits(blocksize, k):
    # A step that ends beyond 2**31 must not begin again below 0.
    where = Place(torch.device("meta"), "sm_90", "none", 132, 232448)
    indices, indptr = (torch.empty(n, dtype=torch.int32, device="meta") for n in (1, 2))
    noted = []
    token = RECORDER.set(noted)
    try:
        sdd(
            where,
            torch.empty(blocksize[0], k, dtype=torch.bfloat16, device="meta"),
            torch.empty(k, blocksize[1], dtype=torch.bfloat16, device="meta"),
            indices,
            indptr,
            torch.empty(1, *blocksize, device="meta"),
        )
    finally:
        RECORDER.reset(token)
    assert noted[0].options["FAR"] is (k > 2**31 - 2**16)
