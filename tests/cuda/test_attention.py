"""Attention of tensors: against the reference engine on NumPy's arrays of the same values."""

import numpy as np
import pytest
import torch

import prunus as pr
from prunus import PrunusError
from prunus.cuda import attention as kernels
from prunus.cuda import attention_configs
from prunus.cuda.runtime import RECORDER, Place
from prunus.interop.torch import as_array

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def operands(rng, where, heads=4, groups=2, n=40, m=50, d=16, features=8, dtype=torch.float32, batch=()):
    shapes = (*batch, heads, n, d), (*batch, groups, m, d), (*batch, groups, m, features)
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(where.device) for shape in shapes]


def expected(q, k, v, **options):
    with pr.device("reference"):
        return pr.attention(*(as_array(x.cpu()) for x in (q, k, v)), **options)


def near(got, exact, dtype=torch.float32):
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert tuple(got.shape) == exact.shape
    error = TOLERANCE[dtype]
    np.testing.assert_allclose(got.double().cpu().numpy(), exact.astype(float), rtol=error, atol=error)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_dense(rng, place, dtype, causal):
    q, k, v = operands(rng, place, dtype=dtype, batch=(2,))
    got = pr.attention(q, k, v, causal=causal)
    assert got.device == q.device
    near(got, expected(q, k, v, causal=causal), dtype)


@pytest.mark.parametrize("shape", [(50, 50), (1, 300), (3, 290), (40, 25)], ids=str)
@pytest.mark.parametrize("size", [7, 64])
def test_masks(rng, place, shape, size):
    n, m = shape
    q, k, v = operands(rng, place, n=n, m=m, batch=(2,))
    for lead in ((), (4,), (2, 1)):
        mask = pr.BlockMask.random((*lead, n, m), size, 0.5, rng)
        exact = expected(q, k, v, mask=mask, causal=True, blocksize=size)
        got = pr.attention(q, k, v, mask=mask, causal=True, blocksize=size)
        near(got, exact)
        grid = torch.from_numpy(mask.to_blocks()).to(place.device)
        assert torch.equal(pr.attention(q, k, v, mask=grid, causal=True, blocksize=size), got)


