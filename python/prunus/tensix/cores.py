"""Cores by their logical coordinates."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prunus.tensix.errors import MisusedError

__all__ = ["Core", "CoreRange", "Cores", "core_of", "cores_of"]

Core: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class CoreRange:
    """A rectangle of cores.

    Iteration goes row by row. Multicasts take a range as their area.

    Parameters
    ----------
    first, last : tuple of int
        Logical coordinates (x, y) of its corners; both belong to it.

    Examples
    --------
    >>> from prunus.tensix import CoreRange
    >>> list(CoreRange((0, 0), (1, 1)))
    [(0, 0), (1, 0), (0, 1), (1, 1)]
    """

    first: Core
    last: Core

    def __post_init__(self) -> None:
        if self.first[0] > self.last[0] or self.first[1] > self.last[1] or min(self.first) < 0:
            raise MisusedError(f"misused: a range of cores from {self.first} to {self.last} has none")

    def __iter__(self) -> Iterator[Core]:
        for y in range(self.first[1], self.last[1] + 1):
            for x in range(self.first[0], self.last[0] + 1):
                yield x, y

    def __len__(self) -> int:
        return (self.last[0] - self.first[0] + 1) * (self.last[1] - self.first[1] + 1)

    def __contains__(self, core: object) -> bool:
        return any(core == own for own in self)


Cores: TypeAlias = Core | Sequence[Core] | CoreRange


def core_of(core: object) -> Core:
    """Return a core's coordinates as plain integers.

    Raises
    ------
    TypeError
        If they are not two integers.
    MisusedError
        If they are below 0; whether a chip has that core, it says itself.
    """
    if not isinstance(core, Sequence) or len(core) != 2:
        raise TypeError(f"expected cores as (x, y), a list of them or a CoreRange, got {core!r}")
    try:
        x, y = (operator.index(one) for one in core)
    except TypeError:
        raise TypeError(f"a core is two whole numbers (x, y), got {core!r}") from None
    if min(x, y) < 0:
        raise MisusedError(f"misused: core ({x}, {y}) does not exist: cores are counted from 0")
    return x, y


def cores_of(cores: Cores) -> list[Core]:
    """Return the cores that an argument means: one (x, y), several, or a range."""
    if isinstance(cores, CoreRange):
        return list(cores)
    listed = list(cores)
    if len(listed) == 2 and not isinstance(listed[0], Sequence):
        listed = [(listed[0], listed[1])]
    found = [core_of(core) for core in listed]
    if not found:
        raise MisusedError("misused: no cores")
    return found
