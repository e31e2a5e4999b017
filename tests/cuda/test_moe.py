"""Mixtures of experts of tensors, against the reference engine's of the same values."""

import numpy as np
import pytest
import torch

import prunus as pr
from prunus import PrunusError
from prunus.cuda.compiling.case import blocks
from prunus.cuda.compiling.recording import ahead, record
from prunus.cuda.grouped import constant, route
from prunus.cuda.layers.moe import moe
from prunus.interop.torch import as_array

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 4e-2}
FLOATS = list(TOLERANCE)


def weights(rng, where, experts=5, d=20, f=35, out=13, dtype=torch.float32, rows=17):
    """Return x, router, w_up, w_down and w_gate."""
    shapes = (rows, d), (experts, d), (experts, f, d), (experts, out, f), (experts, f, d)
    made = (rng.standard_normal(shape) / np.sqrt(shape[-1]) * 2 for shape in shapes)
    return [torch.from_numpy(one).to(dtype).to(where.device) for one in made]


def host(value):
    """Return tensors as ndarrays, in lists and tuples too."""
    if isinstance(value, torch.Tensor):
        return as_array(value.cpu())
    return type(value)(map(host, value)) if isinstance(value, (list, tuple)) else value


def expected(*args, **options):
    with pr.device("reference"):
        return pr.moe(*map(host, args), **{name: host(one) for name, one in options.items()})


