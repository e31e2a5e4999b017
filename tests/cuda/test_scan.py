"""Selective scans of tensors: against the reference engine on NumPy's arrays of the same values."""

import numpy as np
import pytest
import torch

import prunus as pr
from helpers import scan_operands
from prunus import PrunusError
from prunus.cuda import scan as kernels
from prunus.cuda.layers.scan import selective_scan
from prunus.cuda.runtime import RECORDER, Place
from prunus.interop.torch import as_array

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SEQUENCE = ("u", "delta", "B", "C", "z")


def operands(rng, where, dtype=torch.float32, batch=(2,), length=13, channels=19, states=5):
    made = scan_operands(rng, batch, length, channels, states)
    return {name: torch.from_numpy(one).to(dtype).to(where.device) for name, one in made.items()}


def normal(rng, where, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(where.device)


def host(values):
    return {
        name: as_array(one.cpu()) if isinstance(one, torch.Tensor) else one for name, one in values.items()
    }


def expected(given, **options):
    with pr.device("reference"):
        return pr.selective_scan(**host(given), **host(options))


def near(got, exact, dtype=torch.float32):
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert tuple(got.shape) == exact.shape
    error = TOLERANCE[dtype]
    size = np.abs(exact.astype(float)).max(initial=1)
    np.testing.assert_allclose(
        got.double().cpu().numpy(), exact.astype(float), rtol=2 * error, atol=error * size
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias")], ids=str)
def test_every_dtype(rng, place, dtype, without):
    given = operands(rng, place, dtype) | dict.fromkeys(without)
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    start = normal(rng, place, 2, 19, 5, dtype=inner)
    kept = start.clone()
    options = {"delta_softplus": True, "state": start, "return_state": True}
    y, state = pr.selective_scan(**given, **options)
    exact, last = expected(given, **options)
    assert y.device == start.device
    near(y, exact, dtype)
    near(state, last, inner)
    assert torch.equal(start, kept)


@pytest.mark.parametrize("states", [1, 16, 17])
@pytest.mark.parametrize("length", [4, 23])
def test_chunks(rng, place, monkeypatch, states, length):
    given = operands(rng, place, states=states, length=length, channels=37)
    given["A"][0] = -torch.inf
    start = normal(rng, place, 2, 37, states)
    whole = kernels.plan
    monkeypatch.setattr(kernels, "plan", lambda *args: whole(*args)._replace(chunk=6))
    for state in (None, start):
        options = {"state": state, "return_state": True}
        y, after = pr.selective_scan(**given, **options)
        exact, last = expected(given, **options)
        near(y, exact)
        near(after, last)
    pruned = pr.selective_scan(**given, prune=pr.Threshold(0.4), branch=3)
    near(pruned, expected(given, prune=pr.Threshold(0.4), branch=3))


POLICIES = [
    pr.Threshold(0.3),
    pr.Threshold(0.4, norm="l2"),
    pr.TopK(fraction=0.3),
    pr.Fixed(np.arange(7) % 2 == 0),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_decide_on_the_device(rng, place, policy):
    given = operands(rng, place)
    near(pr.selective_scan(**given, prune=policy, branch=3), expected(given, prune=policy, branch=3))
    whole, last = pr.selective_scan(**given, return_state=True)
    pruned, state = pr.selective_scan(**given, prune=policy, branch=3, return_state=True)
    assert torch.equal(state, last)
    assert torch.equal(pruned, torch.where(pruned != 0, whole, 0))


def test_gates(rng, place):
    z = normal(rng, place, 3, 5, 70, dtype=torch.float64) * 3
    z[0, 0, 0], z[1, 1, 14:21], z[2, 2, :7] = torch.nan, 0, 1e-200
    gates = z * torch.sigmoid(z)
    for norm in ("max", "l2"):
        norms = torch.empty(15, 10, dtype=torch.float32, device=place.device)
        kernels.gates(place, z, 7, norm, norms)
        parts = gates.reshape(15, 10, 7)
        exact = parts.abs().amax(-1) if norm == "max" else parts.square().sum(-1).sqrt()
        exact[12, 0] = 0
        torch.testing.assert_close(norms, exact.float(), equal_nan=True)
        assert norms[0, 0].isnan()
        assert norms[6, 2] == 0
        assert norms[12, 0] > 0


def test_steps_update_the_state_in_place(rng, place):
    given = operands(rng, place, length=6)
    y, last = pr.selective_scan(**given, return_state=True)
    wide = torch.zeros(2, 5, 19, device=place.device)
    for state in (torch.zeros(2, 19, 5, device=place.device), wide.transpose(1, 2)):
        for t in range(6):
            now = {name: one[:, t] if name in SEQUENCE else one for name, one in given.items()}
            torch.testing.assert_close(pr.selective_step(**now, state=state), y[:, t])
        torch.testing.assert_close(state, last)
    # The state's memory is an operand's as well.
    memory = normal(rng, place, 8, 8)
    apart, step = memory.clone(), normal(rng, place, 8)
    b, c = memory[:2].clone()
    first = pr.selective_step(step, step.abs(), -memory.abs(), b, c, state=apart)
    again = pr.selective_step(step, step.abs(), -memory.abs(), memory[0], memory[1], state=memory)
    assert torch.equal(first, again)
    assert torch.equal(memory, apart)


def test_any_strides_and_batches(rng, place):
    given = operands(rng, place, batch=(2, 3))
    exact = expected(given)
    turned = {
        name: one.transpose(-1, -2).contiguous().transpose(-1, -2) if one.ndim > 1 else one.repeat(2)[:19]
        for name, one in given.items()
    }
    near(pr.selective_scan(**turned), exact)
    shared = given | {"B": given["B"][:, :1], "C": given["C"][0, 0]}
    near(pr.selective_scan(**shared), expected(shared))
    own = shared | {"B": given["B"][:, :1].expand(2, 3, 13, 5), "C": given["C"][:1, :1].expand(2, 3, 13, 5)}
    alone = {name: one[1, 2] if name in SEQUENCE else one for name, one in own.items()}
    assert torch.equal(pr.selective_scan(**alone), pr.selective_scan(**shared)[1, 2])


@pytest.mark.parametrize("empty", [{"batch": (0,)}, {"length": 0}, {"channels": 0}, {"states": 0}], ids=str)
def test_nothing_gives_nothing(rng, place, empty):
    given = operands(rng, place, **empty)
    y, state = pr.selective_scan(**given, return_state=True, prune=pr.Threshold(0.1))
    exact, last = expected(given, return_state=True, prune=pr.Threshold(0.1))
    near(y, exact)
    near(state, last)


def test_a_wide_state_makes_the_scan_wide(rng, place):
    given = operands(rng, place, torch.bfloat16)
    start = normal(rng, place, 2, 19, 5, dtype=torch.float64)
    y, state = pr.selective_scan(**given, state=start, return_state=True)
    exact, last = expected(given, state=start, return_state=True)
    near(y, exact, torch.bfloat16)
    near(state, last, torch.float64)


def test_what_is_refused(rng, place):
    good = operands(rng, place)

    def refuse(error, match, **changes):
        with pytest.raises(error, match=match):
            pr.selective_scan(**{**good, **changes})

    refuse(ValueError, "delta must have shape", delta=good["delta"][..., :7])
    refuse(ValueError, "A must have shape", A=good["A"][0])
    refuse(ValueError, "D must have shape", D=good["D"][:7])
    refuse(ValueError, "broadcast", B=torch.ones(3, 13, 5, device=place.device))
    refuse(ValueError, "state must have shape", state=torch.zeros(19, 5, device=place.device))
    refuse(TypeError, "state must be torch.float32, or float64", state=torch.zeros(2, 19, 5).half())
    refuse(TypeError, "B must hold floats", B=good["B"].int())
    refuse(PrunusError, "host memory", z=good["z"].cpu().numpy())
    refuse(ValueError, "pass z", z=None, prune=pr.Threshold(0.1))
    refuse(ValueError, "branch", branch=0)
    refuse(TypeError, "prune must be a policy", prune=0.5)
    step = {name: one[:, 0] if name in SEQUENCE else one for name, one in good.items()}
    with pytest.raises(TypeError, match="tensor to be updated"):
        pr.selective_step(**step, state=np.zeros((2, 19, 5), np.float32))
    with pytest.raises(ValueError, match="repeats values"):
        pr.selective_step(**step, state=torch.zeros(1, 19, 5, device=place.device).expand(2, 19, 5))
    with pytest.raises(ValueError, match="at least one dimension"):
        pr.selective_step(**{**step, "u": step["u"][0, 0]}, state=torch.zeros(2, 19, 5, device=place.device))


def test_nothing_waits_for_the_device():
    """Meta tensors have no values: whoever looks at one raises."""
    where = Place(torch.device("meta"), "sm_90", "none", 132, 227 * 1024)
    u, b = torch.empty(2, 3000, 64, device="meta"), torch.empty(2, 3000, 16, device="meta")
    a = torch.empty(64, 16, device="meta")
    token = RECORDER.set([])
    try:
        for policy in (None, pr.Threshold(0.1), pr.TopK(2)):
            for keep in (True, False):
                got = selective_scan(
                    u, u, a, b, b, z=u, prune=policy, branch=4, return_state=keep, where=where
                )
                y = got[0] if keep else got
                assert (y.shape, y.device) == (u.shape, u.device)
        names = {launch.kernel.__name__ for launch in RECORDER.get()}
        assert names >= {"scan", "pieces", "chain", "ends", "gates"}
    finally:
        RECORDER.reset(token)


def test_the_trace(rng, place):
    given = operands(rng, place)
    for options in ({}, {"prune": pr.Threshold(0.3), "branch": 3}):
        with pr.trace() as t:
            pr.selective_scan(**given, **options)
        with pr.trace() as exact:
            expected(given, **options)
        for name in ("flops", "flops_skipped", "bytes_loaded", "bytes_skipped", "live_fraction"):
            assert getattr(t, name) == getattr(exact, name)
        assert "cuda" in t.records[0].path
