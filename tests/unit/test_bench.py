"""The measuring machinery: that it measures what it says, never how fast."""

import csv
import datetime

import numpy as np
import pytest

from prunus._config import Cpu, cores
from prunus.bench.analysis import break_even, races, single_column_limit
from prunus.bench.files import auto_path, write_csv
from prunus.bench.machine import optional, pinned, slug
from prunus.bench.peers import Contestant, Peers, WrongResultError, as_dtype, check
from prunus.bench.record import Case, Record
from prunus.bench.report import report
from prunus.bench.run import Plan, run
from prunus.bench.scaling import Overhead, Scaling, scaling_targets
from prunus.bench.targets import format_targets, targets
from prunus.bench.timing import CacheFlush, Timing, interleave, time_loop

CPU = Cpu("Some CPU @ 2GHz", ("avx2", "fma"), "avx2", "detected", 2, {"L2": 1 << 20}, {})


def record(contestant, seconds, density=0.1, columns=128, *, dense=False, dtype="float32", block=32, **case):
    full = {"op": "dsd", "layout": "wx", "threads": 1, "size": 4096, **case}
    flops = 2e9 * (1.0 if dense else density)
    where = Case(dtype=dtype, block=block, columns=columns, **full)
    return Record(
        where, 1.0 if dense else density, contestant, dense, seconds, seconds, 3, flops, False, 1e-7
    )


def test_timing_median_and_minimum():
    timing = Timing((3.0, 1.0, 2.0))
    assert timing.median == 2.0
    assert timing.minimum == 1.0


def test_interleave_runs_in_rotated_rounds():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = interleave(calls, 3)
    assert "".join(order) == "abcbcacab"
    assert all(len(timing.seconds) == 3 for timing in times.values())


def test_interleave_gives_the_slow_fewer_rounds():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = interleave(calls, 4, limits={"b": 1})
    assert order.count("a") == 4
    assert order.count("b") == 1
    assert len(times["b"].seconds) == 1


def test_interleave_prepares_every_call():
    prepared, ticks = [], []
    interleave({"a": lambda: None}, 2, before=lambda: prepared.append(1), tick=ticks.append)
    assert prepared == [1, 1]
    assert ticks == ["a", "a"]


def test_interleave_needs_a_round():
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleave({"a": lambda: None}, 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_flush_reads_more_than_the_cache(threads):
    flush = CacheFlush(40 << 20, threads)
    try:
        assert flush.nbytes >= 80 << 20
        flush()
    finally:
        flush.close()


def test_time_loop_measures_something():
    assert time_loop(lambda: sum(range(100)), 1e-3)() > 0
    assert cores() >= 1


def test_optional_module():
    assert optional("numpy") is np
    assert optional("no_such_module_at_all") is None


def test_pinned_leaves_things_as_they_were():
    import prunus as pr
    from prunus._threads import get_num_threads

    before = get_num_threads()
    with pinned(1):
        assert get_num_threads() == 1
    assert get_num_threads() == before
    assert pr.num_threads is not None


def test_slug():
    assert slug("AMD EPYC(TM) 9B14") == "amd-epyc-9b14"
    assert slug("®") == "cpu"


@pytest.mark.parametrize(
    ("points", "dense", "expected"),
    [
        ([], 1.0, None),
        ([(0.1, 1.0), (0.3, 3.0)], 2.0, ("=", 0.2)),
        ([(0.1, 1.0), (0.3, 3.0)], 4.0, (">", 0.3)),
        ([(0.1, 1.0), (0.3, 3.0)], 0.5, ("<", 0.1)),
        # A bump of noise below the crossing isn't the crossing.
        ([(0.1, 1.0), (0.2, 2.1), (0.3, 1.9), (0.5, 4.0)], 2.0, ("=", 0.3095238095238095)),
    ],
)
def test_break_even(points, dense, expected):
    found = break_even(points, dense)
    if expected is None:
        assert found is None
    else:
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1])


def test_single_column_limit():
    assert single_column_limit(0.1, 10e-3) == pytest.approx(1.25e-3 + 20e-6)


def test_races_take_the_best_dense():
    (race,) = races(
        [record("numpy", 2.0, dense=True), record("torch", 1.0, dense=True), record("prunus", 0.05)]
    )
    assert race.dense.contestant == "torch"
    assert race.rate_ratio(0.1, "prunus") == pytest.approx(2.0)
    assert race.speed_up(0.1, "prunus", "scipy") is None


