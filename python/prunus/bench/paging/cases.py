"""The cases: who does what, and what is to be reached."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prunus.bench.paging import layers, probe, revisits, rivals
from prunus.bench.paging.data import square
from prunus.bench.paging.fio import Job
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.setup import Case, Contestant, Results, Setup, Target

__all__ = ["CASES", "make"]

PRUNUS, DIRECT, FRESH = "prunus", "prunus, direct engine", "prunus, first call"
MAP, SMALL_MAP = "memmap", "memmap, 512 MB cgroup"
_SECONDS = 20.0
_STORE_MODES = ("default", "memmap", "direct")


def rate_ratio(one: str, other: str) -> Callable[[Results], Sequence[float]]:
    """Compare rates, pair by pair."""
    return lambda found: [a.rate / b.rate for a, b in zip(found[one], found[other], strict=False)]


def each(name: str, value: Callable[[Sample], float]) -> Callable[[Results], Sequence[float]]:
    """Take a figure of one contestant."""
    return lambda found: [value(sample) for sample in found[name]]


def against_slower(drive: str, memory: str) -> Callable[[Results], Sequence[float]]:
    """Compare prunus's time with the larger of reading and computing, pair by pair."""

    def values(found: Results) -> list[float]:
        trios = zip(found[PRUNUS], found[drive], found[memory], strict=False)
        return [
            ours.seconds / max(ours.used / read.rate, ours.used / sums.rate) for ours, read, sums in trios
        ]

    return values


def best_of(names: Sequence[str]) -> Callable[[Results], Sequence[float]]:
    """Compare prunus's rate with the best of several others, pair by pair."""

    def values(found: Results) -> list[float]:
        there = [found[name] for name in names if name in found]
        if not there:
            raise KeyError(names[0])
        return [
            ours.rate / max(sample.rate for sample in others)
            for ours, *others in zip(found[PRUNUS], *there, strict=False)
        ]

    return values


class _Builder:
    """Puts contestants of one case together."""

    def __init__(self, setup: Setup, files: tuple[str, ...] | None = None) -> None:
        self.setup = setup
        self.files = (setup.data.path,) if files is None else files
        self.all: list[Contestant] = []
        self.missing: dict[str, str] = {}

    def task(self, name: str, task: str, *, limited: bool = False, slow: bool = False, **more: Any) -> None:
        """Add who does a task; ``seed`` is the number of the round."""
        if limited and self.setup.group is None:
            self.missing[name] = self.setup.no_group
            return

        def run(number: int) -> Sample:
            return self.setup.task(task, limited=limited, **{"seed": number, **more})

        rounds = self.setup.peers if slow else None
        self.all.append(Contestant(name, run, self.files, rounds, name.startswith(PRUNUS)))

    def drive(self, run: Callable[[int], Sample]) -> str:
        """Add the drive's own rate; returns its name."""
        name = self.setup.rated_by
        self.all.append(Contestant(name, run, self.files))
        return name

    def registered(self, run: Callable[[int], Sample]) -> None:
        """Add the drive's rate with buffers that the kernel knows beforehand: to be seen, no target."""
        if self.setup.rated_by == "fio":
            self.all.append(Contestant("fio, registered buffers", run, self.files, self.setup.peers))

    def case(self, name: str, title: str, targets: Sequence[Target], unit: str = "MiB", **more: Any) -> Case:
        return Case(name, title, tuple(self.all), tuple(targets), unit, missing=self.missing, **more)


def _sequential(setup: Setup, number: int) -> Sample:
    return setup.rater(setup.sequential)


def _direct_target() -> Target:
    return Target("rate: direct engine / prunus", rate_ratio(DIRECT, PRUNUS), 0.8)