POLICIES = [
    pr.TopK(2),
    pr.TopK(fraction=0.4),
    pr.TopK(1, rows=2),
    pr.Threshold(0.1),
    pr.Threshold(0.1, rows=3),
    pr.Fixed(np.arange(4) % 2 == 0),
    pr.Fixed(pr.BlockMask(np.tri(3, 4, dtype=bool), 16, shape=(40, 50))),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("causal", [False, True])
def test_policies_decide_on_the_device(rng, place, policy, causal):
    q, k, v = operands(rng, place)
    q *= 3
    mask = pr.BlockMask.random((4, 40, 50), 16, 0.8, rng)
    for given in (None, mask):
        options = {"mask": given, "prune": policy, "causal": causal, "blocksize": 16}
        near(pr.attention(q, k, v, **options), expected(q, k, v, **options))


@pytest.mark.parametrize(
    "policy", [pr.TopK(1, rows=2), pr.Threshold(0.3, rows=3), pr.TopK(fraction=0.4, rows=9)], ids=repr
)
def test_heads_are_not_pooled_where_each_has_fewer_rows_than_are_pooled(rng, place, policy):
    q, k, v = operands(rng, place, n=1, m=130, batch=(2,))
    got = pr.attention(q, k, v, prune=policy, blocksize=20)
    near(got, expected(q, k, v, prune=policy, blocksize=20))


def test_a_tensor_says_what_is_live(rng, place):
    q, k, v = operands(rng, place)
    for shape in ((4,), (12, 4)):
        live = rng.random(shape) < 0.5
        there = torch.from_numpy(live).to(place.device)
        near(
            pr.attention(q, k, v, prune=there, blocksize=16),
            expected(q, k, v, prune=pr.Fixed(live), blocksize=16),
        )


@pytest.mark.parametrize(("n", "m"), [(100, 130), (33, 40), (64, 100)])
def test_what_is_in_the_future_reaches_no_decision(rng, place, n, m):
    q, k, v = operands(rng, place, n=n, m=m)
    q *= 3
    later = k.clone()
    later[:, 32 + m - n :] = torch.nan
    for policy in (pr.Threshold(0.05), pr.TopK(2)):
        options = {"causal": True, "prune": policy, "blocksize": 32}
        first = pr.attention(q, k, v, **options)
        near(first, expected(q, k, v, **options))
        assert torch.equal(pr.attention(q, later, v, **options)[:, :32], first[:, :32])


def test_any_strides(rng, place):
    q, k, v = operands(rng, place, batch=(2,))
    exact = expected(q, k, v, causal=True)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    by_position = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    holes = [torch.stack([x, x + 1], -1)[..., 0] for x in (q, k, v)]
    for given in (turned, by_position, holes, [turned[0], holes[1], by_position[2]]):
        near(pr.attention(*given, causal=True), exact)
    same = k[:, :, :1].expand(k.shape)
    near(pr.attention(q, same, v), expected(q, same.contiguous(), v))


def test_mixed_types(rng, place):
    q, k, v = operands(rng, place)
    near(pr.attention(q, k.bfloat16(), v.bfloat16()), expected(q, k.bfloat16(), v.bfloat16()))
    halves = q.half(), k.bfloat16(), v.half()
    near(pr.attention(*halves), expected(*halves))
    wide = q.half(), k, v.double()
    near(pr.attention(*wide), expected(*wide), torch.float64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("blocked", [False, True])
def test_values_that_are_not_finite_reach_only_who_sees_them(rng, place, bad, blocked):
    q, k, v = operands(rng, place, 1, 1, 70, 70)
    v[0, 40, 3] = bad
    mask = pr.BlockMask.full((70, 70), 16) if blocked else None
    got = pr.attention(q, k, v, mask=mask, causal=True, blocksize=16)
    near(got, expected(q, k, v, causal=True))
    assert got[0, :40].isfinite().all()
    assert not got[0, 40:, 3].isfinite().any()
    hidden = pr.attention(
        q, k, v, mask=~pr.BlockMask(np.arange(7)[None] == np.full((7, 1), 4), 10), blocksize=10
    )
    assert hidden.isfinite().all()


def split_over(monkeypatch, programs):
    """Have keys split over programs."""
    whole = attention_configs.attention
    monkeypatch.setattr(attention_configs, "attention", lambda *args: whole(*args)._replace(splits=programs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", [-9.0, -20.0, -60.0])
@pytest.mark.parametrize("how", ["dense", "causal", "split", "blocks", "causal blocks"])
def test_weights_that_half_types_round_to_zero_meet_infinities(place, monkeypatch, dtype, score, how):
    """A weight that float32 holds times an infinity is that infinity, as on the host."""
    q, k, v = (torch.zeros(1, 200, d) for d in (16, 16, 8))
    q[..., 0] = 1
    v[:] = 2
    for key in (3, 150):
        k[0, key, 0] = score
        v[0, key, 1], v[0, key, 2], v[0, key, 3] = torch.inf, -torch.inf, torch.nan
    v[0, 3, 4], v[0, 150, 4] = torch.inf, -torch.inf
    q, k, v = (x.to(dtype).to(place.device) for x in (q, k, v))
    if how == "split":
        split_over(monkeypatch, 3)
    options = {"causal": "causal" in how}
    if "blocks" in how:
        options |= {"mask": pr.BlockMask.full((200, 200), 64), "blocksize": 64}
    got = pr.attention(q, k, v, scale=1.0, **options)
    near(got, expected(q, k, v, scale=1.0, **options), dtype)
    assert got[0, 199, 1] == torch.inf
    assert got[0, 199, 2] == -torch.inf
    assert got[0, 199, 3:5].isnan().all()
    assert (got[0, :, 0] == 2).all()


def test_small_weights_in_float16(rng, place):
    """One key has nearly all of the weight and a value of 0: what the others add is the result."""
    q, k = torch.zeros(1, 5, 16), torch.zeros(1, 200, 16)
    q[..., 0], k[0, 7, 0] = 1, 14
    v = torch.from_numpy(rng.uniform(2, 6, (1, 200, 8))).float()
    v[0, 7] = 0
    q, k, v = (x.half().to(place.device) for x in (q, k, v))
    got = pr.attention(q, k, v, scale=1.0).double().cpu().numpy()
    np.testing.assert_allclose(got, expected(q, k, v, scale=1.0).astype(float), rtol=2e-3)


def test_keys_split_over_programs(rng, place, monkeypatch):
    q, k, v = operands(rng, place, n=3, m=333)
    split_over(monkeypatch, 5)
    for n in (1, 3):
        near(pr.attention(q[:, :n], k, v, causal=True), expected(q[:, :n], k, v, causal=True))
        mask = pr.BlockMask.random((4, n, 333), 16, 0.2, rng)
        options = {"mask": mask, "causal": True, "blocksize": 16}
        near(pr.attention(q[:, :n], k, v, **options), expected(q[:, :n], k, v, **options))
    none = pr.BlockMask.empty((3, 333), 16)
    assert not pr.attention(q, k, v, mask=none, blocksize=16).any()
    assert pr.attention(torch.ones_like(q), k.fill_(-torch.inf), v).isnan().all()
    few = q[..., :40, :], k[:, :2].zero_(), v[:, :2]
    assert not pr.attention(*few, causal=True)[:, 0].any()


def test_a_member_is_the_same_in_any_batch(rng, place):
    q, k, v = operands(rng, place, batch=(3,))
    for options in ({"causal": True}, {"prune": pr.TopK(2), "blocksize": 16}):
        every = pr.attention(q, k, v, **options)
        assert torch.equal(pr.attention(q[1], k[1], v[1], **options), every[1])


def test_nothing_gives_nothing(rng, place):
    q, k, v = operands(rng, place)
    assert pr.attention(q[:, :0], k, v).shape == (4, 0, 8)
    assert not pr.attention(q, k[:, :0], v[:, :0], prune=pr.TopK(1)).any()
    assert pr.attention(q, k, v[..., :0], prune=pr.TopK(1)).shape == (4, 40, 0)
    assert pr.attention(q[:0], k[:0], v[:0], prune=pr.TopK(1)).shape == (0, 40, 8)
    assert pr.attention(q[0], k[0], v[0]).shape == (40, 8)


def test_what_is_refused(rng, place):
    q, k, v = operands(rng, place)
    for error, match, arguments in [
        (ValueError, "same number of dimensions", (q, k[0], v)),
        (ValueError, "same heads and length", (q, k, v[:, 1:])),
        (ValueError, "multiple of those", (q[:3], k, v)),
        (ValueError, "same last dimension", (q, k[..., 1:], v)),
        (TypeError, "must hold floats", (q.int(), k, v)),
        (TypeError, "requires grad", (q.clone().requires_grad_(), k, v)),
        (PrunusError, "host memory", (q, k.cpu().numpy(), v)),
        (ValueError, "mask has shape", (q, k, v, pr.BlockMask.full((40, 40), 64))),
        (ValueError, "blocks of queries", (q, k, v, torch.ones(2, 2, dtype=torch.bool, device=place.device))),
        (TypeError, "booleans", (q, k, v, torch.ones(1, 1, device=place.device))),
        (TypeError, "BlockMask", (q, k, v, np.ones((1, 1), bool))),
        (TypeError, "booleans", (q, k, v, None, torch.ones(1, device=place.device))),
        (ValueError, "Fixed has a mask", (q, k, v, None, pr.Fixed(np.ones(7, bool)))),
        (ValueError, "scale", (q, k, v, None, None, False, np.nan)),
        (ValueError, "blocksize", (q, k, v, None, None, False, None, 0)),
    ]:
        with pytest.raises(error, match=match):
            pr.attention(*arguments)
    wide = pr.BlockMask.full((3, 40, 50), 16)
    with pytest.raises(ValueError, match="do not broadcast"):
        pr.attention(q, k, v, mask=wide, blocksize=16)


def test_nothing_waits_for_the_device():
    """Meta tensors have no values: whoever looks at one raises."""
    where = Place(torch.device("meta"), "sm_90", "none", 132, 227 * 1024)
    q, k = torch.empty(2, 8, 100, 64, device="meta"), torch.empty(2, 2, 130, 64, device="meta")
    grid = torch.empty(8, 4, 5, dtype=torch.bool, device="meta")
    from prunus.cuda.layers.attention import attention

    token = RECORDER.set([])
    try:
        for mask in (None, grid):
            for prune in (None, pr.TopK(fraction=0.3), pr.Threshold(0.1, rows=2), grid[0, :1].expand(64, 5)):
                y = attention(q, k, k, mask, prune, True, blocksize=32, where=where)
                assert (y.shape, y.device) == (q.shape, q.device)
        assert RECORDER.get()
    finally:
        RECORDER.reset(token)


def test_functions_see_tensors(rng, place):
    q, k, v = operands(rng, place)
    seen = []

    def first_two(statistics):
        seen.append(statistics)
        live = torch.zeros_like(statistics.norms, dtype=torch.bool)
        live[:, :2] = True
        return live

    got = pr.attention(q, k, v, causal=True, prune=first_two, blocksize=16)
    (statistics,) = seen
    assert (statistics.norm, statistics.norms.shape) == ("score", (12, 4))
    assert statistics.norms.device == statistics.visible.device == q.device
    fixed = pr.Fixed(np.arange(4) < 2)
    near(got, expected(q, k, v, causal=True, prune=fixed, blocksize=16))


@pytest.mark.parametrize("options", [{}, {"mask": 1}, {"prune": 1}, {"mask": 1, "prune": 1}], ids=str)
def test_the_trace(rng, place, options):
    q, k, v = operands(rng, place)
    if "mask" in options:
        options = options | {"mask": pr.BlockMask.random((4, 40, 50), 16, 0.6, rng)}
    if "prune" in options:
        options = options | {"prune": pr.TopK(2)}
    with pr.trace() as t:
        pr.attention(q, k, v, causal=True, blocksize=16, **options)
    with pr.trace() as exact:
        expected(q, k, v, causal=True, blocksize=16, **options)
    assert [record.name for record in t.records] == ["attention"]
    for name in (
        "flops",
        "flops_skipped",
        "bytes_loaded",
        "bytes_skipped",
        "live_fraction",
        "union_fraction",
    ):
        assert getattr(t, name) == getattr(exact, name)
    assert "cuda" in t.records[0].path


def test_pooled_scores_are_means_times_means(rng, place):
    q, k, _ = operands(rng, place, dtype=torch.float64)
    out = torch.empty(4, 3, 4, dtype=torch.float64, device=place.device)
    kernels.pooled_scores(place, q, k, out, 0.5, 16)
    means = [
        torch.stack([part.mean(1) for part in x.split(16, 1)], 1).repeat_interleave(r, 0)
        for x, r in ((q, 1), (k, 2))
    ]
    torch.testing.assert_close(out, 0.5 * means[0] @ means[1].transpose(1, 2))
