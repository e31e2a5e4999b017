"""``bench gpu`` at tiny sizes: every section runs, finds wrong results, and names what it leaves out."""

import contextlib
import csv
import gc
from importlib.util import find_spec

import pytest

import prunus as pr
from prunus.bench.gpu import files, overhead, peers, timing
from prunus.bench.gpu.bench import OURS, Bench, Budget, Entry, MissingError
from prunus.bench.gpu.record import STATES, Case
from prunus.bench.gpu.report import report, summary
from prunus.bench.gpu.run import SECTIONS, machine, run
from prunus.bench.gpu.sizes import FULL, TINY, quick
from prunus.bench.gpu.timing import DeviceTimer, HostTimer, Timed, timer_of
from prunus.cli import main


class Constant:
    """A timer that calls what it times once, and says that it took a microsecond."""

    def __init__(self):
        self.called = 0

    def race(self, entries, rounds):
        for calls in entries.values():
            for call in calls:
                call()
                self.called += 1
        return dict.fromkeys(entries, Timed((1e-6,) * rounds, "host"))

    def host(self, call, rounds):
        call()
        return Timed((1e-6,) * rounds, "host")


@pytest.fixture
def bench(place):
    return Bench(place, quick(TINY), Constant(), Budget(60), rounds=1)


def _sections():
    """Go through the sections; what is timed there may not be built yet."""
    needed = {"ffn": ("ffn",), "attention": ("attention",), "overhead": ("linear", "ffn", "attention")}
    for section in SECTIONS:
        absent = [name for name in needed.get(section, ()) if not find_spec(f"prunus.cuda.layers.{name}")]
        why = f"operations on tensors that are not built yet: {', '.join(absent)}"
        yield pytest.param(section, marks=pytest.mark.xfail(reason=why, strict=True) if absent else ())


@pytest.mark.parametrize("section", list(_sections()))
def test_sections_run(bench, section):
    run(bench, [section])
    assert bench.rows
    assert {row.state for row in bench.rows} <= set(STATES)
    bad = [row for row in bench.rows if row.state in ("wrong", "failed")]
    assert not [(row.case.name, row.contestant, row.note) for row in bad if row.contestant.startswith(OURS)]
    ours = [row for row in bench.rows if row.kind in ("ours", "ceiling") and row.timed]
    assert ours
    assert all(row.seconds == 1e-6 and row.rounds for row in ours)
    assert all(row.flops > 0 and row.nbytes > 0 for row in ours if section not in ("overhead", "ceilings"))
    if bench.where.interpreted:
        absent = {row.contestant for row in bench.rows if row.state == "missing"}
        expected = {
            "dsd": {peers.TORCH_BSR, peers.SPARSE_MM, peers.CUSPARSE},
            "sdd": {peers.TORCH_BSR},
            "moe": {peers.GROUPED},
            "attention": {peers.FLEX},
            "overhead": {OURS, f"{OURS} graph"},
        }
        assert absent == expected.get(section, set())
        assert {row.note for row in bench.rows if row.state == "missing"} <= {"needs a GPU"}
    assert section in report(machine(bench.where), bench.rows) or section == "ceilings"