def near(got, exact, dtype=torch.float32):
    assert got.dtype == dtype
    assert tuple(got.shape) == exact.shape
    exact = exact.astype(float)
    atol = TOLERANCE[dtype] * 4 * np.abs(exact).max(initial=1e-3)
    np.testing.assert_allclose(got.double().cpu().numpy(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_stacked_weights(rng, place, dtype, gated, renormalize):
    x, router, up, down, gate = weights(rng, place, dtype=dtype)
    parts = (x, router, up, down, gate if gated else None)
    got = pr.moe(*parts, top_k=3, renormalize=renormalize)
    assert got.device == x.device
    near(got, expected(*parts, top_k=3, renormalize=renormalize), dtype)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", None])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_activations_and_top_k(rng, place, activation, top_k):
    parts = weights(rng, place)
    near(pr.moe(*parts, top_k, activation=activation), expected(*parts, top_k, activation=activation))


def test_many_rows_many_experts(rng, place):
    # Several chunks of rows, several tiles of an expert, more experts than a row of tiles.
    parts = weights(rng, place, experts=19, d=8, f=10, out=6, rows=300)
    near(pr.moe(*parts, top_k=6), expected(*parts, top_k=6))
    logits = torch.zeros(300, 19, device=place.device)
    near(
        pr.moe(parts[0], None, *parts[2:], logits=logits), expected(parts[0], None, *parts[2:], logits=logits)
    )


def test_every_form_of_weights_is_the_same(rng, place):
    x, router, up, down, gate = weights(rng, place)
    stacked = pr.moe(x, router, up, down, gate)
    near(stacked, expected(x, router, up, down, gate))
    apart = [[w.clone() for w in part] for part in (up, down, gate)]
    assert torch.equal(pr.moe(x, router, *apart), stacked)
    assert torch.equal(pr.moe(x, router, up, apart[1], gate), stacked)
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (up, down, gate)]
    assert torch.equal(pr.moe(x, router, *turned), stacked)
    twice = up.repeat_interleave(2, 0)[::2]
    assert torch.equal(pr.moe(x.T.contiguous().T, router, twice, down, gate), stacked)
    # Misaligned in memory, and of several forms at once.
    odd = [torch.empty(w.numel() + 1, device=place.device)[1:].view(w.shape).copy_(w) for w in up]
    assert torch.equal(pr.moe(x, router, odd, down, gate), stacked)
    mixed = [w.T.contiguous().T if e % 2 else w.clone() for e, w in enumerate(up)]
    assert torch.equal(pr.moe(x, router, mixed, down, gate), stacked)


def test_experts_of_several_sizes(rng, place):
    x, router, up, down, gate = weights(rng, place)
    units = [35, 12, 35, 1, 20]
    lists = (
        [w[:n] for w, n in zip(up, units, strict=True)],
        [w[:, :n] for w, n in zip(down, units, strict=True)],
        [w[:n] for w, n in zip(gate, units, strict=True)],
    )
    near(pr.moe(x, router, *lists), expected(x, router, *lists))


def test_shapes_and_dtypes(rng, place):
    x, router, up, down, gate = weights(rng, place, rows=6)
    cube = x.reshape(2, 3, -1)
    got = pr.moe(cube, router, up, down, gate)
    assert got.shape == (2, 3, 13)
    one = pr.moe(cube[1, 2], router, up, down, gate)
    assert torch.equal(one, got[1, 2])
    assert pr.moe(cube[:0], router, up, down, gate).shape == (0, 3, 13)
    half = [w.bfloat16() for w in (router, up, down, gate)]
    near(pr.moe(x, *half), expected(x, *half))
    assert pr.moe(x.double(), *half).dtype == torch.float64
    assert pr.moe(x.half(), *half).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prune", [None, pr.Threshold(0.3), pr.TopK(fraction=0.4)], ids=str)
def test_a_row_does_not_depend_on_its_batch_mates(rng, place, dtype, prune):
    x, *parts = weights(rng, place, dtype=dtype, rows=37, f=70)
    whole = pr.moe(x, *parts, prune=prune)
    for rows in ([3], [36, 3], list(range(0, 37, 2)), list(range(36, -1, -1))):
        assert torch.equal(pr.moe(x[rows], *parts, prune=prune), whole[rows])


def test_values_nobody_asked_for(rng, place):
    x, _, up, down, gate = weights(rng, place, experts=6)
    logits = torch.full((17, 6), float("-inf"), device=place.device)
    logits[:, [1, 4]] = torch.from_numpy(rng.standard_normal((17, 2))).float().to(place.device)
    logits[3, 1] = float("-inf")  # one expert for two
    for part in (up, down, gate):
        part[[0, 2, 3, 5]] = float("nan")
    for prune in (None, pr.Threshold(0.1), pr.Fixed(rng.random((17, 35)) < 0.5)):
        options = {"logits": logits, "prune": prune, "top_k": 3}
        near(pr.moe(x, None, up, down, gate, **options), expected(x, None, up, down, gate, **options))


def test_logits_that_say_nothing_give_nan(rng, place):
    x, router, up, down, gate = weights(rng, place)
    logits = x @ router.T
    exact = pr.moe(x, None, up, down, gate, logits=logits)
    wrong = logits.clone()
    wrong[2, 1], wrong[5, 0], wrong[9] = float("nan"), float("inf"), float("-inf")
    got = pr.moe(x, None, up, down, gate, logits=wrong)
    bad = torch.zeros(17, dtype=torch.bool)
    bad[[2, 5, 9]] = True
    assert got[bad].isnan().all()
    assert torch.equal(got[~bad], exact[~bad])


def test_shared_experts(rng, place):
    x, router, up, down, gate = weights(rng, place)
    more = [(up[0], down[1], gate[2]), (up[3, :9], down[3, :, :9])]
    for prune in (None, pr.Threshold(0.2)):
        for shared in (more, more[0]):
            got = pr.moe(x, router, up, down, gate, shared=shared, prune=prune)
            near(got, expected(x, router, up, down, gate, shared=shared, prune=prune))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("branch", [1, 4])
def test_hidden_units_are_pruned(rng, place, gated, branch):
    # Values of few bits, so that no rounding turns a decision over.
    x, router, up, down, gate = (w.bfloat16().double() for w in weights(rng, place))
    parts = (x, router, up, down, gate if gated else None)
    branches = -(-35 // branch)
    for prune in (
        pr.Threshold(0.3),
        pr.Threshold(0.9, norm="l2"),
        pr.TopK(fraction=0.3),
        [pr.Threshold(0.1 * e) for e in range(4)] + [None],
        pr.Fixed(np.arange(branches) % 3 == 0),
        pr.Fixed(rng.random((17, branches)) < 0.5),
        pr.Threshold(1e9),
    ):
        options = {"activation": "relu", "prune": prune, "branch": branch}
        near(pr.moe(*parts, **options), expected(*parts, **options), torch.float64)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_dead_units_do_not_meet_infinities(rng, place, value):
    x, router, up, down, _ = weights(rng, place, rows=40)
    live = rng.random((40, 35)) < 0.5
    live[5] = True
    down[:, :, 7] = value
    x[11, 3] = value
    options = {"prune": pr.Fixed(live)}
    got = pr.moe(x, None, up, down, logits=x @ router.T * 0, **options).cpu().numpy()
    exact = expected(x, None, up, down, logits=torch.zeros(40, 5), **options)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(exact))
    assert np.isfinite(got[~live[:, 7] & (np.arange(40) != 11)]).all()
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    # Neighbours that meet it change no bit of those that do not.
    alone = np.flatnonzero(~live[:, 7])
    part = pr.moe(x[alone], None, up, down, logits=torch.zeros(len(alone), 5), prune=pr.Fixed(live[alone]))
    np.testing.assert_array_equal(part.numpy(), got[alone])


@pytest.mark.parametrize("apart", [False, True])
def test_counters(rng, place, apart):
    x, _, up, down, gate = weights(rng, place, d=16, f=32, out=8, rows=4)
    logits = torch.full((4, 5), -1.0, device=place.device)
    logits[:3, [0, 3]], logits[3, [3, 4]] = 1.0, 1.0
    parts = [list(part) for part in (up, down, gate)] if apart else (up, down, gate)
    with pr.trace() as t:
        pr.moe(x, None, *parts, logits=logits)
    each, size = 2 * (2 * 16 * 32 + 32 * 8), 4 * (2 * 16 * 32 + 32 * 8)
    assert (t.flops, t.flops_skipped) == (8 * each, 12 * each)
    assert (t.bytes_loaded, t.bytes_skipped) == (3 * size, 2 * size)
    assert t.live_fraction == 8 / 20
    assert t.union_fraction == 3 / 5
    # Every second unit known to be dead: its share of the matrices is not multiplied.
    with pr.trace() as t:
        pr.moe(x, None, *parts, logits=logits, prune=pr.Fixed(np.arange(32) % 2 == 0))
    assert (t.flops, t.flops_skipped) == (4 * each, 16 * each)
    assert t.bytes_loaded == 3 * size // 2


def test_routes(rng, place):
    logits = torch.from_numpy(rng.integers(-2, 3, (70, 6)).astype(np.float32)).to(place.device)
    logits[4, :5] = float("-inf")
    found = route(place, logits, None, 3, True, 6)
    best = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :3]
    live = np.zeros((70, 6), bool)
    np.put_along_axis(live, best, True, axis=1)
    live &= logits.numpy() > -np.inf
    np.testing.assert_array_equal(found.live.numpy(), live)
    ends = np.cumsum(live.sum(0))
    np.testing.assert_array_equal(found.offsets.numpy(), [0, *ends])
    for e in range(6):
        mine = found.rows[found.offsets[e] : found.offsets[e + 1]].numpy()
        np.testing.assert_array_equal(mine, np.flatnonzero(live[:, e]))
    for t, row in enumerate(found.slots.numpy()):
        np.testing.assert_array_equal(found.rows.numpy()[row[row >= 0]], t)
        assert (row >= 0).sum() == live[t].sum()


