"""Reports: figures by operation and together, what a run is said to wait for, timelines, pictures, energy."""

import json
import sys
from collections import defaultdict

import numpy as np
import pytest

from prunus import tensix
from prunus.tensix import Chip, ChipSpec, CoreRange, Program, estimate_matmul
from prunus.tensix.bounds import BINDS
from prunus.tensix.timeline import THREADS

CORE = (0, 0)
ROW = CoreRange((0, 0), (3, 0))
BOUNDS = ("math", "unpack", "pack", "NoC", "DRAM", "latency", "imbalance")


def fill(k, cb, pages):
    """Hand over pages as they are: a chip that only takes time does not ask what is in them."""
    yield k.cb_reserve_back(cb, pages)
    yield k.cb_push_back(cb, pages)


def products(rows, columns):
    """Return a compute kernel of so many blocks of rows x columns products."""

    def multiply(k, blocks):
        yield k.cb_wait_front(0, rows)
        yield k.cb_wait_front(1, columns)
        yield k.tile_regs_acquire()
        for _ in range(blocks):
            yield k.matmul_block(0, 1, 0, 0, 0, ct_dim=columns, rt_dim=rows, kt_dim=1)
        yield k.tile_regs_commit()

    return multiply


def multiplying(cores, rows, columns, blocks):
    """Return a program of products; ``blocks`` says how many each core does."""

    def reader(k):
        yield from fill(k, 0, rows)
        yield from fill(k, 1, columns)

    program = Program()
    program.cb(0, cores, pages=rows)
    program.cb(1, cores, pages=columns)
    program.kernel(reader, cores, "reader")
    program.kernel(products(rows, columns), cores, "compute", lambda core: (blocks(core),))
    return program


def of_one(kernel, cores=CORE, role="reader", args=()):
    program = Program()
    program.kernel(kernel, cores, role, args)
    return program


def bound_by_math(chip):
    return chip.run(multiplying(ROW, 2, 2, lambda core: 200), fidelity="HiFi4")


def bound_by_unpack(chip):
    return chip.run(multiplying(ROW, 1, 1, lambda core: 400), fidelity="LoFi")


def bound_by_pack(chip):
    def pack(k):
        yield k.cb_reserve_back(2, 8)
        for _ in range(50):
            yield k.tile_regs_acquire()
            yield k.tile_regs_commit()
            yield k.tile_regs_wait()
            for i in range(8):
                yield k.pack_tile(i, 2, i)
            yield k.tile_regs_release()

    program = of_one(pack, ROW, "compute")
    program.cb(2, ROW, pages=8)
    return chip.run(program)


def bound_by_noc(chip):
    address = chip.tensor(8192)

    def send(k):
        for _ in range(100):
            yield k.noc_async_write(address, k.get_noc_addr((5, 3), address), 8192)
        yield k.noc_async_write_barrier()

    return chip.run(of_one(send))


def bound_by_dram(chip):
    source = chip.pages(4096, 16, channel=3)
    address = chip.tensor(4096)

    def read(k):
        for i in range(64):
            yield k.noc_async_read(source.page(i % 16), address, 4096)
        yield k.noc_async_read_barrier()

    return chip.run(of_one(read, ROW))


def bound_by_dram_writes(chip):
    target = chip.pages(4096, 16, channel=3)
    address = chip.tensor(4096)

    def write(k):
        for i in range(64):
            yield k.noc_async_write(address, target.page(i % 16), 4096)
        yield k.noc_async_write_barrier()

    return chip.run(of_one(write, ROW, "writer"))


def bound_by_latency(chip):
    source = chip.pages(64, 16)
    address = chip.tensor(64)

    def read(k):
        for i in range(64):
            yield k.noc_async_read(source.page(i % 16), address, 64)
            yield k.noc_async_read_barrier()

    return chip.run(of_one(read, ROW))


def bound_by_imbalance(chip):
    return chip.run(multiplying(ROW, 2, 2, lambda core: 400 if core == CORE else 40), fidelity="HiFi4")


def bound_by_the_last_ones(chip):
    def sleep(k, cycles):
        yield k.cycles(cycles)

    return chip.run(of_one(sleep, ROW, args=lambda core: (10000 if core == CORE else 100,)))


