"""The speeds that prunus means to reach, held against the records of a comparison."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prunus._table import format_table
from prunus.bench.analysis import Race, break_even, races, single_column_limit
from prunus.bench.peers import PACKED, PRUNUS
from prunus.bench.record import Case, Record

__all__ = ["Target", "format_targets", "hold", "not_measured", "targets"]

# A pruned matrix holds a whole number of blocks: 30 % may come out as 30.02 %.
_SLACK = 0.005

# Up to here prunus is to be faster than the dense product; only densities that reach it can tell.
_BREAK_EVEN = 0.85

_NO_RACE = "no such race"

Cases = Callable[[Case], bool]
# What a race says at one density: a value, why it has none, or None where it says so at another density.
Value = Callable[[Race, float, str], float | str | None]


@dataclass(frozen=True, slots=True)
class Target:
    """One speed to reach, and how near the slowest race came to it.

    Attributes
    ----------
    what : str
        What is measured.
    contestant : str
        `prunus` as constructed or packed.
    limit : float
        The value to reach, or to stay below.
    worst : float or None
        The worst value in any race that counts; None if it was not measured.
    where : str
        The race that had it, or why there is none.
    count : int
        How many races counted.
    below : bool
        Whether values are to stay below the limit.
    """

    what: str
    contestant: str
    limit: float
    worst: float | None
    where: str
    count: int
    below: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether every race reached the limit; None if none was measured."""
        if self.worst is None:
            return None
        return self.worst < self.limit if self.below else self.worst >= self.limit


def hold(
    what: str, contestant: str, limit: float, values: Sequence[tuple[float, str]], *, below: bool = False
) -> Target:
    """Make a target of the values that were measured, each with the name of its race: one at least."""
    worst, where = max(values) if below else min(values)
    return Target(what, contestant, limit, worst, where, len(values), below)


def not_measured(what: str, contestant: str, limit: float, why: str, *, below: bool = False) -> Target:
    """Make a target that nothing was measured for."""
    return Target(what, contestant, limit, None, why, 0, below)


def _without(race: Race, density: float, name: str) -> str:
    """Say what is missing from a race against the dense product."""
    return "no dense product" if name in race.sparse[density] else f"no {name}"


def _rate(race: Race, density: float, name: str) -> float | str:
    ratio = race.rate_ratio(density, name)
    return _without(race, density, name) if ratio is None else ratio


def _over(peer: str) -> Value:
    def value(race: Race, density: float, name: str) -> float | str:
        ratio = race.speed_up(density, name, peer)
        if ratio is not None:
            return ratio
        return f"no {peer if name in race.sparse[density] else name}"

    return value


def _single_column(race: Race, density: float, name: str) -> float | str:
    record = race.sparse[density].get(name)
    if record is None or race.dense is None:
        return _without(race, density, name)
    return single_column_limit(density, race.dense.median) / record.median


def _break_even(race: Race, density: float, name: str) -> float | str | None:
    """Value of the whole race, given once: at its highest density."""
    if density != max(race.sparse):
        return None
    found = break_even(race.points(name), race.dense.median) if race.dense is not None else None
    if found is None:
        return _without(race, density, name)
    sign, at = found
    if sign == "<":
        return 0.0
    if sign == "=":
        return at
    if at < _BREAK_EVEN - _SLACK:
        return f"never crossed, and densities stop below {_BREAK_EVEN:.0%}; use --break-even"
    # Never crossed: it lies above all densities.
    return max(at, _BREAK_EVEN)


def _dsd(dtype: str, columns: Sequence[int], blocks: Sequence[int]) -> Cases:
    return lambda case: (
        case.op == "dsd" and case.dtype == dtype and case.columns in columns and case.block in blocks
    )