def test_faults(rng, place):
    x, router, up, down, gate = weights(rng, place)
    with pytest.raises(ValueError, match="top_k must be from 1 to the number of experts, 5; got 6"):
        pr.moe(x, router, up, down, gate, 6)
    with pytest.raises(ValueError, match="there are 5 experts in w_up, but 4 in w_down"):
        pr.moe(x, router, up, down[:4], gate)
    with pytest.raises(ValueError, match=r"router must have shape \(5, 20\)"):
        pr.moe(x, router[:, :3], up, down, gate)
    with pytest.raises(ValueError, match=r"logits must have shape \(17, 5\)"):
        pr.moe(x, None, up, down, gate, logits=x)
    with pytest.raises(TypeError, match="either a router or logits="):
        pr.moe(x, router, up, down, gate, logits=x)
    with pytest.raises(ValueError, match="expert 2 takes 19 features, x has 20"):
        pr.moe(x, router, [*up[:2], up[2, :, 1:], *up[3:]], down)
    with pytest.raises(ValueError, match=r"w_gate of expert 0 has shape \(34, 20\), w_up \(35, 20\)"):
        pr.moe(x, router, up, down, gate[:, 1:])
    with pytest.raises(PrunusError, match=r"w_up \(numpy\.ndarray\) is in host memory"):
        pr.moe(x, router, up.numpy(), down)
    with pytest.raises(TypeError, match="router must hold floats"):
        pr.moe(x, router.int(), up, down)
    with pytest.raises(PrunusError, match="w_up of expert 0 is a BSR in host memory"):
        pr.moe(x, router, [pr.BSR.from_dense(w.numpy(), blocksize=8) for w in up], down)
    with pytest.raises(TypeError, match=r"must return a tensor of booleans, got dtype torch\.float32"):
        pr.moe(x, router, up, down, prune=lambda seen: seen.norms)
    sparse = pr.BSR(np.ones((5, 35, 20), np.float32), blocksize=8).to("cuda")
    with pytest.raises(ValueError, match="the experts on axis 0 of three, got shape"):
        pr.moe(x, router, pr.BSR(np.ones((35, 20), np.float32), blocksize=8).to("cuda"), down)
    with pytest.raises(ValueError, match=r"w_down of expert 0 has shape \(20, 34\): expected 35 columns"):
        pr.moe(x, router, sparse, torch.ones(5, 20, 34))
    with pytest.raises(TypeError, match="w_up must hold floats"):
        pr.moe(x, router, pr.BSR(np.ones((5, 35, 20), np.int8), blocksize=8).to("cuda"), down)
    with pytest.raises(ValueError, match="pools 2 neighbouring rows"):
        pr.moe(x, router, up, down, prune=pr.Threshold(0, rows=2))
    with pytest.raises(TypeError, match="a shared expert is an FFN, or a tuple"):
        pr.moe(x, router, up, down, shared=up)


