"""moe: what it refuses, and how a router's weights come about."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F32, F64, sparse
from prunus.pruning.moe import route

E, D, F, OUT = 4, 6, 10, 5


@pytest.fixture
def rng():
    return np.random.default_rng(2)


@pytest.fixture
def given(rng):
    return {
        "x": rng.standard_normal((3, D)),
        "router": rng.standard_normal((E, D)),
        "w_up": rng.standard_normal((E, F, D)),
        "w_down": rng.standard_normal((E, OUT, F)),
        "w_gate": None,
    }


def test_weights_of_the_router():
    logits = np.array([[1.0, 3.0, 2.0, -np.inf], [0.0, 0.0, 0.0, 0.0], [-np.inf, 5.0, -np.inf, -np.inf]])
    live, weights = route(logits, pr.Router(2))
    assert live.tolist() == [
        [False, True, True, False],
        [True, True, False, False],
        [False, True, False, False],
    ]
    e = np.exp(1.0)
    np.testing.assert_allclose(weights, [[0, e / (1 + e), 1 / (1 + e), 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]])
    _, weights = route(logits, pr.Router(2, renormalize=False))
    every = np.exp([1.0, 3.0, 2.0])
    np.testing.assert_allclose(weights[0], [0, every[1] / every.sum(), every[2] / every.sum(), 0])
    np.testing.assert_allclose(weights[1], [0.25, 0.25, 0, 0])
    # Large logits do not overflow.
    _, weights = route(np.array([[1e30, 1e30, -1e30]]), pr.Router(2))
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0]])


def test_dtype_of_the_logits(given, rng):
    logits = rng.standard_normal((3, E)).astype(np.float16)
    narrow = {k: v.astype(np.float32) for k, v in given.items() if v is not None and k != "router"}
    assert pr.moe(router=None, logits=logits, **narrow).dtype == F32
    assert pr.moe(router=None, logits=logits.astype(float), **narrow).dtype == F32
    assert pr.moe(**given).dtype == F64
    one = pr.moe(given["x"][1], None, given["w_up"], given["w_down"], logits=logits[1])
    np.testing.assert_array_equal(
        one, pr.moe(given["x"], None, given["w_up"], given["w_down"], logits=logits)[1]
    )


BAD = {
    "router shape": ({"router": np.zeros((E, D + 1))}, ValueError, "router must have shape"),
    "router experts": ({"router": np.zeros((E + 1, D))}, ValueError, "router must have shape"),
    "router dtype": ({"router": np.zeros((E, D), int)}, TypeError, "router must hold floats"),
    "router nan": ({"router": np.full((E, D), np.nan)}, ValueError, "row 0 hold NaN"),
    "no router": ({"router": None}, TypeError, "either"),
    "both": ({"logits": np.zeros((3, E))}, TypeError, "either"),
    "k": ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
    "k many": ({"top_k": 5}, ValueError, "top_k must be from 1 to the number of experts, 4; got 5"),
    "k kind": ({"top_k": 1.5}, TypeError, "top_k must be an integer, got float"),
    "x features": ({"x": np.zeros((3, D + 1))}, ValueError, "router must have shape"),
    "x dtype": ({"x": np.zeros((3, D), int)}, TypeError, "x"),
    "x scalar": ({"x": 1.0}, ValueError, "dimension"),
    "up dims": ({"w_up": np.zeros((F, D))}, ValueError, "axis 0"),
    "up kind": ({"w_up": "weights"}, TypeError, "w_up must be"),
    "up none": ({"w_up": None}, TypeError, "w_up is missing"),
    "up empty": ({"w_up": [], "w_down": []}, ValueError, "no experts"),
    "up features": ({"w_up": np.zeros((E, F, D + 2))}, ValueError, "takes 8 features, x has 6"),
    "up dtype": ({"w_up": np.zeros((E, F, D), int)}, TypeError, "floats"),
    "down count": ({"w_down": np.zeros((E - 1, OUT, F))}, ValueError, "4 experts in w_up, but 3 in w_down"),
    "down units": ({"w_down": np.zeros((E, OUT, F + 1))}, ValueError, "expected 10 columns"),
    "down none": ({"w_down": None}, TypeError, "must be an FFN"),
    "gate": ({"w_gate": np.zeros((E, F - 1, D))}, ValueError, "w_gate of expert"),
    "activation": ({"activation": "tanh"}, ValueError, "activation"),
    "branch": ({"branch": 0}, ValueError, "branch"),
    "prune": ({"prune": 0.5}, TypeError, "policy"),
    "prune list": ({"prune": [pr.Threshold(0)]}, ValueError, "1 policies for 4"),
    "mask": ({"prune": pr.Fixed(np.ones(3, bool))}, ValueError, "branches"),
    "nonsense": ({"prune": lambda s: s.norms}, TypeError, "booleans"),
    "shared": ({"shared": np.zeros((F, D))}, TypeError, "shared"),
    "shared tuple": ({"shared": (np.zeros((F, D)),)}, TypeError, "tuple of 1"),
    "shared out": ({"shared": (np.zeros((F, D)), np.zeros((OUT + 1, F)))}, ValueError, "gives 6 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(given, case):
    changes, error, match = BAD[case]
    with pytest.raises(error, match=match):
        pr.moe(**(given | changes))


def test_bad_logits(given):
    weights = {k: v for k, v in given.items() if k != "router"}
    good = np.zeros((3, E))
    for row, value, match in ((1, -np.inf, "row 1 are all -inf"), (2, np.inf, r"row 2 hold \+inf")):
        logits = good.copy()
        logits[row] = value
        with pytest.raises(ValueError, match=match):
            pr.moe(router=None, logits=logits, **weights)
    logits = good.copy()
    logits[2, 3] = np.nan
    with pytest.raises(ValueError, match="row 2 hold NaN"):
        pr.moe(router=None, logits=logits, **weights)
    for shape in ((3, E - 1), (2, E), (E,), (1, 3, E)):
        with pytest.raises(ValueError, match="logits must have shape"):
            pr.moe(router=None, logits=np.zeros(shape), **weights)
    with pytest.raises(TypeError, match="floats"):
        pr.moe(router=None, logits=np.zeros((3, E), int), **weights)


def test_what_an_expert_is_made_of(given, rng):
    F_ = pr.FFN.pack(given["w_up"][0], given["w_down"][0])
    with pytest.raises(TypeError, match="is an FFN, which has its own"):
        pr.moe(given["x"], given["router"], [F_] * E, given["w_down"])
    with pytest.raises(ValueError, match=r"w_up of expert . must have two dimensions, got shape \(1,\)"):
        pr.moe(given["x"], given["router"], [[1.0]] * E, given["w_down"])
    with pytest.raises(TypeError, match=r"w_down of expert . must be an array of numbers, got dict"):
        pr.moe(given["x"], given["router"], given["w_up"], [{}] * E)
    with pytest.raises(ValueError, match=r"w_down of expert . has shape"):
        pr.moe(given["x"], given["router"], given["w_up"], [sparse(rng, (OUT, F + 1), (4, 4), F64)] * E)
    with pytest.raises(ValueError, match="axis 0 of three"):
        pr.moe(given["x"], given["router"], sparse(rng, (F, D), (4, 4), F64), given["w_down"])
    # Nothing of x, of the weights or of the logits is written.
    before = {k: v.copy() for k, v in given.items() if v is not None}
    pr.moe(**given, prune=pr.Threshold(0.5))
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)


# Dead units, batch mates and policies --------------------------------------------------------------------

KINDS = [F32, F64, BF16]


def blocks(part, size=8):
    return None if part is None else [pr.BSR.from_dense(w, blocksize=size) for w in part]


def as_blocks(w, form):
    """The same matrix as a BSR, a lazy transpose of one, or a frozen one."""
    if form == "transposed":
        return pr.BSR.from_dense(np.ascontiguousarray(w.T), blocksize=(4, 3)).T
    W = pr.BSR.from_dense(w, blocksize=(3, 4))
    return W.pack() if form == "packed" else W


@pytest.mark.parametrize("form", ["plain", "transposed", "packed"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_dead_units_do_not_meet_infinities_in_blocks(rng, form, dtype):
    x = rng.standard_normal((9, D)).astype(dtype)
    up, down = rng.standard_normal((F, D)).astype(dtype), rng.standard_normal((OUT, F)).astype(dtype)
    mask = rng.random((9, F)) < 0.5
    mask[4] = True
    poison = down.copy()
    poison[1, 2], poison[3, 7], poison[0, 9] = np.inf, np.nan, -np.inf
    clean = np.where(np.isfinite(poison), poison, np.zeros((), dtype))
    call = {"logits": np.zeros((9, 1)), "top_k": 1, "prune": pr.Fixed(mask)}
    got = pr.moe(x, None, [up], [as_blocks(poison, form)], **call)
    expected = pr.moe(x, None, [up], [as_blocks(clean, form)], **call)
    dead = ~mask[:, [2, 7, 9]].any(axis=1)
    assert dead.any()
    np.testing.assert_array_equal(got[dead], expected[dead])
    # Live ones do meet them; an output whose weights are finite does not change.
    for unit, out in ((2, 1), (7, 3), (9, 0)):
        hit = mask[:, unit]
        assert not np.isfinite(got[hit, out].astype(float)).any()
        np.testing.assert_array_equal(got[~hit, out], expected[~hit, out])
    # The same alone.
    for row in range(9):
        alone = pr.moe(
            x[row], None, [up], [as_blocks(poison, form)], logits=[0.0], top_k=1, prune=pr.Fixed(mask[row])
        )
        np.testing.assert_array_equal(alone.astype(F64), got[row].astype(F64))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(
    "prune",
    [
        None,
        pr.Threshold(0.3),
        pr.Threshold(0.5, norm="l2"),
        pr.TopK(fraction=0.4),
        lambda s: s.norms > np.median(s.norms, axis=1, keepdims=True),
    ],
    ids=["all", "max", "l2", "top", "function"],
)
def test_blocks_do_not_depend_on_batch_mates(rng, dtype, gated, prune):
    d, f = 70, 96
    shapes = (3, f, d), (3, 33, f), (3, f, d)
    up, down, gate = ((rng.standard_normal(s) / 8).astype(dtype) for s in shapes)
    parts = [blocks(part, 16) for part in (up, down, gate if gated else None)]
    x, logits = rng.standard_normal((40, d)).astype(dtype), rng.standard_normal((40, 3))
    options = {"prune": prune, "branch": 3}
    whole = pr.moe(x, None, *parts, logits=logits, **options)
    for rows in ([3], [39, 3], list(range(4)), list(range(7)), list(range(39, -1, -1))):
        part = pr.moe(x[rows], None, *parts, logits=logits[rows], **options)
        np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize("form", ["dense", "bsr", "ffn"])
def test_a_mask_has_the_rows_of_x(given, rng, form):
    x, up, down = rng.standard_normal((2, 8, D)), given["w_up"], given["w_down"]
    logits, mask = rng.standard_normal((2, 8, E)), rng.random((16, F)) < 0.5
    parts = {
        "dense": (up, down),
        "bsr": (blocks(up), blocks(down)),
        "ffn": ([pr.FFN.pack(*p) for p in zip(up, down, strict=True)],),
    }[form]
    shared = (up[0], down[0])
    got = pr.moe(x, None, *parts, logits=logits, prune=pr.Fixed(mask), shared=shared)
    for i, row in enumerate(x.reshape(16, D)):
        prune, own = pr.Fixed(mask[i]), logits.reshape(16, E)[i]
        alone = pr.moe(row, None, *parts, logits=own, prune=prune, shared=shared)
        np.testing.assert_array_equal(alone, got.reshape(16, OUT)[i])
    # One mask for each expert: every one has the rows of x.
    masks = rng.random((E, 16, F)) < 0.5
    got = pr.moe(x, None, *parts, logits=logits, prune=[pr.Fixed(one) for one in masks])
    alone = pr.moe(x[1, 3], None, *parts, logits=logits[1, 3], prune=[pr.Fixed(m) for m in masks[:, 11]])
    np.testing.assert_array_equal(alone, got[1, 3])


def test_masks_of_other_rows(given):
    for rows in (2, 6):
        with pytest.raises(ValueError, match="a row for each of the 3 rows of x"):
            pr.moe(**given, prune=pr.Fixed(np.ones((rows, F), bool)))


@pytest.mark.parametrize("prune", [pr.Threshold(0.1, rows=2), pr.TopK(fraction=0.5, rows=4)])
def test_rows_are_not_pooled(given, prune):
    for one in (prune, [None, None, None, prune]):
        with pytest.raises(ValueError, match="neighbours by accident"):
            pr.moe(**given, prune=one)


@pytest.mark.parametrize("form", ["dense", "bsr"])
def test_a_function_sees_the_rows_of_one_expert(given, form):
    seen = []

    def every(statistics):
        seen.append(statistics.norms)
        return np.ones(statistics.norms.shape, bool)

    logits = np.full((3, E), -np.inf)
    logits[:, 1] = logits[2, 3] = 0
    up, down = given["w_up"], given["w_down"]
    parts = (blocks(up), blocks(down)) if form == "bsr" else (up, down)
    pr.moe(given["x"], None, *parts, logits=logits, activation=None, prune=every)
    assert [one.shape for one in seen] == [(3, F), (1, F)]
    np.testing.assert_allclose(seen[1], np.abs(up[3] @ given["x"][2])[None], rtol=1e-6)


class Counts(pr.Policy):
    """Counts how often it is asked."""

    def __init__(self, live):
        self.live, self.asked = live, []

    def foresee(self, x, branches):
        self.asked.append(len(x))
        return np.ones((len(x), branches), bool) if self.live else None

    def select(self, statistics):
        return np.ones(statistics.norms.shape, bool)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("form", ["dense", "bsr"])
def test_a_policy_foresees_once(given, form, live):
    up, down = given["w_up"], given["w_down"]
    parts = (blocks(up), blocks(down)) if form == "bsr" else (up, down)
    logits, policy = np.full((3, E), -np.inf), Counts(live)
    logits[:, 1] = logits[2, 3] = 0
    pr.moe(given["x"], None, *parts, logits=logits, prune=policy)
    assert policy.asked == [3, 1]


@pytest.mark.parametrize("form", ["dense", "bsr"])
@pytest.mark.parametrize("prune", [pr.Threshold(0.4), pr.TopK(count=2), pr.Fixed(np.arange(F) % 3 == 0)])
def test_liveness_is_traced_as_of_an_ffn(given, rng, form, prune):
    x, up, down = rng.standard_normal((300, D)), given["w_up"], given["w_down"]
    ffns = [pr.FFN.pack(*p) for p in zip(up, down, strict=True)]
    parts = (blocks(up), blocks(down)) if form == "bsr" else (up, down)
    found = []
    for weights, name in ((parts, "expert"), ((ffns,), "ffn")):
        with pr.trace() as t:
            pr.moe(x, given["router"], *weights, prune=prune)
        found.append([r for r in t.records if r.name == name])
    assert len(found[0]) == E
    for own, other in zip(*found, strict=True):
        for name in ("live", "total", "union_live", "union_total", "depth"):
            assert getattr(own, name) == getattr(other, name)
        assert 0 < own.live < own.total
        assert own.path
    with pr.trace() as t:
        pr.moe(x, given["router"], *parts)
    assert all(r.total == 0 for r in t.records if r.name == "expert")


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_what_is_small_is_not_dead_in_stored_experts(norm):
    # Squares of these are below what single precision holds, and so are the values themselves.
    up = np.full((1, 4, 4), 1e-60)
    stored = [pr.BSR(up[0], blocksize=2)]
    down = [pr.BSR(np.full((2, 4), 1e60), blocksize=2)]
    x, router = np.ones((3, 4)), np.ones((1, 4))
    policy = pr.Threshold(0.0, norm)
    got = pr.moe(x, router, stored, down, top_k=1, activation="relu", prune=policy, branch=2)
    np.testing.assert_allclose(got, 16.0)