@pytest.mark.parametrize("chip", ["n150", "p150"])
@pytest.mark.parametrize(
    ("run", "bound"),
    [
        (bound_by_math, "math"),
        (bound_by_unpack, "unpack"),
        (bound_by_pack, "pack"),
        (bound_by_noc, "NoC"),
        (bound_by_dram, "DRAM"),
        (bound_by_dram_writes, "DRAM"),
        (bound_by_latency, "latency"),
        (bound_by_imbalance, "imbalance"),
        (bound_by_the_last_ones, "imbalance"),
    ],
)
def test_the_bound_is_named(chip, run, bound):
    report = run(Chip(chip, mode="timing"))
    (one,) = report.operations
    assert one.bound == report.bound == bound
    assert set(one.busiest) == {"math", "unpack", "pack", "NoC", "DRAM"}
    assert all(0 <= share <= 1 for share in one.busiest.values())
    if bound in one.busiest:
        assert one.busiest[bound] == max(one.busiest.values()) >= BINDS
    if bound == "latency":
        assert max(one.busiest.values()) < BINDS
    if run is bound_by_imbalance:
        assert one.imbalance == pytest.approx(1 - (400 + 3 * 40) / 4 / 400)


def test_products_are_counted():
    chip = Chip("n150", mode="timing")
    report = chip.run(multiplying(ROW, 2, 4, lambda core: 10), fidelity="HiFi2")
    count = 4 * 2 * 4 * 10
    assert report.matrix_flops == report.flops == 2 * 32**3 * count
    assert report.tflops == pytest.approx(report.flops / report.seconds / 1e12)
    # 64 cores of 2048 operations a cycle in two phases.
    assert report.utilisation == pytest.approx(report.flops / (report.cycles * 64 * 4096 / 2))
    assert [core["products"] for core in report.cores] == [count // 4] * 4
    assert chip.run(multiplying(CORE, 1, 1, lambda core: 1), flops=100).flops == 100
    # All 72 cores of the chip are more than products use.
    every = chip.run(multiplying(chip.cores, 2, 2, lambda core: 300), fidelity="HiFi4")
    assert 0.8 < every.utilisation < 1


def test_busy_shares_are_means_over_those_that_have_such_a_kernel():
    def half(k):
        yield k.cycles(500)
        yield k.noc_semaphore_wait(0, 1)

    def whole(k, others):
        yield k.cycles(1000)
        for core in others:
            yield k.noc_semaphore_inc(core, 0)

    program = of_one(half, [(1, 0), (2, 0), (3, 0)])
    program.semaphore()
    program.kernel(whole, CORE, "writer", ([(1, 0), (2, 0), (3, 0)],))
    report = Chip("n150", mode="timing").run(program)
    assert report.busy["math"] == report.busy["unpack"] == report.busy["pack"] == 0
    worked = sum(
        end - wait
        for core in report.cores
        for end, wait in zip(core["thread_ends"], core["thread_waits"], strict=True)
    )
    assert report.busy["data movement"] == pytest.approx(worked / 4 / report.cycles)
    assert 0.5 < report.busy["data movement"] < 0.75
    assert [core["threads"] for core in report.cores] == [[0], [1], [1], [1]]


def test_traffic_has_distinct_names():
    chip = Chip("n150", mode="timing")
    address = chip.tensor(1024)

    def send(k):
        yield k.noc_async_write(address, k.get_noc_addr((3, 0), address), 1024)
        yield k.noc_async_write_barrier()

    report = chip.run(of_one(send))
    assert report.noc_bytes == 1024 + 32  # and a header
    hops = chip.spec.workers.x[3] - chip.spec.workers.x[0]
    assert report.hop_bytes == hops * report.noc_bytes
    assert report.dram_bytes == 0
    product = estimate_matmul(256, 256, 256)
    assert product.noc_bytes < product.hop_bytes


def test_reports_add_up():
    chip = Chip("n150", mode="timing")
    with pytest.raises(tensix.TensixError, match="nothing has run"):
        chip.report()
    first = chip.run(multiplying(ROW, 2, 2, lambda core: 10), fidelity="LoFi", name="first")
    assert chip.report() == first
    second = bound_by_dram(chip)
    third = chip.run(multiplying(CORE, 2, 2, lambda core: 10), fidelity="HiFi4", name="third")
    runs, report = (first, second, third), chip.report()
    assert [one.name for one in report.operations] == ["first", "read", "third"]
    assert [one.fidelity for one in report.operations] == ["LoFi", "HiFi4", "HiFi4"]
    for name in ("cycles", "seconds", "microseconds", "math_cycles", "events", "flops", "matrix_flops"):
        assert getattr(report, name) == pytest.approx(sum(getattr(run, name) for run in runs))
    for name in ("dram_bytes", "noc_bytes", "hop_bytes"):
        assert getattr(report, name) == sum(getattr(run, name) for run in runs)
    by_core = {core["core"]: core for core in report.cores}
    assert set(by_core) == set(ROW)
    assert by_core[CORE]["products"] == 80
    assert by_core[1, 0]["products"] == 40
    assert by_core[1, 0]["computes"]
    assert len(report.links) == len({link[:3] for run in runs for link in run.links})
    for part, joules in report.energy.items():
        assert joules == pytest.approx(sum(run.energy[part] for run in runs))
    assert report.bound == max(runs, key=lambda run: run.cycles).bound
    chip.reset_report()
    with pytest.raises(tensix.TensixError, match="nothing has run"):
        chip.report()
    assert len(report.operations) == 3


def test_names():
    def alone(k):
        yield k.cycles(1)

    chip = Chip("n150", mode="timing")
    named = Program("mine")
    named.kernel(alone, CORE)
    for program, name in (
        (of_one(alone), "alone"),
        (multiplying(CORE, 1, 1, lambda core: 1), "multiply"),
        (named, "mine"),
        (Program(), "nothing"),
    ):
        assert chip.run(program).operations[0].name == program.name == name
    assert chip.run(named, name="this time").operations[0].name == "this time"


def test_table():
    chip = Chip("n150", mode="timing")
    for _ in range(3):
        bound_by_math(chip)
    bound_by_latency(chip)
    report = chip.report()
    lines = report.table().splitlines()
    assert lines[0].split()[:4] == ["operation", "cycles", "us", "TFLOP/s"]
    assert [line.split()[0] for line in lines[2:]] == ["multiply"] * 3 + ["read", "total"]
    assert lines[2].split()[-2] == "math"
    assert int(lines[2].split()[-1].rstrip("%")) >= 70
    assert lines[5].split()[-1] == "latency"
    assert lines[-1].split()[1] == f"{report.cycles:.0f}"
    grouped = report.table(grouped=True).splitlines()
    assert [line.split("  ")[0] for line in grouped[2:]] == ["multiply x 3", "read", "total"]
    assert len(repr(report)) < 100
    assert repr(report).startswith("<Report of n150: 4 operations, ")
    assert "'multiply'" in repr(report.operations)


def test_nothing_runs():
    report = Chip("n150").run(Program())
    assert report.cycles == report.flops == report.tflops == report.utilisation == report.dram_bytes == 0
    assert set(report.busy.values()) == {0}
    assert set(report.energy.values()) == {0}
    assert report.bound == "latency"
    assert report.table().splitlines()[-1].split()[:2] == ["total", "0"]


def test_energy():
    spec = ChipSpec.named("n150")
    chip = Chip(spec, mode="timing")
    report = chip.run(multiplying(ROW, 2, 2, lambda core: 100), fidelity="HiFi2")
    energy = report.energy
    assert set(energy) == {"math", "L1", "NoC", "DRAM", "static"}
    assert energy["math"] == pytest.approx(1600 * spec.energy.product_pj[1] * 1e-12)
    assert energy["static"] == pytest.approx(report.seconds * spec.energy.static_watts)
    unpacked = sum(core["unpack_bytes"] for core in report.cores)
    assert energy["L1"] == pytest.approx(unpacked * spec.energy.l1_pj_per_byte * 1e-12)
    assert energy["NoC"] == energy["DRAM"] == 0
    reads = bound_by_dram(chip)
    assert reads.energy["DRAM"] == pytest.approx(4 * 64 * 4096 * spec.energy.dram_pj_per_byte * 1e-12)
    assert reads.energy["NoC"] == pytest.approx(reads.hop_bytes * spec.energy.noc_pj_per_byte_hop * 1e-12)
    # What was read went into L1, with headers; requests left it.
    assert reads.energy["L1"] > 4 * 64 * 4096 * spec.energy.l1_pj_per_byte * 1e-12
    cold = spec.replace(energy={"static_watts": 0.0})
    assert bound_by_dram(Chip(cold, mode="timing")).energy["static"] == 0


@pytest.mark.parametrize("name", ChipSpec.names())
def test_power_is_what_such_boards_take(name):
    """A product at nearly full speed takes no more than boards are cooled for."""
    chip = Chip(name, mode="timing")
    report = chip.run(multiplying(chip.compute_grid, 2, 4, lambda core: 100), fidelity="HiFi4")
    watts = sum(report.energy.values()) / report.seconds
    assert report.utilisation > 0.8
    assert chip.spec.energy.static_watts < watts < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"static_watts": -1.0}, "energy.static_watts must not be negative, got -1"),
        ({"product_pj": [1.0, 2.0]}, "product_pj|length 4|expected"),
        ({"joules": 1.0}, "joules"),
    ],
)
def test_energies_that_are_none(change, message):
    with pytest.raises(tensix.SpecError, match=message):
        ChipSpec.named("n150").replace(energy=change)


