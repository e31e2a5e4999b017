"""Pagers of a call's own budget, and budgets that memory has no room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex

from prunus._format import size_text
from prunus.paged.pagers import free_memory, new_pager, pick_pager
from prunus.paged.sizes import parse_bytes

__all__ = ["pick", "taking"]


def pick(budget: SupportsIndex | str | None, pager: Any) -> Any:
    """Return the pager that a call's ``budget=`` and ``pager=`` mean.

    Raises
    ------
    ValueError
        If both are given, or the budget is no number of bytes.
    MemoryError
        If there is no memory for the budget.
    """
    if budget is None or pager is not None:
        return pick_pager(budget, pager)
    size = parse_bytes(budget)
    with taking(size):
        return new_pager(size)


@contextmanager
def taking(size: int) -> Iterator[None]:
    """Have a MemoryError say that a budget of so many bytes was asked for."""
    try:
        yield
    except MemoryError as error:
        free = free_memory()
        has = "" if free is None else f", about {size_text(free)} are free"
        raise MemoryError(
            f"there is no memory for a budget of {size_text(size)}{has}: choose a smaller budget"
        ) from error
