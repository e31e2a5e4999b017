"""Mixtures of experts whose weights are on disk: only those that rows chose are read."""

import numpy as np
import pytest

import prunus as pr
from helpers import F32

MIB = 1 << 20
E, F, D, OUT = 6, 32, 20, 12


@pytest.fixture
def rng():
    return np.random.default_rng(9)


@pytest.fixture
def weights(rng):
    up, gate = (rng.standard_normal((E, F, D)).astype(F32) for _ in range(2))
    return up, gate, rng.standard_normal((E, OUT, F)).astype(F32)


@pytest.fixture
def stored(tmp_path):
    opened = []

    def make(budget=MIB, **arrays):
        path = tmp_path / f"{len(opened)}.safetensors"
        pr.save(path, arrays)
        opened.append(pr.open(path, budget=budget))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


POLICIES = [None, pr.Threshold(0.5), pr.TopK(count=3), pr.Fixed(np.arange(F) % 3 == 0)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_stacks(rng, weights, stored, policy, gated):
    up, gate, down = weights
    units = np.ascontiguousarray(np.swapaxes(down, 1, 2))  # by hidden unit
    file = stored(up=up, gate=gate, down=down, units=units)
    x, router = rng.standard_normal((5, D)).astype(F32), rng.standard_normal((E, D)).astype(F32)
    w_gate, g = (file["gate"], gate) if gated else (None, None)
    got = pr.moe(x, router, file["up"], file["down"], w_gate, prune=policy)
    np.testing.assert_array_equal(got, pr.moe(x, router, up, down, g, prune=policy))
    got = pr.moe(x, router, file["up"], file["units"].transpose(0, 2, 1), w_gate, prune=policy)
    want = pr.moe(x, router, up, np.swapaxes(units, 1, 2), g, prune=policy)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_block_sparse_stacks_and_lists(rng, weights, stored, policy):
    up, _, down = weights
    x, router = rng.standard_normal((5, D)).astype(F32), rng.standard_normal((E, D)).astype(F32)
    for own in (False, True):
        if own:
            up[2] = 0  # members with patterns of their own
            up[1, :8] = 0
        U, V = pr.BSR(up, blocksize=4), pr.BSR(down, blocksize=4)
        file = stored(up=U, down=V, **{f"u{e}": up[e] for e in range(E)})
        want = pr.moe(x, router, U, V, prune=policy)
        np.testing.assert_array_equal(pr.moe(x, router, file["up"], file["down"], prune=policy), want)
        some = [file[f"u{e}"] for e in range(E)]
        want = pr.moe(x, router, list(up), list(down), prune=policy)
        np.testing.assert_array_equal(pr.moe(x, router, some, list(down), prune=policy), want)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_layers(rng, weights, stored, policy):
    up, gate, down = weights
    layers = [pr.FFN.pack(up[e], down[e], gate[e], "gate") for e in range(E)]
    file = stored(**{f"e{e}": one for e, one in enumerate(layers)})
    disk = [file[f"e{e}"] for e in range(E)]
    x, router = rng.standard_normal((5, D)).astype(F32), rng.standard_normal((E, D)).astype(F32)
    want = pr.moe(x, router, layers, prune=policy, shared=layers[0])
    np.testing.assert_array_equal(pr.moe(x, router, disk, prune=policy, shared=disk[0]), want)


def test_experts_that_nobody_chose_are_not_read(rng, stored):
    up, down = rng.standard_normal((E, 64, 1024)).astype(F32), rng.standard_normal((E, 1024, 64)).astype(F32)
    file = stored(4 * MIB, up=up, down=down)
    x = rng.standard_normal((3, 1024)).astype(F32)
    logits = np.full((3, E), -10.0, F32)
    logits[:, [1, 4]] = 5
    with pr.trace() as t:
        got = pr.moe(x, None, file["up"], file["down"], logits=logits)
    np.testing.assert_array_equal(got, pr.moe(x, None, up, down, logits=logits))
    both = 2 * (up[0].nbytes + down[0].nbytes)
    assert 0 < t.bytes_io <= both
    assert t.bytes_skipped == (E - 2) * (up[0].nbytes + down[0].nbytes)


def test_what_is_refused(rng, stored):
    file = stored(up=np.ones((E, F, D), F32), i=np.ones((E, F, D), np.int32))
    x = np.ones((2, D), F32)
    router = np.ones((E, D), F32)
    with pytest.raises(ValueError, match="one after the other"):
        pr.moe(x, router, file["up"].transpose(1, 0, 2), file["up"])
    with pytest.raises(TypeError, match="must hold floats"):
        pr.moe(x, router, file["i"], file["up"])
    with pytest.raises(ValueError, match="expected 32 columns"):
        pr.moe(x, router, file["up"], file["up"])
    with pytest.raises(TypeError, match="on disk"):
        pr.moe(x, router, file["up"] * 2, file["up"])