def pipeline(chip, **options):
    """Run a reader, a compute kernel and a writer on two cores that also signal each other."""
    source, target = chip.pages(2048, 40), chip.pages(2048, 40)

    def reader(k, first):
        for i in range(20):
            yield k.cb_reserve_back(0, 1)
            address = yield k.get_write_ptr(0)
            yield k.noc_async_read(source.page(first + i), address, 2048)
            yield k.noc_async_read_barrier()
            yield k.cb_push_back(0, 1)
        yield k.noc_semaphore_inc((1 - k.core[0], 0), 0)
        yield k.noc_semaphore_wait(0, 1)

    def compute(k):
        for _ in range(20):
            yield k.cb_wait_front(0, 1)
            yield k.tile_regs_acquire()
            yield k.copy_tile(0, 0, 0)
            yield k.relu_tile(0)
            yield k.tile_regs_commit()
            yield k.cb_pop_front(0, 1)
            yield k.cb_reserve_back(16, 1)
            yield k.tile_regs_wait()
            yield k.pack_tile(0, 16)
            yield k.tile_regs_release()
            yield k.cb_push_back(16, 1)

    def writer(k, first):
        for i in range(20):
            yield k.cb_wait_front(16, 1)
            address = yield k.get_read_ptr(16)
            yield k.noc_async_write(address, target.page(first + i), 2048)
            yield k.noc_async_write_barrier()
            yield k.cb_pop_front(16, 1)

    program, cores = Program(), [(0, 0), (1, 0)]
    program.semaphore()
    program.cb(0, cores)
    program.cb(16, cores)
    program.kernel(reader, cores, "reader", lambda core: (20 * core[0],))
    program.kernel(compute, cores, "compute")
    program.kernel(writer, cores, "writer", lambda core: (20 * core[0],))
    return chip.run(program, **options)


