"""Calls with typical shapes, one module for each group of operations."""

from prunus.cuda.compiling.case import Case
from prunus.cuda.compiling.cases import attention, layers, moe, paged, products, rows, scan, sparse

__all__ = ["CASES"]

_GROUPS = (products, sparse, rows, layers, moe, attention, scan, paged)

CASES: list[Case] = [case for group in _GROUPS for case in group.CASES]
