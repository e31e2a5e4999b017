"""What operations on arrays in files share: checks before and after, and what a trace tells of reading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prunus._trace import Span
from prunus.paged.store import Store

__all__ = ["check_file", "reading", "stores_of"]


def check_file(file: Any) -> None:
    """Check that a file is open, and what it was.

    Raises
    ------
    ValueError
        If it is closed, naming it.
    OSError
        If it was cut, replaced or changed.
    """
    try:
        file.check()
    except ValueError:
        raise ValueError(f"{os.fsdecode(file.path)}: the file is closed") from None


def stores_of(value: Any) -> list[Store]:
    """Return where the values of an array or a table on disk are."""
    value = getattr(value, "values", value)
    found = getattr(value, "store", None) or getattr(value, "_store", None)
    return [] if found is None else [found]


@contextmanager
def reading(at: Span, stores: Iterable[Store], used: int | None = None) -> Iterator[None]:
    """Check files around an operation that reads them, and count what it reads.

    Parameters
    ----------
    at : Span
        Where to count.
    stores : iterable of Store
        What is read.
    used : int, optional
        Bytes that the operation uses: what did not come from storage came from memory.

    Raises
    ------
    ValueError
        If a file was closed.
    OSError
        If a file was replaced, cut or, where nobody here may write it, changed since it was opened: a result
        may then be of the old and the new bytes.
    """
    every = list(stores)
    files = {id(store.file): store.file for store in every}
    for file in files.values():
        check_file(file)
    if not at:
        yield
    else:
        pagers = {id(store.pager): store.pager for store in every}
        before = sum(int(pager.stats()["bytes_read"]) for pager in pagers.values())
        yield
        read = sum(int(pager.stats()["bytes_read"]) for pager in pagers.values()) - before
        at.count(bytes_io=read, bytes_loaded=max((used or 0) - read, 0))
        at.read_by(", ".join(sorted({str(file.engine) for file in files.values()})))
    for file in files.values():
        check_file(file)