@pytest.mark.parametrize("rows", [1, 5000])
def test_nothing_is_read_back(rows):
    # Tensors without values: what asked for one would raise.
    shapes = (rows, 64), (8, 64), (8, 96, 64), (8, 64, 96), (8, 96, 64)
    x, *parts = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes)
    apart = [[w.clone() for w in part] for part in parts[1:]]

    def call(where):
        assert moe(x, *parts, shared=(parts[1][0], parts[2][0])).shape == (rows, 64)
        assert moe(x, parts[0], *apart, prune=pr.TopK(3)).shape == (rows, 64)

    names = [launch.kernel.__name__ for launch in record(call, ahead("sm_90"))]
    assert names[:2] == (["route", "grouped"] if rows == 1 else ["route", "sort"])
    assert names.count("grouped_live") == 1


@pytest.mark.parametrize("decide", ["up", "gate", "predictor", None])
@pytest.mark.parametrize("biased", [False, True])
def test_experts_that_are_ffns(rng, place, decide, biased):
    x, router, up, down, gate = (w.bfloat16().double() for w in weights(rng, place))
    biases = {}
    if biased:
        biases = {"b_up": gate[0, :, 0].clone(), "b_down": down[0, :, 0].clone()}
    layers = [
        pr.FFN.pack(up[e], down[e], None if decide is None else gate[e], decide or "up", **biases)
        for e in range(5)
    ]
    always = pr.FFN.pack(up[1, :9], down[1, :, :9], b_down=biases.get("b_down"))
    same = [one.to("cpu") for one in layers]
    seen = [pr.Fixed(rng.random((17, 35)) < 0.5)]
    seen += [] if decide == "predictor" else [pr.Threshold(0.3), pr.TopK(fraction=0.3)]
    for prune in (None, *seen):
        options = {"activation": "relu", "prune": prune}
        got = pr.moe(x, router, layers, **options)
        near(got, expected(x, router, same, **options), torch.float64)
    got = pr.moe(x, router, layers, shared=[always, always])
    near(got, expected(x, router, same, shared=[always.to("cpu")] * 2), torch.float64)


