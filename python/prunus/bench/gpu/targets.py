"""What the CUDA engine means to reach, held against the rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prunus.bench.analysis import break_even
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS
from prunus.bench.gpu.ceilings import COPY, PRODUCT
from prunus.bench.gpu.ffn import FORESEEN, UP
from prunus.bench.gpu.overhead import CALL, CAPTURE, SYNC
from prunus.bench.gpu.record import Race, Row, races
from prunus.bench.targets import Target, hold, not_measured

__all__ = ["Ceilings", "allowed", "ceilings_of", "targets"]

#: From so many operations on, products are held against cuBLAS, smaller ones against the roofline.
LARGE: Final = 10e9
_WIDE: Final = (64, 128)
# A pruned matrix has a whole number of blocks.
_SLACK: Final = 0.005
_BREAK_EVEN: Final = 0.6

Values = list[tuple[float, str]]


class Ceilings:
    """What a GPU was found to reach.

    Parameters
    ----------
    nbytes, flops : float
        Bytes moved, and operations, a second.
    """

    def __init__(self, nbytes: float, flops: float) -> None:
        self.nbytes, self.flops = nbytes, flops

    def roofline(self, row: Row) -> float:
        """Return the least seconds that a call takes."""
        return max(row.nbytes / self.nbytes, row.flops / self.flops)


def allowed(row: Row, ceilings: Ceilings) -> float:
    """Return the seconds that a product may take: 1.5 times its roofline and 5 µs."""
    return 1.5 * ceilings.roofline(row) + 5e-6


def ceilings_of(rows: Iterable[Row]) -> Ceilings | None:
    """Return what was measured; None where it was not."""
    found = {row.case.what: row for row in rows if row.kind == "ceiling" and row.timed}
    if COPY not in found or PRODUCT not in found:
        return None
    copy, product = found[COPY], found[PRODUCT]
    return Ceilings(copy.nbytes / copy.seconds, product.flops / product.seconds)


def targets(rows: Sequence[Row]) -> list[Target]:
    """Hold a run against the aims.

    Parameters
    ----------
    rows : sequence of Row
        Of one run.

    Returns
    -------
    list of Target
        All of them, each with its worst race; where nothing was measured, with the reason.
    """
    every = races(rows)
    ceilings = ceilings_of(rows)
    return [
        *_products("dsd", every, ceilings),
        *_products("sdd", every, ceilings),
        *_layers(every),
        *_peers("moe", "torch's grouped product", peers.GROUPED, every),
        *_peers("attention", "FlexAttention", peers.FLEX, every),
        *_overhead(rows),
    ]


def _of(section: str, every: Iterable[Race]) -> list[Race]:
    return [race for race in every if race.case.section == section]


def _held(what: str, limit: float, values: Values, why: str, *, below: bool = False) -> Target:
    if values:
        return hold(what, OURS, limit, values, below=below)
    return not_measured(what, OURS, limit, why, below=below)


def _products(section: str, every: Iterable[Race], ceilings: Ceilings | None) -> Iterator[Target]:
    """Go through the aims of products with blocks."""
    found = _of(section, every)
    none = "not measured" if found else "no such race"
    large: Values = []
    small: Values = []
    crossing: Values = []
    others: Values = []
    for race in found:
        dense = race.dense
        for row in race.ours():
            if row.flops >= LARGE and race.case.block in _WIDE:
                if dense is not None:
                    large.append((row.rate / dense.rate, row.case.name))
            elif ceilings is not None:
                small.append((allowed(row, ceilings) / row.seconds, row.case.name))
            peer = race.peer(peers.TORCH_BSR, row.case.density)
            if peer is not None:
                others.append((peer.seconds / row.seconds, row.case.name))
        crossed = _crossing(race)
        if crossed is not None:
            crossing.append((crossed, race.case.name))
    without = none if ceilings is not None else "no ceilings were measured"
    yield _held(f"{section}, blocks 64 and 128 of 10 GFLOP: rate / cuBLAS", 0.7, large, none)
    yield _held(f"{section}, others: (1.5 roofline + 5 us) / time", 1.0, small, without)
    yield _held(f"{section}: break-even density", _BREAK_EVEN, crossing, none)
    yield _held(f"{section}: x torch bsr", 1.2, others, none)


def _crossing(race: Race) -> float | None:
    """Return the density at which the dense product becomes faster; None where densities do not tell."""
    dense = race.dense
    points = sorted((row.case.density, row.seconds) for row in race.ours())
    if dense is None or not points:
        return None
    found = break_even(points, dense.seconds)
    if found is None:
        return None
    sign, at = found
    if sign == "<":
        return 0.0
    return None if sign == ">" and at < _BREAK_EVEN - _SLACK else at


def _layers(every: Iterable[Race]) -> Iterator[Target]:
    """Go through the aims of feed-forward layers on one token."""
    found = [race for race in _of("ffn", every) if race.case.columns == 1]
    why = "not measured" if found else "no such race"
    for what, limit, names in (
        ("ffn, one token, known or predicted: dense / time", 4.0, FORESEEN),
        ("ffn, one token, decided by a projection: dense / time", 1.5, UP),
    ):
        values = [
            (race.dense.seconds / row.seconds, f"{row.contestant}, {race.case.name}")
            for race in found
            if race.dense is not None
            for row in race.ours()
            if row.contestant in names
        ]
        yield _held(what, limit, values, why)


def _peers(section: str, whose: str, name: str, every: Iterable[Race]) -> Iterator[Target]:
    """Go through what is to be at least as fast as a peer."""
    found = _of(section, every)
    values: Values = []
    for race in found:
        for row in race.ours():
            peer = race.peer(name, row.case.density)
            if peer is not None:
                values.append((peer.seconds / row.seconds, row.case.name))
    why = "no such race" if not found else f"no {name}"
    yield _held(f"{section}: x {whose}", 1.0, values, why)


def _overhead(rows: Sequence[Row]) -> Iterator[Target]:
    """Go through the host's time, and what is to hold."""
    calls = [row for row in rows if row.case.what == CALL and row.contestant == OURS and row.timed]
    values = [(row.seconds * 1e6, row.case.name) for row in calls]
    yield _held("host time of one call, us", 30.0, values, "no such race", below=True)
    judged: Callable[[Row], bool] = lambda row: row.state in ("held", "wrong", "failed")  # noqa: E731
    for what in (SYNC, CAPTURE):
        looked = [row for row in rows if row.case.what == what and judged(row)]
        values = [(float(row.state == "held"), row.case.detail) for row in looked]
        yield _held(f"{what} (1: yes)", 1.0, values, "no such race" if not looked else "not measured")
