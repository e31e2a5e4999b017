"""Stacks of experts on disk: an expert is looked at, and read, when somebody chose it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.paged.array import PagedArray
from prunus.paged.indexing import parse
from prunus.paged.sparse import PagedBSR

__all__ = ["members"]


class _Members(Sequence[Any]):
    """The matrices of a stack on disk, each a view that is made when it is asked for."""

    def __init__(self, stack: Any) -> None:
        self._stack = stack

    def __len__(self) -> int:
        return int(self._stack.shape[0])

    def __getitem__(self, at: Any) -> Any:
        stack = self._stack
        return stack.member(at) if isinstance(stack, PagedBSR) else stack._contiguous(parse(at, stack.shape))


def members(stack: Any, name: str) -> Sequence[Any]:
    """Return the matrices of a stack (E, m, k) on disk.

    Raises
    ------
    TypeError
        If it is an expression, or a transpose.
    ValueError
        If the experts do not lie one after the other in the file.
    """
    if isinstance(stack, PagedBSR):
        return _Members(stack)
    if not isinstance(stack, PagedArray):
        raise TypeError(f"{name} must be an array on disk, got {type(stack).__name__}; save or load() it")
    if stack._perm[0] != 0:
        raise ValueError(f"the experts of {name} do not lie one after the other in the file; load() it")
    return _Members(stack)