def test_timeline():
    report = pipeline(Chip("n150", mode="timing"), timeline=True)
    timeline = report.operations[0].timeline
    assert timeline.dropped == 0
    assert timeline.cores == [(0, 0), (1, 0)]
    ends = defaultdict(float)
    waited, kernels = defaultdict(float), defaultdict(set)
    for one in timeline:
        place = one.core, one.thread
        assert ends[place] <= one.start < one.end <= report.cycles
        assert 0 <= one.busy <= one.end - one.start
        ends[place] = one.end
        kernels[one.thread].add(one.kernel)
        if one.waits:
            waited[place] += one.end - one.start
    assert len(ends) == 2 * len(THREADS)
    assert kernels == {
        "data movement 0": {"writer"},
        "data movement 1": {"reader"},
        "unpack": {"compute"},
        "math": {"compute"},
        "pack": {"compute"},
    }
    for core in report.cores:
        for thread, waits in zip(core["threads"], core["thread_waits"], strict=True):
            assert waited[core["core"], f"data movement {thread}"] == pytest.approx(waits)
    did = {(one.thread, one.what) for one in timeline if not one.waits}
    assert {
        ("data movement 1", "noc_async_read"),
        ("data movement 1", "noc_semaphore_inc semaphore 0"),
        ("math", "copy_tile cb 0"),
        ("math", "unary_tile"),
        ("pack", "pack_tile cb 16"),
        ("unpack", "cb_pop_front cb 0"),
    } <= did
    waits = {(one.thread, one.what) for one in timeline if one.waits}
    assert {
        ("data movement 1", "noc_async_read_barrier"),
        ("data movement 0", "cb_wait_front cb 16"),
        ("unpack", "cb_wait_front cb 0"),
        ("pack", "tile_regs_wait"),
    } <= waits


