"""Tables of a comparison, for people."""

from collections.abc import Sequence

from prunus._table import format_table
from prunus.bench.analysis import Race, break_even, races, single_column_limit
from prunus.bench.peers import PACKED, PRUNUS
from prunus.bench.record import Record

__all__ = ["report"]

_SPARSE = (PRUNUS, PACKED, "torch bsr", "scipy")
_NONE = "-"
_TITLES = {
    ("dsd", "wx"): "W @ X, X in C order",
    ("dsd", "xwt"): "x @ W.T, token-major",
    ("sdd", "wx"): "(a @ b) at chosen blocks, b in C order; N is the inner dimension",
    ("sdd", "xwt"): "(a @ b.T) at chosen blocks, b token-major; N is the inner dimension",
    ("ssd", "wx"): "W @ V, both block-sparse",
}


def report(records: Sequence[Record]) -> str:
    """Make the tables of a comparison.

    One table for each operation, dtype, layout and number of threads. Times are medians in milliseconds;
    rates are GF/s, of the whole product for the dense contestant and of the stored blocks for the others.
    Ratios have two numbers: W as constructed, and W.pack().

    Parameters
    ----------
    records : sequence of Record
        What `prunus.bench.run.run` returned.

    Returns
    -------
    str
        The tables, ready to print.
    """
    groups: dict[tuple[str, str, str, int], list[Race]] = {}
    for race in races(records):
        case = race.case
        groups.setdefault((case.op, case.dtype, case.layout, case.threads), []).append(race)
    parts = []
    for (op, dtype, layout, threads), group in groups.items():
        size = group[0].case.size
        plural = "thread" if threads == 1 else "threads"
        title = f"{_TITLES[op, layout]} · {dtype} · W {size} x {size} · {threads} {plural}"
        parts.append(f"{title}\n{_table(group)}")
        if op == "dsd":
            parts.append(_break_even_table(group))
            if any(race.case.columns == 1 for race in group):
                parts.append(_single_column(group))
    return "\n\n".join(parts)


def _table(group: Sequence[Race]) -> str:
    names = [n for n in _SPARSE if any(n in found for race in group for found in race.sparse.values())]
    packed = PACKED in names
    peers = [n for n in names if n not in (PRUNUS, PACKED)]
    header = ["block", "density", "N", "best dense", "ms", "GF/s"]
    for name in names:
        header += [f"{name} ms", "GF/s"]
    header.append("rate / dense")
    header += [f"x {peer}" for peer in peers]
    rows = []
    for race in sorted(group, key=lambda r: (r.case.block, r.case.columns)):
        for density, found in race.sparse.items():
            row = [str(race.case.block), f"{density:.0%}", str(race.case.columns or _NONE)]
            row += [race.dense.contestant if race.dense else _NONE, *_cells(race.dense)]
            for name in names:
                row += _cells(found.get(name))
            ours = (PRUNUS, PACKED) if packed else (PRUNUS,)
            row.append(_ratios([race.rate_ratio(density, name) for name in ours], 2))
            row += [_ratios([race.speed_up(density, name, peer) for name in ours], 1) for peer in peers]
            rows.append(row)
    return format_table(header, rows, left=0)


def _cells(record: Record | None) -> list[str]:
    if record is None:
        return [_NONE, _NONE]
    return [milliseconds(record.median), f"{record.gflops:.1f}"]


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds, with three digits that mean something."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _ratios(values: Sequence[float | None], digits: int) -> str:
    if all(value is None for value in values):
        return _NONE
    return " / ".join(_NONE if value is None else f"{value:.{digits}f}" for value in values)


def _break_even_table(group: Sequence[Race]) -> str:
    names = [n for n in _SPARSE if any(race.points(n) for race in group)]
    rows = []
    for race in sorted(group, key=lambda r: (r.case.block, r.case.columns)):
        if race.dense is None:
            continue
        row = [str(race.case.block), str(race.case.columns)]
        for name in names:
            found = break_even(race.points(name), race.dense.median)
            row.append(
                _NONE if found is None else f"{found[0] if found[0] != '=' else ''} {found[1]:.0%}".strip()
            )
        rows.append(row)
    if not rows:
        return "break-even density: no dense product of this type to compare with"
    return "break-even density against the best dense product\n" + format_table(
        ["block", "N", *names], rows, left=0
    )


def _single_column(group: Sequence[Race]) -> str:
    """Hold the times at N = 1 against 1.25 × density × dense time + 20 µs."""
    rows = []
    for race in group:
        if race.case.columns != 1 or race.dense is None:
            continue
        for density, found in race.sparse.items():
            limit = single_column_limit(density, race.dense.median)
            for name in (PRUNUS, PACKED):
                if name in found:
                    took = found[name].median
                    verdict = "ok" if took <= limit else "MISSED"
                    cells = [milliseconds(took), milliseconds(limit), verdict]
                    rows.append([name, str(race.case.block), f"{density:.0%}", *cells])
    if not rows:
        return "N = 1: no dense product of this type to compare with"
    return "N = 1: time against 1.25 x density x dense time + 20 us\n" + format_table(
        ["contestant", "block", "density", "ms", "limit ms", ""], rows
    )
