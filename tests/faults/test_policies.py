"""Bad policies, masks and numbers, in every operation that prunes; and what is left where all is dead."""

import math

import numpy as np
import pytest

import prunus as pr
from operations import operations, plain

ALL = operations()
# Calls for which a policy decides among branches of width 1, and how many rows and branches it sees.
PRUNED = {
    "linear": (lambda **k: ALL["linear"](**{"branch": 1, "activation": "relu", **k}), (8, 12)),
    "FFN": (ALL["FFN"], (8, 12)),
    "ffn": (ALL["ffn"], (8, 12)),
    "moe": (lambda **k: ALL["moe"](**{"top_k": 3, **k}), (8, 12)),
    "attention": (ALL["attention"], (6, 3)),
    "selective_scan": (ALL["selective_scan"], (12, 8)),
}
RELU = {"linear", "FFN", "ffn"}
everywhere = pytest.mark.parametrize("name", PRUNED)


class Own(pr.Policy):
    """Says what a function says."""

    def __init__(self, function):
        self.function = function

    def select(self, statistics):
        return self.function(statistics.norms)


class Foresees(Own):
    """Says it before there is anything to see."""

    def foresee(self, x, branches):
        return self.function(np.zeros((len(x), branches)))


NONSENSE = {
    "none": (lambda norms: None, TypeError, "must return an array of booleans, got NoneType"),
    "list": (lambda norms: (norms > 0).tolist(), TypeError, "must return an array of booleans, got list"),
    "floats": (lambda norms: norms, TypeError, "must return an array of booleans, got dtype float"),
    "integers": (lambda norms: np.ones(norms.shape, np.uint8), TypeError, "got dtype uint8"),
    "one branch more": (lambda norms: np.ones((len(norms), norms.shape[1] + 1), bool), ValueError, "shape"),
    "one row less": (lambda norms: norms[1:] > 0, ValueError, "must return shape"),
    "one row": (lambda norms: norms[0] > 0, ValueError, "must return shape"),
    "transposed": (lambda norms: norms.T > 0, ValueError, "must return shape"),
}


@everywhere
@pytest.mark.parametrize("case", NONSENSE)
@pytest.mark.parametrize("form", ["function", "policy", "object"])
def test_a_policy_that_returns_nonsense(name, case, form):
    function, error, match = NONSENSE[case]
    prune = {
        "function": lambda statistics: function(statistics.norms),
        "policy": Own(function),
        "object": type("Plain", (), {"select": lambda self, statistics: function(statistics.norms)})(),
    }[form]
    with pytest.raises(error, match=match):
        PRUNED[name][0](prune=prune)


@pytest.mark.parametrize("name", [name for name in PRUNED if name != "attention"])
@pytest.mark.parametrize("case", [case for case in NONSENSE if case != "none"])
def test_a_policy_that_foresees_nonsense(name, case):
    _, error, _ = NONSENSE[case]
    with pytest.raises(error, match=r"must foresee (booleans|shape) .*, got"):
        PRUNED[name][0](prune=Foresees(NONSENSE[case][0]))


@everywhere
def test_what_a_policy_raises_is_what_the_caller_sees(name):
    def refuse(statistics):
        raise LookupError("no opinion")

    with pytest.raises(LookupError, match="no opinion"):
        PRUNED[name][0](prune=refuse)
    # And nothing is left behind.
    np.testing.assert_array_equal(plain(PRUNED[name][0]()), plain(PRUNED[name][0]()))


@everywhere
@pytest.mark.parametrize("prune", [0.5, True, "relu", pr.TopK, [None], np.ones(3), {}], ids=repr)
def test_what_is_no_policy(name, prune):
    # A list is one policy for each expert.
    error = ValueError if name == "moe" and isinstance(prune, list) else TypeError
    with pytest.raises(error, match=r"prune (must|has)"):
        PRUNED[name][0](prune=prune)


@everywhere
@pytest.mark.parametrize("attribute", ["rows", "norm", "scope"])
def test_attributes_of_a_policy(name, attribute):
    prune = Own(lambda norms: norms > 0)
    setattr(prune, attribute, 0)
    with pytest.raises(ValueError, match=rf"Own\.{attribute} must"):
        PRUNED[name][0](prune=prune)


@everywhere
def test_masks_of_other_shapes(name):
    call, (rows, branches) = PRUNED[name]
    for shape in ((branches + 1,), (branches - 1,), (rows + 1, branches), (rows, branches + 1), (0,)):
        with pytest.raises(ValueError, match=r"mask of shape"):
            call(prune=pr.Fixed(np.ones(shape, bool)))
    for prune in (np.ones((rows, branches), bool), pr.Fixed(np.ones(branches, bool))):
        np.testing.assert_allclose(
            plain(call(prune=prune)), plain(call(prune=pr.TopK(fraction=1.0))), rtol=1e-5, atol=1e-6
        )


@everywhere
@pytest.mark.parametrize("tau", [math.nan, math.inf, -math.inf, -1e-300])
def test_thresholds_that_are_none(name, tau):
    with pytest.raises(ValueError, match="tau must be finite and not negative"):
        PRUNED[name][0](prune=pr.Threshold(tau))