def test_timelines_are_for_those_who_ask():
    quiet, loud = Chip("n150", mode="timing"), Chip("n150", mode="timing", timeline=True)
    without, with_one = pipeline(quiet), pipeline(loud)
    assert without.operations[0].timeline is None
    assert with_one.operations[0].timeline is not None
    assert without == with_one
    assert pipeline(loud, timeline=False).operations[0].timeline is None
    few = pipeline(quiet, timeline=50).operations[0].timeline
    assert len(few) == len(list(few)) == 50
    assert few.dropped > 0
    assert "dropped" in repr(few)
    for wrong in (-1, 2**32):
        with pytest.raises(tensix.MisusedError, match="a timeline of"):
            pipeline(quiet, timeline=wrong)
        with pytest.raises(tensix.MisusedError, match="a timeline of"):
            Chip("n150", timeline=wrong)


@pytest.mark.parametrize("name", ["n150", "p150"])
def test_saved_for_perfetto(name, tmp_path):
    chip = Chip(name, mode="timing", timeline=True)
    pipeline(chip, name="one")
    bound_by_latency(chip)
    path = tmp_path / "trace.json"
    report = chip.report()
    report.save(path)
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    named = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert named["process_name", 0, 0] == "operations"
    assert named["process_name", 1, 0] == "core (0, 0)"
    assert [named["thread_name", 1, thread] for thread in range(5)] == list(THREADS)
    spans = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            spans[event["pid"], event["tid"]].append((round(event["ts"] * 1e3), round(event["dur"] * 1e3)))
    for thread in spans.values():
        at = 0
        for start, duration in thread:
            assert at <= start
            at = start + duration
        assert at <= round(report.microseconds * 1e3)
    operations = [event for event in events if event.get("cat") == "operation"]
    assert [event["name"] for event in operations] == ["one", "read"]
    assert operations[1]["ts"] == pytest.approx(report.operations[0].microseconds, abs=1e-3)
    kinds = {event["cat"] for event in events if event["ph"] == "X"}
    assert kinds == {"operation", "work", "wait"}
    second = [event for event in events if event.get("args", {}).get("operation") == "read"]
    assert min(event["ts"] for event in second) >= operations[1]["ts"]


def test_saved_without_timelines(tmp_path):
    chip = Chip("n150", mode="timing")
    bound_by_math(chip)
    chip.report().save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["multiply"]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    chip = Chip("n150", mode="timing")
    report = pipeline(chip)
    figure = report.plot(tmp_path / "heat.png")
    assert (tmp_path / "heat.png").stat().st_size > 10_000
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert [title.split(":")[0] for title in titles] == ["math", "data movement", "NoC 0", "NoC 1"]
    shares = figure.axes[0].images[0].get_array()
    x, y = chip.spec.workers.x[1], chip.spec.workers.y[0]
    assert shares[y, x] == pytest.approx(report.cores[1]["math_busy"] / report.cycles)
    assert np.isnan(np.ma.filled(shares.astype(float), np.nan)).sum() == 10 * 12 - 2
    (lines,) = figure.axes[2].collections[:1]
    between = [link for link in report.links if link[0] == 0 and link[2] in "xy"]
    assert sorted(lines.get_array()) == pytest.approx(sorted(link[4] / report.cycles for link in between))
    # Programs that use no link, or nothing at all, have a picture too.
    chip.run(Program()).plot()


def test_plot_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = Chip("n150").run(Program())
    with pytest.raises(ModuleNotFoundError, match=r"prunus\[plot\]"):
        report.plot()
