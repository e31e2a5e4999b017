"""What the engine of simulated chips does beyond giving right values, which tests/engines sees to."""

import numpy as np
import pytest

import prunus as pr
from prunus import engines


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def names(report):
    return [one.name for one in report.operations]


def test_every_shipped_chip_is_a_device(rng):
    # Sums of few bits: one chip has no others.
    w = rng.integers(-1, 2, (70, 90)).astype(np.float32)
    W = pr.BSR.from_dense(w, blocksize=(8, 16), density=0.4).astype("bfloat16")
    x = rng.integers(-1, 2, (90, 5)).astype(W.dtype)
    chips = [name for name in engines.names() if name.startswith("tensix:")]
    assert "tensix:n150" in chips
    assert len(chips) >= 5
    cycles = set()
    for name in chips:
        with pr.device(name) as chip:
            np.testing.assert_array_equal((W @ x).astype(float), W.toarray().astype(float) @ x.astype(float))
            cycles.add(chip.report().cycles)
    assert len(cycles) > 1, "chips differ"


def test_a_description_is_a_device(tmp_path, rng):
    text = 'extends = "n150"\nname = "slow"\nclock_ghz = 0.5\n'
    (tmp_path / "slow.toml").write_text(text)
    a = rng.standard_normal((40, 40)).astype(np.float32)
    with pr.device("tensix:n150") as fast:
        pr.matmul(a, a)
    with pr.device(f"tensix:{tmp_path / 'slow.toml'}") as slow:
        pr.matmul(a, a)
    assert slow.report().cycles == fast.report().cycles
    assert slow.report().seconds == 2 * fast.report().seconds


def test_reports_name_operations_and_begin_with_the_block(rng):
    up, down = (rng.standard_normal(s).astype(np.float32) for s in ((64, 32), (16, 64)))
    x = rng.standard_normal((4, 32)).astype(np.float32)
    device = pr.device("tensix:n150")
    with device as chip:
        pr.ffn(x, up, down, prune=pr.Threshold(0.0), branch=32)
        pr.attention(x[None], x[None], x[None])
    first = chip.report()
    assert names(first)[-1] == "attention"
    assert {"dots", "combine"} & set(names(first))
    assert first.cycles == sum(one.cycles for one in first.operations)
    with device as chip:
        pr.matmul(x, up.T)
    assert names(chip.report()) == ["matmul"]


def test_time_alone_takes_as_long(rng):
    # Values that every format holds, so that the host finds alive what the chip does.
    W = pr.BSR.from_dense(rng.integers(-2, 3, (128, 96)).astype(np.float32), blocksize=32, density=0.5)
    up = rng.integers(-2, 3, (128, 64)).astype(np.float32)
    x = rng.integers(-2, 3, (40, 64)).astype(np.float32)
    cycles = []
    for mode in ("full", "timing"):
        with pr.device("tensix:n150", mode=mode) as chip:
            results = [W @ np.ones((96, 33), np.float32), pr.matmul(x, up.T)]
            results.append(pr.attention(x[None], x[None], x[None]))
            h = pr.linear(x, up, activation="relu", prune=pr.Threshold(19.0), branch=4)
            results.append(h @ W.toarray())
            assert 0 < len(h.indices) < 3 * 32
            assert [result is None for result in results] == [mode == "timing"] * 4
            cycles.append([one.cycles for one in chip.report().operations])
    assert cycles[0] == cycles[1]
    # Outside of the block everything has values again.
    assert pr.matmul(x, up.T).shape == (40, 128)


def test_the_host_decides_for_a_round_trip(rng):
    x, w = rng.standard_normal((4, 32)).astype(np.float32), rng.standard_normal((256, 32)).astype(np.float32)
    with pr.device("tensix:n150") as chip:
        pr.linear(x, w, prune=pr.Threshold(1.0), branch=32)
        assert "host" not in names(chip.report())
        pr.linear(x, w, prune=pr.TopK(count=2), branch=32)
        (trip,) = [one for one in chip.report().operations if one.name == "host"]
    spec = chip.chip.spec
    assert trip.cycles >= spec.host.round_trip_us * 1e-6 * spec.clock_ghz * 1e9
    assert trip.bound == "latency"
    assert "host" in chip.report().table()


def test_traces_count_cycles(rng):
    up, down = (rng.standard_normal(s).astype(np.float32) for s in ((64, 32), (16, 64)))
    with pr.device("tensix:n150") as chip:
        pr.ffn(np.ones((2, 32), np.float32), up, down)
        before = chip.report().cycles
        with pr.trace() as t:
            pr.ffn(np.ones((2, 32), np.float32), up, down, prune=pr.Threshold(0.0))
            pr.matmul(up, up.T)
    assert abs(t.cycles - (chip.report().cycles - before)) < 5
    assert t.cycles > 1000


