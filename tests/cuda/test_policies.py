"""Policies decide on the device as they do on the host."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus as pr
from prunus.cuda import policies as gpu
from prunus.cuda.transfer import upload
from prunus.pruning import policies as host

SOME = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, np.inf, -np.inf, np.nan, -1.0, 0.1])
POLICIES = [
    pr.Threshold(0.0), pr.Threshold(0.1), pr.Threshold(0.5, rows=3), pr.TopK(count=1), pr.TopK(count=3),
    pr.TopK(count=10**30), pr.TopK(fraction=0.3), pr.TopK(fraction=1.0), pr.TopK(fraction=0.1, rows=2),
    pr.Router(1),
]  # fmt: skip


def same(policy, norms, visible, place):
    want = host.decide(policy, norms, visible)
    seen = None if visible is None else upload(visible, place)
    got = gpu.decide(policy, upload(norms, place), seen)
    assert got.dtype == torch.bool
    np.testing.assert_array_equal(got.cpu().numpy(), want)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@SOME
@given(data=st.data(), rows=st.integers(1, 5), branches=st.integers(1, 7), hidden=st.booleans())
def test_as_on_the_host(place, policy, data, rows, branches, hidden):
    draw = data.draw(st.lists(VALUES, min_size=rows * branches, max_size=rows * branches))
    norms = np.array(draw, np.float32).reshape(rows, branches)
    visible = None
    if hidden:
        bits = data.draw(st.lists(st.booleans(), min_size=rows * branches, max_size=rows * branches))
        visible = np.array(bits).reshape(rows, branches)
    same(policy, norms, visible, place)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_nothing_to_decide(place, policy):
    for shape in ((0, 4), (3, 0)):
        if isinstance(policy, pr.Router) and not shape[1]:
            continue
        same(policy, np.zeros(shape, np.float32), None, place)


def test_a_threshold_is_a_double(place):
    norms = np.array([[np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0))]])
    same(pr.Threshold(0.1), norms, None, place)
    same(pr.Threshold(float(np.float32(0.1))), norms, None, place)


def test_fixed(place, rng):
    x = upload(rng.standard_normal((3, 4)), place)
    for mask in (rng.random(5) < 0.5, rng.random((3, 5)) < 0.5):
        policy = pr.Fixed(mask)
        for _ in range(2):
            got = gpu.foreseen(policy, x, 5)
            np.testing.assert_array_equal(got.cpu().numpy(), np.broadcast_to(mask, (3, 5)))
        with pytest.raises(ValueError, match="mask of shape"):
            gpu.foreseen(policy, x, 6)
    assert gpu.foreseen(pr.Threshold(0.0), x, 5) is None


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize(("branch", "norm"), [(1, "max"), (4, "max"), (4, "l2")])
def test_predictors(place, rng, gated, activation, branch, norm):
    x = rng.standard_normal((40, 12)).astype(np.float32)
    up, gate = (rng.standard_normal((30, 12)).astype(np.float32) for _ in range(2))
    policy = pr.Predictor.fit(
        x,
        up,
        w_gate=gate if gated else None,
        activation=activation,
        rank=5,
        keep=0.3,
        branch=branch,
        norm=norm,
    )
    branches = -(-30 // branch)
    want = policy.foresee(x[:7], branches)
    got = gpu.foreseen(policy, upload(x[:7], place), branches).cpu().numpy()
    # Scores that tie but for rounding may change places.
    assert (got != want).sum() <= 2
    assert (got.sum(1) == want.sum(1)).all()
    with pytest.raises(ValueError, match="branches"):
        gpu.foreseen(policy, upload(x, place), 99)


def test_functions_get_tensors(place, rng):
    norms = upload(rng.standard_normal((3, 5)).astype(np.float32), place)
    seen = []

    def mine(statistics):
        seen.append(statistics)
        return statistics.norms > 0

    got = gpu.decide(host.as_policy(mine), norms)
    assert seen[0].norms is norms
    assert torch.equal(got, norms > 0)
    as_array = gpu.decide(host.as_policy(lambda s: (s.norms > 0).cpu().numpy()), norms)
    assert torch.equal(as_array, norms > 0)
    for wrong, error in ((lambda s: s.norms, TypeError), (lambda s: s.norms[:1] > 0, ValueError)):
        with pytest.raises(error, match="must return"):
            gpu.decide(host.as_policy(wrong), norms)


def test_a_class_of_ones_own(place, rng):
    class Every(pr.Policy):
        rows = 2

        def select(self, statistics):
            return torch.ones_like(statistics.norms, dtype=torch.bool)

        def foresee(self, x, branches):
            return None

    norms = upload(rng.standard_normal((5, 4)), place)
    assert gpu.foreseen(Every(), norms, 4) is None
    assert gpu.decide(Every(), norms).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_of_long_rows(place, rng, dtype):
    """More values than a program keeps at once, many of them equal, some hidden."""
    values = rng.standard_normal((2, 20000)).astype(dtype).round(2)
    values[0, rng.random(20000) < 0.01], values[1, ::100] = np.nan, -0.0
    for hidden in (None, rng.random(values.shape) < 0.5):
        wanted = np.full(2, 777)
        want = host.largest(values, wanted, hidden)
        got = gpu.largest(upload(values, place), 777, None if hidden is None else upload(hidden, place))
        np.testing.assert_array_equal(got.cpu().numpy(), want)