def test_report_shows_both_forms_and_every_ratio():
    text = report(
        [
            record("numpy", 1.0, dense=True),
            record("prunus", 0.1),
            record("prunus packed", 0.05),
            record("scipy", 2.0),
        ]
    )
    assert "1.00 / 2.00" in text
    assert "20.0 / 40.0" in text
    assert "W @ X, X in C order" in text
    assert "> 10%" in text


def test_report_holds_one_column_against_its_limit():
    found = [record("numpy", 1.0, columns=1, dense=True), record("prunus", 0.2, columns=1)]
    assert "MISSED" in report(found)
    assert "no dense product" in report([record("prunus", 0.2, columns=1)])


def target(found, what, contestant="prunus"):
    (one,) = [t for t in found if t.what == what and t.contestant == contestant]
    return one


def test_targets_tell_the_worst_race():
    found = targets(
        [
            record("numpy", 1.0, dense=True),
            record("prunus", 0.05),
            record("prunus", 0.2, block=64),
            record("numpy", 1.0, dense=True, block=64),
        ]
    )
    rate = target(found, "float32 N=128, rate / dense")
    assert rate.worst == pytest.approx(0.5)
    assert not rate.reached
    assert "b64" in rate.where
    assert "MISSED" in format_targets(found)


BREAK_EVEN = "float32 N>=128, break-even density"


def test_break_even_target_waits_for_enough_densities():
    near = [record("numpy", 1.0, dense=True), record("prunus", 0.5, density=0.5)]
    short = target(targets(near), BREAK_EVEN)
    assert short.reached is None
    assert "--break-even" in short.where
    # A crossing below the highest density needs no more densities.
    crossed = target(targets([*near, record("prunus", 1.5, density=0.7)]), BREAK_EVEN)
    assert crossed.reached is False
    assert crossed.worst == pytest.approx(0.6)


# A whole number of blocks may come to a little less than was asked for.
@pytest.mark.parametrize("highest", [0.8498, 0.85, 1.0])
def test_a_break_even_never_crossed_is_reached(highest):
    found = targets([record("numpy", 1.0, dense=True), record("prunus", 0.9, density=highest)])
    assert target(found, BREAK_EVEN).reached


def test_every_target_is_told():
    found = targets([record("numpy", 1.0, dense=True), record("prunus", 0.05)])
    kinds = [(t.what, t.contestant) for t in found]
    assert kinds == [(t.what, t.contestant) for t in targets([])]
    assert target(found, "float32 N=128, x torch bsr").where == "no torch bsr"
    assert target(found, "float32 N>=128, x scipy").where == "no scipy"
    assert target(found, "float32 N=128, rate / dense", "prunus packed").where == "no prunus packed"
    assert target(found, "ssd, x scipy").where == "no such race"
    alone = targets([record("prunus", 0.05)])
    assert target(alone, "float32 N=128, rate / dense").where == "no dense product"
    high = targets([record("numpy", 1.0, dense=True), record("prunus", 0.5, density=0.5)])
    assert target(high, "float32 N=128, rate / dense").where == "no density up to 30%"


def test_only_targets_with_a_race_are_shown():
    found = targets([record("numpy", 1.0, dense=True), record("prunus", 0.05)])
    text = format_targets(found)
    raced = [t for t in found if t.where != "no such race"]
    assert 1 < len(raced) < len(found)
    assert len(text.splitlines()) == 3 + len(raced) + 1
    assert text.count("not measured") == len(raced) - 1
    assert "(no torch bsr)" in text
    assert "no such race" not in text
    last = f"targets without a race here: {len(found) - len(raced)} of {len(found)}"
    assert text.splitlines()[-1] == last
    assert format_targets(targets([])) == f"targets without a race here: {len(found)} of {len(found)}"
    assert "without a race" not in format_targets(raced)


def test_scaling_targets():
    gains = [Scaling(("float32", "32", "10%", "W @ X"), 2.0, 1.0), Scaling(("float32",), 1.5, 1.0)]
    calls = [Overhead("numpy a @ b", 9e-6, 0.0), Overhead("W @ x", 13e-6, 4e-6)]
    gain, call = scaling_targets(gains, 2, calls)
    assert (gain.worst, gain.reached, gain.where) == (1.5, False, "float32")
    assert call.reached
    assert call.worst == pytest.approx(4.0)
    one_core, slow = scaling_targets([], 1, [*calls, Overhead("x @ W.T", 15e-6, 6e-6)])
    assert one_core.reached is None
    assert slow.reached is False
    assert slow.where == "x @ W.T"
    assert "< 5" in format_targets([slow])


