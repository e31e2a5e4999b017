"""What is measured on a GPU, as plain records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Final

__all__ = ["STATES", "Case", "Machine", "Race", "Row", "races"]

#: What became of a contestant: it was timed; a statement about it held; its result was wrong, and it was not
#: timed; it raised; what it needs is not there; the time was up.
STATES: Final = ("timed", "held", "wrong", "failed", "missing", "skipped")


@dataclass(frozen=True, slots=True)
class Case:
    """What contestants of one race have in common, and the density, which they may have of their own.

    Attributes
    ----------
    section : str
        Which section of the comparison it belongs to.
    what : str
        The operation, such as "W @ x".
    dtype : str
        Of the operands.
    size : int
        Height and width of W; hidden units; tokens of attention.
    block : int
        Height and width of a block; 0 where there is none.
    columns : int
        Columns of x, the inner dimension of "a @ b at blocks", rows of a batch, heads.
    density : float
        Share of blocks that are there, or of units that are live; 1 for dense contestants.
    detail : str
        What else tells this race from others.
    """

    section: str
    what: str
    dtype: str
    size: int = 0
    block: int = 0
    columns: int = 0
    density: float = 1.0
    detail: str = ""

    @property
    def name(self) -> str:
        """A few words that name it."""
        words = [self.what, str(self.size or ""), f"b{self.block}" if self.block else ""]
        words += [f"N={self.columns}" if self.columns else "", self.detail]
        words.append(f"{self.density:.0%}" if self.density < 1 else "")
        return " ".join(word for word in words if word)

    @property
    def race(self) -> Case:
        """The same for every density."""
        return replace(self, density=1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one case.

    Attributes
    ----------
    case : Case
        What was computed.
    contestant : str
        Who ran.
    kind : str
        "ours", "dense" (it multiplies what is absent as well), "peer", or "ceiling".
    state : str
        One of :data:`STATES`.
    seconds, minimum : float
        Median and fastest round, of one call: time of the device, but where ``how`` is "host". NaN where it
        was not timed.
    rounds : int
        How often it was timed.
    how : str
        "graph": replays of a CUDA graph between events; "events": calls between events, as it cannot be
        captured; "host": the host's clock.
    flops, nbytes : float
        Operations that are of use, and the fewest bytes that must be moved, of one call.
    error : float
        Largest difference from the reference, relative to its largest value.
    union : float
        Share of branches that is live for at least one row of the batch.
    note : str
        Why it was not timed, or what else is to be said.
    """

    case: Case
    contestant: str
    kind: str
    state: str
    seconds: float = math.nan
    minimum: float = math.nan
    rounds: int = 0
    how: str = ""
    flops: float = math.nan
    nbytes: float = math.nan
    error: float = math.nan
    union: float = math.nan
    note: str = ""

    @property
    def timed(self) -> bool:
        """Whether it has a time."""
        return self.state == "timed"

    @property
    def rate(self) -> float:
        """Useful operations a second."""
        return self.flops / self.seconds


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a comparison ran.

    Attributes
    ----------
    gpu : str
        As the driver names it.
    date : str
        The day, as 2026-11-30.
    versions : dict
        Of prunus, torch, triton, CUDA and the driver.
    options : str
        What the script was called with.
    """

    gpu: str
    date: str
    versions: dict[str, str]
    options: str = ""


@dataclass(frozen=True, slots=True)
class Race:
    """The rows of all densities of one case.

    Attributes
    ----------
    case : Case
        What they have in common.
    rows : list of Row
        In the order in which they ran.
    """

    case: Case
    rows: list[Row]

    @property
    def dense(self) -> Row | None:
        """The fastest dense contestant, if one was timed."""
        return min((r for r in self.rows if r.kind == "dense" and r.timed), key=_seconds, default=None)

    def ours(self) -> Iterator[Row]:
        """Go through what prunus did and was timed."""
        return (row for row in self.rows if row.kind == "ours" and row.timed)

    def peer(self, name: str, density: float) -> Row | None:
        """Return a peer's row at a density, if it was timed."""
        for row in self.rows:
            if row.kind == "peer" and row.timed and row.contestant == name and row.case.density == density:
                return row
        return None

    def peers(self) -> list[str]:
        """Return the names of peers that were timed."""
        return list(dict.fromkeys(row.contestant for row in self.rows if row.kind == "peer" and row.timed))


def _seconds(row: Row) -> float:
    return row.seconds


def races(rows: Iterable[Row]) -> list[Race]:
    """Sort rows into races, in the order in which they were run."""
    found: dict[Case, list[Row]] = {}
    for row in rows:
        found.setdefault(row.case.race, []).append(row)
    return [Race(case, group) for case, group in found.items()]


#: Names of a file's columns.
COLUMNS: Final = tuple(field.name for field in (*fields(Case), *fields(Row)) if field.name != "case")
