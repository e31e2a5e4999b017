"""Results of a comparison as a CSV file, with the machine it was run on."""

import csv
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunus.bench.machine import Cpu, slug
from prunus.bench.record import Record

__all__ = ["auto_path", "write_csv"]

_COLUMNS = (
    *("op", "dtype", "layout", "threads", "size", "block", "density", "columns", "contestant", "dense"),
    *("median_s", "minimum_s", "rounds", "gflops", "flushed", "error"),
)


def auto_path(cpu: Cpu, today: datetime.date | None = None) -> Path:
    """Name the file that ``--csv auto`` writes in the repository's benches/results, and make that folder.

    Parameters
    ----------
    cpu : Cpu
        Gives the file its name.
    today : date, optional
        The day in the name; today by default.

    Raises
    ------
    FileNotFoundError
        If the working directory is not the root of a clone.
    """
    folder = Path("benches")
    if not folder.is_dir():
        raise FileNotFoundError("--csv auto writes to benches/results of a clone: run it in the clone's root")
    # Local time: the day that its user sees on the clock.
    day = datetime.date.today() if today is None else today
    results = folder / "results"
    results.mkdir(exist_ok=True)
    return results / f"{slug(cpu.name)}-{day.isoformat()}.csv"


def write_csv(path: Path, records: Sequence[Record], cpu: Cpu, versions: Mapping[str, str]) -> None:
    """Write records, one a line, below comment lines that name the machine and the libraries.

    Read it with ``pandas.read_csv(path, comment="#")``.

    Parameters
    ----------
    path : Path
        The file, in a folder that exists: a name with a slip must not make a new one.
    records : sequence of Record
        What was measured.
    cpu : Cpu
        The machine's name, features and caches.
    versions : mapping
        Version of every library that took part.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# cpu: {cpu.name}\n# flags: {' '.join(cpu.features)}\n")
        file.write(f"# simd: {cpu.level}\n# cores: {cpu.cores}\n# caches: {cpu.caches_text}\n")
        file.write(f"# versions: {' '.join(f'{name}={version}' for name, version in versions.items())}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for r in records:
            c = r.case
            case = (c.op, c.dtype, c.layout, c.threads, c.size, c.block, f"{r.density:.4f}", c.columns)
            times = (f"{r.median:.9f}", f"{r.minimum:.9f}", r.rounds, f"{r.gflops:.3f}")
            writer.writerow([*case, r.contestant, int(r.dense), *times, int(r.flushed), f"{r.error:.2e}"])
