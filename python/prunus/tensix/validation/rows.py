"""Files of measurements: what each row asks for, and what was measured.

A row is typed when it is run, not when its file is read: one bad row must not keep the others from being run.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["KINDS", "Cells", "Row", "plain", "read"]

# Columns that a row cannot do without; of a tuple, one.
KINDS: Final[Mapping[str, Sequence[str | tuple[str, ...]]]] = {
    "gemm": [("device", "arch"), "m", "k", "n", "dtype", "fidelity"],
    "noc": [("arch", "device"), "mechanism", "pattern", "num_transactions", "transaction_bytes"],
    "dram": [("arch", "device"), "placement", "direction", "num_readers", "num_tx", "tx_bytes"],
}

# What was measured, or follows from it, or says where it is from: no part of what a row is.
_NOT_IDENTIFYING = {
    "source",
    "device_util_pct",
    "ideal_cycles_derived",
    "device_cycles_derived",
    "latency_cycles",
    "bytes_per_cycle_derived",
    "agg_bytes_per_cycle",
    # A file of predictions may be read again.
    "predicted_cycles",
    "predicted_bytes_per_cycle",
    "measured_cycles",
    "measured_bytes_per_cycle",
    "error",
}

_YES = {"true", "yes", "1"}
_NO = {"false", "no", "0"}


@dataclass(frozen=True)
class Cells:
    """The cells of a row by their columns, read as what they are meant to be."""

    values: Mapping[str, str]

    def text(self, column: str, default: str | None = None) -> str:
        """Return a cell; `default` where it is empty or there is no such column."""
        value = self.values.get(column, "")
        if value:
            return value
        if default is None:
            raise ValueError(f"{column} is empty")
        return default

    def whole(self, column: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number of at least `least`."""
        text = self.text(column, None if default is None else str(default))
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not value.is_integer():
            raise ValueError(f"{column} is {text!r}, not a whole number")
        if not least <= value < 1 << 32:
            raise ValueError(f"{column} is {text}, expected {least} to {(1 << 32) - 1}")
        return int(value)

    def number(self, column: str) -> float | None:
        """Return a positive number, or None where it is empty."""
        text = self.text(column, "")
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise ValueError(f"{column} is {text!r}, not a positive number")
        return value

    def yes(self, column: str, default: bool | None = None) -> bool:
        """Return a truth value."""
        text = self.text(column, None if default is None else str(default))
        if text.lower() in _YES:
            return True
        if text.lower() in _NO:
            return False
        raise ValueError(f"{column} is {text!r}, neither True nor False")

    def one_of(self, column: str, names: Sequence[str], default: str | None = None) -> str:
        """Return one of some names, written in any case."""
        text = self.text(column, default)
        for name in names:
            if text.lower() == name.lower():
                return name
        raise ValueError(f"{column} is {text!r}, expected one of {', '.join(names)}")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Parameters
    ----------
    kind : str
        ``gemm``, ``noc`` or ``dram``.
    line : int
        Its line in the file, where the header is 1.
    cells : Cells
        What it says.
    """

    kind: str
    line: int
    cells: Cells

    def identity(self) -> dict[str, object]:
        """Return what the row is, without what was measured, as plain values."""
        return {k: plain(v) for k, v in self.cells.values.items() if k not in _NOT_IDENTIFYING}


def plain(text: str) -> object:
    """Return a cell as the simplest value that it can be read as.

    Examples
    --------
    >>> [plain(text) for text in ("8", "1.5", "True", "L1", "")]
    [8, 1.5, True, 'L1', None]
    """
    if not text:
        return None
    if text in ("True", "False"):
        return text == "True"
    readers: tuple[Callable[[str], float], ...] = (int, float)
    for reader in readers:
        # "nan", "inf" and "1_000" are numbers to Python alone.
        if text.lstrip("+-").replace("_", "x")[:1].isdigit() and "_" not in text:
            try:
                value = reader(text)
            except ValueError:
                continue
            # JSON has no infinity.
            if math.isfinite(value):
                return value
    return text


def read(path: str | Path, kind: str) -> list[Row]:
    """Read a file of measurements.

    Parameters
    ----------
    path : str or Path
        A CSV file with a header.
    kind : str
        ``gemm``, ``noc`` or ``dram``: which columns it must have.

    Returns
    -------
    list of Row
        In the file's order. Empty lines are left out.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no such file, lacks columns, or has no rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise ValueError(f"{path}: no CSV: {error}") from error
    _check_header(path, header, kind)
    if not rows:
        raise ValueError(f"{path}: a header and no rows")
    found = []
    for line, cells in rows:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) > len(header):
            raise ValueError(f"{path}, line {line}: {len(cells)} cells under {len(header)} columns")
        padded = [*(cell.strip() for cell in cells), *[""] * (len(header) - len(cells))]
        found.append(Row(kind, line, Cells(dict(zip(header, padded, strict=True)))))
    return found


def _check_header(path: str | Path, header: Sequence[str], kind: str) -> None:
    """Raise unless all columns are there, each once."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: columns that are there twice: {', '.join(twice)}")
    missing = []
    for wanted in KINDS[kind]:
        names = (wanted,) if isinstance(wanted, str) else wanted
        if not set(names) & set(header):
            missing.append(" or ".join(names))
    if missing:
        raise ValueError(f"{path}: missing columns of a {kind} file: {', '.join(missing)}")
