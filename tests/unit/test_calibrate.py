"""calibrate: thresholds from samples."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def parts(rng):
    up, gate = (rng.standard_normal((48, 16)).astype(np.float32) for _ in range(2))
    return up, rng.standard_normal((10, 48)).astype(np.float32), gate


@pytest.fixture
def x(rng):
    return rng.standard_normal((64, 16)).astype(np.float32)


def live_fraction(F, x, policy, **options):
    with pr.trace() as t:
        F(x, prune=policy, **options)
    return t.live_fraction


@pytest.mark.parametrize("decide", ["up", "gate"])
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("branch", [1, 6])
@pytest.mark.parametrize("target", [0.1, 0.25, 0.5, 1.0])
def test_a_wanted_live_fraction(parts, x, decide, norm, branch, target):
    F = pr.FFN.pack(*parts, decide=decide)
    tau = pr.calibrate(F, x, target, activation="silu", branch=branch, norm=norm)
    assert isinstance(tau, pr.Threshold)
    assert tau.norm == norm
    got = live_fraction(F, x, tau, activation="silu", branch=branch)
    assert got == pytest.approx(target, abs=1.5 / (64 * 48 / branch))


def test_no_more_than_the_activation_leaves(parts, x):
    F = pr.FFN.pack(*parts[:2])
    share = float((x @ parts[0].T > 0).mean())
    tau = pr.calibrate(F, x, target=0.9)
    assert tau.tau == 0
    assert live_fraction(F, x, tau) == pytest.approx(share, abs=1e-3)
    np.testing.assert_allclose(F(x, prune=tau), F(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("error", [0.0, 0.01, 0.1, 0.5])
def test_a_bound_on_the_error(parts, x, gated, error):
    F = pr.FFN.pack(*parts, decide="gate") if gated else pr.FFN.pack(*parts[:2])
    tau = pr.calibrate(F, x, error=error, activation="silu")
    exact = F(x, activation="silu").astype(float)
    got = np.linalg.norm(F(x, activation="silu", prune=tau) - exact) / np.linalg.norm(exact)
    assert got <= error + 1e-6
    if error:
        # It is used: a slightly higher threshold would break it.
        more = pr.Threshold(tau.tau * 1.1 + 1e-3)
        assert (
            np.linalg.norm(F(x, activation="silu", prune=more) - exact) / np.linalg.norm(exact) > 0.8 * error
        )
        assert live_fraction(F, x, tau, activation="silu") < 1


def test_several_layers(parts, x, rng):
    layers = [pr.FFN.pack(*parts[:2]), pr.FFN.pack(*parts, decide="gate")]
    other = rng.standard_normal((32, 16)).astype(np.float32)
    got = pr.calibrate(layers, [x, other], target=0.3)
    each = [pr.calibrate(layers[0], x, target=0.3), pr.calibrate(layers[1], other, target=0.3)]
    assert [tau.tau for tau in got] == [tau.tau for tau in each]
    with pytest.raises(TypeError, match=r"samples must be a list of 2 arrays, .* got ndarray"):
        pr.calibrate(layers, x, target=0.3)
    with pytest.raises(ValueError, match="samples must hold 2 arrays, one for each layer, got 1"):
        pr.calibrate(layers, [x], target=0.3)


def test_samples_with_leading_dimensions(parts, x):
    F = pr.FFN.pack(*parts[:2])
    batches = x.reshape(8, -1, x.shape[1])
    assert pr.calibrate(F, batches, target=0.3).tau == pr.calibrate(F, x, target=0.3).tau
    assert pr.calibrate(F, batches.tolist(), error=0.1).tau == pytest.approx(
        pr.calibrate(F, x, error=0.1).tau, rel=1e-5
    )
    assert pr.calibrate(F, x[0], target=0.3).tau == pr.calibrate(F, x[:1], target=0.3).tau
    with pytest.raises(ValueError, match=r"samples must be finite, but are not$"):
        pr.calibrate(F, np.full(x.shape[1], np.nan), target=0.3)
    batches[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"samples must be finite, but row \(2, 3\) is not"):
        pr.calibrate(F, batches, target=0.3)


def test_halves(parts, x):
    F = pr.FFN.pack(*(part.astype(BF16) for part in parts), decide="gate")
    tau = pr.calibrate(F, x.astype(BF16), target=0.4, activation="silu")
    assert live_fraction(F, x.astype(BF16), tau, activation="silu") == pytest.approx(0.4, abs=0.01)
    assert pr.calibrate(F, x.astype(BF16), error=0.05, activation="silu").tau > 0


def test_one_dead_layer(x):
    F = pr.FFN.pack(np.zeros((48, 16), np.float32), np.zeros((10, 48), np.float32))
    assert pr.calibrate(F, x, target=0.5).tau == 0
    assert pr.calibrate(F, x, error=0.5).tau == 0


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([2, 2, 2, 2], 0.5, 1.0),
        ([2, 2, 2, 2], 0.25, 0.0),
        ([2, 2, 2, 2], 0.75, 1.0),
        ([1, 2, 2, 3], 0.5, 0.75),
        ([1, 2, 2, 2, 2, 2, 2, 3], 0.25, 0.125),
        ([1, 2, 2, 2, 2, 2, 2, 3], 0.75, 0.875),
        ([0, 0, 0, 2], 0.75, 0.25),
        ([1, 2, 3, 4], 0.5, 0.5),
    ],
)
def test_equal_norms_live_or_die_together(values, target, expected):
    w = np.diag(np.array(values, np.float32))
    F, x = pr.FFN.pack(w, np.eye(len(w), dtype=np.float32)), np.ones((5, len(w)), np.float32)
    assert live_fraction(F, x, pr.calibrate(F, x, target)) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "either"),
        ({"target": 0.5, "error": 0.1}, "either"),
        ({"target": 0.0}, "target"),
        ({"target": 1.1}, "target"),
        ({"target": float("nan")}, "target"),
        ({"error": -1.0}, "error"),
        ({"error": float("inf")}, "error"),
        ({"target": 0.5, "norm": "l1"}, "norm"),
        ({"target": 0.5, "activation": "tanh"}, "activation"),
    ],
)
def test_bad_options(parts, x, options, match):
    with pytest.raises(ValueError, match=match):
        pr.calibrate(pr.FFN.pack(*parts), x, **options)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((0, 16)),
        np.zeros((2, 0, 16)),
        np.zeros(()),
        np.full((3, 16), np.inf),
        np.zeros((3, 16), int),
        np.zeros((3, 15)),
        None,
        "samples",
    ],
    ids=["empty", "no rows", "scalar", "infinite", "integers", "features", "none", "text"],
)
def test_bad_samples(parts, samples):
    with pytest.raises((ValueError, TypeError), match=r"^samples must (have shape|hold floats|be)"):
        pr.calibrate(pr.FFN.pack(*parts), samples, target=0.5)


def test_not_a_layer(x):
    with pytest.raises(TypeError, match="ffn must be an FFN or a list of them, got int"):
        pr.calibrate(3, x, target=0.5)
    with pytest.raises(TypeError, match=r"ffn\[0\] must be an FFN, got ndarray"):
        pr.calibrate([x], [x], target=0.5)


@pytest.mark.parametrize("options", [{"target": "half"}, {"target": [0.5]}, {"error": "small"}])
def test_numbers_that_are_none(parts, x, options):
    with pytest.raises(TypeError, match=r"^(target|error) must be a number, got"):
        pr.calibrate(pr.FFN.pack(*parts), x, **options)