def _table() -> Iterator[tuple[str, float, float, Sequence[str], Cases, Value]]:
    """Go through the targets: text, limit, highest density, contestants, races that count, value."""
    both = (PRUNUS, PACKED)
    big = (32, 64, 128)
    f32, bf16 = "float32", "bfloat16"
    yield "float32 N=128, rate / dense", 1.1, 0.3, both, _dsd(f32, [128], big), _rate
    yield "float32 N=512, rate / dense", 1.0, 0.3, both, _dsd(f32, [512], big), _rate
    yield "float32 N=128, x torch bsr", 3.0, 0.3, both, _dsd(f32, [128], big), _over("torch bsr")
    yield "float32 N=512, x torch bsr", 4.0, 0.3, both, _dsd(f32, [512], big), _over("torch bsr")
    yield "float32 N=16, x torch bsr", 4.0, 0.5, both, _dsd(f32, [16], big), _over("torch bsr")
    yield "float32 N>=128, x scipy", 20.0, 0.3, both, _dsd(f32, [128, 512], big), _over("scipy")
    wide = _dsd(f32, [128, 512], big)
    yield "float32 N>=128, break-even density", _BREAK_EVEN, 1.0, both, wide, _break_even
    yield "bfloat16 N>=128, rate / dense", 1.0, 0.5, (PACKED,), _dsd(bf16, [128, 512], big), _rate
    yield "bfloat16 N>=128, rate / dense", 0.8, 0.5, (PRUNUS,), _dsd(bf16, [128, 512], big), _rate
    yield "bfloat16 N>=128, block 16, rate / dense", 0.6, 0.5, (PACKED,), _dsd(bf16, [128, 512], [16]), _rate
    for dtype in (f32, bf16):
        yield f"{dtype} N=1, allowed / taken time", 1.0, 0.5, both, _dsd(dtype, [1], big), _single_column
    chosen: Cases = lambda case: case.op == "sdd" and case.columns >= 128  # noqa: E731
    yield "sdd, rate / dense", 0.8, 0.3, (PRUNUS,), chosen, _rate
    yield "ssd, x scipy", 10.0, 0.1, (PRUNUS,), lambda case: case.op == "ssd", _over("scipy")


def _name(case: Case, density: float) -> str:
    """Name one race in a few letters."""
    columns = f"N={case.columns} " if case.columns else ""
    return f"b{case.block} {density:.0%} {columns}{case.layout} {case.dtype} {case.threads}t"


def targets(records: Sequence[Record]) -> list[Target]:
    """Hold a comparison against the targets.

    Parameters
    ----------
    records : sequence of Record
        What `prunus.bench.run.run` returned.

    Returns
    -------
    list of Target
        All of them; where nothing was measured, with the reason.
    """
    all_races = races(records)
    found = []
    for what, limit, highest, contestants, counts, value in _table():
        counted = [race for race in all_races if counts(race.case)]
        for name in contestants:
            values, reasons = _values(counted, highest, name, value)
            if values:
                found.append(hold(what, name, limit, values))
            else:
                why = _NO_RACE if not counted else f"no density up to {highest:.0%}"
                found.append(not_measured(what, name, limit, reasons[0] if reasons else why))
    return found


def _values(
    counted: Sequence[Race], highest: float, name: str, value: Value
) -> tuple[list[tuple[float, str]], list[str]]:
    """Collect a contestant's values with the names of their races, and why others have none."""
    values, reasons = [], []
    for race in counted:
        for density in race.sparse:
            if density > highest + _SLACK:
                continue
            got = value(race, density, name)
            if isinstance(got, str):
                reasons.append(got)
            elif got is not None:
                values.append((got, _name(race.case, density)))
    return values, reasons


def format_targets(found: Sequence[Target]) -> str:
    """Make the table of the targets that had a race, and count the others."""
    raced = [t for t in found if t.worst is not None or t.where != _NO_RACE]
    rows = [
        [
            t.what,
            t.contestant,
            f"{'<' if t.below else '>='} {t.limit:g}",
            "-" if t.worst is None else f"{t.worst:.2f}",
            {True: "ok", False: "MISSED", None: "not measured"}[t.reached],
            str(t.count),
            f"({t.where})" if t.worst is None else t.where,
        ]
        for t in raced
    ]
    header = ["target", "contestant", "limit", "worst", "", "races", "worst race"]
    lines = []
    if rows:
        lines.append("targets: the slowest race of each kind\n" + format_table(header, rows, left=2))
    if len(raced) < len(found):
        lines.append(f"targets without a race here: {len(found) - len(raced)} of {len(found)}")
    return "\n".join(lines)
