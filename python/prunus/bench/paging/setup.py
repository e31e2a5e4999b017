"""What a comparison needs: files, the drive's own rate, and how a case is put together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prunus.bench.paging import fio, probe
from prunus.bench.paging.data import Data, drop, square
from prunus.bench.paging.fio import Job, Rater
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.worker import work

__all__ = ["Case", "Contestant", "Results", "Setup", "Target", "find_rater", "prepare"]

# Samples by contestant, in the order of the rounds; who gets fewer rounds has a shorter list.
Results = dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who takes part in a case.

    Attributes
    ----------
    name : str
        Shown in tables.
    run : callable
        Does the round of that number and tells how it went.
    files : tuple of str
        Taken out of the page cache beforehand, and looked for there afterwards.
    rounds : int, optional
        Fewer rounds than the others, for those who are slow.
    ours : bool
        Whether it is prunus, whose memory and page cache are held to account.
    """

    name: str
    run: Callable[[int], Sample]
    files: tuple[str, ...]
    rounds: int | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What a case is to reach.

    Attributes
    ----------
    what : str
        What is measured.
    values : callable
        Returns it, once for each round; a KeyError names the contestant who is missing.
    limit : float
        What counts as reached.
    at_least : bool
        Whether the median has to be at least the limit, or at most.
    """

    what: str
    values: Callable[[Results], Sequence[float]]
    limit: float
    at_least: bool = True

    def reached(self, median: float) -> bool:
        """Tell whether a median is good enough."""
        return median >= self.limit if self.at_least else median <= self.limit


@dataclass(frozen=True, slots=True)
class Case:
    """One line of work, and everyone who does it.

    The first two contestants run next to each other, in either order by turns: they are the pair.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    targets: tuple[Target, ...]
    unit: str = "MiB"
    rounds: int | None = None
    # Bytes that memory may grow by, where that is another budget than the comparison's.
    budget: int | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cases share.

    Attributes
    ----------
    folder : Path
        Where the files are.
    budget : int
        Bytes that a pager may hold.
    pairs, peers : int
        Rounds of prunus and fio, and of those who are slow.
    data, other, out : Data
        The file that is read; one that only fills memory; one that is written.
    rater : callable
        Measures the drive's own rate.
    sequential : Job
        The fastest way to read the file from front to back.
    rated_by : str
        Whose rate that is: "fio" or "probe".
    group : Path, optional
        The file by which a process joins the memory cgroup.
    no_group : str
        Why there is none.
    """

    folder: Path
    budget: int
    pairs: int
    peers: int
    data: Data
    other: Data
    out: Data
    rater: Rater
    sequential: Job
    rated_by: str
    group: Path | None = None
    no_group: str = ""

    def shaped(self, row: int | None = None) -> tuple[int, int]:
        """Give the data rows of so many bytes, or make it square; return the shape."""
        columns = row // 4 if row is not None else square(self.data.nbytes)[1]
        shape = self.data.nbytes // (columns * 4), columns
        self.data.reshape(*shape)
        return shape

    def task(self, name: str, *, engine: str | None = None, limited: bool = False, **more: object) -> Sample:
        """Do a task in a fresh process; see `worker.work`."""
        arguments = {"path": self.data.path, "total": self.data.total, "other": self.other.path}
        arguments |= {"budget": self.budget, **more}
        return work(name, arguments, engine=engine, group=self.group if limited else None)

    def rate(
        self,
        pattern: fio.Pattern,
        block: int,
        depth: int,
        amount: int,
        seed: int = 1,
        registered: bool = False,
    ) -> Sample:
        """Measure the drive's own rate on the data."""
        size = os.path.getsize(self.data.path) // block * block
        amount = amount // block * block
        return self.rater(Job(self.data.path, pattern, block, depth, size, amount, seed + 1, registered))


def find_rater(data: Data) -> tuple[Rater, str, str]:
    """Return who measures the drive: fio if it is there and works."""
    program = fio.find_fio()
    if program is None:
        return probe.run, "probe", "fio is not installed: an own probe of direct reads takes its place"
    trial = Job(data.path, "randread", 4096, 8, data.nbytes, min(4 << 20, data.nbytes))
    try:
        return fio.choose(program, trial), "fio", ""
    except fio.FioError as error:
        return probe.run, "probe", f"{error}: an own probe of direct reads takes fio's place"


def prepare(
    folder: Path, size: int, budget: int, pairs: int, peers: int, say: Callable[[str], None]
) -> Setup:
    """Write the files and find out how the drive is read fastest.

    Raises
    ------
    OSError
        If the files cannot be written.
    ValueError
        If the file is not at least 8 times the budget, or too small to be measured.
    """
    least = 4 << 20
    size = size // least * least
    if size < 8 * budget or size == 0:
        raise ValueError(f"--size {size} must be at least 8 times --budget {budget}, and {least}")
    folder.mkdir(parents=True, exist_ok=True)
    data = Data.make(folder / "data.npy", size, 1)
    other = Data.make(folder / "other.npy", max(budget // least * least, least), 2)
    out = Data.make(folder / "out.npy", size // 2, 3)
    drop([data.path, other.path, out.path])
    rater, rated_by, note = find_rater(data)
    if note:
        say(note)
    sequential = fio.best_sequential(rater, data.path, size, 1 << 30)
    best = f"{sequential.block >> 10} KiB at depth {sequential.depth}"
    say(f"{rated_by} reads the file from front to back fastest with {best}")
    return Setup(folder, budget, pairs, peers, data, other, out, rater, sequential, rated_by)


def with_group(setup: Setup, group: Path | None, why: str) -> Setup:
    """Return the same with a memory cgroup, or the reason for none."""
    return replace(setup, group=group, no_group=why)
