"""The table of what ships: every case on every architecture, compiled in several processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, Final, NamedTuple

from prunus._table import format_table
from prunus.cuda.chips import CHIPS
from prunus.cuda.compiling.build import Built, build
from prunus.cuda.compiling.case import Case, Units
from prunus.cuda.compiling.recording import ahead, record
from prunus.cuda.runtime import Launch
from prunus.cuda.versions import Specialised, specialised

__all__ = ["NATIVE", "Plan", "Row", "faults", "format_rows", "plan", "rows"]

#: The matrix instruction that each architecture is fastest with.
NATIVE: Final = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
# Columns of tensor memory that a multiprocessor has.
_TENSOR_MEMORY: Final = 512


class Row(NamedTuple):
    """A kernel of a case on an architecture.

    Attributes
    ----------
    arch, kernel, case, dtype : str
    tile : str
        Sizes of its tile, in the order of its arguments.
    warps, stages : int
        As asked for.
    expected : Units or None
        What must multiply.
    built : Built or None
        None where it did not compile.
    faults : tuple of str
        What is wrong; empty: nothing.
    """

    arch: str
    kernel: str
    case: str
    dtype: str
    tile: str
    warps: int
    stages: int
    expected: Units | None
    built: Built | None
    faults: tuple[str, ...]


class _Job(NamedTuple):
    """What one process is asked: a launch of a case, by number, as the case itself cannot be sent."""

    case: int
    arch: str
    launch: int


class Plan(NamedTuple):
    """What is to be compiled.

    Attributes
    ----------
    cases : list of Case or None
        None: those of ``prunus.cuda.compiling.cases``, which other processes know as well.
    jobs : list
        One for each distinct kernel.
    failed : list of Row
        Cases that could not be recorded.
    """

    cases: list[Case] | None
    jobs: list[_Job]
    failed: list[Row]


def plan(
    cases: Sequence[Case] | None = None,
    archs: Sequence[str] = tuple(CHIPS),
    *,
    kernel: str | None = None,
    more: bool = False,
) -> Plan:
    """Record cases, and find out which distinct kernels they launch.

    Parameters
    ----------
    cases : sequence of Case, optional
        Those of ``prunus.cuda.compiling.cases`` by default.
    archs : sequence of str
        Of "sm_80", "sm_90" and "sm_100".
    kernel : str, optional
        Only cases that are about this kernel.
    more : bool
        Also cases that are marked so.
    """
    seen: set[str] = set()
    made = Plan(None if cases is None else list(cases), [], [])
    for number, case in enumerate(_shipped() if cases is None else cases):
        if (case.more and not more) or (kernel is not None and kernel not in case.units):
            continue
        for arch in archs:
            if case.archs and arch not in case.archs:
                continue
            try:
                launches = record(case.call, ahead(arch))
            except Exception as error:
                fault = f"cannot be recorded: {type(error).__name__}: {error}"
                made.failed.append(_failed(arch, case, fault))
                continue
            for name in sorted(set(case.units) - {_name(launch) for launch in launches}):
                made.failed.append(_failed(arch, case, "the call does not launch it", name))
            for index, launch in enumerate(launches):
                key = _specialised(launch, arch).key
                if key not in seen:
                    seen.add(key)
                    made.jobs.append(_Job(number, arch, index))
    return made


def rows(todo: Plan, processes: int = 1) -> Iterator[Row]:
    """Compile what is planned, and yield what came out, in order; first what could not be recorded.

    Parameters
    ----------
    todo : Plan
        What to compile.
    processes : int
        How many compile at once; cases that are not the package's own are compiled in this process.
    """
    yield from todo.failed
    with _cache_folder():
        if processes == 1 or todo.cases is not None:
            for job in todo.jobs:
                yield _do(job, todo.cases)
            return
        # Not forked: torch and LLVM have threads.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield from pool.map(_do, todo.jobs)


def faults(found: Sequence[Row]) -> list[str]:
    """Return what is wrong, a line for each fault."""
    return [
        f"{row.arch} {row.kernel} ({row.case}, {row.dtype}): {fault}" for row in found for fault in row.faults
    ]


def format_rows(found: Sequence[Row]) -> str:
    """Lay out rows as a table."""
    header = ["chip", "kernel", "dtype", "case", "tile", "warps", "stages", "shared", "of", "registers"]
    header += ["stack", "units", "copies", "seconds"]
    cells = []
    for row in found:
        line = [row.arch, row.kernel, row.dtype, row.case, row.tile, str(row.warps), str(row.stages)]
        if row.built is None:
            line += ["failed", *[""] * 6]
        else:
            b = row.built
            line += [str(b.shared), str(CHIPS[row.arch].shared), str(b.registers), str(b.stack)]
            line += ["+".join(b.matrix) or "FMA", "+".join(b.copies) or "-", f"{b.seconds:.1f}"]
        cells.append(line)
    return format_table(header, cells, left=5)


@cache
def _shipped() -> list[Case]:
    from prunus.cuda.compiling.cases import CASES

    return CASES


@cache
def _launches(case: int, arch: str) -> list[Launch]:
    return record(_shipped()[case].call, ahead(arch))


def _do(job: _Job, cases: list[Case] | None = None) -> Row:
    """Compile one kernel, perhaps in a process of the pool."""
    if cases is None:
        return _row(_shipped()[job.case], job.arch, _launches(job.case, job.arch)[job.launch])
    case = cases[job.case]
    return _row(case, job.arch, record(case.call, ahead(job.arch))[job.launch])


@contextlib.contextmanager
def _cache_folder() -> Iterator[None]:
    """Have Triton keep its files in a folder that goes away, unless the user names one."""
    if "TRITON_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="prunus-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]


def _name(launch: Launch) -> str:
    return str(launch.kernel.fn.__name__)


def _specialised(launch: Launch, arch: str) -> Specialised:
    return specialised(launch.kernel, launch.arguments, launch.options, CHIPS[arch].capability)


def _failed(arch: str, case: Case, fault: str, kernel: str = "-") -> Row:
    return Row(arch, kernel, case.name, case.dtype, "-", 0, 0, None, None, (fault,))


def _row(case: Case, arch: str, launch: Launch) -> Row:
    name = _name(launch)
    what = _specialised(launch, arch)
    expected = case.units.get(name)
    built: Built | None = None
    wrong: tuple[str, ...]
    try:
        built = build(what)
    except Exception as error:
        text = " ".join(str(error).split())
        wrong = (f"does not compile: {type(error).__name__}: {text[:400]}",)
    else:
        wrong = tuple(_judge(built, arch, expected, case.copies if expected else ""))
    warps, stages = what.options["num_warps"], what.options["num_stages"]
    tile = _tile(launch.options)
    return Row(arch, name, case.name, case.dtype, tile, warps, stages, expected, built, wrong)


def _tile(options: dict[str, Any]) -> str:
    """Return sizes of a tile: constants whose names begin with T."""
    sizes = [
        str(value)
        for name, value in options.items()
        if name[0] == "T" and len(name) < 4 and isinstance(value, int) and not isinstance(value, bool)
    ]
    return "x".join(sizes) or "-"


def _judge(built: Built, arch: str, expected: Units | None, copies: str) -> Iterator[str]:
    chip = CHIPS[arch]
    if built.shared > chip.shared:
        yield f"{built.shared} bytes of shared memory, a program may use {chip.shared}"
    if built.tensor_memory > _TENSOR_MEMORY:
        yield f"{built.tensor_memory} columns of tensor memory, there are {_TENSOR_MEMORY}"
    if built.stack:
        yield f"{built.stack} bytes of each thread are spilled to local memory"
    units = built.matrix
    if expected is Units.NATIVE and NATIVE[arch] not in units:
        yield f"expected {NATIVE[arch]}, found {'+'.join(units) or 'no tensor-core instruction'}"
    elif expected is Units.MATRIX and not set(units) & set(NATIVE.values()):
        yield "expected tensor-core instructions, found none"
    elif expected is Units.PLAIN and units:
        yield f"expected multiply-adds of vector units alone, found {'+'.join(units)}"
    elif expected is Units.DOUBLE and set(units) - {"DMMA"}:
        yield f"expected float64 alone, found {'+'.join(units)}"
    if copies and arch != "sm_80" and copies not in built.copies:
        yield f"expected loads by {copies}, found {'+'.join(built.copies) or 'plain ones'}"
