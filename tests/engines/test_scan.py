"""The selective scan against a plain loop in float64, step by step, in any layout, dtype and pruning."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, F16, F32, F64, FLOATS, declared, eps, floats, layouts, run_python, values
from helpers import scan_operands as make
from prunus import engines


def silu(x):
    return x / (1 + np.exp(-x))


def plain(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, state=None):
    """The recurrence as published, one step after the other, for one member of a batch."""
    u, delta, A, B, C = (x.astype(np.float64) for x in (u, delta, A, B, C))
    h = np.zeros(A.shape) if state is None else state.astype(np.float64)
    y = np.zeros(u.shape)
    for t in range(len(u)):
        step = delta[t] + (0 if delta_bias is None else delta_bias.astype(np.float64))
        if delta_softplus:
            step = np.array([max(x, 0) + math.log1p(math.exp(-abs(x))) for x in step])
        for i in range(u.shape[1]):
            h[i] = np.exp(step[i] * A[i]) * h[i] + step[i] * u[t, i] * B[t]
            y[t, i] = sum(C[t, n] * h[i, n] for n in range(A.shape[1]))
            y[t, i] += 0 if D is None else float(D[i]) * u[t, i]
        if z is not None:
            y[t] *= silu(z[t].astype(np.float64))
    return y, h


def members(operands, state=None, **options):
    """``plain`` for every member of a batch."""
    batch = operands["u"].shape[:-2]
    y = np.zeros(operands["u"].shape)
    h = np.zeros((*batch, *operands["A"].shape))
    for at in np.ndindex(*batch):
        own = {k: v if k in ("A", "D", "delta_bias") or v is None else v[at] for k, v in operands.items()}
        y[at], h[at] = plain(**own, state=None if state is None else state[at], **options)
    return y, h


def near(got, expected, kind, inner=F32):
    """Each value is a short sum of products: some tens of roundings, relative to the largest."""
    size = np.abs(expected).max(initial=1)
    np.testing.assert_allclose(
        got.astype(np.float64), expected, rtol=2 * eps(kind) + 64 * eps(inner), atol=64 * eps(inner) * size
    )


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("without", [(), ("z",), ("D", "delta_bias"), ("D", "z", "delta_bias")], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_the_plain_loop(rng, dtype, without, softplus):
    operands = make(rng, dtype=dtype, params=F64 if dtype == F64 else F32)
    operands |= dict.fromkeys(without)
    if softplus and operands["delta_bias"] is not None:
        operands["delta_bias"] = 3 * values(rng, 19, operands["A"].dtype)
    expected, last = members(operands, delta_softplus=softplus)
    y, state = pr.selective_scan(**operands, delta_softplus=softplus, return_state=True)
    inner = F64 if dtype == F64 else F32
    # Parameters in float32 widen halves.
    assert (y.dtype, state.dtype) == (inner, inner)
    near(y, expected, inner, inner)
    near(state, last, inner, inner)
    assert pr.selective_scan(**operands, delta_softplus=softplus).tobytes() == y.tobytes()


@pytest.mark.parametrize("batch", [(), (3,), (2, 2), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize(
    ("length", "channels", "states"),
    [
        (1, 1, 1),
        (7, 3, 16),
        (16, 64, 2),
        (17, 65, 1),
        (33, 130, 3),
        (0, 5, 3),
        (4, 0, 3),
        (4, 5, 0),
        (70, 16, 17),
    ],
)
def test_shapes(rng, batch, length, channels, states):
    operands = make(rng, batch, length, channels, states)
    start = values(rng, (*batch, channels, states), F32)
    expected, last = members(operands, start, delta_softplus=True)
    kept = start.copy()
    y, state = pr.selective_scan(**operands, state=start, delta_softplus=True, return_state=True)
    near(y, expected, F32)
    near(state, last, F32)
    np.testing.assert_array_equal(start, kept)
    if length == 0:
        np.testing.assert_array_equal(state, start)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_steps_are_the_scan(rng, engine, dtype):
    operands = make(rng, (2,), 25, 37, 4, dtype)
    options = {"delta_softplus": True, "prune": pr.Threshold(0.2), "branch": 4}
    inner = F64 if dtype == F64 else F32
    y, last = pr.selective_scan(**operands, **options, return_state=True)
    state, sequence = np.zeros((2, 37, 4), inner), {"u", "delta", "B", "C", "z"}
    rows = []
    for t in range(25):
        now = {name: x[:, t] if name in sequence else x for name, x in operands.items()}
        rows.append(pr.selective_step(**now, **options, state=state))
    steps = np.stack(rows, axis=1)
    if engine.name == "cpu" or inner == F64:
        assert steps.tobytes() == y.tobytes()
        assert state.tobytes() == last.tobytes()
    else:  # the reference's state is float64 inside a call, float32 between
        near(steps, y.astype(float), dtype)
    # In any two parts as well.
    for cut in (0, 1, 7, 16, 24):
        first = {name: x[:, :cut] if name in sequence else x for name, x in operands.items()}
        second = {name: x[:, cut:] if name in sequence else x for name, x in operands.items()}
        y1, half = pr.selective_scan(**first, **options, return_state=True)
        y2, end = pr.selective_scan(**second, **options, state=half, return_state=True)
        if engine.name == "cpu" or inner == F64:
            assert np.concatenate([y1, y2], axis=1).tobytes() == y.tobytes()
            assert end.tobytes() == last.tobytes()


POLICIES = [pr.Threshold(0.3), pr.Threshold(0.4, norm="l2"), pr.TopK(fraction=0.3)]


@pytest.mark.parametrize("branch", [1, 3, 8, 100])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_dead_outputs_are_zero_and_nothing_else_changes(rng, policy, branch):
    operands = make(rng, (2,), 21, 37, 5)
    whole, last = pr.selective_scan(**operands, return_state=True)
    pruned, state = pr.selective_scan(**operands, prune=policy, branch=branch, return_state=True)
    assert state.tobytes() == last.tobytes()
    gates = silu(operands["z"].astype(float)).reshape(-1, 37)
    starts = np.arange(0, 37, branch)
    if policy.norm == "l2":
        norms = np.sqrt(np.add.reduceat(gates**2, starts, axis=1))
    else:
        norms = np.maximum.reduceat(np.abs(gates), starts, axis=1)
    if isinstance(policy, pr.TopK):
        count = math.ceil(0.3 * len(starts) - 1e-9)
        live = np.zeros(norms.shape, bool)
        np.put_along_axis(live, np.argsort(-norms, axis=1)[:, :count], True, axis=1)
    else:
        live = norms > policy.tau
    every = np.repeat(live, branch, axis=1)[:, :37].reshape(whole.shape)
    np.testing.assert_array_equal(pruned, np.where(every, whole, 0))
    # Without a state to return, channels stop after their last live step; outputs are the same bits.
    with pr.trace() as t:
        again = pr.selective_scan(**operands, prune=policy, branch=branch)
    assert again.tobytes() == pruned.tobytes()
    # An independent count.
    states, advanced = 5, 0
    for member in every.reshape(2, 21, 37):
        advanced += sum(np.flatnonzero(column)[-1] + 1 for column in member.T if column.any())
    done = advanced * (1 + 4 * states) + every.sum() * (2 * states + 2 + 2)
    assert t.flops == done
    assert t.flops + t.flops_skipped == every.size * (1 + 6 * states + 4)
    assert t.live_fraction == live.mean()
    assert t.union_fraction == live.reshape(2, 21, -1).any(axis=1).mean()
    assert [record.name for record in t.records] == ["selective_scan"]


def test_threshold_zero_is_exact(rng):
    for dtype in floats():
        operands = make(rng, dtype=dtype)
        operands["z"][:, ::3] = 0
        operands["z"][:, 1, :7] = np.float32(1e-30)
        whole = pr.selective_scan(**operands)
        pruned = pr.selective_scan(**operands, prune=pr.Threshold(0))
        np.testing.assert_array_equal(pruned, whole)
    operands = make(rng, dtype=F64)
    operands["z"][...] = 1e-200  # below float32, in which statistics are
    with declared(F64):
        assert pr.selective_scan(**operands, prune=pr.Threshold(0)).all()


def test_dead_for_all_steps(rng):
    operands = make(rng, (2,), 40, 100, 3)
    operands["z"][0, :, 10:90] = 0
    operands["z"][1, 20:, 5:] = 0
    operands["u"][0, :, 10:90] = np.nan  # not looked at
    with np.errstate(invalid="ignore"), pr.trace() as t:
        y = pr.selective_scan(**operands, prune=pr.Threshold(0))
    assert np.isfinite(y).all()
    assert not y[0, :, 10:90].any()
    assert not y[1, 20:, 5:].any()
    rest = {k: v if k in ("A", "D", "delta_bias") else v[0] for k, v in operands.items()}
    expected, _ = plain(**rest)
    near(y[0][:, :10], expected[:, :10], F32)
    assert t.union_fraction == (20 + 100) / 200


@pytest.mark.parametrize("policy", [pr.Fixed(np.arange(10) % 3 > 0), pr.Threshold(1e9)], ids=repr)
def test_known_and_all_dead(rng, policy):
    operands = make(rng, channels=19)
    whole = pr.selective_scan(**operands)
    y = pr.selective_scan(**operands, prune=policy, branch=2)
    live = np.repeat(np.arange(10) % 3 > 0, 2)[:19] if isinstance(policy, pr.Fixed) else np.zeros(19, bool)
    np.testing.assert_array_equal(y, np.where(live, whole, 0))
    # A policy that does not have to look needs no gates.
    operands["z"] = None
    if isinstance(policy, pr.Fixed):
        whole, y = pr.selective_scan(**operands), pr.selective_scan(**operands, prune=policy, branch=2)
        np.testing.assert_array_equal(y, np.where(live, whole, 0))
    else:
        with pytest.raises(ValueError, match="pass z"):
            pr.selective_scan(**operands, prune=policy, branch=2)


def test_a_function_decides(rng):
    operands = make(rng, (2,), 6, 8)
    seen = []

    def every_other(statistics):
        seen.append(statistics.norms.copy())
        return np.arange(12)[:, None] % 2 == np.zeros(4)

    y = pr.selective_scan(**operands, prune=every_other, branch=2)
    assert not y[:, 1::2].any()
    assert y[:, ::2].any()
    gates = np.abs(silu(operands["z"].astype(float))).reshape(12, 4, 2).max(axis=2)
    np.testing.assert_allclose(seen[0], gates, rtol=1e-6)
    with pytest.raises(ValueError, match="must return shape"):
        pr.selective_scan(**operands, prune=lambda s: s.norms[:1] > 0)
    with pytest.raises(TypeError, match="booleans"):
        pr.selective_scan(**operands, prune=lambda s: s.norms)


def test_special_values(rng):
    operands = make(rng, (), 5, 4, 2)
    operands["A"][0] = -np.inf  # forgets at once
    operands["delta"][:, 1] = 0  # keeps its state
    operands["z"][2, 2] = np.nan
    start = np.ones((4, 2), np.float32)
    y, state = pr.selective_scan(**{**operands, "delta_bias": None}, state=start, return_state=True)
    assert np.isfinite(y[:, [0, 1, 3]]).all()
    assert np.isnan(y[2, 2])
    np.testing.assert_array_equal(state[1], 1)
    t = 4
    last = operands["delta"][t, 0] * operands["u"][t, 0] * operands["B"][t]
    np.testing.assert_allclose(state[0], last, rtol=1e-6)
    # NaN is live.
    pruned = pr.selective_scan(**{**operands, "delta_bias": None}, state=start, prune=pr.Threshold(1e9))
    assert np.isnan(pruned[2, 2])
    assert np.count_nonzero(pruned) == 1


def test_layouts(rng):
    operands = make(rng, (), 23, 18, 18)  # every operand of two dimensions in every layout
    start = values(rng, (18, 18), F32)
    expected, last = pr.selective_scan(**operands, state=start, return_state=True)
    matrices = ("u", "delta", "A", "B", "C", "z")
    for name in layouts(operands["u"]):
        moved = {k: layouts(v)[name] if k in matrices else v for k, v in operands.items()}
        vectors = {k: np.repeat(operands[k], 3)[::3] for k in ("D", "delta_bias")}
        y, state = pr.selective_scan(**moved | vectors, state=layouts(start)[name], return_state=True)
        assert y.tobytes() == expected.tobytes()
        assert state.tobytes() == last.tobytes()
        pruned = pr.selective_scan(**moved, state=start, prune=pr.Threshold(0.3), branch=5)
        again = pr.selective_scan(**operands, state=start, prune=pr.Threshold(0.3), branch=5)
        assert pruned.tobytes() == again.tobytes()
        # Where the caller's own state is updated.
        own = layouts(start.copy())[name]
        first = {k: v if k in ("A", "D", "delta_bias") else v[0] for k, v in operands.items()}
        pr.selective_step(**first, state=own)
        plain_state = start.copy()
        pr.selective_step(**first, state=plain_state)
        np.testing.assert_array_equal(own, plain_state)


def test_broadcast_batches_and_mixed_dtypes(rng):
    operands = make(rng, (3,), 11, 9, 4)
    operands |= {"u": operands["u"].astype(BF16), "B": operands["B"][0], "C": operands["C"][:1].astype(F16)}
    y = pr.selective_scan(**operands)
    assert (y.shape, y.dtype) == ((3, 11, 9), F32)
    full = operands | {k: np.broadcast_to(operands[k], (3, 11, 4)) for k in "BC"}
    near(y, members(full)[0], F32)
    for name in operands:
        with declared(F64):
            assert pr.selective_scan(**{**operands, name: operands[name].astype(F64)}).dtype == F64
    for half, other in [(BF16, F16), (F16, BF16)]:
        halves = {k: v.astype(half) for k, v in full.items()}
        y, state = pr.selective_scan(**halves, return_state=True)
        assert (y.dtype, state.dtype) == (half, F32)
        near(y, members(halves)[0], half)
        assert pr.selective_scan(**halves, state=state).dtype == half  # a state does not widen it
        for name, value in halves.items():
            for wide in (F32, other):
                mixed = {**halves, name: value.astype(wide)}
                assert pr.selective_scan(**mixed).dtype == F32
                first = {k: v if k in ("A", "D", "delta_bias") else v[:, 0] for k, v in mixed.items()}
                assert pr.selective_step(**first, state=state.copy()).dtype == F32


@pytest.mark.parametrize("empty", [{"batch": (0,)}, {"length": 0}, {"channels": 0}], ids=str)
def test_a_scan_of_nothing_names_no_path(rng, empty):
    operands = make(rng)
    pr.selective_scan(**operands)
    with pr.trace() as t:
        pr.selective_scan(**make(rng, **empty), prune=pr.Threshold(0.1))
    (record,) = t.records
    assert record.path == ""
    assert (t.flops, t.bytes_loaded, record.total, record.union_total) == (0, 0, 0, 0)


def test_a_state_that_overlaps_its_operands(rng):
    memory = values(rng, (8, 8), F32)
    apart = memory.copy()
    step = values(rng, 8, F32)
    b, c = apart[:2].copy()
    expected = pr.selective_step(step, np.abs(step), -np.abs(memory), b, c, state=apart)
    got = pr.selective_step(step, np.abs(step), -np.abs(memory), memory[0], memory[1], state=memory)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(memory, apart)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_wide_state_makes_the_scan_wide(rng, engine, dtype):
    operands = make(rng, dtype=dtype, params=dtype)
    wide = {name: value.astype(F64) for name, value in operands.items()}
    start = rng.standard_normal((2, 19, 5))
    if F64 not in engine.dtypes:
        with declared(F64):
            pr.selective_scan(**operands, state=start)
        return
    y, state = pr.selective_scan(**operands, state=start, return_state=True)
    expected, last = pr.selective_scan(**wide, state=start, return_state=True)
    assert (y.dtype, state.dtype) == (dtype, F64)
    np.testing.assert_allclose(state, last, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(y.astype(F64), expected.astype(dtype).astype(F64), rtol=2 * eps(dtype))
    assert pr.selective_scan(**operands, return_state=True)[1].dtype == F32
    steps = {k: v if k in ("A", "D", "delta_bias") else v[:, 0] for k, v in operands.items()}
    one = pr.selective_step(**steps, state=start)
    np.testing.assert_allclose(one.astype(F64), y[:, 0].astype(F64), rtol=2 * eps(dtype))


@pytest.mark.parametrize("prune", [None, pr.Threshold(0.3)], ids=repr)
def test_threads_give_the_same_bits(rng, engine, prune):
    if engine.name != "cpu":
        return  # a matter of that engine only
    operands = make(rng, (3,), 50, 200, 8)
    operands["z"][1, :, 30:170] = 0
    results = []
    for n in (1, 2, 3, 7, 40):
        with pr.num_threads(n):
            y, state = pr.selective_scan(**operands, prune=prune, return_state=True)
            short = pr.selective_scan(**operands, prune=prune)
            results.append((y.tobytes(), state.tobytes(), short.tobytes()))
    assert all(result == results[0] for result in results)
    # A channel is the same alone.
    sequence = {"u", "delta", "z"}
    for i in (0, 63, 150, 199):
        alone = {k: v[..., [i]] if k in sequence else v for k, v in operands.items()}
        alone |= {"A": operands["A"][[i]], "D": operands["D"][[i]], "delta_bias": operands["delta_bias"][[i]]}
        whole = pr.selective_scan(**operands)
        np.testing.assert_array_equal(pr.selective_scan(**alone)[..., 0], whole[..., i])


LEVELS = """
import numpy as np
import prunus as pr
from prunus import _core