def test_wrong_results_are_told_and_not_timed(bench, monkeypatch):
    right = pr.sddmm
    monkeypatch.setattr(pr, "sddmm", lambda *parts: right(*parts) * 1.25)
    said = []
    bench.say = said.append
    run(bench, ["sdd"])
    states = {row.state for row in bench.rows if row.contestant == OURS}
    assert states == {"wrong"}
    assert any("off by" in line for line in said)
    assert any(row.contestant == "torch dense" and row.timed for row in bench.rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_wrong(bench, value):
    torch = bench.torch
    case = Case("dsd", "W @ x", "bfloat16", 8)
    one = torch.ones(8, device=bench.device)
    spoilt = one.clone()
    spoilt[3] = value
    entries = [
        Entry(case, name, "ours", lambda r=r: [lambda: r], lambda: one, 1.0, 1.0)
        for name, r in (("right", one), ("spoilt", spoilt), ("short", one[:4]))
    ]
    bench.race(entries)
    found = {row.contestant: row.state for row in bench.rows}
    assert found == {"right": "timed", "spoilt": "wrong", "short": "failed"}


def test_what_is_not_there_is_named(bench):
    def none():
        raise MissingError("no such library")

    def broken():
        raise RuntimeError("it broke\nat length")

    case = Case("dsd", "W @ x", "bfloat16", 8)
    entries = [Entry(case, make.__name__, "peer", make, none, 1.0, 1.0) for make in (none, broken)]
    bench.race(entries)
    assert [(row.state, row.note) for row in bench.rows] == [
        ("missing", "no such library"),
        ("failed", "RuntimeError: it broke"),
    ]
    assert "1 missing, 1 failed" in summary(bench.rows)


def test_time_is_up(place):
    clock = iter([0.0, 0.0, 0.0, *[61.0] * 1000])
    late = Bench(place, quick(TINY), Constant(), Budget(1, lambda: next(clock)), rounds=1)
    run(late, ["dsd", "moe"])
    skipped = [row for row in late.rows if row.state == "skipped"]
    assert {row.case.section for row in skipped} == {"dsd", "moe"}
    assert all("1 minutes were up" in row.note for row in skipped)
    assert any(row.case.what == "W @ x" for row in skipped)


def test_a_section_that_raises_is_noted(bench, monkeypatch):
    def broken(bench):
        raise RuntimeError("out of paper")

    monkeypatch.setitem(SECTIONS, "dsd", broken)
    run(bench, ["dsd", "ceilings"])
    assert [row.state for row in bench.rows] == ["timed", "timed", "failed"]
    assert "out of paper" in bench.rows[-1].note


def test_timers(place):
    calls = []
    timer = timer_of(place)
    if place.interpreted:
        assert isinstance(timer, HostTimer)
    found = timer.race({3: [lambda: calls.append(1)], 5: [lambda: calls.append(2)] * 2}, 2)
    assert {name: len(timed.seconds) for name, timed in found.items()} == {3: 2, 5: 2}
    assert timer.host(lambda: None, 3).median >= 0
    assert calls.count(2) >= 4


class _Graph:
    """Captures by remembering what to call; a replay writes to what the capture gave."""

    cuda = None

    def replay(self):
        self.cuda.log.append("replay")
        for kept, new in zip(self.kept, self.body(), strict=True):
            kept.copy_(new)


class _Cuda:
    """What the timer asks of ``torch.cuda``, on the host."""

    def __init__(self):
        self.log, self.mode, self.capturing, self.stream, self.clock = [], 0, None, "main", 0.0
        cuda = self

        class Graph(_Graph):
            pass

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                cuda.clock += 1.0
                self.at = cuda.clock

            def synchronize(self):
                cuda.log.append("wait")

            def elapsed_time(self, other):
                return other.at - self.at

        Graph.cuda, self.CUDAGraph, self.Event = self, Graph, Event

    @contextlib.contextmanager
    def graph(self, graph):
        self.stream, self.capturing = "side", graph
        yield
        self.stream, self.capturing = "main", None

    def wait(self):
        if self.mode == "error" or self.capturing:
            raise RuntimeError("called a synchronizing CUDA operation")

    def synchronize(self):
        assert not self.capturing

    def current_stream(self):
        return self.stream

    def set_stream(self, stream):
        self.stream, self.capturing = stream, None

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    def empty_cache(self):
        pass


@pytest.fixture
def cuda(monkeypatch):
    """A GPU's timer and checks on the host: what they do, step by step, and not how long it takes."""
    cuda, real = _Cuda(), timing.libraries()

    class Torch:
        def __getattr__(self, name):
            return cuda if name == "cuda" else getattr(real.torch, name)

    monkeypatch.setattr(timing, "libraries", lambda: real._replace(torch=Torch()))
    monkeypatch.setattr(timing, "_FLUSH", 1 << 12)

    def captured(body):
        kept = []

        def run():
            kept.append(body())
            return kept[-1]

        graph, result = right(run)
        graph.kept = result if isinstance(result, list) else [result]
        graph.body = lambda: body() if isinstance(result, list) else [body()]
        return graph, result

    right = timing.captured
    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(overhead, "captured", captured)
    cuda.torch = Torch()
    yield cuda
    gc.unfreeze()


def test_device_times(cuda, place):
    torch, calls = cuda.torch, []

    def quick():
        calls.append("quick")
        return torch.ones(3)

    def waits():
        calls.append("waits")
        cuda.wait() if cuda.mode == "error" else None
        return torch.ones(3)

    def uncaptured():
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.ones(3)

    timer = DeviceTimer(place)
    found = timer.race({0: [quick] * 4, 1: [waits], 2: [uncaptured] * 2}, 5)
    assert [found[at].how for at in range(3)] == ["graph", "events", "events"]
    # A millisecond between the events, shared by the calls; rounds of 30 ms at most, but 5 were asked for.
    assert found[0].seconds == (0.25e-3,) * 5
    assert found[1].seconds == (1e-3,) * 5
    assert found[2].seconds == (0.5e-3,) * 5
    assert (cuda.stream, cuda.mode, cuda.capturing) == ("main", 0, None)
    assert cuda.log.count("replay") == 1 + 1 + 5
    assert len(timer.host(quick, 3).seconds) == 3


def test_what_waits_and_what_replays_wrongly_is_found(cuda, bench, monkeypatch):
    torch = bench.torch = cuda.torch
    calls = []

    def waits(x):
        cuda.wait()
        return x * 2

    def drifts(x):
        calls.append(x)
        return x * len(calls)

    x = torch.arange(4.0)
    operations = [overhead._Operation(run.__name__, x, run) for run in (torch.sin, waits, drifts)]
    monkeypatch.setattr(overhead, "_operations", lambda bench: operations)
    monkeypatch.setattr(overhead, "_calls", lambda bench: None)
    monkeypatch.setattr(peers, "needs_gpu", lambda where: None)
    overhead.run(bench)
    states = {(row.case.what, row.case.detail): row.state for row in bench.rows}
    assert states == {
        (overhead.SYNC, "sin"): "held",
        (overhead.CAPTURE, "sin"): "held",
        (overhead.SYNC, "waits"): "wrong",
        (overhead.CAPTURE, "waits"): "failed",
        (overhead.SYNC, "drifts"): "held",
        (overhead.CAPTURE, "drifts"): "wrong",
    }
    assert (cuda.stream, cuda.mode) == ("main", 0)


def test_the_command_writes_what_it_found(bench, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.csv"
    sizes = ["--sizes", "tiny", "--quick", "--rounds", "1"]
    assert main(["bench", "gpu", "--sections", "ceilings,dsd", *sizes, "--csv", str(path)]) == 0
    shown = capsys.readouterr()
    assert f"results: {path}" in shown.out
    assert "dsd: W @ x 64 b32 N=16" in shown.err
    assert path.with_suffix(".png").stat().st_size > 1000
    this, rows = files.read(path)
    assert this.gpu == bench.where.name
    assert this.options.startswith("--sections ceilings,dsd --sizes tiny --quick")
    assert report(this, rows) in shown.out
    with path.open(encoding="utf-8") as file:
        plain = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(plain) == len(rows)
    # A result that is wrong is the command's status.
    right = pr.matmul
    monkeypatch.setattr(pr.cuda.BSR, "__matmul__", lambda w, x: right(w, x) * 2)
    assert main(["bench", "gpu", "--sections", "dsd", *sizes, "--csv", "none"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "nowhere/out.csv"], "no folder nowhere"),
        (["--csv", "."], "is a folder"),
        (["--device", "cuda:99"], "no device"),
    ],
)
def test_the_command_refuses(options, message, capsys):
    assert main(["bench", "gpu", "--sizes", "tiny", *options]) == 1
    assert message in capsys.readouterr().err


def test_interpreted_results_are_no_results(place, capsys):
    if not place.interpreted:
        pytest.skip("runs on a GPU: its results count")
    assert main(["bench", "gpu", "--sizes", "tiny"]) == 1
    assert "not kept" in capsys.readouterr().err


def test_quick_has_fewer_cases_of_every_kind():
    less = quick(FULL)
    assert len(less.blocks) < len(FULL.blocks)
    assert set(less.densities) < set(FULL.densities)
    assert all((less.products, less.columns, less.batches, less.experts, less.attention, less.crossing))
