"""Plans of what is read: recorded once, fetched ahead of the same calls, harmless where they do not fit."""

import numpy as np
import pytest

import prunus as pr
from helpers import F32, sparse
from prunus.paged import plans

MIB = 1 << 20


@pytest.fixture
def rng():
    return np.random.default_rng(2)


@pytest.fixture
def model(rng, tmp_path):
    """A file with arrays of every kind, and the pager that reads it."""
    path = tmp_path / "m.safetensors"
    up, down = rng.standard_normal((64, 1024)).astype(F32), rng.standard_normal((1024, 64)).astype(F32)
    W = sparse(rng, (1024, 1024), (32, 32), F32, poison=False)
    pr.save(path, {"w": W, "up": up, "ffn": pr.FFN.pack(up, down)})
    pager = pr.paged.Pager("8 MiB")
    with pr.open(path, pager=pager) as file:
        yield file, pager


def forward(file, x):
    h = file["w"] @ x
    h = pr.linear(h.T, file["up"], prune=pr.TopK(count=2), branch=8)
    return file["ffn"](x.T, prune=pr.Fixed(np.arange(64) % 5 == 0)), h.toarray(), file["up"][3:9]


class Asked:
    """Sees what a pager is asked to fetch."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        prefetch = plans._prefetch

        def count(segment, step, most):
            self.bytes += min(step.nbytes, most)
            prefetch(segment, step, most)

        monkeypatch.setattr(plans, "_prefetch", count)


def test_the_second_run_is_foreseen(rng, model, monkeypatch):
    file, pager = model
    x = rng.standard_normal((1024, 3)).astype(F32)
    with pager.record() as plan:
        want = forward(file, x)
    assert len(plan) >= 4
    assert plan.nbytes >= file["w"].values.nbytes
    assert f"{len(plan)} reads" in repr(plan)
    asked = Asked(monkeypatch)
    for _ in range(2):
        asked.bytes = 0
        with pager.follow(plan):
            got = forward(file, x)
        assert 0 < asked.bytes <= plan.nbytes
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert plans.ACTIVE.get() is None
    pager.follow(plan)  # ends by itself
    forward(file, x)
    assert plans.ACTIVE.get() is None


def test_asking_keeps_to_a_quarter_of_the_budget(rng, tmp_path, monkeypatch):
    path = tmp_path / "w.npy"
    pr.save(path, rng.standard_normal((1024, 1024)).astype(F32))
    pager = pr.paged.Pager(MIB)
    w = pr.open(path, pager=pager)
    with pager.record() as plan:
        for i in range(8):
            w[128 * i : 128 * (i + 1)]
    asked = Asked(monkeypatch)
    following = pager.follow(plan)
    assert asked.bytes <= MIB // 4
    following.stop()
    w.close()


def test_a_plan_of_something_else_is_left(rng, model):
    file, pager = model
    x = rng.standard_normal((1024, 3)).astype(F32)
    with pr.paged.record() as plan:
        want = forward(file, x)
    with pr.paged.follow(plan):
        for i in range(100):
            np.testing.assert_array_equal(file["up"][i % 60], file["up"][i % 60 : i % 60 + 1][0])
        got = forward(file, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="Plan"):
        pager.follow([1])


def test_plans_outlive_files(rng, tmp_path):
    path = tmp_path / "w.npy"
    values = rng.standard_normal((64, 64)).astype(F32)
    pr.save(path, values)
    first = pr.open(path, budget=MIB)
    with pr.paged.record() as plan:
        first.load()
    first.close()
    second = pr.open(path, budget=MIB)
    with pr.paged.follow(plan):
        np.testing.assert_array_equal(second.load(), values)
    second.close()


def test_only_one_pagers_reads(rng, tmp_path):
    pr.save(tmp_path / "w.npy", np.ones((64, 64), F32))
    one, two = pr.paged.Pager(MIB), pr.paged.Pager(MIB)
    a, b = pr.open(tmp_path / "w.npy", pager=one), pr.open(tmp_path / "w.npy", pager=two)
    with one.record() as plan:
        b.load()
        assert not len(plan)
        a.load()
    assert len(plan)
    a.close()
    b.close()


def test_a_plan_is_bounded(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "_STEPS", 3)
    pr.save(tmp_path / "w.npy", np.ones((64, 64), F32))
    w = pr.open(tmp_path / "w.npy", budget=MIB)
    with pr.paged.record() as plan:
        for i in range(10):
            w[i]
    assert len(plan) == 3
    w.close()
