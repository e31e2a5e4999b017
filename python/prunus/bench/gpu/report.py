"""Tables of a run, for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prunus._table import format_table
from prunus.bench.gpu.record import Machine, Race, Row, races
from prunus.bench.gpu.targets import Ceilings, allowed, ceilings_of, targets
from prunus.bench.targets import format_targets

__all__ = ["report", "summary"]

_NONE = "-"


def report(machine: Machine, rows: Sequence[Row]) -> str:
    """Make the tables of a run: one for each section, what was not timed, and the aims.

    Times are medians in microseconds, of the device. Rates of prunus are of what is stored or live, those of
    dense contestants of the whole product. "/ roofline" is the time over the larger of the bytes that must be
    moved at the copy's rate and the operations at the dense product's; "/ allowed" is the time over 1.5 times
    as much and 5 µs.
    """
    ceilings = ceilings_of(rows)
    every = races(rows)
    parts = [_title(machine)]
    if ceilings is not None:
        parts.append(
            f"ceilings: copy {ceilings.nbytes * 1e-12:.2f} TB/s, dense product "
            f"{ceilings.flops * 1e-12:.0f} TFLOP/s"
        )
    for section in dict.fromkeys(race.case.section for race in every):
        if section != "ceilings":
            table = _section([race for race in every if race.case.section == section], ceilings)
            parts.append(f"{section}\n{table}")
    parts += [text for text in (_rest(rows),) if text]
    parts.append(format_targets(targets(rows)))
    return "\n\n".join(parts)


def _title(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.gpu}, {machine.date}; {versions}"


def summary(rows: Sequence[Row]) -> str:
    """Return how many rows are in which state."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _section(group: Sequence[Race], ceilings: Ceilings | None) -> str:
    peers = list(dict.fromkeys(name for race in group for name in race.peers()))
    header = ["case", "contestant", "us", "TFLOP/s", "/ roofline", "/ allowed"]
    header += ["dense us", "rate / dense", "dense / time"]
    header += [f"x {name}" for name in peers]
    rows = []
    for race in group:
        dense = race.dense
        for row in race.ours():
            cells = [row.case.name, row.contestant + _marks(row), microseconds(row.seconds)]
            cells.append(_number(row.rate * 1e-12, 1))
            cells.append(_number(row.seconds / ceilings.roofline(row), 2) if ceilings else _NONE)
            cells.append(_number(row.seconds / allowed(row, ceilings), 2) if ceilings else _NONE)
            cells.append(microseconds(dense.seconds) if dense else _NONE)
            cells.append(_number(row.rate / dense.rate, 2) if dense else _NONE)
            cells.append(_number(dense.seconds / row.seconds, 2) if dense else _NONE)
            for name in peers:
                peer = race.peer(name, row.case.density)
                cells.append(_number(peer.seconds / row.seconds, 2) if peer else _NONE)
            rows.append(cells)
    return format_table(header, rows, left=2) if rows else "nothing of prunus was timed"


def _marks(row: Row) -> str:
    """Say what is to be known of a time."""
    union = "" if math.isnan(row.union) else f", union {row.union:.0%}"
    return union + (f" ({row.how})" if row.how and row.how != "graph" else "")


def microseconds(seconds: float) -> str:
    """Write a time in microseconds, with three digits that mean something.

    Examples
    --------
    >>> microseconds(1.234e-6), microseconds(0.25)
    ('1.23', '250000')
    """
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else _NONE


def _rest(rows: Iterable[Row]) -> str:
    """Name what was not timed, and what was to hold, together where the reason is the same."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row.state != "timed":
            key = row.state, row.case.section, row.contestant, row.note
            found.setdefault(key, []).append(row.case.name)
    lines = []
    for (state, section, contestant, note), names in found.items():
        shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{state}: {section}: {contestant}: {shown}" + (f": {note}" if note else ""))
    return "\n".join(lines)