def test_ffns_among_experts_and_faults(rng, place):
    x, router, up, down, gate = weights(rng, place)
    layer = pr.FFN.pack(up[1], down[1], gate[1], "gate", b_up=gate[0, :, 0])
    lists = [up[0], layer, *up[2:]], [down[0], None, *down[2:]], [gate[0], None, *gate[2:]]
    with pr.device("reference"):
        exact = pr.moe(
            *map(host, (x, router)),
            *(
                [host(lists[0][0]), layer.to("cpu"), *host(list(up[2:]))],
                [host(down[0]), None, *host(list(down[2:]))],
                [host(gate[0]), None, *host(list(gate[2:]))],
            ),
        )
    near(pr.moe(x, router, *lists), exact)
    with pytest.raises(TypeError, match="expert 1 is an FFN, which has its own w_down and w_gate"):
        pr.moe(x, router, lists[0], down)
    with pytest.raises(PrunusError, match="expert 0 is an FFN in host memory"):
        pr.moe(x, router, [layer.to("cpu")] * 5)
    known = pr.FFN.pack(up[1], down[1], decide="predictor")
    with pytest.raises(ValueError, match="packed with decide='predictor'"):
        pr.moe(x, router, [known] * 5, prune=pr.Threshold(0.0))


def test_tables_of_addresses_of_a_whole_model_are_kept(place):
    """What calls of 94 layers look up in turn is not uploaded again, which no CUDA graph could hold."""
    made = [constant((layer, 1 << 40), "int64", place) for layer in range(3 * 94)]
    assert all(constant((layer, 1 << 40), "int64", place) is one for layer, one in enumerate(made))


POLICIES = [
    None,
    pr.Threshold(0.3),
    pr.TopK(fraction=0.3),
    pr.Fixed(np.arange(12) % 3 == 0),
    [pr.Threshold(0.1 * e) for e in range(4)] + [None],
]


