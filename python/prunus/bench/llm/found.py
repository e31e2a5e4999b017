"""What a comparison found, and what was wanted of it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunus._table import format_table
from prunus.bench.paging.figures import estimate

__all__ = ["Section", "Verdict", "report", "write_csv"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure that was wanted.

    Attributes
    ----------
    what : str
        What is measured.
    values : sequence of float
        One for each round; none if it was not measured.
    limit : float
        What counts as reached.
    at_least : bool
        Whether the median has to be at least the limit, or at most.
    why : str
        Why it was not measured.
    """

    what: str
    values: Sequence[float]
    limit: float
    at_least: bool = True
    why: str = ""

    @property
    def row(self) -> list[str]:
        """What is measured, what was found, its interval, what was wanted, and whether it was reached."""
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:.3g}"
        if not self.values:
            return [self.what, "-", "-", wanted, f"not measured: {self.why}"]
        found = estimate(self.values)
        reached = found.median >= self.limit if self.at_least else found.median <= self.limit
        interval = f"{found.low:.3g} .. {found.high:.3g}" if found.count > 1 else "-"
        return [self.what, f"{found.median:.3g}", interval, wanted, "ok" if reached else "MISSED"]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the comparison: a table, remarks, and what was wanted."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    left: int = 1


def report(section: Section) -> str:
    """Make the tables of a section."""
    parts = [f"{section.name}: {section.title}", ""]
    parts += [format_table(section.header, section.rows, left=section.left), *section.notes]
    if section.verdicts:
        rows = [one.row for one in section.verdicts]
        parts += ["", format_table(["target", "found", "interval", "wanted", ""], rows)]
    return "\n".join(parts)


def write_csv(path: Path, sections: Sequence[Section]) -> None:
    """Write all cells and verdicts: a line has section, name of the line, column, value."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["section", "line", "column", "value"])
        for section in sections:
            for row in section.rows:
                line = " ".join(row[: section.left])
                for name, cell in list(zip(section.header, row, strict=True))[section.left :]:
                    out.writerow([section.name, line, name, cell])
            for verdict in section.verdicts:
                what, *cells = verdict.row
                for name, cell in zip(("found", "interval", "wanted", "verdict"), cells, strict=True):
                    out.writerow([section.name, what, name, cell])