def test_csv_names_the_machine(tmp_path):
    found = [record("numpy", 1.0, dense=True), record("prunus", 0.1)]
    with pytest.raises(FileNotFoundError):
        write_csv(tmp_path / "new" / "out.csv", found, CPU, {"numpy": "2.0"})
    path = tmp_path / "out.csv"
    write_csv(path, found, CPU, {"numpy": "2.0"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# cpu: Some CPU @ 2GHz"
    assert lines[1] == "# flags: avx2 fma"
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["contestant"] for row in rows] == ["numpy", "prunus"]
    assert float(rows[1]["gflops"]) == pytest.approx(2.0)


def test_csv_auto_needs_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="clone"):
        auto_path(CPU)
    (tmp_path / "benches").mkdir()
    path = auto_path(CPU, datetime.date(2025, 1, 2))
    assert path.as_posix() == "benches/results/some-cpu-2ghz-2025-01-02.csv"
    assert path.parent.is_dir()


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.ones((2, 2)), "off by"), (np.ones(3), "shape"), (np.full((2, 2), np.nan), "off")],
)
def test_a_wrong_result_is_not_timed(result, message):
    contestant = Contestant("rival", lambda: result, lambda r: r, 1.0)
    with pytest.raises(WrongResultError, match=message):
        check(contestant, np.zeros((2, 2)), "float32")


def test_a_right_result_passes():
    contestant = Contestant("rival", lambda: np.ones((2, 2)), lambda r: r, 1.0)
    assert check(contestant, np.ones((2, 2)), "float32") == 0.0


@pytest.mark.parametrize("field", [{"rounds": 0}, {"size": 100, "blocks": [16]}])
def test_plan_refuses_nonsense(field):
    with pytest.raises(ValueError, match=r"rounds|multiple"):
        Plan(**field)


def test_plan_flushes_where_memory_is_the_bound():
    plan = Plan(columns=[1, 16, 128], blocks=[32], dtypes=["float32"], ops=["dsd"], layouts=["wx"])
    cases = list(plan.cases("float32", 32))
    assert [plan.flushes(case) for case in cases] == [True, True, False]
    assert plan.count() == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_comparison(dtype):
    plan = Plan(
        size=128, blocks=[16], densities=[0.1, 0.5], columns=[1, 16], dtypes=[dtype], threads=[1], rounds=2
    )
    said = []
    records = run(plan, Peers(), said.append)
    assert len(said) == plan.count() == 2 * 2 + 2 + 1
    assert {r.case.op for r in records} == {"dsd", "sdd", "ssd"}
    assert all(r.median > 0 and r.flops > 0 for r in records)
    ours = {r.contestant for r in records if not r.dense}
    assert {"prunus", "prunus packed"} <= ours
    assert report(records)


@pytest.mark.parametrize("block", [7, 16])
def test_blocks_that_do_not_divide_leave_peers_out(block):
    peers = Peers()
    dense = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    weights = peers.weights(dense, block, 1.0)
    assert (weights.scipy is not None) == (peers.scipy is not None and block == 16)
    assert weights.torch is None or block == 16
    x = np.ones((4, 96), np.float32)
    names = [contestant.name for contestant in peers.dsd(weights, x, "xwt")]
    assert names[:2] == ["prunus", "prunus packed"]
    for contestant in peers.dsd(weights, x, "xwt"):
        check(contestant, x @ dense.T, "float32")


def test_as_dtype():
    import ml_dtypes

    assert as_dtype("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    assert as_dtype("float32") == np.float32


def test_plot_marks_break_even(tmp_path):
    pytest.importorskip("matplotlib")
    from prunus.bench.plot import plot

    found = [
        record("numpy", 1.0, dense=True),
        record("prunus", 0.5, density=0.1),
        record("prunus", 1.5, density=0.5),
        record("numpy", 1.0, dense=True, columns=512),
    ]
    path = tmp_path / "plot.png"
    plot(path, found, CPU)
    assert path.stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to plot"):
        plot(path, [record("prunus", 0.5)], CPU)