def cut(w, block, density=0.6, dtype=None):
    """Return a stack as a batch of block-sparse matrices on the host, with patterns of their own."""
    w = host(w).copy()
    rng = np.random.default_rng(5)
    grid = [-(-n // b) for n, b in zip(w.shape[1:], block, strict=True)]
    kept = rng.random((len(w), *grid)) < density
    wide = np.repeat(np.repeat(kept, block[0], axis=1), block[1], axis=2)[:, : w.shape[1], : w.shape[2]]
    w[~wide] = 0
    return pr.BSR(w, blocksize=block)


@pytest.mark.parametrize(
    ("block", "prune"),
    [((16, 16), one) for one in POLICIES] + [((8, 24), POLICIES[1]), ((8, 24), None), ((4, 8), POLICIES[2])],
    ids=str,
)
def test_block_sparse_experts(rng, place, prune, block):
    """Batches and lists, transposes with lists made in the call and before it, beside dense matrices."""
    x, router, up, down, gate = (w.bfloat16().double() for w in weights(rng, place))
    hosts = [cut(w, block) for w in (up, down, gate)]
    options = {"activation": "relu", "prune": prune, "branch": 3}
    with pr.device("reference"):
        exact = pr.moe(host(x), host(router), *hosts, **options)
        mixed = pr.moe(host(x), host(router), hosts[0], host(down), host(gate), **options)
        plain = pr.moe(host(x), host(router), *hosts[:2], **options)
    there = [w.to("cuda") for w in hosts]
    near(pr.moe(x, router, *there, **options), exact, torch.float64)
    near(pr.moe(x, router, there[0], down, gate, **options), mixed, torch.float64)
    near(pr.moe(x, router, *there[:2], **options), plain, torch.float64)
    # The transposes of what is stored, each by itself, and all in a batch.
    turned = [pr.BSR(np.ascontiguousarray(np.swapaxes(w.toarray(), 1, 2)), blocksize=block) for w in hosts]
    apart = [[pr.BSR(one, blocksize=block).to("cuda").T for one in w.toarray()] for w in turned]
    near(pr.moe(x, router, *apart, **options), exact, torch.float64)
    near(pr.moe(x, router, *([one.T.pack().T for one in w] for w in apart), **options), exact, torch.float64)
    near(pr.moe(x, router, *(w.to("cuda").T for w in turned), **options), exact, torch.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_block_sparse_experts_of_every_dtype(rng, place, dtype):
    x, router, up, down, gate = weights(rng, place, dtype=dtype)
    hosts = [cut(w, (16, 16)) for w in (up, down, gate)]
    parts = [w.to("cuda") for w in hosts]
    for prune in (None, pr.Fixed(np.arange(35) % 2 == 0)):
        with pr.device("reference"):
            one = tuple(w.toarray()[1] for w in hosts[:2])
            exact = pr.moe(host(x), host(router), *hosts, prune=prune, shared=one)
        one = tuple(pr.BSR(w.toarray()[1], blocksize=8).to("cuda") for w in hosts[:2])
        near(pr.moe(x, router, *parts, prune=prune, shared=one), exact, dtype)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_dead_units_do_not_meet_infinities_in_blocks(rng, place, value):
    x, _, up, down, _ = weights(rng, place, rows=40)
    live = rng.random((40, 35)) < 0.5
    live[5] = True
    down[:, :, 7] = value
    x[11, 3] = value
    logits = torch.zeros(40, 5, device=place.device)
    for block in ((4, 8), (16, 16)):
        hosts = pr.BSR(host(up), blocksize=block), pr.BSR(host(down), blocksize=block)
        with pr.device("reference"):
            exact = pr.moe(host(x), None, host(up), host(down), logits=host(logits), prune=pr.Fixed(live))
        parts = [w.to("cuda") for w in hosts]
        got = host(pr.moe(x, None, *parts, logits=logits, prune=pr.Fixed(live)))
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(exact))
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
        alone = np.flatnonzero(~live[:, 7])
        part = pr.moe(x[alone], None, *parts, logits=logits[alone], prune=pr.Fixed(live[alone]))
        np.testing.assert_array_equal(host(part), got[alone])


def test_rows_of_block_sparse_experts_are_alone(rng, place):
    x, router, up, down, gate = weights(rng, place, rows=37)
    parts = [cut(w, (8, 16)).to("cuda") for w in (up, down, gate)]
    for prune in (None, pr.Threshold(0.3)):
        whole = pr.moe(x, router, *parts, prune=prune)
        for some in ([3], [36, 3], list(range(36, -1, -1))):
            assert torch.equal(pr.moe(x[some], router, *parts, prune=prune), whole[some])


def test_edges_of_blocks_hold_what_they_like(rng, place):
    x, router, up, down, gate = weights(rng, place)
    parts = [pr.BSR(host(w), blocksize=16).to("cuda") for w in (up, down, gate)]
    for w, size in zip(parts, (up, down, gate), strict=True):
        (rows, cols), (down_, across) = size.shape[1:], w.grid
        lines = torch.repeat_interleave(torch.arange(down_), across)
        for n, (line, column) in enumerate(zip(lines.tolist(), list(range(across)) * down_, strict=True)):
            w.data[..., n, max(rows - 16 * line, 0) :, :] = float("nan")
            w.data[..., n, :, max(cols - 16 * column, 0) :] = float("nan")
    for prune in (None, pr.Threshold(0.2)):
        near(pr.moe(x, router, *parts, prune=prune), expected(x, router, up, down, gate, prune=prune))


def test_functions_see_the_rows_of_one_expert(rng, place):
    """In ascending order, experts that rows chose only; what they foresee is not computed."""
    x, router, up, down, gate = (w.bfloat16().double() for w in weights(rng, place, experts=6))
    logits = x @ router.T
    logits[:, 2] = float("-inf")
    seen = []

    def above_mean(statistics):
        seen.append(statistics.norms.shape[0])
        assert statistics.visible is None
        return statistics.norms > statistics.norms.mean()

    class Half(pr.Policy):
        def select(self, statistics):
            raise AssertionError("it foresees")

        def foresee(self, x, branches):
            kept = torch.arange(branches) if isinstance(x, torch.Tensor) else np.arange(branches)
            live = (kept % 2 == 0)[None, :] & (x[:, :1] > x[:, :1].mean())
            return live | (kept == 1)

    sparse = [cut(w, (8, 8)) for w in (up, down, gate)]
    for prune in (above_mean, Half(), [above_mean, None, above_mean, pr.Threshold(0.3), Half(), above_mean]):
        for parts, others in (
            ((up, down, gate), [host(w) for w in (up, down, gate)]),
            ((up, down), [host(w) for w in (up, down)]),
            ([w.to("cuda") for w in sparse], sparse),
        ):
            options = {"activation": "relu", "prune": prune, "branch": 4, "top_k": 3}
            seen.clear()
            got = pr.moe(x, None, *parts, logits=logits, **options)
            asked = list(seen)
            seen.clear()
            with pr.device("reference"):
                exact = pr.moe(host(x), None, *others, logits=host(logits), **options)
            assert asked == seen
            near(got, exact, torch.float64)
    shared = (up[0], down[0])
    options = {"activation": "relu", "prune": above_mean, "shared": shared}
    got = pr.moe(x, router, up, down, **options)
    near(got, expected(x, router, up, down, **options), torch.float64)
    assert pr.moe(x[:0], router, up, down, prune=above_mean).shape == (0, 13)


def test_blocks_count_as_they_are_stored(rng, place):
    x, _, up, down, _ = weights(rng, place, d=16, f=32, out=8, rows=4)
    logits = torch.full((4, 5), -1.0, device=place.device)
    logits[:, [0, 3]] = 1.0
    parts = [cut(w, (8, 8), 0.5) for w in (up, down)]
    with pr.trace() as t:
        pr.moe(x, None, *(w.to("cuda") for w in parts), logits=logits)
    each = [int(np.count_nonzero(w.toarray()[[0, 3]])) for w in parts]
    assert t.flops == 2 * 4 * sum(each)
    assert t.bytes_loaded == 4 * sum(each)


@pytest.mark.parametrize("rows", [1, 5000])
@pytest.mark.parametrize("turned", [False, True])
def test_nothing_of_blocks_is_read_back(rows, turned):
    def call(where):
        x, router = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((rows, 64), (8, 64)))
        parts = []
        for shape in ((96, 64), (64, 96)):
            size = shape[::-1] if turned else shape
            made = [pr.cuda.BSR._wrap(blocks(where, size, (16, 16), "bfloat16"), (), where) for _ in range(8)]
            parts.append([one.T for one in made] if turned else made)
        for prune in (None, pr.TopK(3), pr.Fixed(np.ones(96, bool))):
            assert moe(x, router, *parts, prune=prune).shape == (rows, 64)

    names = [launch.kernel.__name__ for launch in record(call, ahead("sm_90"))]
    assert names.count("grouped_blocks") == 6
