"""Several chips in a mesh: which there are, and how they are named."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

from prunus.tensix.errors import MisusedError

__all__ = ["ChipAt", "Chips", "Mesh", "chips_of", "every", "mesh_of", "shares"]

#: Row and column of a chip.
ChipAt: TypeAlias = tuple[int, int]
#: Rows and columns of chips.
Mesh: TypeAlias = tuple[int, int]
Chips: TypeAlias = ChipAt | Sequence[ChipAt]


def mesh_of(given: object) -> Mesh:
    """Return the mesh that an argument means: two whole numbers of at least 1, or None for one chip.

    Raises
    ------
    TypeError
        If it is not two whole numbers.
    ValueError
        If one of them is less than 1, or more than any mesh has.
    """
    if given is None:
        return (1, 1)
    rows, columns = _pair(given, "mesh is rows and columns of chips, such as (2, 4)")
    if not (1 <= rows < 2**16 and 1 <= columns < 2**16):
        raise ValueError(f"mesh is rows and columns of chips, at least 1 each, got {given!r}")
    return rows, columns


def _pair(given: object, what: str) -> tuple[int, int]:
    try:
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise TypeError
        first, second = (operator.index(one) for one in given)
    except (TypeError, ValueError):
        raise TypeError(f"{what}: expected two whole numbers, got {given!r}") from None
    return first, second


def every(mesh: Mesh) -> list[ChipAt]:
    """Return all chips, row by row."""
    return [(row, column) for row in range(mesh[0]) for column in range(mesh[1])]


def chips_of(given: Chips | None) -> tuple[ChipAt, ...] | None:
    """Return the chips that an argument means: one (row, column), or several; None for all.

    Raises
    ------
    TypeError
        If it is something else.
    MisusedError
        If there are none.
    """
    if given is None:
        return None
    what = "chips are (row, column), or a list of them"
    listed = list(given)
    if not listed:
        raise MisusedError("misused: no chips")
    if not isinstance(listed[0], Sequence):
        return (_pair(listed, what),)
    return tuple(_pair(one, what) for one in listed)


def shares(length: int, parts: int, unit: int = 1) -> list[slice]:
    """Return ranges of about equal lengths that cover a length, each but the last a multiple of ``unit``."""
    units = -(-length // unit)
    ends = [min(length, unit * (units * part // parts)) for part in range(parts + 1)]
    ends[-1] = length
    return [slice(first, last) for first, last in pairwise(ends)]