def test_large_products_share_their_operands(rng):
    # Integers that the formats hold: however sums are cut, they are the same.
    a, b = (rng.integers(-3, 4, (288, 320)).astype(np.float32) for _ in range(2))
    W = pr.BSR.from_dense(a, blocksize=32, density=0.4)
    live = rng.random((288, 10)) < 0.3
    with pr.device("tensix:n150") as chip:
        np.testing.assert_array_equal(pr.matmul(a, b.T), a @ b.T)
        np.testing.assert_array_equal(W @ b.T, W.toarray() @ b.T)
        out = np.empty((288, 288), np.float32)
        chip.combine(a, np.ascontiguousarray(b.T), out, live, 32)
        np.testing.assert_array_equal(out, np.where(np.repeat(live, 32, axis=1), a, 0) @ b.T)
        dense, static, pruned = chip.report().operations
    # Read once by each row or column of cores, not by each core.
    tiles = 9 * 10 * 2 + 9 * 9
    assert dense.dram_bytes <= 1.5 * tiles * 4096
    assert static.cycles < dense.cycles
    assert pruned.dram_bytes < dense.dram_bytes * 1.5


def test_what_is_dead_is_not_read(rng):
    h = pr.BSR.from_dense(rng.standard_normal((32, 1024)).astype(np.float32), blocksize=32)
    w = rng.standard_normal((1024, 64)).astype(np.float32)
    few = pr.BSR.from_dense(h.toarray(), blocksize=32, density=0.125)
    moved = []
    for one in (h, few):
        with pr.device("tensix:n150") as chip:
            one @ w
            moved.append(chip.report().dram_bytes)
    # 32 tiles and 64 of the right operand against 4 and 8; two of the result.
    assert moved == [(32 + 64 + 2) * 4096, (4 + 8 + 2) * 4096]


def test_nothing_is_left_in_dram(rng):
    with pr.device("tensix:n150") as chip:
        a = rng.standard_normal((40, 40)).astype(np.float32)
        pr.matmul(a, a)
        assert chip.chip._core.buffers() == 0
        with pytest.raises(pr.tensix.UnsupportedError, match="float64"):
            pr.matmul(a.astype(float), a.astype(float))
        assert chip.chip._core.buffers() == 0


def test_unknown_chips_and_modes():
    with pytest.raises(pr.tensix.SpecError, match="n149"):
        pr.device("tensix:n149")
    with pytest.raises(ValueError, match="mode"):
        pr.device("tensix:n150", mode="fast")
    with pytest.raises(TypeError, match="cpu takes no options, got mode"):
        pr.device("cpu", mode="full")


def test_useful_operations_are_counted_once(rng):
    W = pr.BSR.from_dense(rng.standard_normal((64, 64)).astype(np.float32), blocksize=32)
    x = rng.standard_normal((64, 16)).astype(np.float32)
    wrong = x.copy()
    wrong[3, 5] = np.inf
    # A last branch of 8 units, live in one row of four.
    h, w = rng.standard_normal((4, 40)).astype(np.float32), rng.standard_normal((40, 32)).astype(np.float32)
    live = np.array([[True, False]] * 3 + [[False, True]])
    flops = []
    with pr.device("tensix:n150") as chip:
        for work in (
            lambda: W @ x,
            lambda: W @ wrong,
            lambda: chip.combine(h, w, np.empty((4, 32), np.float32), live, 32),
            lambda: chip.dots(x, x, np.empty((64, 64), np.float32), np.ones((64, 3), bool), 24),
        ):
            chip.chip.reset_report()
            work()
            flops.append(chip.report().flops)
    assert flops == [2 * 64 * 64 * 16] * 2 + [2 * (3 * 32 + 8) * 32, 2 * 64 * 64 * 16]


def test_a_chip_that_lives_for_long_keeps_sums(rng, monkeypatch):
    from prunus.tensix import chip as chips

    x = rng.standard_normal((32, 32)).astype(np.float32)
    tables = []
    for kept in (100, 6):
        monkeypatch.setattr(chips, "_KEPT", kept)
        with pr.device("tensix:n150") as chip:
            for _ in range(20):
                pr.matmul(x, x)
            report = chip.report()
            assert len(report.operations) == (20 if kept == 100 else 6)
            assert sum(one.count for one in report.operations) == 20
            tables.append(
                (report.cycles, report.flops, report.dram_bytes, report.bound, report.table()[-90:])
            )
    assert tables[0] == tables[1]
    assert report.operations[0].name == "earlier"
    assert f"earlier x {report.operations[0].count}" in report.table(grouped=True)
