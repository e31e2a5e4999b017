"""Products of rows with tables of units, on the device: for batches, and for a few rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.cuda import plans, rows
from prunus.cuda.runtime import place

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(params=["tiles", "few"])
def path(request, monkeypatch):
    """Both ways: rows by themselves are what a GPU does with up to four, and the interpreter never."""
    few = request.param == "few"
    monkeypatch.setattr(plans, "is_few", lambda where, count: few)
    if few:
        monkeypatch.setattr(plans, "dots_few", lambda *_: plans.Few(32, 16, 64))
        monkeypatch.setattr(plans, "combine_few", lambda *_: plans.Few(32, 16, 128, 2))
    return request.param


def random(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(place().device)


def masked(rng, count, branches, share=0.4):
    return torch.from_numpy(rng.random((count, branches)) < share).to(place().device)


def wide(tensor):
    return tensor.cpu().double().numpy()


def spread(live, branch, units):
    return np.repeat(live.cpu().numpy(), branch, axis=1)[:, :units]


def near(got, want, dtype, terms):
    scale = np.abs(want).max(initial=1)
    inner = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    bound = 4 * torch.finfo(dtype).eps * np.abs(want) + 8 * terms * inner * scale
    assert (np.abs(wide(got) - want) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dots_of_live_units(rng, place, path, dtype):
    count, units, k, branch = 3, 45, 70, 4
    x, w, bias = random(rng, k, count, dtype=dtype).T, random(rng, units, k, dtype=dtype), random(rng, units)
    live, scale = masked(rng, count, 12), random(rng, count, units)
    live[:, 5] = False
    w[20:24] = torch.nan  # nobody needs it
    out = torch.full((count, units), torch.nan, dtype=dtype, device=place.device)
    rows.dots(place, x, w, out, live, branch, bias, "silu", scale.to(rows.sums_of(dtype)))
    sums = np.nan_to_num(wide(x) @ wide(w).T) + wide(bias)
    want = np.where(spread(live, branch, units), sums / (1 + np.exp(-sums)) * wide(scale), 0)
    near(out, want, dtype, k)


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("branch", [1, 2, 7, 32, 70])
def test_norms_and_liveness_as_units_are_stored(rng, place, path, norm, branch):
    count, units, k = 5, 70, 33
    x, w = random(rng, count, k), random(rng, units, k)
    branches = -(-units // branch)
    norms = torch.full((count, branches), torch.nan, device=place.device)
    live = torch.zeros((count, branches), dtype=torch.bool, device=place.device)
    h = np.maximum(wide(x) @ wide(w).T, 0)
    starts = np.arange(0, units, branch)
    want = np.maximum.reduceat(h, starts, 1) if norm == "max" else np.sqrt(np.add.reduceat(h * h, starts, 1))
    tau = float(np.median(want)) + 1e-3
    out = torch.empty((count, units), device=place.device)
    rows.dots(place, x, w, out, None, 1, None, "relu", None, rows.Found(branch, norm, norms, live, tau))
    near(norms, want, torch.float32, k)
    np.testing.assert_array_equal(live.cpu().numpy(), ~(norms.cpu().numpy().astype(float) <= tau))
    near(out, np.where(spread(live, branch, units), h, 0), torch.float32, k)


@pytest.mark.parametrize("branch", [4, 5])
def test_norms_out_of_range_and_nan(place, path, branch):
    """Squares that overflow or vanish, thresholds that only double precision holds, and NaN."""
    rows_of = [[3e38, 3e38, 0, 0, 1], [2e-45, 0, 0, 0, 0], [0, 0, 0, 0, 0], [np.nan, 1, 2, 3, 0]]
    rows_of += [[-np.inf, 1, 0, 0, 0], [0, 1e-30, 1e-30, 0, 0]]
    h = torch.tensor(rows_of, device=place.device)[:, :branch].contiguous()
    w, out = torch.eye(branch, device=place.device), torch.empty_like(h)
    count = len(h)
    norms, live = out.new_empty(count, 1), torch.empty(count, 1, dtype=torch.bool, device=place.device)
    h[3, 0] = 0.0  # a product would spread it
    rows.dots(place, h[:1], w, out[:1], found=rows.Found(branch, "l2", norms[:1], live[:1], 0.0))
    assert np.isinf(norms[0].item()) or norms[0].item() > 3e38
    h[3, 0] = torch.nan
    rows.settle(place, h, out, rows.Found(branch, "l2", norms, live, 0.0))
    got = norms[:, 0].cpu().numpy()
    assert live[:, 0].tolist() == [True, True, False, True, True, True]
    assert got[1] == np.float32(2e-45)
    assert np.isnan(got[3])
    assert np.isinf(got[4])
    np.testing.assert_allclose(got[5], np.sqrt(2) * 1e-30, rtol=1e-6)
    rows.settle(place, h, None, rows.Found(branch, "max", norms, live, float(np.nextafter(1e-30, 0))))
    assert live[5, 0].item() is (np.float32(1e-30) > np.nextafter(1e-30, 0)).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_combine_of_live_units(rng, place, path, dtype, shared):
    count, units, n, branch = 3, 145, 70, 4
    live = masked(rng, 1 if shared else count, 37).expand(count, 37)
    h, w, bias = random(rng, count, units, dtype=dtype), random(rng, units, n, dtype=dtype), random(rng, n)
    each = spread(live, branch, units)
    want = np.where(each, wide(h), 0) @ wide(w) + wide(bias)
    h[torch.from_numpy(~each).to(h.device)] = torch.inf  # what dead units hold is not looked at
    dead = torch.from_numpy(np.flatnonzero(~each.any(0))[:3]).to(w.device)
    w[dead] = torch.nan
    out = torch.full((count, n), torch.nan, dtype=dtype, device=place.device)
    rows.combine(place, h, w, out, live, branch, bias)
    near(out, want, dtype, units)


def test_dead_units_do_not_meet_infinities(rng, place, path):
    count, units, n = 4, 40, 20
    live = masked(rng, count, units, 0.5)
    live[:2, 7], live[2:, 7] = torch.tensor([True, False], device=live.device), False
    h, w = random(rng, count, units), random(rng, units, n)
    w[7] = torch.inf
    w[9, 3] = torch.nan
    h[1, 11] = torch.inf
    each = live.cpu().numpy()
    want = np.zeros((count, n))
    with np.errstate(invalid="ignore"):
        for t in range(count):
            at = np.flatnonzero(each[t])
            want[t] = (wide(h)[t, at, None] * wide(w)[at]).sum(0)
    plain = torch.empty((count, n), device=place.device)
    rows.combine(place, h, torch.nan_to_num(w, 0, 0, 0), plain, live)
    out = torch.empty((count, n), device=place.device)
    rows.combine(place, h, w, out, live)
    np.testing.assert_array_equal(np.isnan(wide(out)), np.isnan(want))
    np.testing.assert_array_equal(wide(out)[np.isinf(want)], want[np.isinf(want)])
    sure = np.isfinite(want)
    assert sure.any()
    np.testing.assert_allclose(wide(out)[sure], want[sure], rtol=1e-4, atol=1e-4)
    # A row that needs nothing of that keeps its bits.
    calm = np.flatnonzero(~each[:, 7] & ~each[:, 9] & ~np.isinf(wide(h)).any(1))
    np.testing.assert_array_equal(wide(out)[calm], wide(plain)[calm])


def test_sums_in_segments(rng, place, monkeypatch):
    """Few tiles of rows: units are summed in parts, on lists of their own, and joined in order."""
    monkeypatch.setattr(plans, "combine", lambda *_: (plans.Tile(16, 32, 16), 3))
    monkeypatch.setattr(plans, "grain", lambda where, shared, tile: 1 if shared else 16)
    count, units, n = 6, 133, 40
    h, w, bias = random(rng, count, units), random(rng, units, n), random(rng, n)
    for live in (None, masked(rng, count, units, 0.1), masked(rng, 1, units).expand(count, units)):
        each = np.ones((count, units), bool) if live is None else live.cpu().numpy()
        out = random(rng, count, n)
        want = wide(out) + np.where(each, wide(h), 0) @ wide(w) + wide(bias)
        rows.combine(place, h, w, out, live, 1, bias, add=True)
        near(out, want, torch.float32, units)


def test_a_rows_bits_do_not_depend_on_its_mates(rng, place, path):
    units, n, count = 300, 33, 40 if path == "tiles" else 5
    h, w = random(rng, count, units), random(rng, units, n)
    live = masked(rng, count, units, 0.02)
    out, one = torch.empty((count, n), device=place.device), torch.empty((1, n), device=place.device)
    rows.combine(place, h, w, out, live)
    for t in (0, count // 2, count - 1):
        rows.combine(place, h[t : t + 1], w, one, live[t : t + 1])
        assert torch.equal(one[0], out[t])


@given(st.integers(0, 9), st.integers(0, 50), st.integers(0, 40), st.integers(1, 60), st.integers(0, 2**31))
@settings(max_examples=15)
def test_any_shape(count, units, k, branch, seed):
    rng, where = np.random.default_rng(seed), place()
    branch = min(branch, max(units, 1))
    branches = -(-units // branch)
    x, w, down = random(rng, count, k), random(rng, units, k), random(rng, units, k)
    live = masked(rng, count, branches)
    h, y = torch.empty((count, units), device=where.device), torch.empty((count, k), device=where.device)
    rows.dots(where, x, w, h, live, branch)
    rows.combine(where, h, down, y, live, branch, zeroed=True)
    want = np.where(spread(live, branch, units), wide(x) @ wide(w).T, 0)
    near(h, want, torch.float32, k + 1)
    near(y, want @ wide(down), torch.float32, (units + 1) * (k + 1))