@everywhere
def test_more_branches_than_there_are(name):
    call, (_, branches) = PRUNED[name]
    every = plain(call(prune=pr.TopK(fraction=1.0)))
    np.testing.assert_array_equal(plain(call(prune=pr.TopK(branches + 5))), every)
    for count in (2**60, 2**64, 10**30):
        np.testing.assert_array_equal(plain(call(prune=pr.TopK(count))), every)
    with pytest.raises(ValueError, match=f"cannot choose {branches + 1} of {branches}"):
        call(prune=pr.Router(branches + 1))
    for count in (0, -1):
        with pytest.raises(ValueError, match="count must be at least 1"):
            call(prune=pr.TopK(count))
    for fraction in (0.0, -0.5, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            call(prune=pr.TopK(fraction=fraction))


@everywhere
def test_wider_than_everything(name):
    call, _ = PRUNED[name]
    if name != "attention":
        widest = {"branch": 2**70}
        every = {"branch": call(branch=1, prune=nothing).shape[-1] if name == "selective_scan" else 12}
        prune = pr.Threshold(0.01)
        np.testing.assert_array_equal(plain(call(prune=prune, **widest)), plain(call(prune=prune, **every)))
    if name == "moe":
        with pytest.raises(ValueError, match="pools"):
            call(prune=pr.Threshold(0.01, rows=2**70))
    else:
        pooled = call(prune=pr.Threshold(0.01, rows=2**70))
        np.testing.assert_array_equal(plain(pooled), plain(call(prune=pr.Threshold(0.01, rows=1000))))


def nothing(statistics):
    return np.zeros(statistics.norms.shape, bool)


@everywhere
def test_all_branches_dead(name):
    call, (rows, branches) = PRUNED[name]
    size = np.float64(3e38)
    policies = [nothing, pr.Fixed(np.zeros(branches, bool)), np.zeros((rows, branches), bool)]
    if name != "attention":
        policies.append(pr.Threshold(size))
    for prune in policies:
        got = call(prune=prune)
        assert np.isfinite(plain(got)).all()
        if name == "attention":
            # The diagonal is always kept: each query sees its own block of keys.
            mask = pr.BlockMask(np.eye(3, dtype=bool), 4)
            np.testing.assert_allclose(got, call(mask=mask), rtol=1e-5)
        elif name in ("FFN", "ffn"):
            np.testing.assert_array_equal(got, np.broadcast_to(ALL[name].operands["b_down"], got.shape))
            without = call(prune=prune, b_down=None)
            assert not without.any()
        elif name == "linear":
            assert got.nnzb == 0
            assert got.shape == (8, 12)
        else:
            assert not got.any()


def test_a_query_that_sees_nothing_gets_zeros():
    mask = pr.BlockMask(np.array([[True, False, False], [False, False, False], [False, True, True]]), 4)
    prunes = [None, nothing, pr.Threshold(0.1), pr.TopK(1), pr.TopK(fraction=0.5), np.ones(3, bool)]
    for causal in (False, True):
        for prune in prunes:
            y = ALL["attention"](mask=mask, causal=causal, prune=prune)
            assert not y[:, 4:8].any()
            assert np.isfinite(y).all()
            assert y[:, :4].all()
    # More queries than keys: by causality the first ones see no key at all.
    q, k, v = (np.ones((1, n, 8), np.float32) for n in (12, 5, 5))
    for prune in prunes[:-1]:
        y = pr.attention(q, k, v, causal=True, prune=prune, blocksize=4)
        assert not y[:, :7].any()
        assert (y[:, 7:] == 1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_choose_nothing(value):
    logits = np.zeros((8, 3), np.float32)
    logits[5] = value
    what = {"nan": "hold NaN", "inf": r"hold \+inf", "-inf": "are all -inf"}[str(value)]
    with pytest.raises(ValueError, match=f"logits of row 5 {what}"):
        ALL["moe, logits"](logits=logits)
    logits[5, 1] = 0
    if value == -math.inf:
        # Two experts are wanted, and one may be chosen.
        assert np.isfinite(ALL["moe, logits"](logits=logits)).all()


def test_a_layer_for_predictors():
    x, layer = ALL["ffn"].operands["x"], {k: ALL["ffn"].operands[k] for k in ("w_up", "w_down", "w_gate")}
    F = pr.FFN.pack(**layer, decide="predictor")
    for prune in (pr.Threshold(0.0), pr.TopK(3), nothing, Own(lambda norms: norms > 0)):
        with pytest.raises(ValueError, match="prune must be a policy that foresees"):
            F(x, prune=prune)
    # Without a policy nothing is pruned.
    dense = pr.FFN.pack(**layer, decide="gate")(x)
    np.testing.assert_array_equal(F(x), dense)
    np.testing.assert_array_equal(F(x, prune=np.ones(12, bool)), dense)


def test_no_activation_is_the_identity():
    x, layer = ALL["ffn"].operands["x"], {k: ALL["ffn"].operands[k] for k in ("w_up", "w_down")}
    exact = x.astype(float) @ layer["w_up"].T.astype(float) @ layer["w_down"].T
    for got in (pr.FFN.pack(**layer)(x, activation=None), pr.ffn(x, **layer, activation=None)):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    for name in ("linear", "FFN", "ffn", "moe"):
        with pytest.raises(ValueError, match=r"activation must be one of .* or None, got 'tanh'"):
            ALL[name](activation="tanh")
