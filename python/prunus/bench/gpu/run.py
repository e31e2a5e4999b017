"""A run: sections one after the other, and what machine they ran on."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

import prunus as pr
from prunus.bench.gpu import attention, ceilings, dsd, ffn, moe, overhead, sdd, transposes
from prunus.bench.gpu.bench import Bench, first_line
from prunus.bench.gpu.record import Case, Machine
from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries

__all__ = ["SECTIONS", "machine", "run"]

#: Sections in the order in which they run: what others are held against comes first, then what is short.
SECTIONS: Final[dict[str, Callable[[Bench], None]]] = {
    "ceilings": ceilings.run,
    "overhead": overhead.run,
    "ffn": ffn.run,
    "dsd": dsd.run,
    "moe": moe.run,
    "attention": attention.run,
    "transposes": transposes.run,
    "sdd": sdd.run,
}


def run(bench: Bench, sections: Sequence[str]) -> None:
    """Run sections; one that raises is noted as failed, and the next one runs."""
    with pr.device("cuda" if bench.where.interpreted else str(bench.where.device)):
        for name in SECTIONS:
            if name not in sections:
                continue
            if bench.budget.over:
                note = f"{bench.budget.minutes:g} minutes were up"
                bench.add(Case(name, "all", ""), "", "", "skipped", note)
                continue
            try:
                SECTIONS[name](bench)
            except Exception as error:
                bench.add(Case(name, "the rest of the section", ""), "", "ours", "failed", first_line(error))
            bench.tidy()


def machine(where: Place, options: str = "", today: datetime.date | None = None) -> Machine:
    """Say what a run ran on."""
    torch, _, _, versions = libraries()
    found = {"prunus": pr.__version__, "torch": versions[0], "triton": versions[1]}
    if not where.interpreted:
        found["cuda"] = str(torch.version.cuda)
        found["driver"] = _driver()
    day = datetime.date.today() if today is None else today
    return Machine(where.name, day.isoformat(), found, options)


def _driver() -> str:
    """Return the driver's version, as its own tool tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.split()[0] if said.split() else "unknown"
