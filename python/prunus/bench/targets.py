"""The speeds that prunus means to reach, held against the records of a comparison."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prunus._table import format_table
from prunus.bench.analysis import Race, break_even, races, single_column_limit
from prunus.bench.peers import PACKED, PRUNUS
from prunus.bench.record import Case, Record

__all__ = ["Target", "format_targets", "targets"]

# A pruned matrix holds a whole number of blocks: 30 % may come out as 30.02 %.
_SLACK = 0.005

Cases = Callable[[Case], bool]
Value = Callable[[Race, float, str], float | None]


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
        The value to reach.
    worst : float
        The lowest value in any race that counts.
    where : str
        The race that had it.
    count : int
        How many races counted.
    """

    what: str
    contestant: str
    limit: float
    worst: float
    where: str
    count: int

    @property
    def reached(self) -> bool:
        """Whether every race reached the limit."""
        return self.worst >= self.limit


def _rate(race: Race, density: float, name: str) -> float | None:
    return race.rate_ratio(density, name)


def _over(peer: str) -> Value:
    return lambda race, density, name: race.speed_up(density, name, peer)


def _single_column(race: Race, density: float, name: str) -> float | None:
    record = race.sparse[density].get(name)
    if record is None or race.dense is None:
        return None
    return single_column_limit(density, race.dense.median) / record.median


def _break_even(race: Race, density: float, name: str) -> float | None:
    """Value of the whole race, given once: at its highest density."""
    if race.dense is None or density != max(race.sparse):
        return None
    found = break_even(race.points(name), race.dense.median)
    if found is None or (found[0] == ">" and found[1] < 0.85):
        # Not measured far enough to tell; `--break-even` does.
        return None
    return found[1] if found[0] != "<" else 0.0


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
    yield "float32 N>=128, break-even density", 0.85, 1.0, both, _dsd(f32, [128, 512], big), _break_even
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
        Those that at least one race counts for.
    """
    found = []
    all_races = races(records)
    for what, limit, highest, contestants, counts, value in _table():
        for name in contestants:
            values = [
                (got, _name(race.case, density))
                for race in all_races
                if counts(race.case)
                for density in race.sparse
                if density <= highest + _SLACK and (got := value(race, density, name)) is not None
            ]
            if values:
                worst, where = min(values)
                found.append(Target(what, name, limit, worst, where, len(values)))
    return found


def format_targets(found: Sequence[Target]) -> str:
    """Make the table of the targets."""
    rows = [
        [
            t.what,
            t.contestant,
            f"{t.limit:g}",
            f"{t.worst:.2f}",
            "ok" if t.reached else "MISSED",
            str(t.count),
            t.where,
        ]
        for t in found
    ]
    header = ["target", "contestant", "at least", "worst", "", "races", "worst race"]
    return "targets: the slowest race of each kind\n" + format_table(header, rows, left=2)
