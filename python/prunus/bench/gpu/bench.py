"""What sections share: random operands, and races whose contestants are checked before they are timed."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from prunus.bench.gpu.record import Case, Row
from prunus.bench.gpu.sizes import Sizes
from prunus.bench.gpu.timing import Call, Timed, Timer
from prunus.cuda.chips import CHIPS
from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries

__all__ = ["OURS", "Bench", "Budget", "Entry", "MissingError", "first_line", "once"]

#: Who is compared.
OURS: Final = "prunus"

# Largest difference from the reference relative to its largest value. A bfloat16 result is within 2^-9 of the
# value that it rounds; hidden units that are kept in it add some more.
_TOLERANCE: Final = {"bfloat16": 2.0**-6, "float16": 2.0**-8, "float32": 2.0**-12}
# A call that should take longer is timed on one set of operands: several only make times of short ones exact.
_SHORT: Final = 50e-6
_SETS: Final = 6


class MissingError(Exception):
    """What a contestant needs is not there; the message says what."""


class Budget:
    """How long a comparison may take.

    Parameters
    ----------
    minutes : float
        From now on.
    clock : callable
        Returns seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self._clock = minutes, clock
        self._end = clock() + 60 * minutes

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self._end


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant that has not started yet.

    Attributes
    ----------
    case : Case
        What it computes.
    name, kind : str
        See :class:`prunus.bench.gpu.record.Row`.
    make : callable
        Returns calls that do the same, each on operands of its own; raises :class:`MissingError` where that
        cannot be.
    reference : callable
        Returns what the first call should give, in float32 or more.
    flops, nbytes : float
        Of one call.
    dense : callable, optional
        Makes a dense tensor of what a call returns.
    union : float
        Share of branches that is live for at least one row.
    """

    case: Case
    name: str
    kind: str
    make: Callable[[], Sequence[Call]]
    reference: Callable[[], Any]
    flops: float
    nbytes: float
    dense: Callable[[Any], Any] | None = None
    union: float = math.nan


class Bench:
    """One run of the comparison.

    Parameters
    ----------
    where : Place
        The GPU, or the interpreter.
    sizes : Sizes
        What is computed.
    timer : Timer
        What measures.
    budget : Budget
        How long.
    rounds : int
        Timed calls of each contestant at most.
    seed : int
        Of the random operands.
    say : callable
        Is told what is being done.

    Attributes
    ----------
    rows : list of Row
        What was found.
    """

    def __init__(
        self,
        where: Place,
        sizes: Sizes,
        timer: Timer,
        budget: Budget,
        rounds: int = 21,
        seed: int = 7,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.where, self.sizes, self.timer, self.budget = where, sizes, timer, budget
        self.rounds, self.say = rounds, say
        self.torch: Any = libraries().torch
        self.generator: Any = self.torch.Generator(device=where.device).manual_seed(seed)
        self.rows: list[Row] = []

    @property
    def device(self) -> Any:
        """Torch's device of operands."""
        return self.where.device

    # Operands ------------------------------------------------------------------------------------------

    def randn(self, *shape: int, scale: float = 1.0, dtype: Any = None) -> Any:
        """Return random normal values, bfloat16 by default: zeros would be multiplied faster."""
        torch = self.torch
        kind = torch.bfloat16 if dtype is None else dtype
        made = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return (made * scale).to(kind)

    def grid(self, rows: int, columns: int, density: float) -> Any:
        """Return which blocks are there, (rows, columns), drawn without replacement, at least one."""
        torch = self.torch
        total = rows * columns
        keep = max(round(density * total), 1)
        drawn = torch.randperm(total, generator=self.generator, device=self.device)[:keep]
        grid = torch.zeros(total, dtype=torch.bool, device=self.device)
        grid[drawn] = True
        return grid.view(rows, columns)

    def sets(self, flops: float, nbytes: float) -> int:
        """Return on how many sets of operands a call is timed that has so much to do."""
        if self.where.interpreted:
            return 1
        chip = CHIPS[self.where.arch]
        return 1 if max(flops / chip.flops["half"], nbytes / chip.bandwidth) > _SHORT else _SETS

    # Races ---------------------------------------------------------------------------------------------

    def timed(self, case: Case, name: str, kind: str, timed: Timed, **values: float) -> None:
        """Note a time, and more values of :class:`Row`."""
        row = Row(case, name, kind, "timed", timed.median, min(timed.seconds), len(timed.seconds), timed.how)
        self.rows.append(replace(row, **values))  # type: ignore[arg-type]

    def add(
        self, case: Case, name: str, kind: str, state: str, note: str = "", error: float = math.nan
    ) -> None:
        """Note why a contestant has no time."""
        self.rows.append(Row(case, name, kind, state, note=note, error=error))
        if state in ("wrong", "failed"):
            self.say(f"{case.section}: {case.name}: {name} {state}: {note}")

    def race(self, entries: Sequence[Entry]) -> None:
        """Check contestants, then time in turn those whose results are right."""
        if entries:
            self.say(f"{entries[0].case.section}: {entries[0].case.race.name}")
        ready: dict[int, Sequence[Call]] = {}
        errors: dict[int, float] = {}
        for at, entry in enumerate(entries):
            if self.budget.over:
                note = f"{self.budget.minutes:g} minutes were up"
                self.add(entry.case, entry.name, entry.kind, "skipped", note)
                continue
            try:
                calls = entry.make()
                errors[at] = self._error(entry, calls[0])
            except MissingError as why:
                self.add(entry.case, entry.name, entry.kind, "missing", str(why))
            except Exception as error:  # whatever a library raises is told, and the others run
                self.add(entry.case, entry.name, entry.kind, "failed", first_line(error))
            else:
                limit = _TOLERANCE[entry.case.dtype]
                if errors[at] <= limit:
                    ready[at] = calls
                else:
                    note = f"off by {errors[at]:.1e} of the largest value, more than {limit:.1e}"
                    self.add(entry.case, entry.name, entry.kind, "wrong", note, error=errors[at])
        timings = self.timer.race(ready, self.rounds) if ready else {}
        for at, timed in timings.items():
            e = entries[at]
            values = {"flops": e.flops, "nbytes": e.nbytes, "error": errors[at], "union": e.union}
            self.timed(e.case, e.name, e.kind, timed, **values)
        ready.clear()
        self.tidy()

    def tidy(self) -> None:
        """Give memory back that a race took."""
        gc.collect()
        if not self.where.interpreted:
            self.torch.cuda.empty_cache()

    def _error(self, entry: Entry, call: Call) -> float:
        torch = self.torch
        expected = entry.reference()
        # What an allocation finds is what was there before: a right result of somebody else, for instance.
        size = expected.numel() * expected.element_size()
        for share in (1, 2):
            torch.full((size // share + 1,), 255, dtype=torch.uint8, device=self.device)  # NaN as floats
        result = call()
        if entry.dense is not None:
            result = entry.dense(result)
        if tuple(result.shape) != tuple(expected.shape):
            raise ValueError(f"a result of shape {tuple(result.shape)}, expected {tuple(expected.shape)}")
        difference = (result.to(expected.dtype) - expected).abs().max()
        error = float(difference) / (float(expected.abs().max()) or 1.0)
        return math.inf if math.isnan(error) else error


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that calls another one at most once and remembers what it gave."""
    kept: list[Any] = []

    def get() -> Any:
        if not kept:
            kept.append(make())
        return kept[0]

    return get


def first_line(error: Exception) -> str:
    """Return what an error is and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
