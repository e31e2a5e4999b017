"""Calls with typical shapes, one module for each group of operations."""

from prunus.cuda.compiling.case import Case
from prunus.cuda.compiling.cases import attention, moe, paged, products, rows, sparse

__all__ = ["CASES"]

CASES: list[Case] = [*products.CASES, *sparse.CASES, *rows.CASES, *moe.CASES, *attention.CASES, *paged.CASES]
