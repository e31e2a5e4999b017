"""A run as a CSV file, which has all that tables and pages are made of."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from prunus.bench.gpu.record import COLUMNS, STATES, Case, Machine, Row
from prunus.bench.machine import slug

__all__ = ["ENDING", "name_of", "read", "write"]

#: How names of such files end.
ENDING: Final = "-cuda.csv"

_TYPES: Final[Mapping[str, Any]] = {"int": int, "float": float, "str": str}


def name_of(machine: Machine) -> str:
    """Return a run's file name: the GPU, the day, versions of torch and Triton.

    Examples
    --------
    >>> name_of(Machine("NVIDIA H200", "2026-11-30", {"torch": "2.11.0+cu130", "triton": "3.6.0"}))
    'nvidia-h200-2026-11-30-torch-2.11.0-cu130-triton-3.6.0-cuda.csv'
    """
    versions = [f"{name} {machine.versions[name]}" for name in ("torch", "triton")]
    return slug(" ".join((machine.gpu, machine.date, *versions))) + ENDING


def write(path: Path, machine: Machine, rows: Sequence[Row]) -> None:
    """Write a run; ``pandas.read_csv(path, comment="#")`` reads it.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# gpu: {machine.gpu}\n# date: {machine.date}\n")
        file.write("# versions: " + " ".join(f"{name}={v}" for name, v in machine.versions.items()) + "\n")
        file.write(f"# options: {machine.options}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            cells = {**_values(row.case), **_values(row)}
            writer.writerow([_cell(cells[name]) for name in COLUMNS])


def _values(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _cell(value: Any) -> str:
    # "#" begins a comment to who reads the file, and a line of it is a row. Numbers come back as they were.
    return repr(value) if isinstance(value, float) else " ".join(str(value).replace("#", "No. ").split())


def read(path: Path) -> tuple[Machine, list[Row]]:
    """Return what :func:`write` wrote.

    Raises
    ------
    ValueError
        If the file is none of those.
    OSError
        If it cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.readlines()
    said = dict(line[2:].rstrip("\n").partition(": ")[::2] for line in lines if line.startswith("# "))
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    if tuple(table.fieldnames or ()) != COLUMNS or not {"gpu", "date", "versions"} <= said.keys():
        raise ValueError(f"{path} is no run of bench gpu: it has other columns, or no GPU, date and versions")
    versions = dict(part.partition("=")[::2] for part in said["versions"].split())
    machine = Machine(said["gpu"], said["date"], versions, said.get("options", ""))
    return machine, [_row(path, cells) for cells in table]


def _row(path: Path, cells: Mapping[str, str]) -> Row:
    def part(kind: type[Any]) -> dict[str, Any]:
        return {f.name: _TYPES[str(f.type)](cells[f.name]) for f in fields(kind) if f.name != "case"}

    row = Row(Case(**part(Case)), **part(Row))
    if row.state not in STATES:
        raise ValueError(f"{path}: a row's state is {row.state!r}, expected one of {', '.join(STATES)}")
    return row