rng = np.random.default_rng(0)
u, z = rng.standard_normal((2, 3, 40, 50), np.float32)
delta = rng.uniform(-4, 1, (3, 40, 50)).astype(np.float32)
A = -rng.uniform(0.1, 8, (50, 6)).astype(np.float32)
B, C = rng.standard_normal((2, 3, 40, 6), np.float32)
with pr.device("reference"):
    exact = pr.selective_scan(u, delta, A, B, C, None, z, delta_softplus=True)
for level in _core.available_levels():
    _core.set_level(level)
    for kind in (np.float32, np.float64):
        options = {"delta_softplus": True, "prune": pr.Threshold(0)}
        y = pr.selective_scan(u.astype(kind), delta, A, B, C, None, z, **options)
        np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4)
        assert _core.last_path().startswith("scan"), _core.last_path()
print("fine")
"""


def test_levels(engine):
    if engine.name == "cpu":
        assert run_python(LEVELS)[:2] == (0, "fine\n")


@given(data=st.data())
def test_any_call(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    length, channels, states = draw(st.integers(0, 40)), draw(st.integers(0, 90)), draw(st.integers(0, 6))
    dtype = draw(st.sampled_from(floats()))
    operands = make(rng, batch, length, channels, states, dtype)
    for name in draw(st.lists(st.sampled_from(["D", "delta_bias"]), max_size=2)):
        operands[name] = None
    softplus = draw(st.booleans())
    tau, branch = draw(st.sampled_from([0.0, 0.2, 0.5, 3.0])), draw(st.integers(1, 9))
    if draw(st.booleans()):  # other strides
        for name in ("u", "delta", "B", "C", "z"):
            operands[name] = np.asfortranarray(operands[name])[..., ::-1, :]
    got, state = pr.selective_scan(
        **operands, delta_softplus=softplus, prune=pr.Threshold(tau), branch=branch, return_state=True
    )
    with pr.device("reference"):
        whole, last = pr.selective_scan(**operands, delta_softplus=softplus, return_state=True)
    gates = np.abs(silu(operands["z"].astype(float))).reshape(math.prod(batch) * length, channels)
    if gates.size:
        norms = np.maximum.reduceat(gates, np.arange(0, channels, branch), axis=1)
        norms = np.repeat(norms, branch, axis=1)[:, :channels].reshape(got.shape)
        clear = np.abs(norms - tau) > 1e-5  # on the edge, roundings decide
        expected = np.where(norms > tau, whole.astype(float), 0)
        near(np.where(clear, got, 0), np.where(clear, expected, 0), dtype)
        near(state, last.astype(float), F32)
    short = pr.selective_scan(**operands, delta_softplus=softplus, prune=pr.Threshold(tau), branch=branch)
    assert short.tobytes() == got.tobytes()


def test_every_engine_has_it(engine):
    assert isinstance(engine, engines.Engine)
