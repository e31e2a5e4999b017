"""``dsd`` through tensor descriptors, beside the kernel that loads by pointers."""

import pytest

torch = pytest.importorskip("torch")

from prunus.cuda import configs, products
from prunus.cuda.blocks import Operand
from prunus.cuda.described import describe

HALF = [torch.bfloat16, torch.float16]


def operand(rng, m, k, block, dtype, device, density=0.5, members=None):
    """A random operand, its padding NaN, and the same dense."""
    br, bc = block
    down, across = -(-m // br), -(-k // bc)
    stored = rng.random((members or 1, down, across)) < density
    if members and not hasattr(members, "own"):
        stored[:] = stored[0]
    one = torch.from_numpy(stored[0])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), one.sum(1).cumsum(0)]).to(torch.int32)
    indices = one.nonzero()[:, 1].to(torch.int32)
    shape = (*(() if members is None else (members,)), len(indices), br, bc)
    data = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
    row = torch.repeat_interleave(torch.arange(down), indptr.diff())
    data[..., (row[:, None] * br + torch.arange(br) >= m)[:, :, None].expand(-1, -1, bc)] = torch.nan
    dense = torch.zeros((members or 1, down * br, across * bc), dtype=torch.float64)
    for e, (r, c) in enumerate(zip(row.tolist(), indices.tolist(), strict=True)):
        dense[:, r * br : r * br + br, c * bc : c * bc + bc] = data.reshape(-1, *shape[-3:])[:, e].double()
    w = Operand(data.to(device), indices.to(device), indptr.to(device), (m, k))
    return w, dense[:, :m, :k]


def tile(place, m, n, k, loads="descriptors"):
    if place.arch == "sm_80":
        pytest.skip("sm_80 has no tensor memory accelerator")
    return configs.Tile(m, n, k, 4, 2, loads)


def normal(rng, *shape, dtype, device):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(device)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(64, 96, 40), (50, 96, 24), (64, 64, 8)])
def test_same_as_by_pointers(rng, place, dtype, transposed, right, m, k, n):
    if transposed:
        m, k = 96, 64
    w, dense = operand(rng, *((k, m) if transposed else (m, k)), (32, 32), dtype, place.device)
    if transposed:
        w, dense = w.T, dense.mT
    x = (
        normal(rng, n, k, dtype=dtype, device=place.device).T
        if right
        else normal(rng, k, n, dtype=dtype, device=place.device)
    )
    out, plain = torch.empty(m, n, dtype=dtype), torch.empty(m, n, dtype=dtype)
    out, plain = out.to(place.device), plain.to(place.device)
    by = tile(place, 32, 32, 32)
    assert describe(w, x[None], dtype, by) is not None
    products.dsd(place, w, x, out, tile=by)
    products.dsd(place, w, x, plain, tile=by._replace(loads="pointers"))
    expected = dense[0] @ x.cpu().double()
    torch.testing.assert_close(out.cpu().double(), expected, atol=0.1, rtol=0.02)
    if place.interpreted:
        assert torch.equal(out, plain)
    else:
        torch.testing.assert_close(out, plain)


@pytest.mark.parametrize("shared", [False, True])
def test_members_and_epilogue(rng, place, shared):
    dtype = torch.bfloat16
    w, dense = operand(rng, 64, 64, (32, 32), dtype, place.device, members=3)
    x = normal(rng, *(() if shared else (3,)), 64, 16, dtype=dtype, device=place.device)
    x = x.expand(3, 64, 16)
    bias = normal(rng, 64, dtype=dtype, device=place.device)
    before = normal(rng, 3, 64, 16, dtype=torch.float32, device=place.device)
    out = before.clone()
    by = tile(place, 32, 16, 16)
    assert describe(w, x, dtype, by) is not None
    products.dsd(place, w, x, out, bias, "relu", add=True, tile=by)
    expected = (before.cpu().double() + dense @ x.cpu().double() + bias.cpu().double()[:, None]).relu()
    torch.testing.assert_close(out.cpu().double(), expected, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_described(rng, place):
    dtype = torch.bfloat16
    by = configs.Tile(32, 16, 32, 4, 2, "descriptors")
    w, _ = operand(rng, 64, 64, (32, 32), dtype, place.device, 1.0)
    x = normal(rng, 64, 32, dtype=dtype, device=place.device)[None]
    assert describe(w, x, dtype, by) is not None
    ragged, _ = operand(rng, 64, 60, (32, 32), dtype, place.device, 1.0)
    wide = torch.empty(1, 64, 64, dtype=dtype, device=place.device)
    for other, of, how in (
        (ragged, x[:, :60], by),  # blocks hang over the inner dimension
        (w, x.float(), by),  # two dtypes
        (w, x[:, :, :31].contiguous(), by),  # rows do not begin at multiples of 16 bytes
        (w, wide[:, :, ::2], by),  # no contiguous dimension
        (w, wide[:, :, 1:33], by),  # does not begin at one
        (w, x, by._replace(k=64)),  # steps longer than blocks
        (w, x, by._replace(m=64)),  # rows of several blocks
        (w, x[:, :, :0], by),
    ):
        assert describe(other, of, dtype, how) is None


def test_loads_by_pointers_where_it_cannot_be_described(rng, place):
    w, dense = operand(rng, 64, 64, (32, 32), torch.bfloat16, place.device)
    x = normal(rng, 64, 31, dtype=torch.bfloat16, device=place.device)
    out = torch.empty(64, 31, dtype=torch.bfloat16, device=place.device)
    products.dsd(place, w, x, out, tile=tile(place, 32, 32, 32))
    torch.testing.assert_close(out.cpu().double(), dense[0] @ x.cpu().double(), atol=0.1, rtol=0.02)


def test_nothing_stored(place):
    w = Operand(
        torch.empty(0, 32, 32, dtype=torch.float16, device=place.device),
        torch.empty(0, dtype=torch.int32, device=place.device),
        torch.zeros(3, dtype=torch.int32, device=place.device),
        (64, 64),
    )
    x = torch.full((64, 16), torch.nan, dtype=torch.float16, device=place.device)
    out = torch.full((64, 16), torch.nan, dtype=torch.float16, device=place.device)
    products.dsd(place, w, x, out, tile=tile(place, 32, 16, 32))
    assert (out == 0).all()


@pytest.mark.parametrize(("arch", "loads"), [("sm_80", "descriptors"), ("sm_90", "warps")])
def test_architectures_without(rng, place, arch, loads):
    import dataclasses

    w, _ = operand(rng, 64, 64, (32, 32), torch.float16, place.device)
    x = torch.ones(64, 16, dtype=torch.float16, device=place.device)
    by = configs.Tile(32, 16, 32, 4, 2, loads)
    with pytest.raises(ValueError, match=f"{loads}.*{arch}"):
        products.dsd(dataclasses.replace(place, arch=arch), w, x, torch.empty_like(x), tile=by)
