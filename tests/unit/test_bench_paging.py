"""The parts of ``bench paging`` that need no drive: reports of fio, medians, targets, caches, tables."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.bench.paging import cases, data, fio, meter, probe, report, revisits, rounds, worker
from prunus.bench.paging.figures import estimate, ratios
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.setup import Case, Contestant, Target
from prunus.cli import bench_paging, main

linux = pytest.mark.skipif(sys.platform != "linux", reason="bench paging is for Linux")


def side(requests=0, size=4096, latency=0.0, milliseconds=0):
    moved = requests * size
    return {
        "io_bytes": moved,
        "runtime": milliseconds,
        "total_ios": requests,
        "clat_ns": {"mean": latency * 1e9},
    }


def fio_report(**changes):
    job = {"error": 0, "read": side(1000, 65536, 0.002, 500), "write": side(), "usr_cpu": 2.0, "sys_cpu": 6.0}
    return json.dumps({"fio version": "fio-3.33", "jobs": [job | changes]}, indent=1)


def test_fio_report():
    found = fio.parse(fio_report(), "io_uring")
    assert (found.seconds, found.used, found.read, found.written) == (0.5, 65536000, 65536000, 0)
    assert found.depth == pytest.approx(1000 * 0.002 / 0.5)
    assert found.cpu == pytest.approx(0.04)
    assert found.rate == pytest.approx(65536000 / 0.5)
    assert (found.requests, found.engine) == (1000, "fio io_uring")


def test_fio_report_of_both_ways_counts_the_longer_time():
    found = fio.parse(fio_report(read=side(10, 4096, 0.1, 400), write=side(30, 4096, 0.2, 500)))
    assert (found.seconds, found.read, found.written) == (0.5, 40960, 122880)
    assert found.depth == pytest.approx((10 * 0.1 + 30 * 0.2) / 0.5)


def test_fio_report_after_warnings():
    assert fio.parse("fio: this platform is slow\nnote: {not JSON\n" + fio_report()).requests == 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fio: engine io_uring not loadable",
        "{\n",
        "{\n}",
        '{\n"jobs": []}',
        '{\n"jobs": [{"read": 1}]}',
        fio_report(error=95),
        fio_report(read=side()),
        fio_report(read=side(1, 4096, 0.1, 0)),
        fio_report(usr_cpu=None),
    ],
)
def test_fio_report_that_is_none(text):
    with pytest.raises(fio.FioError):
        fio.parse(text)


def test_fio_command():
    job = fio.Job("/a:b", "randread", 65536, 64, 1 << 30, 1 << 26, 7)
    line = fio.command("fio", job, "io_uring")
    assert line[0] == "fio"
    for option in ("--filename=/a\\:b", "--rw=randread", "--bs=65536", "--iodepth=64", "--randseed=7"):
        assert option in line
    assert not any("fixedbufs" in option for option in line)
    assert "--fixedbufs=1" in fio.command("fio", replace(job, registered=True), "io_uring")
    assert "--fixedbufs=1" not in fio.command("fio", replace(job, registered=True), "libaio")
    threads = fio.command("fio", job, "psync")
    assert "--numjobs=64" in threads
    assert f"--offset_increment={1 << 24}" in threads


def test_fio_takes_the_first_engine_that_works(monkeypatch):
    asked = []

    def run(program, engine, job):
        asked.append(engine)
        if engine == "io_uring":
            raise fio.FioError("denied")
        return Sample(1.0, job.block, engine=engine)

    monkeypatch.setattr(fio, "run", run)
    job = fio.Job("a", "read", 4096, 1, 4096, 4096)
    assert fio.choose("fio", job)(job).engine == "libaio"
    assert asked == ["io_uring", "libaio", "libaio"]
    monkeypatch.setattr(fio, "run", lambda *_: (_ for _ in ()).throw(fio.FioError("denied")))
    with pytest.raises(fio.FioError, match="denied; denied; denied"):
        fio.choose("fio", job)


def test_fio_that_is_not_there():
    with pytest.raises(fio.FioError, match="no-such-fio"):
        fio.run("no-such-fio", "psync", fio.Job("a", "read", 4096, 1, 4096, 4096))


def test_best_sequential_depth():
    rates = {(1 << 20, 16): 3.0, (1 << 20, 8): 2.0}

    def rater(job):
        return Sample(1 / rates.get((job.block, job.depth), 1.0), job.amount)

    best = fio.best_sequential(rater, "a", (9 << 20) + 5, 1 << 20)
    assert (best.block, best.depth, best.amount) == (1 << 20, 16, 9 << 20)


def test_estimate():
    found = estimate([float(v) for v in (9, 1, 5, 3, 7, 2, 8, 4, 6, 10, 15, 11, 14, 12, 13)])
    # Of 15 values the 4th and the 12th: the median is outside with probability 2 * 576 / 2**15.
    assert (found.median, found.low, found.high, found.count) == (8, 4, 12, 15)
    assert str(found) == "8.00 [4.00, 12.00]"
    assert (estimate([1.0, 2.0]).low, estimate([1.0, 2.0]).high) == (1, 2)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_estimate_is_in_order_and_symmetric(values):
    found, mirrored = estimate(values), estimate([-value for value in values])
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert (mirrored.low, mirrored.median, mirrored.high) == (-found.high, -found.median, -found.low)


def test_estimate_covers_the_median():
    rng = np.random.default_rng(0)
    for count in (5, 9, 15, 31):
        draws = rng.exponential(size=(2000, count))
        found = [estimate(list(row)) for row in draws]
        covered = np.mean([one.low <= np.log(2) <= one.high for one in found])
        assert covered >= 0.88


def test_ratios():
    assert ratios([1, 6], [2, 3]) == [0.5, 2]
    with pytest.raises(ValueError, match="longer"):
        ratios([1], [2, 3])


def test_sample_travels_as_json():
    one = Sample(2.0, 100, read=150, blocks=4, cpu=0.5, series={"passes": [1.0, 0.5]})
    assert Sample.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert (one.rate, one.amplification, one.cpu_per_block) == (50, 1.5, 0.125)
    assert one.with_cached(0.25).cached == 0.25
    with pytest.raises(ValueError, match="pages"):
        Sample.from_json({"seconds": 1, "used": 1, "pages": 3})
    with pytest.raises(ValueError, match="used"):
        Sample.from_json({"seconds": 1})


def test_header_is_read_by_numpy(tmp_path):
    path = tmp_path / "a.npy"
    values = np.arange(12, dtype=np.float32)
    path.write_bytes(data.npy_header((3, 4)) + values.tobytes())
    assert np.array_equal(np.load(path), values.reshape(3, 4))
    assert len(data.npy_header((1 << 40, 3))) == data.HEADER


@pytest.mark.parametrize(
    ("nbytes", "shape"), [(4 << 30, (32768, 32768)), (2 << 30, (32768, 16384)), (12 << 20, (3072, 1024))]
)
def test_square(nbytes, shape):
    assert data.square(nbytes) == shape


def test_data_is_made_once(tmp_path):
    made = data.Data.make(tmp_path / "a.npy", 1 << 16, 5)
    values = np.load(made.path)
    assert made.total == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)
    assert len(np.unique(values)) > len(values) * 0.99
    made.reshape(64, 256)
    again = data.Data.make(tmp_path / "a.npy", 1 << 16, 5)
    assert again == made
    assert np.load(made.path).shape == (64, 256)  # not written anew
    assert np.array_equal(np.load(made.path).ravel(), values)
    other = data.Data.make(tmp_path / "a.npy", 1 << 16, 6)
    assert other.total != made.total
    with pytest.raises(ValueError, match="65536 bytes"):
        made.reshape(3, 5)
    data.remove([tmp_path / "a.npy"])
    assert not list(tmp_path.iterdir())


@linux
def test_page_cache_is_seen_and_dropped(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * (1 << 20))
    present, size = data.cached([str(path)])
    assert size == 1 << 20
    assert present == size  # just written
    data.drop([str(path)])
    assert data.cached([str(path)])[0] in (0, size)  # some file systems are nothing but page cache
    (tmp_path / "empty").touch()
    assert data.cached([str(tmp_path / "empty")]) == (0, 0)


@linux
@pytest.mark.parametrize("pattern", ["read", "randread", "rw"])
def test_probe(tmp_path, pattern):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(64 << 12))
    found = probe.run(fio.Job(str(path), pattern, 8192, 4, 64 << 12, 32 << 12))
    assert found.used == 32 << 12
    assert found.written == (16 << 12 if pattern == "rw" else 0)
    assert found.requests == 16
    assert 0 < found.depth <= 4
    assert (path.read_bytes() != bytes(64 << 12)) == (pattern == "rw")
    with pytest.raises(ValueError, match="nothing to do"):
        probe.run(fio.Job(str(path), pattern, 8192, 4, 4096, 4096))


def test_probe_chooses_each_block_once():
    job = fio.Job("a", "randread", 10, 4, 1000, 500, 3)
    places = probe.offsets(job)
    assert len(set(places)) == 50
    assert all(place % 10 == 0 and place < 1000 for place in places)
    assert places == probe.offsets(job)
    assert probe.offsets(fio.Job("a", "rw", 10, 4, 30, 60)) == [0, 0, 10, 10, 20, 20]


@linux
def test_probe_says_what_failed(tmp_path):
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(5000))
    with pytest.raises(OSError, match=r"(?i)of 8192 bytes|invalid"):
        probe.run(fio.Job(str(path), "read", 8192, 2, 16384, 16384))


@linux
def test_meter(tmp_path):
    class Pager:
        counts = iter([(10, 4.0), (30, 8.0)])

        def stats(self):
            requests, depth = next(self.counts)
            read = requests << 20
            return {
                "requests": requests,
                "calls": 2 * requests,
                "mean_depth": depth,
                "bytes_read": read,
                "bytes_written": 0,
            }

    used = meter.Meter()
    with used.timed(Pager()):
        held = np.ones(256 << 20, np.uint8)  # more than an allocator has at hand, whatever ran before
    found = used.sample(1 << 20, 16, "null", held.nbytes // 2)
    del held
    assert (found.requests, found.calls, found.read) == (20, 40, 20 << 20)
    assert found.depth == pytest.approx((30 * 8 - 10 * 4) / 20)
    assert found.seconds > 0
    assert (64 << 20) < found.memory < (256 << 20)


def test_fields_of_proc():
    assert meter.fields("Name:\tx\nVmRSS:\t  3 kB\nread_bytes: 7\n") == {"VmRSS": 3072, "read_bytes": 7}


# Caches ------------------------------------------------------------------------------------------------


def test_random_numbers_are_those_of_splitmix64():
    random = revisits.Random(1234567)
    assert [random.draw() for _ in range(2)] == [6457827717110365317, 3203168211198807973]


def test_simulated_caches_by_hand():
    assert revisits.lru([1, 2, 1, 3, 2], 2) == 1 / 5
    assert revisits.belady([1, 2, 1, 3, 2], 2) == 2 / 5
    loop = revisits.cyclic(12, 5)
    assert revisits.lru(loop, 11) == 0
    # Of a loop, the best keeps all but one: each later pass misses at least one, by turns.
    assert revisits.belady(loop, 11) == pytest.approx(1 - 12 / 60 - 4 / 60, abs=2 / 60)


@given(st.lists(st.integers(0, 12), max_size=80), st.integers(1, 8))
def test_nobody_beats_belady(pages, capacity):
    best = revisits.belady(pages, capacity)
    possible = (len(pages) - len(set(pages))) / max(len(pages), 1)
    for simulate in (revisits.lru, revisits.s3_fifo):
        assert 0 <= simulate(pages, capacity) <= best <= possible + 1e-12
        assert simulate(pages, 200) == pytest.approx(possible)


@pytest.mark.parametrize("name", revisits.TRACES)
def test_traces(name):
    pages = revisits.trace(name, 50)
    assert pages == revisits.trace(name, 50)
    # The file has 8 times the budget, of which these traces get an eighth.
    assert 0 <= min(pages) <= max(pages) < 50 * 64
    assert revisits.belady(pages, 50) > max(revisits.lru(pages, 50), revisits.s3_fifo(pages, 50))


def test_no_such_trace():
    with pytest.raises(ValueError, match="cyclic"):
        revisits.trace("round", 5)


# Cases and reports ---------------------------------------------------------------------------------------


def sample(rate, **more):
    return Sample(1.0, rate, blocks=10, **more)


def case(*contestants, targets=()):
    return Case("scan", "a.sum()", contestants, targets)


def test_the_pair_takes_turns():
    names = ("prunus", "fio", "memmap")
    who = [Contestant(name, lambda n: sample(1), (), 1 if name == "memmap" else None) for name in names]
    seen = [[c.name for c in rounds.order(case(*who), number)] for number in range(3)]
    assert seen == [["prunus", "fio", "memmap"], ["fio", "prunus"], ["prunus", "fio"]]


@linux
def test_rounds_go_on_without_who_fails(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1 << 16))
    said = []

    def fail(number):
        if number == 1:
            raise worker.WorkerError("killed")
        return sample(5)

    def read(number):
        path.read_bytes()
        return sample(10 + number)

    who = (Contestant("prunus", read, (str(path),), ours=True), Contestant("fio", fail, ()))
    found = rounds.run(case(*who), 3, said.append)
    assert [s.used for s in found.found["prunus"]] == [10, 11, 12]
    assert "fio" not in found.found
    assert found.missing == {"fio": "killed"}
    assert said == ["scan: fio: killed"]
    assert found.found["prunus"][0].cached in (0, 1)


def outcome():
    ours = [sample(rate, read=rate, memory=300 << 20, cpu=1e-3, depth=40.0) for rate in (90, 95, 100)]
    drive = [sample(100) for _ in range(3)]
    targets = (
        Target("rate: prunus / fio", cases.rate_ratio("prunus", "fio"), 0.9),
        Target("rate: prunus / memmap", cases.rate_ratio("prunus", "memmap"), 10),
        Target("moved", cases.each("prunus", lambda s: s.amplification), 0.5, False),
    )
    who = (
        Contestant("prunus", lambda n: ours[n], (), ours=True),
        Contestant("fio", lambda n: drive[n], ()),
    )
    return rounds.Outcome(case(*who, targets=targets), {"prunus": ours, "fio": drive}, {"memmap": "no group"})


def test_report():
    text = report.report(outcome(), 256 << 20)
    lines = {line.split("  ")[0]: line for line in text.splitlines() if line}
    assert lines["rate: prunus / fio"].split()[-6:] == ["0.9", "..", "1", ">=", "0.9", "ok"]
    assert lines["rate: prunus / memmap"].endswith("not measured: no memmap")
    assert lines["moved"].endswith("MISSED")
    assert lines["memory over budget, MiB (largest)"].endswith("ok")
    assert "left out: memmap: no group" in lines
    assert "CPU us/MiB" in text
    assert max(map(len, text.splitlines())) < 120


def test_memory_over_the_budget_is_missed():
    text = report.report(outcome(), 128 << 20)
    assert next(line for line in text.splitlines() if line.startswith("memory over")).endswith("MISSED")


def test_summary():
    text = report.summary([outcome()], 256 << 20)
    assert text.splitlines()[0] == "3 of 5 targets reached"
    assert "MISSED: scan: moved: 1, wanted <= 0.5" in text
    assert "scan: rate: prunus / memmap: not measured: no memmap" in text


def test_time_against_the_slower():
    found = {
        "prunus": [Sample(2.0, 100), Sample(1.0, 100)],
        "fio": [Sample(1.0, 50), Sample(1.0, 200)],  # another amount: its rate is what counts
        "memory": [Sample(1.0, 100), Sample(2.0, 100)],
    }
    assert cases.against_slower("fio", "memory")(found) == [1.0, 0.5]


def test_best_of_several():
    found = {"prunus": [sample(30), sample(30)], "a": [sample(10), sample(20)], "b": [sample(15), sample(5)]}
    assert cases.best_of(["a", "b", "c"])(found) == [2, 1.5]
    with pytest.raises(KeyError, match="c"):
        cases.best_of(["c"])(found)


# The command -------------------------------------------------------------------------------------------


def test_cases_of_the_command():
    assert tuple(cases.CASES) == bench_paging._CASES


@pytest.mark.parametrize(
    "words", [["--only", "none"], ["--size", "much"], ["--size", "-4GiB"], ["--pairs", "0"], ["--budget"]]
)
def test_wrong_words(words, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "paging", *words])
    assert words[0] in capsys.readouterr().err


@linux
def test_sizes_that_do_not_fit(tmp_path, capsys):
    small = ["--size", "16MiB", "--budget", "4 MiB", "--path", str(tmp_path)]
    assert main(["bench", "paging", *small]) == 1
    assert "8 times" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["bench", "paging", "--json", str(tmp_path / "none" / "a.json")]) == 1
    assert "no folder" in capsys.readouterr().err


def test_worker_tells_what_failed():
    with pytest.raises(worker.WorkerError, match="no such task"):
        worker.work("no such task", {})