def scan(setup: Setup) -> Case:
    """Sum the file, from front to back."""
    setup.shaped()
    b = _Builder(setup)
    b.task(PRUNUS, "scan")
    drive = b.drive(partial(_sequential, setup))
    b.task(DIRECT, "scan", engine="direct")
    b.registered(lambda _: setup.rater(replace(setup.sequential, registered=True)))
    b.task(FRESH, "scan", fresh=True, slow=True)
    b.task(MAP, "memmap scan", slow=True)
    b.task(SMALL_MAP, "memmap scan", limited=True, slow=True)
    stores = [f"tensorstore, {mode}" for mode in _STORE_MODES]
    if why := rivals.tensorstore_missing():
        b.missing["tensorstore"] = why
    else:
        # A quarter of the values: its rate does not depend on how many there are.
        store = str(setup.folder / f"data-{setup.data.nbytes}.zarr")
        made = setup.task("tensorstore make", store=store, values=setup.data.nbytes // 16)
        parts = tuple(str(path) for path in Path(store).rglob("*") if path.is_file())
        for name, mode in zip(stores, _STORE_MODES, strict=True):
            run = partial(
                lambda mode, _: setup.task(
                    "tensorstore scan", store=store, mode=mode, total=made.series["total"][0]
                ),
                mode,
            )
            b.all.append(Contestant(name, run, parts, setup.peers))
    targets = [
        Target(f"rate: prunus / {drive}, sequential", rate_ratio(PRUNUS, drive), 0.9),
        Target("mean queue depth", each(PRUNUS, lambda s: s.depth), 2.0),
        Target(f"rate: prunus / {SMALL_MAP}", rate_ratio(PRUNUS, SMALL_MAP), 1.0),
        Target("rate: prunus / best of tensorstore", best_of(stores), 1.3),
        _direct_target(),
    ]
    return b.case("scan", "a.sum() of the whole file", targets)


def _random(setup: Setup, name: str, block: int, title: str, maps: bool) -> Case:
    setup.shaped(block)
    share = 0.1
    amount = int(setup.data.nbytes * share)
    b = _Builder(setup)
    b.task(PRUNUS, "random", share=share)
    drive = b.drive(lambda number: setup.rate("randread", block, 64, amount, number))
    b.task(DIRECT, "random", share=share, engine="direct")
    b.registered(lambda number: setup.rate("randread", block, 64, amount, number, registered=True))
    targets = [
        Target(f"rate: prunus / {drive}, depth 64", rate_ratio(PRUNUS, drive), 0.9),
        _direct_target(),
    ]
    if maps:
        b.task(MAP, "memmap random", share=share, seconds=_SECONDS, slow=True)
        b.task(SMALL_MAP, "memmap random", share=share, seconds=_SECONDS, limited=True, slow=True)
        targets += [
            Target("mean queue depth", each(PRUNUS, lambda s: s.depth), 32.0),
            Target(f"rate: prunus / {MAP}", rate_ratio(PRUNUS, MAP), 10.0),
            Target(f"rate: prunus / {SMALL_MAP}", rate_ratio(PRUNUS, SMALL_MAP), 50.0),
        ]
    return b.case(name, title, targets, "block")


def random(setup: Setup) -> Case:
    """Read a tenth of all blocks of 64 KiB."""
    return _random(setup, "random", 64 << 10, "a[rows]: 10 % of all blocks of 64 KiB, in random order", True)


def rows(setup: Setup) -> Case:
    """Read a tenth of all rows of 4 KiB."""
    return _random(setup, "rows", 4 << 10, "a[rows]: 10 % of all rows of 4 KiB, in random order", False)


def _product(setup: Setup, columns: int) -> Case:
    shape = setup.shaped()
    b = _Builder(setup)
    b.task(PRUNUS, "product", columns=columns)
    drive = b.drive(partial(_sequential, setup))
    memory = "NumPy, in memory"
    b.task(memory, "product in memory", columns=columns, shape=shape)
    b.task(SMALL_MAP, "memmap product", columns=columns, limited=True, slow=True)
    targets = [
        Target(f"time / the larger of {drive} and in memory", against_slower(drive, memory), 1.15, False),
        Target(f"rate: prunus / {SMALL_MAP}", rate_ratio(PRUNUS, SMALL_MAP), 4.0),
    ]
    what = "one vector" if columns == 1 else f"N = {columns}"
    return b.case(f"product{columns}", f"a @ x, {shape[0]} x {shape[1]}, {what}", targets)


def passes(setup: Setup) -> Case:
    """Pass three times over blocks that are 2.4 times the budget."""
    setup.shaped(64 << 10)
    budget = setup.budget * 5 // 4
    share = min(3 * setup.budget / setup.data.nbytes, 1.0)
    b = _Builder(setup)
    b.task(PRUNUS, "passes", share=share, passes=3, budget=budget)
    targets = [
        Target(f"pass {n + 1}: bytes read / used", each(PRUNUS, partial(_pass, n)), 0.65, False)
        for n in (1, 2)
    ]
    title = "three passes over random blocks of 64 KiB, 2.4 times the budget of memory"
    return b.case("passes", title, targets, "block", rounds=min(setup.pairs, 3), budget=budget)


def _pass(number: int, sample: Sample) -> float:
    return sample.series["passes"][number]


def add(setup: Setup) -> Case:
    """Add a number to a file, into another."""
    columns = setup.shaped()[1]
    setup.out.reshape(setup.out.nbytes // (columns * 4), columns)
    b = _Builder(setup, (setup.data.path, setup.out.path))
    b.task(PRUNUS, "add", out=setup.out.path)

    def mixed(number: int) -> Sample:
        size = setup.out.nbytes
        try:
            return setup.rater(Job(setup.out.path, "rw", 1 << 20, setup.sequential.depth, size, 2 * size))
        finally:
            # fio wrote over the header as well.
            setup.out.reshape(setup.out.nbytes // (columns * 4), columns)

    drive = b.drive(mixed)
    b.task(DIRECT, "add", out=setup.out.path, engine="direct")
    targets = [
        Target(f"rate: prunus / {drive}, mixed", rate_ratio(PRUNUS, drive), 0.9),
        _direct_target(),
    ]
    return b.case("add", "np.add(a, 1, out=b), both on disk, and b.flush()", targets)


def ffn(setup: Setup) -> Case:
    """Send a token through layers on disk, at a tenth of their units."""
    count = max(-(-8 * setup.budget // layers.layer_bytes()), 2)
    path = str(setup.folder / f"ffn-{count}.safetensors")
    setup.task("ffn make", path=path, layers=count)
    b = _Builder(setup, (path,))
    b.task(PRUNUS, "ffn", path=path, layers=count)
    amount = layers.layer_bytes() * count // 10
    drive = b.drive(lambda number: setup.rate("randread", layers.BUNDLE, 64, amount, number))
    memory = "prunus, in memory"
    b.all.append(
        Contestant(memory, lambda number: setup.task("ffn in memory", seed=number, layers=count), ())
    )
    targets = [
        Target("bytes read / live bundles", each(PRUNUS, lambda s: s.amplification), 1.1, False),
        Target(f"time / the larger of {drive} and in memory", against_slower(drive, memory), 1.2, False),
    ]
    size = f"{count} layers {layers.FEATURES} -> {layers.UNITS}, bfloat16"
    return b.case("ffn", f"paged FFN, {size}, one token, 10 % live, foreseen", targets, "unit")


def bsr(setup: Setup) -> Case:
    """Multiply a block-sparse matrix on disk, 8 times the budget."""
    values = 8 * setup.budget // 4 * 2  # half of the blocks are stored
    shape = square(values * 4)
    path = str(setup.folder / f"bsr-{shape[0]}.safetensors")
    setup.task("bsr make", path=path, shape=shape)
    b = _Builder(setup, (path,))
    b.task(PRUNUS, "bsr", path=path, columns=512)

    def read(number: int) -> Sample:
        size = os.path.getsize(path) // setup.sequential.block * setup.sequential.block
        job = setup.sequential
        return setup.rater(Job(path, "read", job.block, job.depth, size, size))

    b.drive(read)
    memory = "prunus, in memory"
    b.all.append(
        Contestant(
            memory, lambda number: setup.task("bsr in memory", shape=shape, columns=512), (), setup.peers
        )
    )
    targets = [Target("bytes read / its blocks", each(PRUNUS, lambda s: s.amplification), 1.02, False)]
    return b.case("bsr", f"paged BSR {shape[0]} x {shape[1]}, blocks of 64, N = 512", targets, "block")


def revisit(setup: Setup) -> Case:
    """Follow traces of pages, beside caches that are simulated."""
    setup.shaped(64 << 10)
    budget = setup.budget // 8
    capacity = max(budget // (64 << 10), 1)
    b = _Builder(setup)
    targets = []
    for name in revisits.TRACES:
        pages = revisits.trace(name, capacity)
        simulated = max(revisits.lru(pages, capacity), revisits.s3_fifo(pages, capacity))
        best = revisits.belady(pages, capacity)
        limit = max(simulated, best - 0.1)
        what = f"hits, {name} (LRU or S3-FIFO {simulated:.3f}, MIN {best:.3f})"
        who = f"prunus, {name}"
        b.task(who, "revisit", trace=name, budget=budget)
        targets.append(Target(what, each(who, lambda s: s.series["hits"][0]), limit))
    title = f"revisited pages of 64 KiB, {capacity} of which fit"
    return b.case("revisit", title, targets, "page", rounds=1, budget=budget)


def own_probe(setup: Setup) -> Case:
    """Hold the probe that takes fio's place where that is missing against it."""
    b = _Builder(setup)
    name = "probe"
    b.all.append(Contestant(name, lambda number: probe.run(setup.sequential), b.files))
    targets = []
    if setup.rated_by != name:
        drive = b.drive(partial(_sequential, setup))
        targets = [Target(f"rate: probe / {drive}, sequential", rate_ratio(name, drive), 0.9)]
    rounds = min(setup.pairs, 5)
    return b.case("probe", "the drive's own rate by an own probe", targets, rounds=rounds)


CASES: dict[str, Callable[[Setup], Case]] = {
    "scan": scan,
    "random": random,
    "rows": rows,
    "product1": partial(_product, columns=1),
    "product64": partial(_product, columns=64),
    "passes": passes,
    "add": add,
    "ffn": ffn,
    "bsr": bsr,
    "revisit": revisit,
    "probe": own_probe,
}


def make(name: str, setup: Setup) -> Case:
    """Put a case together; its files are written and have the shape that it wants."""
    return CASES[name](setup)
