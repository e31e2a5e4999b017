"""The whole comparison, from the model to the last table."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from prunus.bench.llm import curve, decode, disk, memory
from prunus.bench.llm.found import Section, report
from prunus.bench.llm.plan import Plan
from prunus.llm.packing import pack

__all__ = ["SECTIONS", "compare"]

SECTIONS = ("decode", "memmap", "memory", "curve", "disk")


def compare(
    plan: Plan,
    sections: Sequence[str],
    show: Callable[[str], None],
    *,
    keeps: Sequence[float] = curve.KEEPS,
    shape: disk.Shape | None = None,
    plot: Path | None = None,
) -> list[Section]:
    """Run sections and show their tables as they come.

    Parameters
    ----------
    plan : Plan
        Sizes; a temporary folder is made in its ``folder``, where ``packed`` is written, and removed at the
        end.
    sections : sequence of str
        Some of `SECTIONS`.
    show : callable
        Given each table.
    keeps : sequence of float
        Shares of the curve.
    shape : Shape, optional
        Of the layers of "disk".
    plot : Path, optional
        Where the curve is drawn.

    Raises
    ------
    OSError, WorkerError, WrongResultError
        If files cannot be written, a run fails, or a result is wrong.
    """
    found = []
    folder = Path(tempfile.mkdtemp(prefix="prunus-bench-llm-", dir=plan.folder))
    try:
        plan = replace(plan, folder=folder)
        if set(sections) != {"disk"}:
            plan = replace(plan, packed=folder / "up.safetensors")
            pack(plan.source, plan.packed, progress=True)
        for name in sections:
            if name == "decode":
                section = decode.bound(plan)
            elif name == "memmap":
                section = decode.maps(plan)
            elif name == "memory":
                section = memory.peer_speeds(plan)
            elif name == "disk":
                section = disk.foreseen(plan, shape)
            else:
                points = curve.measure(plan, keeps)
                section = curve.section(plan, points)
                if plot is not None:
                    curve.plot(plot, points)
            found.append(section)
            show(report(section))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found
